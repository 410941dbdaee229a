"""Grouped rollouts in a world model whose noise can be read off its frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from counting import SPEC, CountingState
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.randomness import row_normal, row_uniform
from worldloop.core.specs import TaskSpec
from worldloop.core.success import Calibration, Calibrations
from worldloop.core.types import ActionChunk, Observation, Rollout
from worldloop.rollout.groups import GroupedImagination, GroupSettings
from worldloop.training.resume import TrainingSetup

SETTINGS = GroupSettings(
    num_groups=4, tasks=("t",), group_size=3, mid_episode_share=0.5, imagination_horizon=2, truncates_uncertain=False,
    max_imagination_batch=0, key=(7, 1, "test"),
)  # fmt: skip
NUM_OPEN_STEPS = torch.tensor([9, 9, 9, 1, 2, 3])  # of three scripted episodes and three of the policy
TWO_TASKS = ("t", "u", "t", "t", "t", "u")  # of the same episodes
SPEC_OF_TWO = replace(SPEC, tasks=(SPEC.tasks[0], TaskSpec("u", ("j",), 0.1, max_episode_steps=4)))


class Episodes:
    """Six training episodes, the last three the policy's; proprio says episode and frame."""

    num_open_steps = NUM_OPEN_STEPS

    def __init__(self, has_policy: bool = True, tasks: tuple[str, ...] = ("t",) * 6) -> None:
        self.has_policy, self.tasks = has_policy, tasks

    def episode_index(self, task: str, source: str = "") -> Tensor:
        chosen = [e for e in range(6) if self.tasks[e] == task and (source != "policy" or e >= 3)]
        return torch.tensor(chosen if self.has_policy or not source else [], dtype=torch.long)

    def observation(self, index: Tensor) -> Observation:
        frames = {"cam": torch.zeros(len(index), 3, 2, 2, 3, dtype=torch.uint8)}
        place = index[:, :1] + 0.1 * index[:, 1:]
        task = tuple(self.tasks[episode] for episode in index[:, 0].tolist())
        return Observation(frames, place, task, ("i",) * len(index), SPEC.actions_per_frame * index[:, 1])


class Noisy:
    """A world model that moves by its noise and not by actions; ``started`` are the keys it was started with."""

    spec = SPEC_OF_TWO

    def __init__(self) -> None:
        self.started: list[Tensor] = []

    def start(self, context: Observation, noise_key: Tensor) -> CountingState:
        self.started.append(noise_key)
        assert context.proprio is not None
        return CountingState(context.proprio[:, 0], noise_key, torch.zeros_like(noise_key))

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        moved = state.position[:, None] + row_normal(state.noise_key, state.step, (1,))
        frames = {"cam": torch.zeros(len(moved), 1, 2, 2, 3, dtype=torch.uint8)}
        chunk = ImaginedChunk(frames, moved[..., None], torch.full_like(moved, -9.0), torch.full_like(moved, 15.0))
        return replace(state, position=moved[:, 0], step=state.step + 1), chunk


class Random:
    """A policy that sees nothing."""

    version = "random"

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        assert noise_key is not None
        return ActionChunk(row_uniform(noise_key, observation.env_step, (2, 1)))


def make_imagination(
    settings: GroupSettings = SETTINGS,
    num_microbatches: int = 1,
    episodes: Episodes | None = None,
    floor_db: dict[str, float] | None = None,
) -> GroupedImagination:
    setup = TrainingSetup(num_microbatches=num_microbatches)
    dataset: Any = episodes or Episodes()
    world_model: Any = Noisy()
    calibrations = Calibrations({task: Calibration(floor_db=db) for task, db in (floor_db or {}).items()})
    generators = setup.make_generators("starts")
    return GroupedImagination(Random(), world_model, calibrations, dataset, settings, setup, generators)


# --- where groups start -------------------------------------------------------------------------------------------


