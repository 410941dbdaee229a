"""The model card's words and tables, of a world model made by hand with two cameras and two tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hand_specs import TASKS, make_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import Calibrations
from worldloop.core.types import Normalisation, Observation
from worldloop.storage.card import WorldModelCard, write_card
from worldloop.storage.checkpoint import Checkpoint, save_checkpoint
from worldloop.storage.hub import export_world_model, write_model_card


def _figures(auc: float) -> dict[str, Any]:
    return {"on_policy": {"n": 8, "auc": {"value": auc, "low": auc - 0.1, "high": auc + 0.1}, "psnr_db": 20 * auc}}


def _write(
    directory: Path, spec: SimulatorSpec, figures: dict[str, Any], closed_loop: dict[str, Any] | None = None
) -> str:
    normalisation = Normalisation(torch.zeros(5), torch.ones(5))
    save_checkpoint(directory, Checkpoint("world_model", "m", {}, spec, normalisation, {"w": torch.zeros(1)}))
    starts = Observation(
        frames={c.name: torch.zeros(1, 1, c.height, c.width, 3, dtype=torch.uint8) for c in spec.robot.cameras},
        proprio=torch.zeros(1, 5),
        task=(spec.tasks[0].id,),
        instruction=(spec.tasks[0].instruction,),
        env_step=torch.zeros(1, dtype=torch.long),
    )
    write_card(directory, WorldModelCard(Calibrations(), figures, starts, closed_loop or {}))
    return write_model_card(directory, "arm-world")


def test_cameras_and_tasks_are_named_and_judged_apart(tmp_path: Path) -> None:
    by_task = {"PushCube-v1": _figures(0.9), "PullCube-v1": _figures(0.7)}
    text = _write(tmp_path / "wm", make_spec(), _figures(0.8) | {"tasks": by_task})
    assert "world model of PushCube-v1 (“do PushCube-v1”), PullCube-v1 (“do PullCube-v1”), as a" in text
    assert "base (8 x 8 px), wrist (10 x 6 px), 10 frames a second of 2 actions each (x, y, z, grip; pd_ee" in text
    assert 'checkpoint="arm-world", task="PushCube-v1")' in text
    mean, push, pull = text.split("## Checked")[1].split("###")
    assert "First the mean over the tasks." in mean
    assert "| | on-policy, n 8 |" in mean
    assert "AUC | 0.800 (0.700 to 0.900) |" in mean
    assert push.startswith(" PushCube-v1\n\n| | on-policy, n 8 |")
    assert "AUC | 0.900 (" in push
    assert "| PSNR | 14.0 dB |" in pull


def test_one_task_has_one_table(tmp_path: Path) -> None:
    text = _write(tmp_path / "wm", make_spec({"base": (8, 8)}, TASKS[:1]), _figures(0.8))
    assert "world model of PushCube-v1 (“do PushCube-v1”), as a Gymnasium environment: base (8 x 8 px), 10 f" in text
    assert 'checkpoint="arm-world")' in text
    assert "###" not in text
    assert "mean over" not in text


def test_the_check_in_the_closed_loop_comes_first(tmp_path: Path) -> None:
    closed_loop = {
        "checkpoint": "checkpoints/iteration_001/policy_after_028",
        "n": 64,
        "num_starts": 16,
        "within_group_auc": {"value": 0.77, "low": 0.67, "high": 0.86},
        "declared": {"value": 0.8, "low": None, "high": None},
    }
    text = _write(tmp_path / "wm", make_spec(), _figures(0.8), closed_loop)
    section = text.split("## Checked in the closed loop")[1].split("## Checked on held-out episodes")[0]
    assert "A policy (policy_after_028) acted on imagined frames" in section
    assert "64 rollouts from 16 held-out states" in section
    assert "chance .5 | 0.770 (0.670 to 0.860) |" in section
    assert "| success as imagined | 0.800 |" in section
    assert "closed loop" not in _write(tmp_path / "unchecked", make_spec(), _figures(0.8))


def test_a_model_with_nothing_held_out_says_so(tmp_path: Path) -> None:
    text = _write(tmp_path / "wm", make_spec({"base": (8, 8)}, TASKS[:1]), {})
    assert text.split("## Checked on held-out episodes")[1].count("Nothing was held out, so there is no figure.") == 1
    assert "| |" not in text


def test_an_export_may_be_repeated_and_the_card_has_the_name_on_the_hub(tmp_path: Path) -> None:
    spec = make_spec({"base": (8, 8)}, TASKS[:1])
    _write(tmp_path / "wm", spec, _figures(0.8))
    for _ in range(2):  # as after an upload that failed
        export_world_model(tmp_path / "wm", tmp_path / "out", "me/world")
        assert 'checkpoint="hf://me/world")' in (tmp_path / "out/README.md").read_text()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(WorldloopError, match="out exists: export into a folder that does not exist yet"):
        export_world_model(tmp_path / "wm", tmp_path / "out")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
