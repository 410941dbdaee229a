"""What a refit between two rounds of an improvement changes, and what it leaves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reporters import RecordingReporter

from worldloop.config.loading import load_config
from worldloop.core.success import Calibration, Calibrations, Trust
from worldloop.loop.run import make_context
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import refit_world_model
from worldloop.stages.context import StageContext
from worldloop.storage.card import read_card
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
TASK = "ToyPush-v1"
FITTED = "checkpoints/iteration_001/world_model"


@pytest.fixture
def refit(debug_run: Path, tmp_path: Path) -> Any:
    """``refit(*overrides)`` before the second round of iteration 1, in a copy of the debug run."""
    copy = tmp_path / "debug"
    shutil.copytree(debug_run, copy, ignore=shutil.ignore_patterns(".lock"))
    stored = RunDirectory(copy).read_state()

    def refit(*overrides: str) -> tuple[LoopState, LoopState, StageContext]:
        config = load_config(DEBUG, ["refit_world_model.num_steps=2", *overrides])
        context = make_context("refit_world_model", config, copy, InlineRuntime(0, 0, SilentDisplay()), SilentDisplay())
        context = replace(context, reporter=RecordingReporter())
        state = replace(
            stored, iteration=1, dataset="v001-1", num_rounds=1, world_model=FITTED, teacher=FITTED,
            calibrations=Calibrations({TASK: Calibration(threshold=0.7)}), trust={TASK: Trust(True)},
        )  # fmt: skip
        return state, refit_world_model.run(state, config.section(refit_world_model.Config), context), context

    return refit


def changed_parts(context: StageContext, before: LoopState, after: LoopState) -> set[str]:
    """The parts of the world model whose weights or statistics differ."""
    old, new = (context.models.load_world_model(state.world_model).state_dict() for state in (before, after))
    return {name.split(".")[0] for name in new if not torch.equal(old[name], new[name])}


def test_a_refit_trains_every_part_and_leaves_what_was_checked(refit: Any) -> None:
    before, after, context = refit("refit_world_model.num_proprio_steps=2")
    assert after.world_model == after.teacher == "checkpoints/iteration_001/world_model_round_2"
    assert {"proprio_head", "denoiser", "success_head", "error_head"} <= changed_parts(context, before, after)
    assert after.world_model_steps == before.world_model_steps + 2
    assert (after.calibrations, after.trust, after.num_fits) == (before.calibrations, before.trust, before.num_fits)
    old, new = (read_card(context.models.run_dir / state.world_model) for state in (before, after))
    assert (new.calibrations, new.figures) == (old.calibrations, old.figures)


def test_imagined_proprio_may_go_where_the_replays_went(refit: Any) -> None:
    _, after, context = refit("refit_world_model.num_proprio_steps=0")
    low, high = context.open_clips("v001-1", "train").proprio_range()
    model = context.models.load_world_model(after.world_model)
    torch.testing.assert_close(model.proprio_low * model.proprio_std + model.proprio_mean, low)
    torch.testing.assert_close(model.proprio_high * model.proprio_std + model.proprio_mean, high)


def test_without_proprio_steps_the_proprio_head_stays(refit: Any) -> None:
    before, after, context = refit("refit_world_model.num_proprio_steps=0")
    assert "proprio_head" not in changed_parts(context, before, after)
