"""Observations and the action chunks to imitate, for behaviour cloning, and which of them are good, for RECAP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.core.errors import WorldloopError
from worldloop.core.types import OUTCOMES, SOURCES, ImitationBatch, Observation, Outcome, Source, Split
from worldloop.sans.advantages import AdvantageLabels
from worldloop.sans.cache import VersionCache
from worldloop.sans.clips import make_observation


@dataclass(frozen=True)
class EpisodeSelection:
    """Which episodes are imitated. The default is that of `clone_policy`: successful expert demonstrations."""

    sources: tuple[Source, ...] = ("expert",)  # one or more of expert, perturbed, policy, recorded
    outcomes: tuple[Outcome, ...] = ("success",)  # one or more of success, near_success, failure
    split: Split = "train"  # train | validation (only to measure)
    tasks: tuple[str, ...] = ()  # task ids; (): all
    max_episodes: int | None = None  # per task, the first ones in the version's order; None: all

    def __post_init__(self) -> None:
        for key, chosen, allowed in (("sources", self.sources, SOURCES), ("outcomes", self.outcomes, OUTCOMES)):
            if not chosen or not set(chosen) <= set(allowed):
                raise ValueError(f"{key} is {chosen}, allowed: one or more of {allowed}")
        if self.max_episodes is not None and self.max_episodes < 1:
            raise ValueError(f"max_episodes is {self.max_episodes}, allowed: >= 1 or null")


EXPERT_DEMONSTRATIONS = EpisodeSelection()
RECORDED_DEMONSTRATIONS = EpisodeSelection(sources=("recorded",))
EVERY_SUCCESS = EpisodeSelection(sources=SOURCES)
DEMONSTRATION_SOURCES: tuple[Source, ...] = ("expert", "recorded")
IMAGE_BYTES = 2**27  # of each camera, most that `ImitationDataset.images` returns: 10922 frames of 64 x 64 px


class ImitationDataset:
    """Action chunks of the selected episodes, each with the observation by ``cameras`` at its start.

    - ``episodes`` int64 [n]: numbers of the selected episodes
    - ``starts`` int64 [N, 2] = (episode, frame): stored frames that are followed by at least one valid action
    - ``interaction`` bool, one entry per frame step of the version, see `find_interaction`; ``None``: batches tell
      nothing of it

    `sample` draws all tasks equally often, and all starts of a task equally often. Raises ``WorldloopError`` if no
    episode matches, ``ValueError`` for a camera that is not in the dataset.
    """

    def __init__(
        self,
        cache: VersionCache,
        select: EpisodeSelection,
        cameras: Sequence[str],
        num_context_frames: int = NUM_CONTEXT_FRAMES,
        interaction: np.ndarray | None = None,
    ) -> None:
        self.interaction = interaction
        self.cache, self.cameras, self.num_context_frames = cache, cache.check_cameras(cameras), num_context_frames
        chosen = cache.select(source=select.sources, outcome=select.outcomes, split=select.split)
        tasks = np.array([cache.metas[e].task for e in chosen.tolist()])
        names = [str(name) for name in np.unique(tasks) if not select.tasks or name in select.tasks]
        by_task = [chosen[tasks == name][: select.max_episodes] for name in names]
        if not by_task:
            raise WorldloopError(f"no episode to imitate: none of split {select.split!r} matches {select}")
        self.episodes = np.sort(np.concatenate(by_task))
        episode = np.repeat(self.episodes, cache.num_steps[self.episodes])
        starts = np.stack([episode, np.concatenate([np.arange(cache.num_steps[e]) for e in self.episodes])], axis=1)
        self.starts = starts[cache.steps("valid", starts[:, 0], starts[:, 1]).any(axis=1)]
        self._rows_by_task = [np.flatnonzero(np.isin(self.starts[:, 0], episodes)) for episodes in by_task]

    def __len__(self) -> int:
        return len(self.starts)

    def images(self) -> dict[str, Tensor]:
        """See `ImitationSource.images`. Of more than `IMAGE_BYTES` an evenly spaced part is returned."""
        images: dict[str, Tensor] = {}
        for camera in self.cameras:
            first = self.cache.images((camera,), *self.starts[:1].T)[camera]
            count = max(1, min(len(self.starts), IMAGE_BYTES // first.nbytes))
            rows = np.arange(count) * len(self.starts) // count
            images |= self.cache.images((camera,), *self.starts[rows].T)
        return images

    def observations(self, block_size: int) -> Iterator[Observation]:
        """See `ImitationSource.observations`."""
        for first in range(0, len(self.starts), block_size):
            index = self.starts[first : first + block_size]
            yield make_observation(self.cache, self.cameras, index, self.num_context_frames)

    def proprio(self) -> Tensor:
        """See `ImitationSource.proprio`."""
        return torch.from_numpy(self.cache.frames("proprio", *self.starts.T))

    def actions(self) -> Tensor:
        """See `ImitationSource.actions`."""
        valid = self.cache.steps("valid", *self.starts.T)
        return torch.from_numpy(self.cache.steps("actions", *self.starts.T)[valid])

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        """B chunks of H = ``chunk_length`` actions, drawn with replacement; see `load`."""
        return self.load(self.starts[self.draw_starts(generator, batch_size)], chunk_length)

    def draw_starts(self, generator: torch.Generator, batch_size: int) -> np.ndarray:
        """int64 [B]: rows of ``starts``, drawn with replacement."""
        if len(self._rows_by_task) == 1:
            return torch.randint(len(self.starts), (batch_size,), generator=generator).numpy()
        task = torch.randint(len(self._rows_by_task), (batch_size,), generator=generator).tolist()
        place = torch.rand(batch_size, generator=generator, dtype=torch.float64).tolist()
        rows = [self._rows_by_task[t] for t in task]
        return np.array([row[int(p * len(row))] for row, p in zip(rows, place, strict=True)])

    def load(self, index: np.ndarray, chunk_length: int) -> ImitationBatch:
        """The chunks of H = ``chunk_length`` actions that start at ``index`` int64 [B, 2] = (episode, frame).

        ``valid`` is false past the episode's end, where the last actions repeat, and after its first success. Raises
        ``ValueError`` unless H is a multiple of ``actions_per_frame``.
        """
        s = self.cache.actions_per_frame
        if chunk_length < 1 or chunk_length % s:
            raise ValueError(f"chunk_length is {chunk_length}, allowed: multiples of actions_per_frame = {s}")
        episode = index[:, :1]
        step = index[:, 1:] + np.arange(chunk_length // s)
        last = self.cache.num_steps[episode] - 1
        is_inside = step <= last
        step = np.minimum(step, last)
        actions = self.cache.steps("actions", episode, step)
        valid = self.cache.steps("valid", episode, step) & is_inside[..., None]
        interaction = None
        if self.interaction is not None:
            interaction = torch.from_numpy(
                self.interaction[self.cache.first_step[index[:, 0]] + index[:, 1]].astype(np.int64)
            )
        return ImitationBatch(
            observation=make_observation(self.cache, self.cameras, index, self.num_context_frames),
            is_interaction=interaction,
            actions=torch.from_numpy(actions.reshape(len(index), chunk_length, -1)),
            valid=torch.from_numpy(valid.reshape(len(index), chunk_length)),
        )


class LabelledImitation:
    """The action chunks of an `ImitationDataset`, each with the label of the frame step at its start.

    ``is_good`` int64 [N], one entry per start: 1 good, 0 not good, -1 unknown, where the advantage is NaN. Successful
    demonstrations (``expert`` or ``recorded``) are good whatever their label, as in RECAP (arXiv:2511.14759). Raises
    ``ValueError`` if ``labels`` are of another number of frame steps than the dataset's version.
    """

    def __init__(self, dataset: ImitationDataset, labels: AdvantageLabels) -> None:
        cache = dataset.cache
        if len(labels) != cache.num_steps.sum():
            raise ValueError(f"{len(labels)} advantage labels for a dataset of {cache.num_steps.sum()} frame steps")
        self.dataset = dataset
        is_good = np.where(np.isnan(labels.advantage), -1, labels.is_good.astype(np.int64))
        is_demonstration = [m.source in DEMONSTRATION_SOURCES and m.outcome == "success" for m in cache.metas]
        is_good[np.repeat(is_demonstration, cache.num_steps)] = 1
        episode, frame = dataset.starts.T
        self.is_good = is_good[cache.first_step[episode] + frame]

    def images(self) -> dict[str, Tensor]:
        """See `ImitationDataset.images`."""
        return self.dataset.images()

    def observations(self, block_size: int) -> Iterator[Observation]:
        """See `ImitationDataset.observations`."""
        return self.dataset.observations(block_size)

    def proprio(self) -> Tensor:
        """See `ImitationDataset.proprio`."""
        return self.dataset.proprio()

    def actions(self) -> Tensor:
        """See `ImitationDataset.actions`."""
        return self.dataset.actions()

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> tuple[ImitationBatch, Tensor]:
        """The same chunks as `ImitationDataset.sample` draws, and their ``is_good`` int64 [B]."""
        chosen = self.dataset.draw_starts(generator, batch_size)
        return self.dataset.load(self.dataset.starts[chosen], chunk_length), torch.from_numpy(self.is_good[chosen])