def test_first_frames_of_any_episode_and_open_frames_of_the_policys_own() -> None:
    imagination = make_imagination(replace(SETTINGS, num_groups=400, mid_episode_share=0.25))
    starts = imagination.draw_starts(0, 0)
    first, middle = starts[:300], starts[300:]
    assert (first[:, 1] == 0).all()
    assert set(first[:, 0].tolist()) == set(range(6))
    assert set(map(tuple, middle.tolist())) == {(3, 0), (4, 0), (4, 1), (5, 0), (5, 1), (5, 2)}


def test_without_an_episode_of_the_policy_all_groups_start_at_first_frames() -> None:
    starts = make_imagination(episodes=Episodes(has_policy=False)).draw_starts(0, 0)
    assert starts.shape == (4, 2)
    assert (starts[:, 1] == 0).all()


def test_small_microbatches_have_their_share_of_middles_together() -> None:
    imagination = make_imagination(replace(SETTINGS, num_groups=1, mid_episode_share=0.25), num_microbatches=8)
    episodes = torch.cat([imagination.draw_starts(0, number) for number in range(8)])
    assert len(episodes) == 8
    imagination.policy_episodes = {"t": torch.tensor([5])}
    imagination.episodes = {"t": torch.tensor([0])}
    assert sum(int(imagination.draw_starts(0, number)[0, 0] == 5) for number in range(8)) == 2


# --- several tasks ------------------------------------------------------------------------------------------------


def test_every_task_has_as_many_groups_of_its_own_episodes() -> None:
    settings = replace(SETTINGS, tasks=("t", "u"), num_groups=400, mid_episode_share=0.25)
    starts = make_imagination(settings, episodes=Episodes(tasks=TWO_TASKS)).draw_starts(0, 0)
    of_t, of_u = starts.split(200)
    for own, episodes, middles in (
        (of_t, {0, 2, 3, 4}, {(3, 0), (4, 0), (4, 1)}),
        (of_u, {1, 5}, {(5, 0), (5, 1), (5, 2)}),
    ):
        assert (own[:150, 1] == 0).all()
        assert set(own[:150, 0].tolist()) == episodes
        assert set(map(tuple, own[150:].tolist())) == middles
    alone = make_imagination(replace(settings, tasks=("u",)), episodes=Episodes(tasks=TWO_TASKS)).draw_starts(0, 0)
    assert set(alone[:, 0].tolist()) == {1, 5}


def test_a_task_in_which_the_policy_never_acted_has_first_frames_alone() -> None:
    episodes = Episodes(tasks=("u", "u", "u", "t", "t", "t"))
    starts = make_imagination(replace(SETTINGS, tasks=("t", "u"), num_groups=400), episodes=episodes).draw_starts(0, 0)
    of_t, of_u = starts.split(200)
    assert set(map(tuple, of_t[100:].tolist())) == {(3, 0), (4, 0), (4, 1), (5, 0), (5, 1), (5, 2)}
    assert set(map(tuple, of_u.tolist())) == {(0, 0), (1, 0), (2, 0)}


