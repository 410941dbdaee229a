"""The stages of inverse dynamics in the loop, on a debug run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reporters import RecordingReporter
from stage_runs import DEBUG, run_stage

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.factory.checkpoints import load_inverse_dynamics, load_policy
from worldloop.loop.run import make_context
from worldloop.loop.schedule import list_stages
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages.context import StageContext
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

BOTH = ("fit_inverse_dynamics", "check_inverse_dynamics")


def test_they_are_off_and_come_before_the_world_model_once_enabled() -> None:
    assert not set(BOTH) & set(list_stages(load_config(DEBUG, []), 1))
    config = load_config(DEBUG, ["fit_inverse_dynamics.enabled=true"])
    assert list_stages(config, 1)[:3] == (*BOTH, "fit_world_model")
    config = load_config(DEBUG, ["fit_world_model.inverse_dynamics_weight=1"])
    assert list_stages(config, 1)[:2] == BOTH, "the loss on actions needs them"
    assert not set(BOTH) & set(list_stages(config, 0))


def open_run(debug_run: Path, tmp_path: Path, *overrides: str) -> tuple[LoopState, StageContext]:
    """The debug run's data in a folder of its own, after iteration 0."""
    (tmp_path / "sans").symlink_to(debug_run / "sans")
    config = load_config(DEBUG, ["runtime=inline", "fit_inverse_dynamics.enabled=true", *overrides])
    state = RunDirectory(debug_run).read_state()
    state = LoopState(iteration=1, dataset="v001", clone=state.clone, policy=state.clone, records=state.records[:1])
    display = SilentDisplay()
    return state, make_context("fit_inverse_dynamics", config, tmp_path, InlineRuntime(0, 0, display), display)


def test_two_models_are_fitted_checked_and_loaded(debug_run: Path, tmp_path: Path) -> None:
    state, context = open_run(debug_run, tmp_path)
    state = run_stage("fit_inverse_dynamics", state, context)
    model, judge = (load_inverse_dynamics(tmp_path / p) for p in (state.inverse_dynamics, state.inverse_dynamics_judge))
    assert model.config.for_judging() == judge.config
    assert not model.training

    checked = run_stage("check_inverse_dynamics", state, context).records[1]["inverse_dynamics_check"]
    assert list(checked) == ["inverse_dynamics", "inverse_dynamics_judge"]
    for figures in checked.values():
        assert figures["explained"]["joints"]["value"] > 0.2, "the mean of the episodes has 0"
        assert 0 <= figures["followed"]["rate"] <= 1
        assert figures["followed"]["n"] == figures["followed"]["tasks"]["ToyPush-v1"]["n"] > 0

    weights = {name: value.clone() for name, value in model.state_dict().items()}
    (tmp_path / state.inverse_dynamics / "checkpoint.json").unlink()  # the first one is fitted again, and is the same
    again = run_stage("fit_inverse_dynamics", state, context)
    for name, value in load_inverse_dynamics(tmp_path / again.inverse_dynamics).state_dict().items():
        assert torch.equal(value, weights[name])


def test_a_robot_that_cannot_be_judged_is_still_read(debug_run: Path, tmp_path: Path) -> None:
    """Without a simulator state nothing is followed, as with a recording."""
    state, context = open_run(debug_run, tmp_path, "fit_inverse_dynamics.num_steps=1")
    state = run_stage("fit_inverse_dynamics", state, context)
    cache = context.open_cache("v001")
    read = cache.episode
    cache.episode = lambda number: replace(read(number), sim_state=np.zeros((len(read(number).proprio), 0), np.float32))
    object.__setattr__(context, "open_cache", lambda _: cache)
    checked = run_stage("check_inverse_dynamics", state, context).records[1]["inverse_dynamics_check"]
    assert checked["inverse_dynamics"]["followed"] is None
    assert checked["inverse_dynamics"]["explained"]["joints"] is not None


def test_the_world_model_learns_to_show_the_actions(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit with the loss on actions shows it, and leaves the inverse dynamics model as it is."""
    overrides = ("fit_world_model.inverse_dynamics_weight=1", "fit_world_model.num_steps=3")
    state, context = open_run(debug_run, tmp_path, *overrides, "fit_world_model.num_proprio_steps=1")
    state = run_stage("fit_inverse_dynamics", state, context)
    loaded = []

    def load(path: str) -> InverseDynamics:
        loaded.append(load_inverse_dynamics(tmp_path / path))
        return loaded[-1]

    monkeypatch.setattr(context.models, "load_inverse_dynamics", load)
    reporter = RecordingReporter()
    state = run_stage("fit_world_model", state, replace(context, reporter=reporter))
    curves = [values for values in reporter.curves["fit_world_model"].values() if "fit_world_model/loss" in values]
    assert all(values["fit_world_model/loss_actions"] > 0 for values in curves)
    assert curves
    (model,) = loaded
    fresh = load_inverse_dynamics(tmp_path / state.inverse_dynamics).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [
                "fit_world_model.inverse_dynamics_weight=1",
                "world_model.codec=wan",
                "world_model.denoiser=cosmos",
                "world_model.pretrained=somewhere",
            ],
            "reads pixels: set it to 0 with world_model.codec wan",
        ),
        (["fit_world_model.inverse_dynamics_weight=-1"], "fit_world_model.inverse_dynamics_weight"),
    ],
)
def test_settings_of_the_loss_on_actions_have_bounds(overrides: list[str], message: str) -> None:
    with pytest.raises(WorldloopError, match=message):
        load_config(DEBUG, overrides)


def test_a_checkpoint_of_another_kind_is_named(debug_run: Path) -> None:
    policy = debug_run / "checkpoints/iteration_000/policy"
    load_policy(policy)
    with pytest.raises(WorldloopError, match="holds a policy, not an inverse dynamics model"):
        load_inverse_dynamics(policy)


def test_one_initial_state_leaves_a_model_without_data(debug_run: Path, tmp_path: Path) -> None:
    state, context = open_run(debug_run, tmp_path)
    clips = context.open_clips("v001", "train")
    first = clips.cache.metas[int(clips.candidates[0, 0])].initial_state_id
    clips.cache.metas = [replace(meta, initial_state_id=first) for meta in clips.cache.metas]
    object.__setattr__(context, "open_clips", lambda *_: clips)
    with pytest.raises(WorldloopError, match="has no training episode to learn from"):
        run_stage("fit_inverse_dynamics", state, context)
