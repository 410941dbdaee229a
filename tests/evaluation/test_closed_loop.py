"""Imagined rollouts against what the simulator says to the same actions."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from executors import Here
from hand_rollouts import make_rollout, make_step
from hand_specs import make_spec
from reporters import RecordingReporter
from torch import Tensor

from worldloop.config.loading import load_config
from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.success import Calibrations
from worldloop.core.tensors import Rows
from worldloop.core.types import InitialStates, Observation
from worldloop.evaluation.closed_loop import (
    ClosedLoop,
    average_closed_loops,
    choose_threshold,
    judge_closed_loop,
    judge_closed_loop_trust,
    rate_other_members,
)
from worldloop.evaluation.replayed_rollouts import ReplayedRollouts, replay_imagination, score_by_chunk
from worldloop.factory.checkpoints import load_policy
from worldloop.rl.reward_context import RewardContext
from worldloop.rl.rewards import score_success
from worldloop.rollout.simulation import Simulation
from worldloop.simulators.toy.simulator import ToySimulator


def make_rollouts(
    score: list[float],
    replayed: list[int],
    start: list[int],
    own: list[int],
    task: str = "push",
) -> ReplayedRollouts:
    """One chunk."""
    return ReplayedRollouts(
        task=(task,) * len(score),
        start=np.array(start),
        score=np.array(score)[:, None],
        replayed=np.array(replayed, dtype=bool)[:, None],
        own=np.array(own, dtype=bool),
    )


def judge(rollouts: ReplayedRollouts) -> ClosedLoop:
    """A success is declared from a score of .5 on."""
    return judge_closed_loop(rollouts, threshold=0.5)


# --- figures ------------------------------------------------------------------------------------------------------


def test_the_figures_of_six_rollouts_by_hand() -> None:
    """Start 0: pair (.9 won, .2 lost) ordered; start 1: (.3 won, .8 lost) not; start 2: both won, no pair."""
    judged = judge(make_rollouts([0.9, 0.2, 0.3, 0.8, 0.7, 0.6], [1, 0, 1, 0, 1, 1], [0, 0, 1, 1, 2, 2], own=[1, 0, 1]))
    assert (judged.n, judged.num_starts) == (6, 3)
    assert judged.own.value == pytest.approx(2 / 3, abs=1e-4)
    assert judged.replay.value == pytest.approx(4 / 6, abs=1e-4)
    assert judged.declared.value == pytest.approx(4 / 6, abs=1e-4)  # .9, .8, .7, .6
    assert judged.own_minus_replay.value == pytest.approx(0, abs=1e-4)
    assert judged.imagined_minus_simulated.value == pytest.approx(0, abs=1e-4)
    assert judged.within_group_auc is not None
    assert (judged.within_group_auc.value, judged.within_group_auc.n) == (0.5, 2)
    # of the 8 pairs of a success (.9, .3, .7, .6) and a failure (.2, .8): 4 + 1 are ordered
    assert judged.auc is not None
    assert judged.auc.value == pytest.approx(5 / 8)
    assert judged.true_negative_rate is not None
    assert judged.true_negative_rate.value == 0.5
    assert judged.balanced_accuracy is not None
    assert judged.balanced_accuracy.value == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_what_an_imagined_part_costs_is_paired_by_start_and_a_mean_over_tasks() -> None:
    """Of four starts the policy solves three itself, one with the camera imagined and four with proprio imagined."""
    rollouts = make_rollouts([0.9] * 8, [1, 0] * 4, [0, 0, 1, 1, 2, 2, 3, 3], own=[1, 1, 1, 0])
    swapped = {"camera": np.array([1, 0, 0, 0], dtype=bool), "proprio": np.ones(4, dtype=bool)}
    judged = judge(replace(rollouts, swapped=swapped))
    assert {part: loss.value for part, loss in judged.swapped_minus_own.items()} == {"camera": -0.5, "proprio": 0.25}
    assert judged.swapped_minus_own["camera"].n == 4
    assert judged.to_dict()["swapped_minus_own"]["camera"]["value"] == -0.5
    assert average_closed_loops([judged, judged]).swapped_minus_own["proprio"].value == 0.25
    both = ReplayedRollouts.cat([replace(rollouts, swapped=swapped)] * 2)
    assert both.swapped["camera"].tolist() == [True, False, False, False] * 2
    assert both.of_task("push").swapped["proprio"].sum() == 8


def test_a_reward_that_only_knows_the_start_has_a_high_auc_and_none_within_groups() -> None:
    """What the pooled AUC hides: this score is the same for all rollouts from a start."""
    generator = np.random.default_rng(0)
    start = np.arange(60).repeat(8)
    chance = generator.random(60).round()[start] * 0.6 + 0.2
    truth = generator.random(480) < chance
    rollouts = make_rollouts(chance.tolist(), truth.tolist(), start.tolist(), own=[1] * 60)
    judged = judge(rollouts)
    assert judged.auc is not None
    assert judged.within_group_auc is not None
    assert judged.start_only_auc is not None
    assert judged.auc.value > 0.75
    assert judged.within_group_auc.value == 0.5, "ties count half"
    assert judged.start_only_auc.value == pytest.approx(judged.auc.value, abs=0.06)


def test_a_perfect_reward_in_hard_and_easy_starts() -> None:
    truth = [1, 0, 1, 1, 0, 0, 1, 0]
    judged = judge(make_rollouts([float(t) for t in truth], truth, [0, 0, 1, 1, 2, 2, 3, 3], [1, 1, 0, 0]))
    for name in ("auc", "within_group_auc", "true_negative_rate", "balanced_accuracy"):
        assert getattr(judged, name).value == 1, name
    assert judged.expected_calibration_error is not None
    assert judged.expected_calibration_error.value == 0


def test_means_are_over_starts_that_all_have_as_many_rollouts() -> None:
    """Own 1 of 2, replays 1 of 4, declared 3 of 4."""
    judged = judge(make_rollouts([0.9, 0.9, 0.9, 0.1], [1, 0, 0, 0], [0, 0, 1, 1], own=[1, 0]))
    assert judged.own_minus_replay.value == pytest.approx(0.25)
    assert judged.imagined_minus_simulated.value == pytest.approx(0.25)
    assert judged.own.low == 0
    assert judged.own.high == 1


@pytest.mark.parametrize("outcome", [0, 1])
def test_what_replays_that_all_end_alike_cannot_tell_is_none_with_a_reason(outcome: int) -> None:
    record = judge(make_rollouts([0.9, 0.2], [outcome] * 2, [0, 0], own=[1])).to_dict()
    for name in ("auc", "within_group_auc", "start_only_auc", "balanced_accuracy", "expected_calibration_error"):
        assert record[name] is None
        assert record[f"{name}_reason"]
    assert (record["true_negative_rate"] is None) == (outcome == 1)
    json.dumps(record, allow_nan=False)


def test_one_rollout_per_start_has_no_groups() -> None:
    judged = judge(make_rollouts([0.9, 0.2], [1, 0], [0, 1], own=[1, 0]))
    assert judged.within_group_auc is None
    assert judged.start_only_auc is None
    assert judged.auc is not None


def test_the_rate_of_the_other_members() -> None:
    rates = rate_other_members(np.array([True, False, True, True]), np.array([0, 0, 0, 1]))
    assert rates.tolist() == [0.5, 1.0, 0.5, 0.75]


def test_tasks_are_judged_apart_and_averaged() -> None:
    good = make_rollouts([0.9, 0.2], [1, 0], [0, 0], own=[1])
    bad = make_rollouts([0.9, 0.2, 0.9, 0.1], [0, 1, 0, 1], [0, 0, 1, 1], own=[0, 0], task="pull")
    both = ReplayedRollouts.cat([good, bad])
    assert both.start.tolist() == [0, 0, 1, 1, 2, 2]
    apart = [judge(both.of_task(task)) for task in ("push", "pull")]
    assert apart == [judge(good), judge(bad)]
    mean = average_closed_loops(apart)
    assert (mean.n, mean.num_starts) == (6, 3)
    assert mean.within_group_auc is not None
    assert mean.within_group_auc.value == 0.5, "every task weighs the same"
    assert mean.own.value == 0.5
    assert average_closed_loops(apart[:1]) is apart[0]


# --- scores -------------------------------------------------------------------------------------------------------


def test_the_score_after_so_many_chunks_is_what_grpo_is_paid_for_them() -> None:
    steps = [make_step([[p] for p in column], [[True, True]] * 3) for column in ([0.1, 0.2, 0.9], [0.3, 0.95, 0.4])]
    rollout = make_rollout(*steps)
    score = score_by_chunk(rollout, replace(make_spec(), success_confirm_frames=0))
    assert score.tolist() == [pytest.approx(row) for row in ([0.1, 0.3], [0.2, 0.95], [0.9, 0.9])]
    confirmed = score_by_chunk(rollout, make_spec())
    assert confirmed[:, -1].tolist() == score_success(rollout, RewardContext(make_spec(), Calibrations())).tolist()
    assert confirmed.tolist() == [pytest.approx(row) for row in ([0, 0.1], [0, 0.2], [0, 0.4])]


# --- the whole way ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimState(Rows):
    """The simulator's state, and the tasks."""

    sim_state: Tensor
    task: tuple[str, ...]


