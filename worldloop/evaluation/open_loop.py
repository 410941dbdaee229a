"""Open-loop imagination of recorded episodes: the world model gets the stored actions, but not the later stored frames.

A branch starts from a real frame of an episode and lasts M frames. A branch from the first frame can cover the whole
episode; shorter branches show the effect of the horizon. All figures of a world model are computed on `Branches`.
Shapes: N branches, M frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldloop.core.interfaces import WorldModel
from worldloop.core.randomness import make_row_keys
from worldloop.core.reporting import Reporter
from worldloop.core.success import find_highest_confirmed
from worldloop.core.types import Clip, Outcome, Source
from worldloop.evaluation.frames import FrameFile, Frames
from worldloop.sans.clips import ClipDataset, RecordedClips

# Name of a source in reports -> the sources of its episodes in the dataset.
SOURCES: dict[str, tuple[Source, ...]] = {
    "scripted": ("expert", "perturbed"),
    "on_policy": ("policy",),
    "recorded": ("recorded",),
}


@dataclass(frozen=True)
class Branches:
    """N imagined branches, and ``truth``, the clip [N, M] that the simulator recorded with the same actions.

    - ``frames``: camera name -> u8 [N, M, h, w, 3]; ``truth`` has at least these cameras. Both are read by rows, since
      not all need be in memory. Empty if nobody needs frames
    - ``proprio`` f32 [N, M, S]; ``logit`` f32 [N, M]: of the success head
    - ``expected_psnr_db`` f32 [N, M]: the model's own estimate, or ``None``
    - ``confirm_frames``: see `confirm`
    """

    frames: Mapping[str, Frames]
    proprio: Tensor
    logit: Tensor
    truth: Clip | RecordedClips
    expected_psnr_db: Tensor | None = None
    confirm_frames: int = 0

    def __len__(self) -> int:
        return len(self.logit)

    @property
    def episode(self) -> Tensor:
        """int64 [N]: the episode of each branch in its dataset."""
        return self.truth.index[:, 0]

    @property
    def first_frames(self) -> dict[str, Frames]:
        """Camera name -> u8 [N, h, w, 3]: the first frame of each branch's episode."""
        if isinstance(self.truth, RecordedClips):
            return {camera: self.truth.first_frames[camera] for camera in self.frames}
        return {camera: self.truth.context[camera][:, 0] for camera in self.frames}

    @property
    def start_frames(self) -> dict[str, Frames]:
        """Camera name -> u8 [N, h, w, 3]: the real frame that each branch started from."""
        if isinstance(self.truth, RecordedClips):
            return {camera: self.truth.start_frames[camera] for camera in self.frames}
        return {camera: self.truth.context[camera][:, -1] for camera in self.frames}

    @property
    def best_logit(self) -> Tensor:
        """f32 [N]: the highest confirmed logit over valid frames; -inf for a branch without valid frames."""
        return find_highest_confirmed(self.logit, self.truth.valid, self.confirm_frames)

    @property
    def succeeds(self) -> Tensor:
        """bool [N]: the simulator's episode was solved within the branch."""
        return ((self.truth.success > 0.5) & self.truth.valid).any(1)


@dataclass(frozen=True)
class ImaginedEpisodes:
    """n whole episodes, imagined from their first frame.

    - ``logit`` f [n]: the highest confirmed success logit of each episode
    - ``is_success`` bool [n] and ``outcomes``: the simulator's verdict
    - ``branches``: one per episode, in the same order
    """

    logit: np.ndarray
    is_success: np.ndarray
    outcomes: tuple[Outcome, ...]
    branches: Branches

    def __len__(self) -> int:
        return len(self.logit)


def imagine_held_out(
    world_model: WorldModel,
    dataset: ClipDataset,
    task: str,
    *,
    max_episodes: int,
    batch_size: int,
    seed: int,
    reporter: Reporter,
    folder: Path | None = None,
) -> dict[str, ImaginedEpisodes]:
    """Source -> the latest ``max_episodes`` episodes of ``task`` in ``dataset``, imagined as a whole.

    On-policy are only the episodes of the present policy: those of the last iteration with any. A source without
    episodes is left out. For the other arguments see `imagine_branches`.
    """
    imagined: dict[str, ImaginedEpisodes] = {}
    for name, sources in SOURCES.items():
        index = dataset.episode_index(source=sources, task=task)
        if name == "on_policy":
            index = _keep_present_policy(dataset, index)
        index = index[-max_episodes:]
        if len(index):
            with reporter.progress(len(index), "episode") as progress:
                imagined[name] = imagine_episodes(
                    world_model,
                    dataset,
                    index,
                    batch_size=batch_size,
                    seed=seed,
                    on_batch=progress.advance,
                    folder=folder,
                )
    return imagined


