import os

import numpy as np
import pytest

from worldloop.core.errors import WorldloopError
from worldloop.simulators import mujoco_rendering
from worldloop.simulators.mujoco_rendering import SceneRenderer, choose_opengl, probe_opengl

BOX = """
<mujoco><worldbody>
  <light pos=".5 .5 2" dir="-.3 -.3 -1" castshadow="true"/>
  <camera name="above" pos="0 0 1"/>
  <geom type="plane" size="2 2 .1" rgba=".8 .8 .8 1"/>
  <geom type="box" pos="0 .1 .2" size=".1 .05 .02" rgba="{colour} 1"/>
</worldbody></mujoco>
"""


@pytest.fixture
def variables(monkeypatch):
    """The environment variables that are chosen, unset, and put back afterwards."""
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def scene():
    mujoco = pytest.importorskip("mujoco", reason="needs the extra metaworld")

    def make(colour):
        model = mujoco.MjModel.from_xml_string(BOX.format(colour=colour))
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        return model, data

    return make


def allow(variables, *names):
    variables.setattr(mujoco_rendering, "probe_opengl", lambda name: name in names)


@pytest.mark.parametrize(("works", "chosen"), [(("egl", "osmesa"), "egl"), (("osmesa",), "osmesa")])
def test_egl_is_chosen_where_it_works_else_osmesa(variables, works, chosen):
    allow(variables, *works)
    assert choose_opengl() == chosen
    assert os.environ["MUJOCO_GL"] == os.environ["PYOPENGL_PLATFORM"] == chosen
    assert os.environ["LP_NUM_THREADS"] == "0"


@pytest.mark.parametrize("setting", ["osmesa", "glfw"])
def test_the_users_choice_stays(variables, setting):
    allow(variables, "egl")
    variables.setenv("MUJOCO_GL", setting)
    variables.setenv("LP_NUM_THREADS", "2")
    assert choose_opengl() == os.environ["MUJOCO_GL"] == setting
    assert os.environ["LP_NUM_THREADS"] == "2"
    assert ("PYOPENGL_PLATFORM" in os.environ) == (setting == "osmesa")


def test_without_opengl_the_error_names_the_packages(variables):
    allow(variables)
    with pytest.raises(WorldloopError, match=r"neither EGL nor OSMesa works.*libegl-mesa0.*libosmesa6"):
        choose_opengl()
    assert "MUJOCO_GL" not in os.environ


def test_drawing_that_is_turned_off_is_an_error(variables):
    variables.setenv("MUJOCO_GL", "disable")
    with pytest.raises(WorldloopError, match="MUJOCO_GL=disable turns off"):
        choose_opengl()


def test_an_opengl_that_does_not_exist_fails_the_probe():
    assert not probe_opengl("no_such_opengl")


def test_scenes_take_turns_and_survive_the_end_of_another(scene):
    red, blue = scene("1 0 0"), scene("0 0 1")
    renderers = [SceneRenderer(model, 96, 48) for model, _ in (red, blue)]
    first = [r.render(data, "above", 96, 48) for r, (_, data) in zip(renderers, (red, blue), strict=True)]
    assert first[0].shape == (48, 96, 3)
    assert first[0].dtype == np.uint8
    # the box lies above the middle, towards +y
    assert first[0][10:14, 46:50].mean((0, 1)).argmax() == 0
    assert first[1][10:14, 46:50].mean((0, 1)).argmax() == 2
    assert np.ptp(first[0][40, 40:56].mean(0)) < 10
    renderers[0].close()
    assert np.array_equal(renderers[1].render(blue[1], "above", 96, 48), first[1])
    again = SceneRenderer(red[0], 96, 48)
    assert np.array_equal(again.render(red[1], "above", 96, 48), first[0])
    again.close()
    renderers[1].close()


def test_shadows_are_off(scene):
    model, data = scene("1 0 0")
    plain, shadowed = SceneRenderer(model, 64, 64), SceneRenderer(model, 64, 64, shadows=True)
    images = [renderer.render(data, "above", 64, 64).astype(int) for renderer in (plain, shadowed)]
    assert ((images[0] - images[1]) > 20).any()
    plain.close()
    shadowed.close()


def test_an_unknown_camera_is_named(scene):
    model, data = scene("1 0 0")
    renderer = SceneRenderer(model, 16, 16)
    with pytest.raises(ValueError, match="camera 'below' is not one of above"):
        renderer.render(data, "below", 16, 16)
    renderer.close()