class Oracle:
    """A world model that is the simulator; ``is_blind``: its success head says the opposite of the truth.

    It knows the simulator's state behind every first frame.
    """

    def __init__(self, simulator: ToySimulator, states: InitialStates, is_blind: bool = False) -> None:
        self.spec, self.simulator, self.is_blind = simulator.spec, simulator, is_blind
        frames = simulator.reset(states).frames["base_camera"][:, -1]
        self.known = {image.numpy().tobytes(): states.states[row] for row, image in enumerate(frames)}
        assert len(self.known) == len(states)

    def start(self, context: Observation, noise_key: Tensor) -> SimState:
        found = [self.known[image.numpy().tobytes()] for image in context.frames["base_camera"][:, -1]]
        return SimState(torch.stack(found), context.task)

    def imagine(self, state: SimState, actions: Tensor) -> tuple[SimState, ImaginedChunk]:
        ids = tuple(str(row) for row in range(len(state.task)))
        self.simulator.reset(InitialStates("train", ids, state.task, state.sim_state))
        step = self.simulator.step_chunk(actions)
        assert step.sim_states is not None
        assert step.proprio is not None
        won = step.success[:, self.spec.actions_per_frame - 1 :: self.spec.actions_per_frame]
        logit = torch.where(won != self.is_blind, 9.0, -9.0)
        return SimState(step.sim_states[:, -1], state.task), ImaginedChunk(step.frames, step.proprio, logit)