@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_tasks_take_turns_over_microbatches_and_rounds(num_microbatches: int) -> None:
    """Three groups a round of two tasks: 2 + 1, 1 + 2, and so on."""
    settings = replace(SETTINGS, tasks=("t", "u"), num_groups=3 // num_microbatches, mid_episode_share=0.0)
    imagination = make_imagination(settings, num_microbatches, Episodes(tasks=TWO_TASKS))
    counts = []
    for update in range(4):
        starts = torch.cat([imagination.draw_starts(update, number) for number in range(num_microbatches)])
        counts.append([TWO_TASKS[episode] for episode in starts[:, 0].tolist()].count("t"))
    assert counts == [2, 1, 2, 1]


def test_every_task_has_its_share_of_middles_whatever_the_microbatches() -> None:
    settings = replace(SETTINGS, tasks=("t", "u"), num_groups=1, mid_episode_share=0.25)
    imagination = make_imagination(settings, 8, Episodes(tasks=TWO_TASKS))
    imagination.episodes = {"t": torch.tensor([0]), "u": torch.tensor([1])}
    drawn = [imagination.draw_starts(0, number)[0, 0].item() for number in range(8)]
    assert [drawn.count(0), drawn.count(1)] == [3, 3]


def test_a_task_without_an_episode_is_an_error() -> None:
    with pytest.raises(WorldloopError, match="the dataset has no training episode of task 'u'"):
        make_imagination(replace(SETTINGS, tasks=("t", "u")))


def test_rows_are_read_and_limited_by_their_own_task() -> None:
    """Task u is over after four steps, two chunks. The 15 dB of every frame are below the floor of task t alone."""
    settings = replace(SETTINGS, tasks=("t", "u"), mid_episode_share=0.0, imagination_horizon=3)
    rollout = make_imagination(settings, episodes=Episodes(tasks=TWO_TASKS)).imagine(0, 0)
    assert rollout.observations[0].task == ("t",) * 6 + ("u",) * 6
    assert rollout.valid.sum(1).tolist() == [6] * 6 + [4] * 6
    settings = replace(settings, truncates_uncertain=True)
    rollout = make_imagination(settings, episodes=Episodes(tasks=TWO_TASKS), floor_db={"t": 20.0, "u": 10.0}).imagine(
        0, 0
    )
    assert rollout.valid.sum(1).tolist() == [2] * 6 + [4] * 6


# --- what they have in common -------------------------------------------------------------------------------------


def positions(rollout: Rollout) -> Tensor:
    """f32 [N, G, C]: where the rows of every group are after each chunk."""
    steps = [step.proprio[:, 0, 0] for step in rollout.steps if step.proprio is not None]
    return torch.stack(steps, dim=1).unflatten(0, (-1, SETTINGS.group_size))


def test_members_share_the_worlds_noise_and_act_differently() -> None:
    rollout = make_imagination().imagine(0, 0)
    assert rollout.origin == "imagined"
    assert rollout.group_id.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    where = positions(rollout)
    assert (where == where[:, :1]).all(), "actions move nothing here, so members stay together"
    assert len(where[:, 0, 0].unique()) == 4, "groups do not"
    actions = rollout.chunks[0].actions.flatten(1)
    assert len(actions.unique(dim=0)) == 12


def test_what_a_group_has_in_common_is_computed_once() -> None:
    imagination = make_imagination()
    imagination.imagine(0, 0)
    assert isinstance(imagination.world_model, Noisy)
    (keys,) = imagination.world_model.started
    assert keys.shape == (4,)


def test_rollouts_end_at_the_horizon_and_name_their_starts() -> None:
    imagination = make_imagination()
    starts = make_imagination().draw_starts(0, 0).tolist()
    rollout = imagination.imagine(0, 0)
    assert len(rollout.steps) == 2
    assert rollout.initial_state_id[::3] == tuple(f"{e}/{f}" for e, f in starts)
    begun = rollout.observations[0].proprio
    assert begun is not None
    assert begun[::3, 0].tolist() == pytest.approx([e + 0.1 * f for e, f in starts])
    assert rollout.observations[0].env_step[::3].tolist() == [2 * f for _, f in starts]


def test_noise_is_a_function_of_round_and_microbatch() -> None:
    def imagine(update: int, number: int, num_microbatches: int = 2) -> tuple[Tensor, Tensor]:
        imagination = make_imagination(num_microbatches=num_microbatches)
        rollout = imagination.imagine(update, number)
        moved = positions(rollout)[:, 0, 1] - positions(rollout)[:, 0, 0]
        return moved, rollout.chunks[0].actions

    moved, actions = imagine(0, 0)
    again = imagine(0, 0)
    assert torch.equal(moved, again[0])
    assert torch.equal(actions, again[1])
    for update, number, count in ((1, 0, 2), (0, 1, 2), (0, 0, 1)):
        other = imagine(update, number, count)
        assert not (moved[:, None] == other[0]).any()
        assert not (actions == other[1]).any()


@pytest.mark.parametrize("truncates", [False, True])
def test_rows_end_where_the_model_is_too_uncertain(truncates: bool) -> None:
    """It expects 15 dB everywhere, below the floor of 20."""
    rollout = make_imagination(replace(SETTINGS, truncates_uncertain=truncates), floor_db={"t": 20.0}).imagine(0, 0)
    assert len(rollout.steps) == (1 if truncates else 2)
    assert rollout.steps[-1].truncated.all() == truncates
