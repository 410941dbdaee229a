"""The stages of the planner in the loop, on a debug run."""

from pathlib import Path

import pytest
import torch
from reporters import RecordingReporter
from stage_runs import DEBUG, open_fitted, run_stage

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.factory.checkpoints import load_inverse_dynamics, load_policy, load_world_model
from worldloop.loop.schedule import list_stages
from worldloop.policies.planner.policy import PlannerPolicy
from worldloop.stages.context import StageContext
from worldloop.storage.run_state import LoopState

ENABLED = ("fit_planner.enabled=true",)
SMALL = ("fit_inverse_dynamics.num_steps=2", "fit_planner.num_steps=3", "fit_planner.batch_size=4")


def test_they_are_off_and_come_with_the_world_model_once_enabled() -> None:
    assert not {"fit_planner", "check_planner"} & set(list_stages(load_config(DEBUG, []), 1))
    config = load_config(DEBUG, ["fit_planner.enabled=true", "improve_policy.method=imitate_successes"])
    stages = list_stages(config, 1)
    assert stages[:2] == ("fit_inverse_dynamics", "check_inverse_dynamics"), "they execute the plans"
    assert stages[2:6] == ("fit_world_model", "fit_planner", "check_world_model", "check_planner")
    assert not {"fit_planner", "check_planner"} & set(list_stages(config, 0))


@pytest.mark.parametrize("setting", ["num_steps=0", "num_frames=0", "zero_time_share=2", "learning_rate=0"])
def test_settings_have_bounds(setting: str) -> None:
    with pytest.raises(WorldloopError, match=f"fit_planner.{setting.partition('=')[0]}"):
        load_config(DEBUG, [*ENABLED, f"fit_planner.{setting}"])


def open_run(debug_run: Path, tmp_path: Path, *overrides: str) -> tuple[LoopState, StageContext]:
    return open_fitted(debug_run, tmp_path, "fit_planner", *ENABLED, *SMALL, *overrides)


def test_the_planner_is_a_policy_that_is_checked(debug_run: Path, tmp_path: Path) -> None:
    state, context = open_run(debug_run, tmp_path, "check_planner.num_states=6", "check_planner.num_frames=3")
    state = run_stage("fit_planner", state, context)
    policy = load_policy(tmp_path / state.planner)
    assert isinstance(policy, PlannerPolicy)
    assert policy.planner.config.num_sampler_steps == 4  # type: ignore[attr-defined]
    assert not policy.training

    counted = context.simulation.num_env_steps
    checked = run_stage("check_planner", state, context).records[1]["planner_check"]
    assert context.simulation.num_env_steps == counted, "what only judges is not counted"
    assert checked["success"]["n"] == checked["success"]["tasks"]["ToyPush-v1"]["n"] == 6
    assert 0 < checked["plans"]["n"] <= 100
    assert checked["plans"]["psnr_db"]["value"] > 5
    assert checked["plans"]["penalty_ratio"]["value"] > 0
    reporter = context.reporter
    assert isinstance(reporter, RecordingReporter)
    assert any("the planner succeeds in" in line for line in reporter.lines)

    # its parts are those that were fitted
    reader = load_inverse_dynamics(tmp_path / state.inverse_dynamics).state_dict()
    own = policy.inverse_dynamics.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in reader.items())
    fitted = load_world_model(tmp_path / state.world_model).state_dict()
    kept = policy.planner.state_dict()
    assert torch.equal(fitted["success_head.frame_mlp.0.weight"], kept["world_model.success_head.frame_mlp.0.weight"])

    # fitted again it is the same, byte for byte
    weights = tmp_path / state.planner / "model.safetensors"
    before = weights.read_bytes()
    (tmp_path / state.planner / "checkpoint.json").unlink()
    run_stage("fit_planner", state, context)
    assert weights.read_bytes() == before


def test_without_a_long_success_nothing_is_compared(debug_run: Path, tmp_path: Path) -> None:
    state, context = open_run(debug_run, tmp_path, "check_planner.num_states=0", "check_planner.num_frames=50")
    checked = run_stage("check_planner", run_stage("fit_planner", state, context), context).records[1]["planner_check"]
    assert checked == {"success": None, "plans": None}
    assert isinstance(context.reporter, RecordingReporter)
    assert any("no held-out success of 50 frames" in line for line in context.reporter.lines)
