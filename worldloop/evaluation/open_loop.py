"""Imagining what was recorded: a world model follows the stored actions of episodes, without looking at their frames.

A branch starts from a real frame of an episode and lasts M frames. Whole episodes are branches from their first frame;
shorter ones show how trust falls with the horizon. Everything that judges a world model works on `Branches`.
Shapes: N branches, M frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.interfaces import WorldModel
from worldloop.core.randomness import make_row_keys
from worldloop.core.success import find_highest_confirmed
from worldloop.core.types import Clip
from worldloop.sans.clips import ClipDataset


@dataclass(frozen=True)
class Branches:
    """What was imagined beside ``truth``, the clip [N, M] of what the simulator did with the same actions.

    ``frames`` u8 [N, M, h, w, 3], ``proprio`` f32 [N, M, S], ``logit`` f32 [N, M] of the success head, and
    ``expected_psnr_db`` f32 [N, M], the model's own estimate, where it has one; ``confirm_frames`` see `confirm`.
    """

    frames: Tensor
    proprio: Tensor
    logit: Tensor
    truth: Clip
    expected_psnr_db: Tensor | None = None
    confirm_frames: int = 0

    def __len__(self) -> int:
        return len(self.logit)

    @property
    def first_frames(self) -> Tensor:
        """u8 [N, h, w, 3]: the first frame of each branch's episode."""
        return self.truth.context[:, 0]

    @property
    def start_frames(self) -> Tensor:
        """u8 [N, h, w, 3]: the real frame that each branch started from."""
        return self.truth.context[:, -1]

    @property
    def best_logit(self) -> Tensor:
        """f32 [N]: the highest confirmed logit over valid frames, -inf for a branch without any."""
        return find_highest_confirmed(self.logit, self.truth.valid, self.confirm_frames)

    @property
    def succeeds(self) -> Tensor:
        """bool [N]: the simulator's episode was solved within the branch."""
        return ((self.truth.success > 0.5) & self.truth.valid).any(1)


def imagine_branches(
    world_model: WorldModel,
    dataset: ClipDataset,
    index: Tensor,
    num_frames: int,
    *,
    batch_size: int,
    key: tuple[int | str, ...],
    on_batch: Callable[[int], None] = lambda count: None,
) -> Branches:
    """Branches of ``num_frames`` from ``index`` int64 [N, 2] = (episode, frame); ``key`` seeds the model's noise.

    ``on_batch(n)`` is called after every n branches. Frames past an episode's end are imagined and not valid.
    """
    frames, proprio, logit, psnr_db = [], [], [], []
    row_keys = make_row_keys(len(index), *key)
    for block, keys in zip(index.split(batch_size), row_keys.split(batch_size), strict=True):
        clip = dataset.load(block, num_frames)
        state = world_model.start(dataset.observation(block), keys)
        imagined = world_model.imagine(state, clip.actions.flatten(1, 2))[1]
        frames.append(imagined.frames.cpu())
        proprio.append(imagined.proprio.float().cpu())
        logit.append(imagined.success_logit.float().cpu())
        if imagined.expected_psnr_db is not None:
            psnr_db.append(imagined.expected_psnr_db.float().cpu())
        on_batch(len(block))
    truth = dataset.load(index, num_frames)
    expected = torch.cat(psnr_db) if psnr_db else None
    after = world_model.spec.success_confirm_frames
    return Branches(torch.cat(frames), torch.cat(proprio), torch.cat(logit), truth, expected, after)


def cut_branches(dataset: ClipDataset, episodes: Tensor, num_frames: int) -> Tensor:
    """int64 [N, 2]: starts every ``num_frames`` frames of each of ``episodes`` int64 [E] up to its success."""
    lengths = dataset.num_open_steps[episodes].tolist()
    rows = [(e, f) for e, length in zip(episodes.tolist(), lengths, strict=True) for f in range(0, length, num_frames)]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 2)
