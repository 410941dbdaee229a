"""A round of GRPO on a policy that is a coin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from counting import SPEC
from hand_rollouts import make_observation, make_rollout, make_step
from reporters import RecordingReporter
from torch import Tensor, nn

from worldloop.core.interfaces import LikelihoodPolicy, Metrics
from worldloop.core.randomness import make_generator
from worldloop.core.success import Calibration, Calibrations
from worldloop.core.types import ActionChunk, ImitationBatch, Observation, Rollout
from worldloop.rl.decisions import Decisions
from worldloop.rl.grpo import (
    GrpoConfig,
    GrpoHistory,
    GrpoObjective,
    compute_kl_penalty,
    compute_policy_loss,
)
from worldloop.training.data_parallel import DataParallel
from worldloop.training.optimizer import Optimizer
from worldloop.training.resume import TrainingSetup
from worldloop.training.trainer import Trainer

# --- the config ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"num_updates": 0}, {"groups_per_update": 0}, {"num_epochs": 0}, {"minibatch_size": 0}, {"group_size": 1},
        {"learning_rate": 0.0}, {"temperature": -1.0}, {"ema_decay": 1.0}, {"clip_ratio_low": 1.5},
        {"clip_ratio_high": -0.1}, {"kl_coefficient": -1.0}, {"min_group_std": -0.1}, {"reward": {}},
    ],
)  # fmt: skip
def test_the_config_names_the_bad_key(changes: dict[str, Any]) -> None:
    (key,) = changes
    with pytest.raises(ValueError, match=rf"improve_policy\.{key}"):
        GrpoConfig(**changes)


# --- a round ------------------------------------------------------------------------------------------------------


class Coin(LikelihoodPolicy):
    """Two actions a chunk, each heads (1) or tails (0), with the same odds whatever is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.chunk_length, self.temperature, self.version = SPEC, 2, 1.0, "coin"
        self.logits = nn.Parameter(torch.zeros(2))

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        raise AssertionError("rollouts are given by hand")

    def log_prob(self, observation: Observation, chunk: ActionChunk) -> Tensor:
        return self.logits.log_softmax(0)[chunk.trace["tokens"]]

    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        raise AssertionError("nothing is imitated")


def toss(tokens: list[list[int]]) -> ActionChunk:
    """A chunk of two tosses for every row, by a fair coin."""
    chosen = torch.tensor(tokens)
    log_probs = torch.full(chosen.shape, math.log(0.5))
    return ActionChunk(chosen[..., None].float(), log_probs, {"tokens": chosen}, "coin")


def two_groups() -> Rollout:
    """Four rows, two groups. Row 0 succeeds with two heads, rows 2 and 3 are alike and dropped. Row 1 goes on for a
    second chunk, of which its first action counts."""
    valid = [[True, True]] * 4
    first = make_step([[0.9], [0.2], [0.4], [0.4]], valid, 0)
    second = make_step([[0.0], [0.3], [0.0], [0.0]], [[False] * 2, [True, False], [False] * 2, [False] * 2], 0)
    db = torch.tensor([[30.0], [18.0], [30.0], [30.0]])
    steps = (replace(first, expected_psnr_db=db), replace(second, expected_psnr_db=db + 1))
    tosses = [toss([[1, 1], [0, 0], [0, 1], [1, 0]]), toss([[0, 0], [0, 1], [0, 0], [0, 0]])]
    return make_rollout(*steps, chunks=tosses, group_id=[0, 0, 1, 1])


def one_group() -> Rollout:
    """Two rows of one chunk; the second succeeds."""
    step = make_step([[0.6], [0.1]], [[True, True]] * 2, 1)
    step = replace(step, expected_psnr_db=torch.tensor([[30.0], [30.0]]))
    return make_rollout(step, chunks=[toss([[0, 0], [1, 1]])])


CONFIG = GrpoConfig(num_updates=2, minibatch_size=2, learning_rate=0.5, kl_coefficient=0.0, min_group_std=0.02)


def make_objective(
    rollouts: Mapping[int, Rollout], config: GrpoConfig = CONFIG, policy: Coin | None = None, **settings: Any
) -> GrpoObjective:
    settings = {
        "calibrations": Calibrations({"t": Calibration(floor_db=20.0)}),
        "data_parallel": DataParallel(),
    } | settings
    return GrpoObjective(
        policy or Coin(), Coin(), config, lambda update, number: rollouts[number],
        {number: make_generator(number) for number in rollouts}, num_microbatches=len(rollouts),
        device=torch.device("cpu"), **settings,
    )  # fmt: skip


