"""When a student of fewer sampler steps is taken, and a loop that takes one."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hand_specs import make_spec
from imagined import make_episodes
from reporters import RecordingReporter

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.factory import checkpoints
from worldloop.loop.run import run_loop
from worldloop.loop.schedule import list_stages
from worldloop.stages import distil_world_model, fit_world_model
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState
from worldloop.training.data_parallel import DataParallel
from worldloop.world_model.config import WorldModelConfig

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
LIMITS = distil_world_model.Config(num_steps=1, max_auc_loss=0.02, max_psnr_loss_db=0.5)


class _Model:
    """Nothing but a number of sampler steps, by which it is told what it imagines."""

    spec = make_spec(tasks=("push",))

    def __init__(self) -> None:
        self.config = WorldModelConfig(num_sampler_steps=4)

    def to(self, device: object) -> "_Model":
        return self

    for_imagination = train = eval = lambda self: self


@pytest.mark.parametrize(("error", "is_taken"), [(3, True), (4, True), (8, False)])
def test_only_a_student_that_is_as_good_replaces_its_teacher(
    error: int, is_taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    success = [1, 0] * 10
    imagined = {4: make_episodes(success, success, 4), 1: make_episodes(success, success, error)}
    saved, reporter = [], RecordingReporter()
    models = SimpleNamespace(
        load_world_model=lambda path: _Model() if path == "teacher" else None,
        save_world_model=lambda model, path: saved.append((model.config.num_sampler_steps, path)),
    )
    setup = SimpleNamespace(data_parallel=DataParallel(), checkpoint_root=None, drop_checkpoint=lambda name: None)
    context: Any = SimpleNamespace(
        seed=0, device="cpu", models=models, setup=setup, reporter=reporter,
        open_clips=lambda version, split, spec: None, config_of=lambda kind: kind(),
    )  # fmt: skip
    monkeypatch.setattr(fit_world_model, "open_training_clips", lambda state, context: None)
    monkeypatch.setattr(fit_world_model, "fit", lambda student, *others, **settings: student)
    monkeypatch.setattr(
        distil_world_model,
        "imagine_held_out",
        lambda model, *others, **settings: {"on_policy": imagined[model.config.num_sampler_steps]},
    )
    state = LoopState(iteration=2, world_model="teacher", teacher="teacher", world_model_steps=10, num_fits=1)
    after = distil_world_model.run(state, replace(LIMITS, num_steps=5), context)
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
            "check_world_model.probe_steps=0",
            "check_world_model.reset_every=[]",
            "check_world_model.num_videos=0",
            "improve_policy.bootstraps=false",
            "improve_policy.num_updates=1",
            "improve_policy.num_candidates=1",
            "improve_policy.num_imitation_steps=10",
            "evaluate_policy.num_states=10",
        ],
    )
    assert list_stages(config, 1)[:3] == ("fit_world_model", "distil_world_model", "check_world_model")
    run_loop(config)
    run = tmp_path / "debug"
    state = RunDirectory(run).read_state()
    assert state.teacher == "checkpoints/iteration_002/world_model"
    assert state.world_model == "checkpoints/iteration_002/world_model_student"
    assert state.world_model_steps == 8 + 6 + 4 + 6
    steps = [
        checkpoints.load_world_model(run / path).config.num_sampler_steps for path in (state.teacher, state.world_model)
    ]
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