def replay(
    debug_run: Path, is_blind: bool = False, num_chunks: int = 10, executor: Here | None = None
) -> ReplayedRollouts:
    config = load_config(debug_run / "config.yaml")
    toy = replace(config.simulator.toy, success_confirm_frames=0)
    simulation = Simulation(
        replace(config.simulator, toy=toy), config.chunk_length, 0, debug_run, executor or Here(), RecordingReporter()
    )
    simulator = ToySimulator(replace(toy, num_envs=1000))
    states = simulator.draw_initial_states("ToyPush-v1", "validation", 12, seed=5)
    path = "checkpoints/iteration_001/policy_of_successes"
    policy = load_policy(debug_run / path)
    return replay_imagination(
        policy,
        path,
        Oracle(simulator, states, is_blind),  # type: ignore[arg-type]
        Calibrations(),
        simulation,
        states,
        group_size=4,
        num_chunks=num_chunks,
        temperature=1.0,
        block_size=5,
        iteration=1,
        key=(0, "test"),
    )


def test_in_a_perfect_world_model_every_figure_is_perfect(debug_run: Path) -> None:
    rollouts = replay(debug_run)
    assert rollouts.replayed[:, -1].any()
    assert not rollouts.replayed[:, -1].all()
    assert np.array_equal(rollouts.score > 0.5, rollouts.replayed)
    judged = judge(rollouts)
    assert judged.n == 48
    assert judged.auc is not None
    assert judged.within_group_auc is not None
    assert judged.true_negative_rate is not None
    assert judged.auc.value == judged.within_group_auc.value == judged.true_negative_rate.value == 1
    assert abs(judged.own_minus_replay.value) < 0.2
    assert [e.meta.split for e in rollouts.episodes] == ["validation"] * 48
    assert [e.is_success for e in rollouts.own_episodes] == rollouts.own.tolist()
    assert {e.meta.variant for e in rollouts.episodes} == {"replay"}
    assert len({e.meta.initial_state_id for e in rollouts.episodes}) == 12
    assert [e.is_success for e in rollouts.episodes] == rollouts.replayed[:, -1].tolist()
    assert [e.meta.imagined_success for e in rollouts.episodes] == rollouts.score[:, -1].tolist()
    assert {e.meta.imagined_success for e in rollouts.own_episodes} == {None}


