"""Grouped rollouts in the world model, from which GRPO learns.

The members of a group start from one real state and share the world model's noise. They differ only in the policy's
samples. Groups alternate between the tasks. Some groups start at the first frame of any training episode of their task,
others in the middle of one of the policy's own episodes. They do not start in the middle of scripted episodes, because
the policy never reaches the middle of a scripted failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import Actor, WorldModel
from worldloop.core.randomness import make_row_keys
from worldloop.core.success import Calibrations
from worldloop.core.types import Rollout
from worldloop.rollout.imagination import imagine_rollout
from worldloop.sans.clips import ClipDataset
from worldloop.training.data_parallel import share_of_microbatch
from worldloop.training.resume import TrainingSetup


@dataclass(frozen=True)
class GroupSettings:
    """The groups of each microbatch: ``num_groups``, which alternate between ``tasks``.

    ``tasks`` are those in which the world model is trusted. ``key`` seeds all noise. For the other fields see the
    stage's config.
    """

    num_groups: int
    tasks: tuple[str, ...]
    group_size: int
    mid_episode_share: float
    imagination_horizon: int
    truncates_uncertain: bool
    max_imagination_batch: int
    key: tuple[int | str, ...]


class GroupedImagination:
    """``imagine(update, number)``: the grouped rollouts of microbatch ``number`` in round ``update``.

    Raises ``WorldloopError`` for a task without a training episode.
    """

    def __init__(
        self,
        policy: Actor,
        world_model: WorldModel,
        calibrations: Calibrations,
        dataset: ClipDataset,
        settings: GroupSettings,
        setup: TrainingSetup,
        generators: Mapping[int, torch.Generator],
    ) -> None:
        self.policy, self.world_model, self.calibrations = policy, world_model, calibrations
        self.dataset, self.settings, self.setup, self.generators = dataset, settings, setup, generators
        self.episodes = {task: dataset.episode_index(task=task) for task in settings.tasks}
        self.policy_episodes = {task: dataset.episode_index(task=task, source="policy") for task in settings.tasks}
        for task, episodes in self.episodes.items():
            if len(episodes) == 0:
                raise WorldloopError(f"no group can start: the dataset has no training episode of task {task!r}")

    def imagine(self, update: int, number: int) -> Rollout:
        settings = self.settings
        index = self.draw_starts(update, number)
        groups = torch.arange(len(index)).repeat_interleave(settings.group_size)
        draws = self.setup.name_draws(number, *settings.key, update)
        return imagine_rollout(
            self.policy,
            self.world_model,
            self.calibrations,
            self.dataset.observation(index),
            noise_key=make_row_keys(len(groups), *draws, "policy"),
            world_key=make_row_keys(len(index), *draws, "world_model"),
            initial_state_id=tuple(f"{e}/{f}" for e, f in index[groups].tolist()),
            group_id=groups,
            max_chunks=settings.imagination_horizon,
            truncates_uncertain=settings.truncates_uncertain,
            max_batch=settings.max_imagination_batch,
        )

    def draw_starts(self, update: int, number: int) -> Tensor:
        """Where the groups start, int64 [N, 2] of (episode, frame).

        Tasks follow one another. Within a task, starts at a first frame come before starts in the middle. Groups
        alternate between the tasks across all rounds, so each task gets its share even if a round has few groups.
        """
        tasks, num_groups = self.settings.tasks, self.settings.num_groups
        positions = range(number * num_groups, (number + 1) * num_groups)  # within the round
        begun = update * num_groups * self.setup.num_microbatches  # groups of the rounds before
        starts = []
        for turn, task in enumerate(tasks):
            own = [p // len(tasks) for p in positions if (begun + p) % len(tasks) == turn]
            starts.append(self._draw_starts_of(task, own, self.generators[number]))
        return torch.cat(starts)

    def _draw_starts_of(self, task: str, numbers: Sequence[int], generator: torch.Generator) -> Tensor:
        """The starts of some groups of ``task``; ``numbers`` are their numbers among the task's groups of the round."""
        policy_episodes = self.policy_episodes[task]
        share = self.settings.mid_episode_share if len(policy_episodes) else 0.0
        num_middle = sum(share_of_microbatch(1, share, group) for group in numbers)

        def draw(episodes: Tensor, count: int) -> Tensor:
            return episodes[torch.randint(len(episodes), (count,), generator=generator)]

        first = draw(self.episodes[task], len(numbers) - num_middle)
        middle = draw(policy_episodes, num_middle) if num_middle else first[:0]
        frame = (torch.rand(num_middle, generator=generator) * self.dataset.num_open_steps[middle]).long()
        starts = [torch.stack([first, torch.zeros_like(first)], 1), torch.stack([middle, frame], 1)]
        return torch.cat(starts)
