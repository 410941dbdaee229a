"""The public functions of the package, and what finds a world model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import worldloop
from worldloop.core.errors import WorldloopError
from worldloop.factory.pretrained import find_world_model, load_checked_world_model


def test_a_run_its_world_model_and_an_exported_folder_are_the_same_model(debug_run: Path, tmp_path: Path) -> None:
    path = json.loads((debug_run / "state.json").read_bytes())["world_model"]
    assert find_world_model(debug_run) == debug_run / path
    worldloop.save_pretrained(debug_run, tmp_path / "exported")
    models = [worldloop.from_pretrained(x, "cpu") for x in (debug_run, debug_run / path, str(tmp_path / "exported"))]
    for model in models:
        assert not model.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, models[0].state_dict()[name])


def test_a_checked_world_model_comes_with_its_card(debug_run: Path, tmp_path: Path) -> None:
    world_model, card = load_checked_world_model(debug_run)
    assert world_model.spec.task_ids == ("ToyPush-v1",)
    assert len(card.starts) > 1
    with pytest.raises(WorldloopError, match="does not exist"):
        load_checked_world_model(tmp_path / "nowhere")


def test_a_device_that_is_not_there_is_named(debug_run: Path) -> None:
    with pytest.raises(WorldloopError, match="device 'tpu' is not known: auto, cpu or cuda"):
        worldloop.from_pretrained(debug_run, "tpu")


def test_importing_the_package_is_light_and_knows_its_names() -> None:
    code = (
        "import sys, worldloop; assert 'torch' not in sys.modules; print(sorted(worldloop.__all__));"
        "worldloop.from_pretrained; assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['__version__', 'from_pretrained', 'save_pretrained']\n"
    with pytest.raises(AttributeError, match="module 'worldloop' has no attribute 'train'"):
        worldloop.train  # noqa: B018


def test_the_old_name_says_the_new_one() -> None:
    with pytest.raises(ImportError, match=r"write `worldloop\.from_pretrained`"):
        import worldloop.build  # noqa: F401
