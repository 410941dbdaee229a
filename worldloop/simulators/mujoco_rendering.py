"""Images of MuJoCo scenes without a screen: the choice of OpenGL, and a renderer. Meta-World and LIBERO share it.

MuJoCo asks the environment variable ``MUJOCO_GL`` once, when it is first imported. So whoever imports mujoco, or what
imports it, calls `choose_opengl` before. Imports mujoco in functions only.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldloop.core.errors import WorldloopError

HEADLESS = ("egl", "osmesa")  # in the order in which they are tried
PACKAGES = {"egl": "libegl1 libegl-mesa0 libgl1", "osmesa": "libosmesa6"}  # of Debian and Ubuntu
_MAX_GEOMS = 10000  # in one image; MuJoCo's renderer has the same limit
_PROBE_TIMEOUT_S = 60
_PROBE = """
import importlib, sys
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(16, 16)
context.make_current()
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
print("it draws", flush=True)
import os
os._exit(0)
"""


def choose_opengl() -> str:
    """The OpenGL with which MuJoCo draws in this process and its children; sets ``MUJOCO_GL`` and what belongs to it.

    A value that the user has set stays. Else EGL where it works, else OSMesa; finding out takes a second.
    Raises `WorldloopError` where neither works, and for a value that turns drawing off.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen in ("disable", "disabled", "off", "false", "0"):
        raise WorldloopError(f"MUJOCO_GL={chosen} turns off the images that policies need; unset it")
    if not chosen:
        working = (name for name in HEADLESS if probe_opengl(name))
        chosen = next(working, "")
    if not chosen:
        raise WorldloopError(
            "MuJoCo cannot draw images here: neither EGL nor OSMesa works; install one of them: "
            + ", or ".join(f"apt-get install {PACKAGES[name]}" for name in HEADLESS)
        )
    os.environ["MUJOCO_GL"] = chosen
    if chosen in HEADLESS:
        os.environ.setdefault("PYOPENGL_PLATFORM", chosen)
    # Mesa's software driver rasterises in the calling thread: there is one process a core already.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    return chosen


@cache
def probe_opengl(name: str) -> bool:
    """Whether MuJoCo can draw with ``name``, egl or osmesa. Tried in another process, which may crash."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE, name],
            env={**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name},
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0 and "it draws" in result.stdout


@cache
def _open_context(process: int) -> Any:
    """The OpenGL context of this process. All scenes share it, and it lasts until the process ends.

    Contexts of their own would be freed one by one, and freeing an EGL context breaks the next one's calls.
    """
    import importlib

    chosen = choose_opengl()
    try:
        module = importlib.import_module(f"mujoco.{chosen}" if chosen in HEADLESS else "mujoco")
        context = module.GLContext(16, 16)  # scenes are drawn into buffers of their own, so its size is of no use
        context.make_current()
    except Exception as error:  # PyOpenGL and the drivers raise all kinds
        remedy = f"apt-get install {PACKAGES[chosen]}, or unset MUJOCO_GL" if chosen in HEADLESS else "unset MUJOCO_GL"
        raise WorldloopError(f"MuJoCo cannot draw with MUJOCO_GL={chosen} ({error}); {remedy}") from error
    atexit.register(context.free)  # before EGL itself ends, which was registered earlier
    return context


class SceneRenderer:
    """Draws one MuJoCo scene. For one thread; call `close` before the model is given up.

    Without shadows: they take half of the time and more.
    """

    def __init__(self, model: Any, max_width: int, max_height: int, shadows: bool = False) -> None:
        self._gl = _open_context(os.getpid())
        import mujoco

        self._gl.make_current()
        screen = model.vis.global_
        screen.offwidth, screen.offheight = max(screen.offwidth, max_width), max(screen.offheight, max_height)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._options = mujoco.MjvOption()
        self._model = model

    def render(self, data: Any, camera: str, width: int, height: int) -> NDArray[np.uint8]:
        """The image u8 [height, width, 3] of the model's camera ``camera``; ``ValueError`` for an unknown one."""
        import mujoco

        number = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if number < 0:
            known = ", ".join(self._model.camera(i).name for i in range(self._model.ncam))
            raise ValueError(f"camera {camera!r} is not one of {known}")
        self._gl.make_current()
        self._camera.fixedcamid = number
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        image = np.empty((height, width, 3), dtype=np.uint8)
        area = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)  # another scene's may be bound
        mujoco.mjr_render(area, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, area, self._context)
        return image[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the scene's buffers; the renderer cannot be used afterwards."""
        self._gl.make_current()
        self._context.free()
