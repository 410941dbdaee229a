"""The stage that aligns the planner or the world model, on a debug run."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reporters import RecordingReporter
from stage_runs import DEBUG, open_fitted, run_stage

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.core.statistics import Rate
from worldloop.factory.build import build_simulator_spec
from worldloop.factory.checkpoints import load_policy, load_world_model
from worldloop.loop import startup
from worldloop.loop.run import run_loop
from worldloop.loop.schedule import list_stages
from worldloop.policies.planner.policy import PlannerPolicy
from worldloop.stages import align_world_model
from worldloop.stages.alignment import plan
from worldloop.stages.alignment.objective import AlignmentObjective
from worldloop.stages.alignment.plan import PlanMode
from worldloop.stages.context import StageContext
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState
from worldloop.world_model.planner import VideoPlanner

PLAN = ("align_world_model.enabled=true",)
FOLLOW = ("align_world_model.enabled=true", "align_world_model.mode=follow")
SMALL = (
    "fit_inverse_dynamics.num_steps=20",
    "fit_planner.num_steps=3",
    "fit_planner.batch_size=4",
    "align_world_model.num_updates=2",
    "align_world_model.num_frames=3",
)


def test_it_comes_between_fit_and_check() -> None:
    stages = list_stages(load_config(DEBUG, list(PLAN)), 1)
    assert stages[2:6] == ("fit_world_model", "fit_planner", "align_world_model", "check_world_model")
    assert "align_world_model" not in list_stages(load_config(DEBUG, ["fit_planner.enabled=true"]), 1)
    following = list_stages(load_config(DEBUG, [*FOLLOW, "align_world_model.algorithm=pathwise"]), 1)
    assert following[2:5] == ("fit_world_model", "align_world_model", "check_world_model"), "there is no planner"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*PLAN, "fit_planner.num_sampler_steps=1"), r"num_sampler_steps=1 adds none: use .*algorithm=pathwise"),
        (
            (*PLAN, "align_world_model.algorithm=nft", "fit_planner.num_sampler_steps=1"),
            "num_sampler_steps=1 adds none",
        ),
        (FOLLOW, r"a sampler with world_model\.num_sampler_steps=1 adds none"),
        ((*PLAN, "fit_planner.num_sampler_steps=2"), "needs three sampler steps or more"),
        ((*PLAN, "align_world_model.random_steps=[2,1]"), r"random_steps is \(2, 1\), allowed: .* in order"),
        ((*PLAN, "align_world_model.random_steps=[1,1]"), r"random_steps is \(1, 1\), allowed: .* in order"),
        (
            (*PLAN, "align_world_model.algorithm=pathwise", "align_world_model.shuffle_rewards=true"),
            "does nothing for pathwise",
        ),
        (
            (*PLAN, "runtime=ray", "resources.num_workers=2", "num_microbatches=2", "resources.shard_world_model=true"),
            r"set resources\.shard_world_model=false",
        ),
        ((*PLAN, "num_microbatches=4"), r"align_world_model.starts_per_update 2 is no multiple"),
        ((*PLAN, "align_world_model.random_steps=[0,1]"), "neither the first nor the last sampler step can be random"),
        ((*PLAN, "align_world_model.random_steps=[3]"), "give numbers from 1 to 2"),
        ((*PLAN, "align_world_model.algorithm=ppo"), "align_world_model.algorithm"),
        ((*PLAN, "align_world_model.num_frames=2"), "align_world_model.num_frames"),
        ((*PLAN, "align_world_model.group_size=1"), "group_size must be at least 2 for flow_grpo"),
        ((*PLAN, "align_world_model.reward.jerk=-1"), r"reward\.jerk"),
    ],
)
def test_settings_that_cannot_be_are_named(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(WorldloopError, match=message):
        load_config(DEBUG, list(overrides))


def open_run(debug_run: Path, tmp_path: Path, *overrides: str) -> tuple[LoopState, StageContext]:
    return open_fitted(debug_run, tmp_path, "align_world_model", *SMALL, *overrides)


@pytest.mark.parametrize("algorithm", ["flow_grpo", "nft", "pathwise"])
def test_the_planner_is_aligned_and_an_interrupted_stage_ends_in_the_same_bytes(
    debug_run: Path, tmp_path: Path, algorithm: str
) -> None:
    overrides = (*PLAN, f"align_world_model.algorithm={algorithm}", "align_world_model.gate=false")
    state, context = open_run(debug_run, tmp_path, *overrides, "resources.checkpoint_every_s=0.000001")
    cut = replace(context, reporter=RecordingReporter(cut=1))
    with pytest.raises(KeyboardInterrupt):
        run_stage("align_world_model", state, cut)
    assert (tmp_path / "partial/align_world_model/partial.json").is_file()
    resumed = run_stage("align_world_model", state, context)
    assert isinstance(context.reporter, RecordingReporter)
    assert any("align_world_model goes on from step 1" in line for line in context.reporter.lines)
    assert resumed.planner == f"{state.planner}_aligned"
    assert not (tmp_path / "partial/align_world_model").exists()
    weights = tmp_path / resumed.planner / "model.safetensors"
    before = weights.read_bytes()
    again = run_stage("align_world_model", state, replace(context, reporter=RecordingReporter()))
    assert weights.read_bytes() == before

    record = again.records[1]["alignment"]
    assert (record["mode"], record["accepted"], record["kept"]) == ("plan", record["reason"] is None, True)
    assert record["before"]["n"] == record["after"]["n"] > 0
    assert record["success"]["before"]["n"] == record["success"]["after"]["n"] == 10
    changed = set()
    old, new = (load_policy(tmp_path / path).state_dict() for path in (state.planner, resumed.planner))
    for name, value in old.items():
        if not torch.equal(value, new[name]):
            changed.add(name.split(".")[1 if name.startswith("planner.unknown") else 2])
    assert "denoiser" in changed
    assert changed <= {"denoiser", "unknown_actions", "unknown_proprio"}, "heads and inverse dynamics stay"


def test_the_reward_of_videos_rises_along_its_own_gradient(debug_run: Path, tmp_path: Path) -> None:
    """Fifteen steps on the videos of one round."""
    state, context = open_run(
        debug_run,
        tmp_path,
        *PLAN,
        "align_world_model.algorithm=pathwise",
        "align_world_model.starts_per_update=16",
        "align_world_model.group_size=1",
        "align_world_model.guard=false",
        "align_world_model.kl_coefficient=0",
    )
    config = context.config_of(align_world_model.Config)
    policy = load_policy(tmp_path / state.planner)
    assert isinstance(policy, PlannerPolicy)
    assert isinstance(policy.planner, VideoPlanner)
    planner, sampling = policy.planner, align_world_model.choose_sampling(config, 4)
    reader = context.models.load_inverse_dynamics(state.inverse_dynamics).requires_grad_(False)
    clips = context.open_clips("v001", "train")
    mode = PlanMode(planner, deepcopy(planner), reader, clips, config, sampling, seed=0)
    align_world_model.release(planner, planner.world_model)
    objective = AlignmentObjective(
        mode,
        config,
        sampling,
        context.setup.make_generators("objective"),
        key=("objective",),
        num_microbatches=1,
        device=torch.device("cpu"),
    )
    (batch,) = next(iter(objective.batches(0))).values()
    optimizer = torch.optim.Adam([p for p in planner.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(15):
        loss, _ = objective.compute_loss(batch, 0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.03


def test_first_updates_have_ratio_1_and_no_distance(debug_run: Path, tmp_path: Path) -> None:
    state, context = open_run(debug_run, tmp_path, *PLAN, "align_world_model.minibatch_size=64")
    run_stage("align_world_model", state, context)
    assert isinstance(context.reporter, RecordingReporter)
    first = context.reporter.curves["align_world_model"][0]
    assert first["align_world_model/ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert first["align_world_model/kl_to_start"] == pytest.approx(0, abs=1e-9)
    assert 0 < first["align_world_model/reward"] <= 1
    assert "align_world_model/reward_path_ratio" in first


def test_videos_that_are_made_one_after_the_other_are_nearly_the_same(debug_run: Path, tmp_path: Path) -> None:
    rewards = []
    for batch in (0, 3):
        (tmp_path / str(batch)).mkdir()
        state, context = open_run(debug_run, tmp_path / str(batch), *PLAN, f"resources.max_imagination_batch={batch}")
        run_stage("align_world_model", state, context)
        assert isinstance(context.reporter, RecordingReporter)
        rewards.append(context.reporter.curves["align_world_model"][0]["align_world_model/reward"])
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-3)


def test_a_planner_that_became_worse_is_refused(debug_run: Path, tmp_path: Path) -> None:
    state, context = open_run(debug_run, tmp_path, *PLAN, "align_world_model.learning_rate=1")
    refused = run_stage("align_world_model", state, context)
    assert refused.planner == state.planner
    assert refused.records[1]["alignment"]["accepted"] is False
    assert isinstance(context.reporter, RecordingReporter)
    assert any(line.startswith("alignment refused: plans lost") for line in context.reporter.lines)


def test_the_world_model_is_aligned_with_its_actions(debug_run: Path, tmp_path: Path) -> None:
    overrides = (*FOLLOW, "align_world_model.algorithm=pathwise", "align_world_model.gate=false")
    state, context = open_run(debug_run, tmp_path, *overrides)
    aligned = run_stage("align_world_model", state, context)
    assert aligned.world_model == f"{state.world_model}_aligned"
    assert aligned.teacher == state.teacher, "the next fit goes on from the weights before alignment"
    old, new = (load_world_model(tmp_path / path).state_dict() for path in (state.world_model, aligned.world_model))
    changed = {name.split(".")[0] for name, value in old.items() if not torch.equal(value, new[name])}
    assert changed == {"denoiser"}
    record = aligned.records[1]["alignment"]
    assert 0 < record["before"]["following"]["value"] < 1
    assert record["after"]["psnr_db"]["value"] > 5


def test_several_sampler_steps_follow_by_flow_grpo(debug_run: Path, tmp_path: Path) -> None:
    """The debug run's model, sampled in four steps."""
    overrides = (*FOLLOW, "world_model.num_sampler_steps=4")
    state, context = open_run(debug_run, tmp_path, *overrides)
    model = load_world_model(tmp_path / state.world_model)
    model.config = replace(model.config, num_sampler_steps=4)
    (tmp_path / state.world_model).unlink()
    context.models.save_world_model(model, state.world_model)
    ended = run_stage("align_world_model", state, context)
    assert ended.records[1]["alignment"]["mode"] == "follow"


