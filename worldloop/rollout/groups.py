"""Grouped rollouts in the world model: what GRPO learns from.

Each group starts from one real state, shares the world model's noise among its members, and differs only in the
policy's samples. Some groups start at the first frame of any training episode, others in the middle of one of the
policy's own: the middle of a scripted failure is a place the policy never gets to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.interfaces import Actor, WorldModel
from worldloop.core.randomness import make_row_keys
from worldloop.core.success import Calibration
from worldloop.core.types import Observation, Rollout
from worldloop.rollout.imagination import ImaginedSimulator
from worldloop.rollout.rollout import run_rollout
from worldloop.sans.clips import ClipDataset
from worldloop.training.data_parallel import share_of_micro_batch
from worldloop.training.resume import TrainingSetup


@dataclass(frozen=True)
class GroupSettings:
    """``num_groups`` per micro-batch; ``key`` seeds all noise. See the stage's config for the others."""

    num_groups: int
    group_size: int
    mid_episode_share: float
    imagination_horizon: int
    truncates_uncertain: bool
    max_imagination_batch: int
    key: tuple[int | str, ...]


class GroupedImagination:
    """``imagine(update, number)``: the grouped rollouts of micro-batch ``number`` in one round."""

    def __init__(
        self,
        policy: Actor,
        world_model: WorldModel,
        calibration: Calibration,
        dataset: ClipDataset,
        settings: GroupSettings,
        setup: TrainingSetup,
        generators: Mapping[int, torch.Generator],
    ) -> None:
        self.policy, self.world_model, self.calibration = policy, world_model, calibration
        self.dataset, self.settings, self.setup, self.generators = dataset, settings, setup, generators
        self.episodes = dataset.episode_index()
        self.policy_episodes = dataset.episode_index(source="policy")

    def imagine(self, update: int, number: int) -> Rollout:
        settings = self.settings
        index = self.draw_starts(number)
        groups = torch.arange(len(index)).repeat_interleave(settings.group_size)
        start = self.dataset.observation(index)
        draws = self.setup.name_draws(number, *settings.key, update)
        world_keys = make_row_keys(len(index), *draws, "world_model")
        policy_keys = make_row_keys(len(groups), *draws, "policy")
        simulator = ImaginedSimulator(
            self.world_model,
            self.world_model.spec,
            self.calibration,
            len(groups),
            truncates_uncertain=settings.truncates_uncertain,
            max_batch=settings.max_imagination_batch,
        )

        def begin() -> Observation:
            """What a group has in common is computed once."""
            simulator.start(start, world_keys)
            return simulator.restore(simulator.save().rows(groups))

        return run_rollout(
            self.policy,
            simulator,
            start.rows(groups),
            policy_keys,
            initial_state_id=tuple(f"{e}/{f}" for e, f in index[groups].tolist()),
            group_id=groups,
            max_chunks=settings.imagination_horizon,
            origin="imagined",
            reset=begin,
        )

    def draw_starts(self, number: int) -> Tensor:
        """int64 [N, 2] of (episode, frame): first frames first, then those in the middle of the policy's episodes."""
        generator, settings = self.generators[number], self.settings
        share = settings.mid_episode_share if len(self.policy_episodes) else 0.0
        num_middle = share_of_micro_batch(settings.num_groups, share, number)

        def draw(episodes: Tensor, count: int) -> Tensor:
            return episodes[torch.randint(len(episodes), (count,), generator=generator)]

        first = draw(self.episodes, settings.num_groups - num_middle)
        middle = draw(self.policy_episodes, num_middle) if num_middle else first[:0]
        frame = (torch.rand(num_middle, generator=generator) * self.dataset.num_open_steps[middle]).long()
        starts = [torch.stack([first, torch.zeros_like(first)], 1), torch.stack([middle, frame], 1)]
        return torch.cat(starts)
