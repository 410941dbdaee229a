"""When a student of fewer sampler steps is taken, and a loop that takes one."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reporters import RecordingReporter

from worldloop.config.schema import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.types import Clip
from worldloop.evaluation.held_out import OpenLoop
from worldloop.evaluation.open_loop import Branches
from worldloop.factory import build
from worldloop.loop.run import run_loop
from worldloop.loop.schedule import list_stages
from worldloop.stages import distil_world_model, fit_world_model
from worldloop.stages.distil_world_model import compare, describe, find_loss
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState
from worldloop.training.resume import TrainingSetup
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.training import TeacherTarget

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
LIMITS = distil_world_model.Config(num_steps=1, max_auc_loss=0.02, max_psnr_loss_db=0.5)


def _episodes(
    logit: np.ndarray, success: np.ndarray, error: int | list[list[int]], valid: list[list[bool]] | None = None
) -> OpenLoop:
    """N episodes of M frames, of which every pixel is ``error`` [N, M] grey levels off; one frame each for a number."""
    N = len(logit)
    errors = torch.full((N, 1), error) if isinstance(error, int) else torch.tensor(error)
    M = errors.shape[1]
    truth = Clip(
        context=torch.zeros(N, 3, 8, 8, 3, dtype=torch.uint8),
        context_proprio=torch.zeros(N, 1),
        actions=torch.zeros(N, M, 1, 1),
        frames=torch.zeros(N, M, 8, 8, 3, dtype=torch.uint8),
        proprio=torch.zeros(N, M, 1),
        success=torch.from_numpy(success)[:, None].repeat(1, M).float(),
        valid=torch.ones(N, M, dtype=torch.bool) if valid is None else torch.tensor(valid),
        instruction=("go",) * N,
        index=torch.zeros(N, 2, dtype=torch.long),
        is_on_policy=torch.ones(N, dtype=torch.bool),
    )
    frames = truth.frames + errors[..., None, None, None].to(torch.uint8)
    branches = Branches(frames, truth.proprio, torch.from_numpy(logit)[:, None].repeat(1, M).float(), truth)
    return OpenLoop(logit, success, ("success",) * N, branches)


def _judged(logit: np.ndarray, success: np.ndarray, error: int) -> dict[str, OpenLoop]:
    return {"on_policy": _episodes(logit, success, error)}


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


def test_frames_are_compared_episode_by_episode_where_they_are_valid() -> None:
    """Easy and hard episodes lose nearly as much, so that their differences have a narrow interval."""
    success = np.arange(4) % 2 == 0
    logit, valid = success.astype(float), [[True, True], [True, False]] * 2
    teacher, student = (
        {"on_policy": _episodes(logit, success, error, valid)}
        for error in ([[2, 2], [4, 4], [16, 16], [32, 32]], [[4, 8], [12, 99], [32, 64], [96, 1]])
    )
    # Two of the four have twice the error, then four times, -9.031 dB on average; two three times, -9.542 dB.
    drops = [-20 * np.log10(2 * 4) / 2, -20 * np.log10(3)]
    figures = compare(teacher, student)["psnr_db"]
    assert figures["value"] == pytest.approx(np.mean(drops), abs=1e-3)
    assert drops[1] - 1e-3 < figures["low"] < figures["high"] < drops[0] + 1e-3


def test_the_policys_own_episodes_decide_where_there_are_enough_of_them() -> None:
    success = np.arange(16) % 2 == 0
    few, two = success[:8], success[:2]
    teacher = {"scripted": _episodes(few * 1.0, few, 4), "on_policy": _episodes(success * 1.0, success, 4)}
    student = {"scripted": _episodes(few * 1.0, few, 8), "on_policy": teacher["on_policy"]}
    own = compare(teacher, student)
    assert (own["n"], own["auc"]["value"], own["psnr_db"]["value"]) == (16, 0, 0)
    teacher["on_policy"] = _episodes(np.array([1.0, 0.0]), two, 4)
    student["on_policy"] = _episodes(np.array([-1.0, 0.0]), two, 4)
    pooled = compare(teacher, student)
    assert pooled["n"] == 10
    assert pooled["auc"]["value"] == pytest.approx(-0.2)  # of 5 successes one falls below all 5 failures: 20 of 25
    assert pooled["psnr_db"]["value"] == pytest.approx(-0.8 * 20 * np.log10(2), abs=1e-3)  # 8 of 10: twice the error
    assert compare({}, {}) == {"n": 0, "auc": None, "psnr_db": None}


def _interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def test_the_lower_bounds_decide_and_may_be_what_is_allowed() -> None:
    figures = {"n": 7, "auc": _interval(0.01, -0.02, 0.03), "psnr_db": _interval(-0.1, -0.5, 0.0)}
    assert find_loss(figures, LIMITS) == ""
    assert describe(figures) == "accepted, AUC +0.010 (-0.020 to +0.030), PSNR -0.100 (-0.500 to +0.000) dB, n 7"
    for name, gain, message in (
        ("auc", _interval(0.01, -0.021, 0.03), "auc +0.010 (-0.021 to +0.030) against the teacher's, n 7, allowed: "),
        ("psnr_db", _interval(0.0, -0.6, 0.6), "psnr_db +0.000 (-0.600 to +0.600) against the teacher's, n 7, "),
        ("auc", _interval(0.0, float("nan"), float("nan")), "auc +0.000 (+nan to +nan)"),
        ("psnr_db", None, "no held-out episodes to compare its psnr_db on"),
    ):
        assert find_loss(figures | {name: gain}, LIMITS).startswith(message)
    assert find_loss(figures | {"auc": _interval(0.01, -0.021, 0.03)}, LIMITS).endswith("allowed: down to -0.02")


class _Model:
    """Nothing but a number of sampler steps, by which it is told what it imagines."""

    def __init__(self) -> None:
        self.config = WorldModelConfig(num_sampler_steps=4)

    def to(self, device: object) -> "_Model":
        return self

    for_imagination = train = eval = lambda self: self


@pytest.mark.parametrize(("error", "is_taken"), [(3, True), (4, True), (8, False)])
def test_only_a_student_that_is_as_good_replaces_its_teacher(
    error: int, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    success = np.arange(20) % 2 == 0
    imagined = {4: _episodes(success * 1.0, success, 4), 1: _episodes(success * 1.0, success, error)}
    own = SimpleNamespace(episode_index=lambda source: torch.arange(20 if source == ("policy",) else 0))
    saved, targets, reporter = [], [], RecordingReporter()
    models = SimpleNamespace(
        load_world_model=lambda path: _Model() if path == "teacher" else None,
        save_world_model=lambda model, path: saved.append((model.config.num_sampler_steps, path)),
    )
    context: Any = SimpleNamespace(
        seed=0, device="cpu", setup=TrainingSetup(), models=models, reporter=reporter, config_of=lambda kind: kind(),
        open_clips=lambda version, split: own,
    )  # fmt: skip

    def fit(student: _Model, clips: object, *others: object, target: TeacherTarget, **settings: object) -> _Model:
        targets.append((target.teacher.config.num_sampler_steps, target.num_steps, settings["num_steps"]))
        return student

    monkeypatch.setattr(fit_world_model, "fit", fit)
    monkeypatch.setattr(fit_world_model, "open_training_clips", lambda state, context: None)
    monkeypatch.setattr(
        distil_world_model, "imagine_episodes", lambda model, *others: imagined[model.config.num_sampler_steps]
    )
    state = LoopState(iteration=2, world_model="teacher", teacher="teacher", world_model_steps=10, num_fits=1)
    config = replace(LIMITS, num_steps=5)
    after = distil_world_model.run(state, config, context)
    assert targets == [(4, 1, 5)]
    student = "checkpoints/iteration_002/world_model_student"
    assert (after.world_model, after.teacher) == (student if is_taken else "teacher", "teacher")
    assert saved == ([(1, student)] if is_taken else [])
    assert after.world_model_steps == 15
    figures = after.records[2]["distillation"]
    assert (figures["accepted"], figures["num_sampler_steps"], figures["n"]) == (is_taken, 1, 20)
    assert figures["psnr_db"]["value"] == pytest.approx(20 * np.log10(4 / error), abs=1e-3)
    assert reporter.lines[0].startswith(
        "student of 1 steps: " + ("accepted, AUC" if is_taken else "refused, psnr_db -6.021")
    )


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
