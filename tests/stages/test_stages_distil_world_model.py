"""When a student of fewer sampler steps is taken, and a loop that takes one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldloop import build
from worldloop.config import load_config
from worldloop.errors import WorldloopError
from worldloop.loop import list_stages, run_loop
from worldloop.open_loop import Branches
from worldloop.runtime.run_directory import RunDirectory
from worldloop.stages.distil_world_model import DistilWorldModelConfig, compare, find_loss
from worldloop.stages.held_out import OpenLoop
from worldloop.types import Clip

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
LIMITS = DistilWorldModelConfig(num_steps=1, max_auc_loss=0.02, max_psnr_loss_db=0.5)


def _judged(logit: np.ndarray, success: np.ndarray, error: int) -> dict[str, OpenLoop]:
    """Episodes of one frame of which every pixel is ``error`` grey levels off."""
    N = len(logit)
    truth = Clip(
        context=torch.zeros(N, 3, 8, 8, 3, dtype=torch.uint8),
        context_proprio=torch.zeros(N, 1),
        actions=torch.zeros(N, 1, 1, 1),
        frames=torch.zeros(N, 1, 8, 8, 3, dtype=torch.uint8),
        proprio=torch.zeros(N, 1, 1),
        success=torch.from_numpy(success)[:, None].float(),
        valid=torch.ones(N, 1, dtype=torch.bool),
        instruction=("go",) * N,
        index=torch.zeros(N, 2, dtype=torch.long),
        is_on_policy=torch.ones(N, dtype=torch.bool),
    )
    branches = Branches(truth.frames + error, truth.proprio, torch.from_numpy(logit)[:, None].float(), truth)
    return {"on_policy": OpenLoop(logit, success, ("success",) * N, branches)}


def test_a_student_that_sees_as_well_is_taken_and_a_worse_one_is_not() -> None:
    success = np.arange(200) % 2 == 0
    good = np.where(success, 1.0, -1.0)
    teacher = _judged(good, success, 4)
    same = compare(teacher, teacher)
    assert same == {
        "n": 200,
        "auc": {"value": 0.0, "low": 0.0, "high": 0.0},
        "psnr_db": {"value": 0.0, "low": 0.0, "high": 0.0},
    }
    assert find_loss(same, LIMITS) == ""

    blurred = compare(teacher, _judged(good, success, 8))  # twice the error is 6.02 dB
    assert blurred["psnr_db"]["value"] == pytest.approx(-20 * np.log10(2), abs=1e-3)
    assert "psnr_db -6.021 (-6.021 to -6.021)" in find_loss(blurred, LIMITS)
    assert find_loss(blurred, replace(LIMITS, max_psnr_loss_db=6.1)) == ""

    blind = compare(teacher, _judged(np.zeros(200), success, 4))
    assert blind["auc"] == {"value": -0.5, "low": -0.5, "high": -0.5}
    assert find_loss(blind, LIMITS).startswith("auc -0.500")


def test_too_few_episodes_to_tell_are_no_proof() -> None:
    """One of twelve orders reversed may be chance, and may be more than is allowed: the interval decides."""
    success = np.arange(24) % 2 == 0
    student = np.where(success, 1.0, -1.0)
    student[0] = -2.0
    figures = compare(_judged(np.where(success, 1.0, -1.0), success, 4), _judged(student, success, 4))
    assert figures["auc"]["low"] < figures["auc"]["value"] < 0
    assert find_loss(figures, replace(LIMITS, max_auc_loss=0.1)).startswith("auc")
    alike = np.ones(24, dtype=bool)
    only = compare(_judged(student, alike, 4), _judged(student, alike, 4))
    assert find_loss(only, LIMITS) == "no held-out episodes to compare its auc on"


def test_a_loop_goes_on_with_the_student_and_fits_the_teacher(tmp_path: Path) -> None:
    config = load_config(
        DEBUG,
        [
            f"run_root={tmp_path}",
            "world_model.num_sampler_steps=4",
            "distil_world_model.num_steps=6",
            "distil_world_model.num_sampler_steps=2",
            "distil_world_model.max_auc_loss=1",
            "distil_world_model.max_psnr_loss_db=60",
            "fit_world_model.num_steps=8",
            "fit_world_model.num_refit_steps=4",
            "fit_world_model.num_proprio_steps=4",
            "clone_policy.num_steps=8",
            "check_world_model.required_auc=0",
            "check_world_model.probe_steps=5",
            "improve_policy.num_updates=2",
        ],
    )
    assert list_stages(config, 1)[:3] == ("fit_world_model", "distil_world_model", "check_world_model")
    run_loop(config)
    run = tmp_path / "debug"
    state = RunDirectory(run).read_state()
    assert state.teacher == "checkpoints/iteration_002/world_model"
    assert state.world_model == "checkpoints/iteration_002/world_model_student"
    assert state.world_model_steps == 8 + 6 + 4 + 6
    steps = [build.load_world_model(run / path).config.num_sampler_steps for path in (state.teacher, state.world_model)]
    assert steps == [4, 2]
    assert (run / state.world_model / "card.json").is_file()
    for entry in json.loads((run / "results.json").read_text())["iterations"][1:]:
        assert entry["distillation"]["accepted"] is True
        assert entry["distillation"]["psnr_db"]["low"] <= entry["distillation"]["psnr_db"]["high"]


def test_student_of_as_many_steps_is_refused() -> None:
    with pytest.raises(WorldloopError, match="num_sampler_steps 3 must divide world_model"):
        load_config(
            DEBUG,
            [
                "world_model.num_sampler_steps=4",
                "distil_world_model.num_steps=1",
                "distil_world_model.num_sampler_steps=3",
            ],
        )
    assert "distil_world_model" not in list_stages(load_config(DEBUG), 1)