def test_decisions_of_a_round_go_into_minibatches() -> None:
    """Of microbatch 0 three decisions are kept and of microbatch 1 two; a minibatch has one of each."""
    objective = make_objective({0: two_groups(), 1: one_group()})
    updates = list(objective.batches(0))
    assert [sorted(update) for update in updates] == [[0, 1], [0, 1], [0]]
    first = [update[0] for update in updates]
    # The group's returns are 1 and .3: advantages 1 and -1.
    assert sorted(float(d.advantages) for d in first) == [-1.0, -1.0, 1.0]
    assert sorted(int(objective.count(d)) for d in first) == [1, 2, 2]
    second = [update[1] for update in updates[:2]]
    assert {tuple(d.chunk.trace["tokens"][0].tolist()): float(d.advantages) for d in second} == {
        (0, 0): -1.0,
        (1, 1): 1.0,
    }


def test_every_epoch_goes_through_all_decisions_in_another_order() -> None:
    objective = make_objective({0: two_groups()}, replace(CONFIG, minibatch_size=1, num_epochs=8))
    updates = [next(iter(update.values())) for update in objective.batches(0)]
    assert len(updates) == 8 * 3
    keys = [(d.observation.instruction, int(d.observation.env_step)) for d in updates]
    epochs = [tuple(keys[3 * i : 3 * i + 3]) for i in range(8)]
    assert all(set(epoch) == set(keys) for epoch in epochs)
    assert len(set(epochs)) > 1


@dataclass(frozen=True)
class BesideALonger(DataParallel):
    """The main one of two ranks, of which the other has minibatches for two more updates."""

    def all_reduce_max(self, values: Tensor) -> Tensor:
        return values + 2


def test_all_ranks_have_as_many_updates() -> None:
    updates = list(make_objective({0: one_group()}, data_parallel=BesideALonger()).batches(0))
    assert [sorted(update) for update in updates] == [[0], [], []]


def test_a_round_measures_what_it_imagined() -> None:
    objective = make_objective({0: two_groups(), 1: one_group()})
    list(objective.batches(0))
    expected = {
        "return_mean": ((1.0 + 0.3 + 0.4 + 0.4) / 4 + (0.6 + 1.0) / 2) / 2,
        "reward_success": ((1.0 + 0.3 + 0.4 + 0.4) / 4 + (0.6 + 1.0) / 2) / 2,
        "imagined_success_rate": (1 / 4 + 1 / 2) / 2,
        "uncertain_share": (1 / 4 + 0) / 2,  # 18 dB are below the floor of 20
        "groups_dropped": 1.0,
        "imagined_frames": 4 + 1 + 2,  # a chunk of two actions is a frame
    }
    assert objective.step_metrics == pytest.approx(expected)


def test_success_and_certainty_are_measured_by_the_rows_tasks() -> None:
    """Three microbatches: of task t rows 0 and 2 of the first and all of the second, of task u the others.

    Task u succeeds in 1 of 4 rows, task t in 2 of 6. All least certain frames lie above the floor of task t but one,
    and below that of task u.
    """
    first, second, third = two_groups(), one_group(), two_groups()
    tasks = {0: ["t", "u", "t", "u"], 1: ["t", "t"], 2: ["u", "u", "t", "t"]}
    rollouts = {
        number: make_rollout(*r.steps, chunks=list(r.chunks), group_id=r.group_id.tolist(), task=tasks[number])
        for number, r in enumerate((first, second, third))
    }
    policy = Coin()
    policy.spec = replace(SPEC, tasks=(*SPEC.tasks, replace(SPEC.tasks[0], id="u")))
    calibrations = Calibrations({"t": Calibration(floor_db=20.0), "u": Calibration(floor_db=40.0)})
    objective = make_objective(rollouts, replace(CONFIG, minibatch_size=3), policy, calibrations=calibrations)
    list(objective.batches(0))
    assert objective.step_metrics["uncertain_share"] == pytest.approx((2 / 4 + 0 + 2 / 4) / 3)
    metrics = objective.end_step(0, dict(objective.step_metrics))
    assert metrics["imagined_success_rate/t"] == pytest.approx(2 / 6)
    assert metrics["imagined_success_rate/u"] == pytest.approx(1 / 4)
    assert not [name for name in metrics if name.startswith("num_rows")]


def test_terms_of_the_reward_make_the_return() -> None:
    config = replace(CONFIG, reward={"success": 1.0, "certainty": 0.1})
    objective = make_objective({0: two_groups()}, config)
    list(objective.batches(0))
    assert objective.step_metrics["reward_certainty"] == pytest.approx(-0.1 * 2 / 4)  # 18 dB, one row of four
    assert objective.step_metrics["return_mean"] == pytest.approx((1.0 + (0.3 - 0.2) + 0.4 + 0.4) / 4)


