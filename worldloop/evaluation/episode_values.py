"""Critics on stored episodes: the returns that they learn, their values out of fold, and how these tell the outcome.

An episode's value comes from a critic that has learned neither from it nor from another episode of the same initial
state. Shapes: N frames of all chosen episodes, end to end; F frame steps of one episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import derive_seed
from worldloop.core.reporting import Reporter
from worldloop.core.specs import SimulatorSpec
from worldloop.core.statistics import Estimate, auc, average_estimates, estimate_by_label
from worldloop.core.types import Observation
from worldloop.evaluation.open_loop import SOURCES
from worldloop.sans.cache import VersionCache
from worldloop.sans.clips import make_observation
from worldloop.value.critic import Critic, ValueRows
from worldloop.value.returns import compute_advantages, compute_returns

SHARES = (0.25, 0.5, 0.75)  # of the time limit, at which values are judged


def choose_fold(initial_state_id: str, num_folds: int) -> int:
    """The fold of all episodes from one initial state."""
    return derive_seed("fold", initial_state_id) % num_folds


class EpisodeFrames:
    """The frames of some ``episodes`` int64 [n] of a dataset version from before their success or end.

    - ``index`` int64 [N, 2]: (episode, frame); ``returns`` f32 [N], see `compute_returns`; ``fold`` int64 [N]
    - ``num_frames`` int64 [n]: how many each episode has; ``first`` int64 [n + 1]: its first row, and at the end N
    - ``metas``: of the n episodes; ``task`` and ``source``: arrays of N strings

    Raises `WorldloopError` if there is no episode.
    """

    def __init__(
        self,
        cache: VersionCache,
        spec: SimulatorSpec,
        episodes: np.ndarray,
        *,
        target: str,
        num_folds: int,
        future_steps: int,
    ) -> None:
        if len(episodes) == 0:
            raise WorldloopError("there is no training episode to learn returns from: collect some first")
        self.cache, self.spec, self.episodes, self.num_folds = cache, spec, episodes, num_folds
        self.future_frames = -(-future_steps // cache.actions_per_frame)
        self.metas = [cache.metas[e] for e in episodes.tolist()]
        self._returns = [self._compute_returns(int(episode), target) for episode in episodes]
        self.num_frames = np.array([len(returns) - 1 for returns in self._returns], dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.num_frames)])
        frame = [np.arange(n) for n in self.num_frames.tolist()]
        self.index = np.stack([np.repeat(episodes, self.num_frames), np.concatenate(frame)], axis=1)
        folds = [choose_fold(meta.initial_state_id, num_folds) for meta in self.metas]
        self.fold = np.repeat(np.array(folds, dtype=np.int64), self.num_frames)

    @cached_property
    def task(self) -> np.ndarray:
        return np.repeat([meta.task for meta in self.metas], self.num_frames)

    @cached_property
    def source(self) -> np.ndarray:
        return np.repeat([meta.source for meta in self.metas], self.num_frames)

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def returns(self) -> np.ndarray:
        return np.concatenate([returns[:-1] for returns in self._returns])

    def _compute_returns(self, episode: int, target: str) -> np.ndarray:
        meta, steps = self.cache.metas[episode], np.arange(self.cache.num_steps[episode])
        valid = self.cache.steps("valid", np.full(len(steps), episode), steps)
        return compute_returns(
            int(valid.sum()),
            int(valid.any(axis=1).sum()),
            self.cache.actions_per_frame,
            meta.outcome == "success",
            self.spec.task(meta.task).max_episode_steps,
            target,
        )

    def observe(self, rows: Tensor) -> Observation:
        """The observations at ``rows`` int64 [B] in 0..N - 1."""
        return make_observation(self.cache, self.spec.robot.camera_names, self.index[rows.numpy()])

    def load(self, rows: Tensor) -> ValueRows:
        """What a critic learns from at ``rows`` int64 [B]; the future is ``future_steps`` away, or the end."""
        chosen = rows.numpy()
        episode, frame = self.index[chosen].T
        last = np.repeat(self.num_frames, self.num_frames)[chosen]  # the frame of its success or end
        future = self.cache.frames("proprio", episode, np.minimum(frame + self.future_frames, last))
        return ValueRows(self.observe(rows), torch.from_numpy(self.returns[chosen]), torch.from_numpy(future))

    def compute_values(self, critics: Sequence[Critic], batch_size: int, reporter: Reporter) -> np.ndarray:
        """f32 [N]: each frame's value by the critic of its fold, ``critics[fold]``, which has not learned from it."""
        values = np.zeros(len(self), dtype=np.float32)
        with reporter.progress(len(self), "frame") as progress:
            for fold, critic in enumerate(critics):
                for rows in torch.from_numpy(np.flatnonzero(self.fold == fold)).split(batch_size):
                    values[rows.numpy()] = critic.value(self.observe(rows)).numpy()
                    progress.advance(len(rows))
        return values

    def compute_advantages(self, values: np.ndarray, num_frames: int) -> np.ndarray:
        """f32 [N]: advantages over ``num_frames`` frames from ``values`` f32 [N], episode by episode."""
        parts = []
        for number, returns in enumerate(self._returns):
            own = values[self.first[number] : self.first[number + 1]]
            parts.append(compute_advantages(np.append(own, returns[-1]), returns, num_frames))
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True)
class CriticJudgement:
    """How well values tell a coming success from a coming failure, on the ``num_episodes`` episodes of one source.

    ``auc``: share of the time limit -> AUC of the value at that time, over the episodes that still run then, ``n``. It
    is ``None`` if all of these end alike. It is the mean over tasks; its interval resamples initial states. Episodes
    are compared at one time, so the clock alone has an AUC of .5. At a share of each episode's own length it would have
    .94 to .99 (PushCube-v1): successes end earlier.
    """

    num_episodes: int
    auc: dict[float, Estimate | None]

    def to_dict(self) -> dict[str, Any]:
        figures = {f"{share:.2f}": figure and figure.to_dict(with_n=True) for share, figure in self.auc.items()}
        return {"num_episodes": self.num_episodes, "auc": figures}


def judge_critic(frames: EpisodeFrames, values: np.ndarray) -> dict[str, CriticJudgement]:
    """Source, see `SOURCES`, -> how ``values`` f32 [N] tell its episodes' outcome.

    A source without episodes is left out.
    """
    metas, spec, s = frames.metas, frames.spec, frames.cache.actions_per_frame
    success = np.array([meta.outcome == "success" for meta in metas])
    task = np.array([meta.task for meta in metas])
    _, state = np.unique([meta.initial_state_id for meta in metas], return_inverse=True)
    judged = {}
    for name, sources in SOURCES.items():
        own = np.array([meta.source in sources for meta in metas])
        if not own.any():
            continue
        figures: dict[float, Estimate | None] = {}
        for share in SHARES:
            by_task = []
            for one in np.unique(task[own]).tolist():
                frame = int(share * spec.task(one).max_episode_steps) // s
                rows = np.flatnonzero(own & (task == one) & (frames.num_frames > frame))
                if len(rows):
                    at = values[frames.first[rows] + frame].astype(np.float64)
                    by_task.append(estimate_by_label(auc, at, success[rows], clusters=state[rows]))
            figures[share] = average_estimates(by_task)
        judged[name] = CriticJudgement(int(own.sum()), figures)
    return judged