def test_a_blind_reward_shows_in_what_is_declared_alone(debug_run: Path) -> None:
    """It shows a success until there is one."""
    blind, seeing = judge(replay(debug_run, is_blind=True)), judge(replay(debug_run))
    assert blind.declared.value == 1
    assert blind.true_negative_rate is not None
    assert blind.true_negative_rate.value == 0
    assert (blind.own, blind.replay) == (seeing.own, seeing.replay)


def test_no_rollout_is_longer_than_the_horizon(debug_run: Path) -> None:
    executor = Here()
    short, long = replay(debug_run, num_chunks=4, executor=executor), replay(debug_run)
    assert short.score.shape == (48, 4)
    assert max(e.num_frame_steps for e in short.episodes) == 4
    own = [job for job in executor.jobs if job.policy]
    assert sum(len(job.states) for job in own) == 12
    assert all((job.row_chunks == 4).all() and job.temperature == 1.0 for job in own)
    assert np.array_equal(short.replayed, long.replayed[:, :4])


# --- what follows from it -----------------------------------------------------------------------------------------


def test_a_threshold_declares_as_many_successes_as_there_are() -> None:
    score = np.array([0.3, 0.6, 0.7, 0.9, 0.25])
    for success in ([0, 0, 0, 0, 1], [1, 0, 1, 0, 0], [1, 1, 0, 0, 1]):
        threshold = choose_threshold(score, np.array(success, dtype=bool))
        assert (score >= threshold).sum() == sum(success), "whichever they are"
    assert choose_threshold(score, np.ones(5, dtype=bool)) == 0.2, "no lower than that"
    assert choose_threshold(score, np.zeros(5, dtype=bool)) == pytest.approx(0.9)
    assert choose_threshold(np.array([1.0, 0.5]), np.array([False, False])) == 0.99


def test_a_threshold_can_let_few_failures_pass() -> None:
    score = np.array([0.1, 0.3, 0.6, 0.9, 0.05, 0.95])
    success = np.array([0, 0, 0, 0, 1, 1], dtype=bool)
    # .9 and .95 are declared at first: one failure of four
    for rate, highest_refused in ((1.0, 0.6), (0.25, 0.6), (0.24, 0.9), (0.0, 0.9)):
        threshold = choose_threshold(score, success, rate)
        assert threshold == pytest.approx(highest_refused, abs=1e-9)
        assert (score[~success] >= threshold).mean() <= rate


def test_trust_needs_an_auc_within_groups() -> None:
    good = judge(make_rollouts([0.9, 0.2, 0.8, 0.1], [1, 0, 1, 0], [0, 0, 1, 1], own=[1, 1]))
    bad = judge(make_rollouts([0.9, 0.2, 0.1, 0.8], [1, 0, 1, 0], [0, 0, 1, 1], own=[1, 1]))
    alike = judge(make_rollouts([0.9, 0.2], [1, 1], [0, 0], own=[1]))
    assert judge_closed_loop_trust(good, 1.0).is_trusted
    assert judge_closed_loop_trust(bad, 0.5).is_trusted
    assert judge_closed_loop_trust(bad, 0.6).reason == (
        "closed-loop AUC within groups 0.500 is below check_closed_loop.required_auc 0.6"
    )
    assert judge_closed_loop_trust(alike, 0.6).reason == (
        "in the closed loop the replays from each start all ended alike (1.00 successes)"
    )
    assert judge_closed_loop_trust(alike, 0.0).is_trusted, "nothing is required"