def _keep_present_policy(dataset: ClipDataset, index: Tensor) -> Tensor:
    metas = dataset.cache.metas
    own = [e for e in index.tolist() if metas[e].variant == "policy"]
    last = max((metas[e].iteration for e in own), default=0)
    return torch.tensor([e for e in own if metas[e].iteration == last], dtype=torch.long)


def imagine_episodes(
    world_model: WorldModel,
    dataset: ClipDataset,
    episodes: Tensor,
    *,
    batch_size: int,
    seed: int,
    on_batch: Callable[[int], None] = lambda count: None,
    folder: Path | None = None,
) -> ImaginedEpisodes:
    """Imagine all ``episodes`` int64 [n] of ``dataset`` as a whole; for other arguments see `imagine_branches`."""
    index = torch.stack([episodes, torch.zeros_like(episodes)], dim=1)
    num_frames = int(dataset.cache.num_steps[episodes.numpy()].max())
    branches = imagine_branches(
        world_model, dataset, index, num_frames, batch_size=batch_size, seed=seed, on_batch=on_batch, folder=folder
    )
    outcomes = tuple(dataset.cache.metas[e].outcome for e in episodes.tolist())
    return ImaginedEpisodes(branches.best_logit.numpy(), branches.succeeds.numpy(), outcomes, branches)


def imagine_branches(
    world_model: WorldModel,
    dataset: ClipDataset,
    index: Tensor,
    num_frames: int,
    *,
    batch_size: int,
    seed: int,
    on_batch: Callable[[int], None] = lambda count: None,
    folder: Path | None = None,
    keeps_frames: bool = True,
) -> Branches:
    """Imagine branches of ``num_frames`` frames from ``index`` int64 [N, 2] = (episode, frame).

    - ``dataset`` must have the cameras of the world model, and may have more
    - ``seed`` is for the model's noise
    - ``on_batch(n)`` is called after every batch of n branches
    - ``folder``: where imagined frames are kept in files; ``None``: in memory. Without ``keeps_frames`` none are kept

    Frames past an episode's end are imagined too, but are not valid.
    """
    cameras = world_model.spec.robot.camera_names
    kept = cameras if keeps_frames else ()
    blocks: dict[str, list[Tensor]] = {camera: [] for camera in kept}
    files = {} if folder is None else {camera: FrameFile(folder) for camera in kept}
    truth = dataset.describe(index, num_frames)
    proprio, logit, psnr_db = [], [], []
    row_keys = make_row_keys(len(index), seed, "check_world_model", num_frames)
    parts = (tensor.split(batch_size) for tensor in (index, row_keys, truth.actions))
    for block, keys, actions in zip(*parts, strict=True):
        state = world_model.start(dataset.observation(block).with_cameras(cameras), keys)
        imagined = world_model.imagine(state, actions.flatten(1, 2))[1]
        for camera in kept:
            (blocks if folder is None else files)[camera].append(imagined.frames[camera].cpu())
        proprio.append(imagined.proprio.float().cpu())
        logit.append(imagined.success_logit.float().cpu())
        if imagined.expected_psnr_db is not None:
            psnr_db.append(imagined.expected_psnr_db.float().cpu())
        on_batch(len(block))
    expected = torch.cat(psnr_db) if psnr_db else None
    confirm_frames = world_model.spec.success_confirm_frames
    frames: dict[str, Frames] = {camera: files[camera] if files else torch.cat(blocks[camera]) for camera in kept}
    return Branches(frames, torch.cat(proprio), torch.cat(logit), truth, expected, confirm_frames)


def cut_branches(dataset: ClipDataset, episodes: Tensor, num_frames: int) -> Tensor:
    """Starts (episode, frame), int64 [N, 2]: every ``num_frames`` frames of ``episodes`` int64 [E], up to a success."""
    lengths = dataset.num_open_steps[episodes].tolist()
    rows = [(e, f) for e, length in zip(episodes.tolist(), lengths, strict=True) for f in range(0, length, num_frames)]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 2)