def test_a_critic_values_where_rows_are_cut_off() -> None:
    """It sees the last observations; row 0 has ended, the others are cut off."""
    seen: list[Observation] = []

    def value(observation: Observation) -> Tensor:
        seen.append(observation)
        return torch.tensor([0.0, 0.5, 0.7, 0.9])

    rollout = two_groups()
    objective = make_objective({0: rollout}, replace(CONFIG, bootstraps=True), value=value)
    list(objective.batches(0))
    assert seen == [rollout.steps[-1].observation]
    assert objective.step_metrics["return_mean"] == pytest.approx((1.0 + 0.5 + 0.7 + 0.9) / 4)


def test_values_of_all_states_shape_the_advantages() -> None:
    """Returns 1 and .3; row 1 alone has a second chunk, so there is nothing to compare it with."""

    def value(observation: Observation) -> Tensor:
        return torch.tensor([0.6, 0.2, 0.7, 0.9])

    objective = make_objective({0: two_groups()}, replace(CONFIG, shapes_by_value=True, minibatch_size=8), value=value)
    (update,) = objective.batches(0)
    decisions = update[0]
    order = decisions.observation.env_step.argsort(stable=True)
    by_row = dict(zip(decisions.observation.instruction, decisions.advantages.tolist(), strict=True))
    assert decisions.advantages[order][-1] == 0
    assert by_row["row 0"] == pytest.approx((0.4 - 0.25) / 0.35)  # 1 - .6 and .3 - .2, whose mean is .25; std .35
    assert objective.step_metrics["return_mean"] == pytest.approx((1.0 + 0.3 + 0.4 + 0.4) / 4), "returns stay"


class ForgetfulCoin(Coin):
    """It has dropout."""

    def log_prob(self, observation: Observation, chunk: ActionChunk) -> Tensor:
        kept = nn.functional.dropout(torch.ones(2), 0.5, self.training)
        return (self.logits + kept).log_softmax(0)[chunk.trace["tokens"]]


def test_the_ratios_of_the_first_update_are_one_even_with_dropout() -> None:
    torch.manual_seed(0)
    objective = make_objective({0: two_groups()}, policy=ForgetfulCoin().train())
    for update in objective.batches(0):
        _, metrics = objective.compute_loss(update[0], 0)
        assert (metrics["ratio_min"], metrics["ratio_max"]) == (1.0, 1.0)


def test_where_all_groups_are_alike_nothing_is_learnt() -> None:
    step = make_step([[0.4], [0.4]], [[True, True]] * 2)
    policy, reporter = Coin(), RecordingReporter()
    objective = make_objective({0: make_rollout(step, chunks=[toss([[0, 0], [1, 1]])])}, policy=policy)
    make_optimizer = partial(Optimizer, learning_rate=0.5, num_steps=None, warmup_steps=0)
    Trainer(policy, make_optimizer, TrainingSetup(), reporter, name="improve_policy").fit(objective, 1)
    assert policy.logits.tolist() == [0.0, 0.0]
    (values,) = reporter.curves["improve_policy"].values()
    assert values["improve_policy/groups_dropped"] == 1.0
    assert "improve_policy/loss" not in values


@pytest.mark.parametrize("requires", [True, False])
def test_groups_in_which_no_success_is_declared_teach_nothing_unless_asked(requires: bool) -> None:
    step = make_step([[0.1], [0.4]], [[True, True]] * 2)
    rollout = make_rollout(step, chunks=[toss([[0, 0], [1, 1]])])
    objective = make_objective({0: rollout}, replace(CONFIG, require_success=requires, normalise_advantages=False))
    updates = list(objective.batches(0))
    assert objective.step_metrics["groups_dropped"] == float(requires)
    if requires:
        assert not updates
    else:
        ((update,),) = [tuple(update.values()) for update in updates]
        assert sorted(update.advantages.tolist()) == pytest.approx([-0.15, 0.15])


