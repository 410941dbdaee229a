"""Grouped rollouts in a world model whose noise can be read off its frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from counting import SPEC, CountingState
from torch import Tensor

from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.randomness import row_normal, row_uniform
from worldloop.core.success import Calibration
from worldloop.core.types import ActionChunk, Observation, Rollout
from worldloop.rollout.groups import GroupedImagination, GroupSettings
from worldloop.training.resume import TrainingSetup

SETTINGS = GroupSettings(
    num_groups=4, group_size=3, mid_episode_share=0.5, imagination_horizon=2, truncates_uncertain=False,
    max_imagination_batch=0, key=(7, 1, "test"),
)  # fmt: skip
NUM_OPEN_STEPS = torch.tensor([9, 9, 9, 1, 2, 3])  # of three scripted episodes and three of the policy


class Episodes:
    """Six training episodes, the last three the policy's; proprio says episode and frame."""

    num_open_steps = NUM_OPEN_STEPS

    def __init__(self, has_policy: bool = True) -> None:
        self.has_policy = has_policy

    def episode_index(self, source: str = "") -> Tensor:
        return torch.arange(3, 6 if self.has_policy else 3) if source == "policy" else torch.arange(6)

    def observation(self, index: Tensor) -> Observation:
        frames = torch.zeros(len(index), 3, 2, 2, 3, dtype=torch.uint8)
        place = index[:, :1] + 0.1 * index[:, 1:]
        return Observation(frames, place, ("i",) * len(index), SPEC.actions_per_frame * index[:, 1])


class Noisy:
    """A world model that moves by its noise and not by actions; ``started`` are the keys it was started with."""

    spec = SPEC

    def __init__(self) -> None:
        self.started: list[Tensor] = []

    def start(self, context: Observation, noise_key: Tensor) -> CountingState:
        self.started.append(noise_key)
        assert context.proprio is not None
        return CountingState(context.proprio[:, 0], noise_key, torch.zeros_like(noise_key))

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        moved = state.position[:, None] + row_normal(state.noise_key, state.step, (1,))
        frames = torch.zeros(len(moved), 1, 2, 2, 3, dtype=torch.uint8)
        chunk = ImaginedChunk(frames, moved[..., None], torch.full_like(moved, -9.0), torch.full_like(moved, 15.0))
        return replace(state, position=moved[:, 0], step=state.step + 1), chunk


class Random:
    """A policy that sees nothing."""

    version = "random"

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        assert noise_key is not None
        return ActionChunk(row_uniform(noise_key, observation.env_step, (2, 1)))


def make_imagination(
    settings: GroupSettings = SETTINGS, num_micro_batches: int = 1, has_policy: bool = True, floor_db: float = 0.0
) -> GroupedImagination:
    setup = TrainingSetup(num_micro_batches=num_micro_batches)
    dataset: Any = Episodes(has_policy)
    world_model: Any = Noisy()
    generators = setup.make_generators("starts")
    return GroupedImagination(
        Random(), world_model, Calibration(floor_db=floor_db), dataset, settings, setup, generators
    )


# --- where groups start -------------------------------------------------------------------------------------------


def test_first_frames_of_any_episode_and_open_frames_of_the_policys_own() -> None:
    imagination = make_imagination(replace(SETTINGS, num_groups=400, mid_episode_share=0.25))
    starts = imagination.draw_starts(0)
    first, middle = starts[:300], starts[300:]
    assert (first[:, 1] == 0).all()
    assert set(first[:, 0].tolist()) == set(range(6))
    assert set(map(tuple, middle.tolist())) == {(3, 0), (4, 0), (4, 1), (5, 0), (5, 1), (5, 2)}


def test_without_an_episode_of_the_policy_all_groups_start_at_first_frames() -> None:
    starts = make_imagination(has_policy=False).draw_starts(0)
    assert starts.shape == (4, 2)
    assert (starts[:, 1] == 0).all()


def test_small_micro_batches_have_their_share_of_middles_together() -> None:
    imagination = make_imagination(replace(SETTINGS, num_groups=1, mid_episode_share=0.25), num_micro_batches=8)
    episodes = torch.cat([imagination.draw_starts(number) for number in range(8)])
    assert len(episodes) == 8
    imagination.policy_episodes = torch.tensor([5])
    imagination.episodes = torch.tensor([0])
    assert sum(int(imagination.draw_starts(number)[0, 0] == 5) for number in range(8)) == 2


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
    starts = make_imagination().draw_starts(0).tolist()
    rollout = imagination.imagine(0, 0)
    assert len(rollout.steps) == 2
    assert rollout.initial_state_id[::3] == tuple(f"{e}/{f}" for e, f in starts)
    begun = rollout.observations[0].proprio
    assert begun is not None
    assert begun[::3, 0].tolist() == pytest.approx([e + 0.1 * f for e, f in starts])
    assert rollout.observations[0].env_step[::3].tolist() == [2 * f for _, f in starts]


def test_noise_is_a_function_of_round_and_micro_batch() -> None:
    def imagine(update: int, number: int, num_micro_batches: int = 2) -> tuple[Tensor, Tensor]:
        imagination = make_imagination(num_micro_batches=num_micro_batches)
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
    rollout = make_imagination(replace(SETTINGS, truncates_uncertain=truncates), floor_db=20.0).imagine(0, 0)
    assert len(rollout.steps) == (1 if truncates else 2)
    assert rollout.steps[-1].truncated.all() == truncates
