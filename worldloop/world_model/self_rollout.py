"""Training on the model's own predictions, to the full length of episodes, at no extra cost.

In a rollout the model sees its own earlier frames, with errors that real frames do not have. So a pool stores the
model's detached one-step predictions. A share of each batch continues from them: the target is the real frame, and the
gradient covers that one step. Related: Self-Forcing (arXiv:2506.08009) unrolls within a training step. The pool spreads
the unrolling over training steps, as in pool-trained neural cellular automata (Mordvintsev 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldloop.core.context_frames import shift_frames
from worldloop.core.tensors import Rows, prefix, strip
from worldloop.core.types import Clip
from worldloop.networks.views import map_views


@dataclass(frozen=True)
class OwnPrediction:
    """The model's prediction of a clip's first target, detached.

    - ``frames``: camera -> u8 [B, h, w, 3]; ``proprio`` f32 [B, S]; ``landmarks`` f32 [B, P] in metres
    - ``is_prediction`` bool [B]: the target is valid, and the prediction started from pure noise, without seeing it
    """

    frames: dict[str, Tensor]
    proprio: Tensor
    landmarks: Tensor
    is_prediction: Tensor


@dataclass(frozen=True)
class _PoolRows(Rows):
    """P pooled rows.

    - ``index`` int64 [P, 2]: (episode, frame step of now); ``context``: camera -> u8 [P, K, h, w, 3]
    - ``proprio`` and ``landmarks`` f32 [P, ...]: now
    - ``depth`` int64 [P]: the number of the model's own predictions up to here
    """

    index: Tensor
    context: dict[str, Tensor]
    proprio: Tensor
    landmarks: Tensor
    depth: Tensor

    def __len__(self) -> int:
        return len(self.depth)


class SelfRolloutPool:
    """Pool of the model's own predictions.

    A training step is ``clip = pool.compose(...)``, a loss on ``clip`` that also gives a prediction, and
    ``pool.update(clip, prediction)``. A full pool fills ``share`` of a batch. ``num_frame_steps`` int64 [num_episodes]
    is F of each episode.

    - A pooled row moves on to its prediction, and leaves when its episode has no further target.
    - It stays as it is if the prediction saw the target (t > 0).
    - Free places go to the fresh rows nearest to their episode's start, so that the pool covers whole episodes.

    Nothing here is random.
    """

    def __init__(self, batch_size: int, share: float, num_frame_steps: Tensor) -> None:
        if batch_size < 1 or not 0 <= share <= 1:
            raise ValueError(f"batch_size {batch_size} must be >= 1 and share {share} in [0, 1]")
        self.batch_size = batch_size
        self.capacity = int(batch_size * share)
        self.num_frame_steps = num_frame_steps
        self._pool: _PoolRows | None = None
        self._pending: _PoolRows | None = None  # rows that compose took out; they are the first rows of the clip

    def __len__(self) -> int:
        return 0 if self._pool is None else len(self._pool)

    def state_dict(self) -> dict[str, Tensor]:
        """The pool between two steps; empty if nothing is pooled yet."""
        if self._pool is None:
            return {}
        others = {name: getattr(self._pool, name) for name in ("index", "proprio", "landmarks", "depth")}
        return others | prefix("context", self._pool.context)

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        others = {name: value for name, value in tensors.items() if not name.startswith("context.")}
        self._pool = _PoolRows(context=strip("context", tensors), **others) if tensors else None

    def compose(self, choose: Callable[[int], Tensor], load: Callable[[Tensor, int], Clip]) -> Clip:
        """The next batch: pooled rows first, then fresh ones. With pooled rows it has only the cameras of the pool.

        ``choose(n)`` returns indices int64 [n, 2] of fresh clips; ``load(index, num_frames)`` loads real clips.
        """
        num_fresh = self.batch_size - len(self)
        indices = [choose(num_fresh)] if num_fresh else []
        self._pending, self._pool = self._pool, None
        if self._pending is None or len(self._pending) == 0:
            self._pending = None
            return load(torch.cat(indices), 1)
        clip = load(torch.cat([self._pending.index, *indices]), 1)
        n = len(self._pending)
        pooled = self._pending.context
        return replace(
            clip,
            context={c: torch.cat([own.to(clip.context[c]), clip.context[c][n:]]) for c, own in pooled.items()},
            context_proprio=torch.cat([self._pending.proprio.to(clip.context_proprio), clip.context_proprio[n:]]),
            context_landmarks=torch.cat(
                [self._pending.landmarks.to(clip.context_landmarks), clip.context_landmarks[n:]]
            ),
        )

    def update(self, clip: Clip, prediction: OwnPrediction) -> None:
        """Update the pool with the predictions of the batch that `compose` returned."""
        if self.capacity == 0:
            return
        num_pooled = 0 if self._pending is None else len(self._pending)
        depth = torch.zeros(len(clip.index), dtype=torch.long)
        if self._pending is not None:
            depth[:num_pooled] = self._pending.depth
        predicted = prediction.is_prediction.cpu()
        advanced = _PoolRows(
            index=torch.stack([clip.index[:, 0], clip.index[:, 1] + 1], dim=1),
            context=map_views(lambda new, old: shift_frames(old, new.to(old)), prediction.frames, clip.context),
            proprio=prediction.proprio.to(clip.context_proprio),
            landmarks=prediction.landmarks.to(clip.context_landmarks),
            depth=depth + 1,
        )
        continues = predicted & (advanced.index[:, 1] < self.num_frame_steps[advanced.index[:, 0]])
        kept = continues[:num_pooled].nonzero()[:, 0]
        fresh = continues[num_pooled:].nonzero()[:, 0] + num_pooled
        parts = [advanced.rows(kept)]
        if self._pending is not None:
            parts.append(self._pending.rows((~predicted[:num_pooled]).nonzero()[:, 0]))
        vacancies = self.capacity - sum(len(part) for part in parts)
        earliest = fresh[torch.argsort(advanced.index[fresh, 1], stable=True)][:vacancies]
        self._pool = _PoolRows.cat([*parts, advanced.rows(earliest)])
        self._pending = None