def test_returns_are_permuted_where_the_control_asks_for_it() -> None:
    """Of sixteen rows one succeeds; permuted over all rows it is another that gets its advantage."""
    step = make_step([[0.1]] * 16, [[True, True]] * 16, 0)
    rollout = make_rollout(step, chunks=[toss([[0, 0]] * 16)], group_id=[n // 2 for n in range(16)])

    def best(config: GrpoConfig, seed: int = 0) -> tuple[str, ...]:
        objective = make_objective({0: rollout}, replace(config, minibatch_size=16))
        objective.generators = {0: make_generator(seed)}
        ((update,),) = [tuple(update.values()) for update in objective.batches(0)]
        return tuple(update.observation.instruction[i] for i in (update.advantages > 0).nonzero()[:, 0].tolist())

    assert best(CONFIG) == ("row 0",)
    shuffled = replace(CONFIG, shuffle_rewards=True)
    assert {best(shuffled, seed) for seed in range(5)} > {best(shuffled, 0)}
    assert best(shuffled, 3) == best(shuffled, 3)


def test_the_loss_is_the_clipped_surrogate_and_the_distance_to_the_start() -> None:
    objective = make_objective({0: two_groups()}, replace(CONFIG, clip_ratio_low=0.1, clip_ratio_high=0.3))
    objective.config = replace(objective.config, kl_coefficient=0.5)
    assert isinstance(objective.policy, Coin)
    assert isinstance(objective.reference, Coin)
    with torch.no_grad():
        objective.policy.logits.copy_(torch.tensor([0.0, 0.4]))
        objective.reference.logits.copy_(torch.tensor([0.0, 1.5]))
    chunk = toss([[0, 1], [1, 1], [0, 0], [1, 0]])
    log_probs, reference = (m.log_prob(make_observation(4), chunk) for m in (objective.policy, objective.reference))
    valid = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    assert chunk.log_probs is not None
    decisions = Decisions(make_observation(4), chunk, chunk.log_probs, valid, torch.tensor([1.0, -0.5, 2.0, -1.5]))
    surrogate, _ = compute_policy_loss(log_probs, chunk.log_probs, decisions.advantages, valid, 0.1, 0.3)
    kl = compute_kl_penalty(log_probs, reference, valid)
    assert abs(float(surrogate)) > 0.05
    assert float(kl) > 0.05
    loss, metrics = objective.compute_loss(decisions, 0)
    assert float(loss) == pytest.approx(float(surrogate) + 0.5 * float(kl))
    assert metrics["loss"] == pytest.approx(float(loss))
    assert metrics["loss_policy"] == pytest.approx(float(surrogate))
    assert metrics["kl_to_start"] == pytest.approx(float(kl))
    loss.backward()
    assert objective.policy.logits.grad is not None
    assert objective.reference.logits.grad is None


def test_tosses_that_succeeded_become_likelier() -> None:
    """Heads succeed in both microbatches."""
    policy, reporter = Coin(), RecordingReporter()
    modes: list[bool] = []
    objective = make_objective({0: two_groups(), 1: one_group()}, policy=policy)
    rollouts = {0: two_groups(), 1: one_group()}

    def imagine(update: int, number: int) -> Rollout:
        modes.append(policy.training)
        return rollouts[number]

    objective.imagine = imagine
    make_optimizer = partial(Optimizer, learning_rate=0.1, num_steps=None, warmup_steps=0)
    setup = TrainingSetup(num_microbatches=2)
    Trainer(policy, make_optimizer, setup, reporter, name="improve_policy").fit(objective, 2)
    tails, heads = policy.logits.softmax(0).tolist()
    assert heads > 0.6 > tails
    assert modes == [False] * 4, "rollouts are imagined in evaluation mode"
    assert not policy.training, "and so are the updates"
    assert objective.history.success == pytest.approx([3 / 8, 3 / 8])
    assert objective.history.num_frames == 2 * 7
    curve = reporter.curves["improve_policy"]
    assert set(curve) == {0, 1}, "every round is drawn"
    assert "improve_policy/imagined_frames" not in curve[0]
    assert curve[0]["improve_policy/imagined_frames_per_s"] > 0
    assert reporter.bars[0].figures == [{"imagined_success_rate": pytest.approx(3 / 8)}] * 2


# --- what is kept of past rounds ----------------------------------------------------------------------------------


def test_what_is_kept_of_past_rounds_is_kept_to_the_last_bit() -> None:
    history = GrpoHistory()
    for success in (1 / 3, 0.1 + 0.2):
        history.add(success, 2.0**24 + 1)
    again = GrpoHistory()
    again.load_state_dict({name: value.clone() for name, value in history.state_dict().items()})
    assert (again.success, again.num_frames) == (history.success, history.num_frames)


def test_success_before_and_after_by_hand() -> None:
    history = GrpoHistory()
    for success in (0.1234567, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.8, 0.9):
        history.add(success, 1.0)
    assert history.first_success == 0.123457
    assert history.last_success == 0.85  # the last fifth of eleven rounds: two
    alone = GrpoHistory()
    alone.add(0.25, 1.0)
    assert alone.first_success == alone.last_success == 0.25