def test_a_smoother_planner_that_succeeds_less_often_is_refused(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, context = open_run(debug_run, tmp_path, *PLAN)
    monkeypatch.setattr(plan, "find_fault", lambda *_: "")
    rates = {state.planner: Rate.of(np.arange(10) < 6), f"{state.planner}_aligned": Rate.of(np.arange(10) < 5)}
    monkeypatch.setattr(align_world_model, "act", lambda policy, *_: rates[policy])
    refused = run_stage("align_world_model", state, context)
    assert refused.planner == state.planner
    record = refused.records[1]["alignment"]
    assert record["reason"] == "the aligned planner succeeds in 5 states, before in 6"
    assert record["success"]["before"]["k"] == 6
    rates[f"{state.planner}_aligned"] = rates[state.planner]
    assert run_stage("align_world_model", state, context).planner == f"{state.planner}_aligned"


def test_a_planner_that_nothing_can_judge_is_refused(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, context = open_run(debug_run, tmp_path, *PLAN)
    monkeypatch.setattr(align_world_model, "find_successes", lambda *_: [])
    refused = run_stage("align_world_model", state, context)
    assert refused.planner == state.planner
    assert refused.records[1]["alignment"]["reason"] == "no held-out success has 3 frames to judge by"
    assert refused.records[1]["alignment"]["kept"] is False


def test_what_is_off_does_not_divide_the_batch() -> None:
    """`pushcube_gpu` with eight microbatches, the command of docs/cluster.md: alignment has four starts by default."""
    assert load_config(DEBUG.with_name("pushcube_gpu.yaml"), ["num_microbatches=8"]).num_microbatches == 8


def test_too_few_frames_are_named(debug_run: Path, tmp_path: Path) -> None:
    state, context = open_run(debug_run, tmp_path, *PLAN, "align_world_model.num_frames=40")
    with pytest.raises(WorldloopError, match=r"no train success has 40 frames; lower align_world_model\.num_frames"):
        run_stage("align_world_model", state, context)


def test_a_robot_without_joint_limits_is_named_at_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_spec(*arguments: object) -> SimulatorSpec:
        spec = build_simulator_spec(load_config(DEBUG, []).simulator)
        return replace(spec, robot=replace(spec.robot, joints=()))

    monkeypatch.setattr(startup, "build_spec", build_spec)
    with pytest.raises(WorldloopError, match=r"tells no joint limits.*give RobotSpec\.joints"):
        startup.check_run_can_start(load_config(DEBUG, list(PLAN)))
    startup.check_run_can_start(load_config(DEBUG, [*FOLLOW, "align_world_model.algorithm=pathwise"]))


def test_a_loop_runs_with_it_to_its_end(tmp_path: Path) -> None:
    """The planner is fitted, aligned and checked; the policy improves without it."""
    small = (
        "improve_policy.method=imitate_successes",
        "num_iterations=1",
        "clone_policy.num_steps=60",
        "fit_world_model.num_steps=10",
        "fit_world_model.num_proprio_steps=5",
        "check_world_model.probe_steps=5",
        "check_world_model.num_videos=0",
        "check_world_model.reset_every=[]",
        "check_planner.num_states=10",
        "evaluate_policy.num_states=10",
    )
    run_loop(load_config(DEBUG, ["runtime=inline", f"run_root={tmp_path}", *PLAN, *SMALL, *small]))
    state = RunDirectory(tmp_path / "debug").read_state()
    assert state.next_stage == ""
    record = state.records[1]
    assert record["alignment"]["mode"] == "plan"
    assert record["planner_check"]["success"]["n"] == 10
    assert record["inverse_dynamics_check"]["inverse_dynamics_judge"]["num_episodes"] > 0
