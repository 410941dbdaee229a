"""Training windows for the world model: `ClipDataset` cuts them, `BalancedClipSampler` chooses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.core.specs import Landmark, SimulatorSpec, TaskSpec
from worldloop.core.types import OUTCOMES, Clip, Observation, Split
from worldloop.sans.cache import VersionCache

RANGE_ROWS = 65536  # frame steps read at once for `ClipDataset.proprio_range`


def _context_rows(now: np.ndarray, num_frames: int) -> np.ndarray:
    """int64 [..., K]: the rows (first of the episode, ..., previous, now), or now alone for K = 1."""
    rows = np.maximum(now[..., None] - np.arange(num_frames - 1, -1, -1), 0)
    if num_frames > 1:
        rows[..., 0] = 0
    return rows


def make_observation(
    cache: VersionCache, cameras: Sequence[str], index: np.ndarray, num_context_frames: int = NUM_CONTEXT_FRAMES
) -> Observation:
    """The observation at ``index`` int64 [B, 2] = (episode, frame 0..F), seen by ``cameras``.

    K = ``num_context_frames`` is 1 or at least 3, else ``ValueError``.
    """
    if num_context_frames != 1 and num_context_frames < NUM_CONTEXT_FRAMES:
        raise ValueError(f"num_context_frames is {num_context_frames}, allowed: 1, or {NUM_CONTEXT_FRAMES} and more")
    episode, now = index[:, 0], index[:, 1]
    rows = _context_rows(now, num_context_frames)
    sim_state = torch.from_numpy(cache.frames("sim_state", episode, now))
    metas = [cache.metas[i] for i in episode.tolist()]
    return Observation(
        frames=cache.images(cameras, episode[:, None], rows),
        proprio=torch.from_numpy(cache.frames("proprio", episode, now)),
        task=tuple(meta.task for meta in metas),
        instruction=tuple(meta.instruction for meta in metas),
        env_step=torch.from_numpy(now * cache.actions_per_frame),
        sim_state=sim_state if sim_state.shape[1] else None,
    )


class StoredFrames:
    """u8 [N, ..., h, w, 3]: one camera's frames at ``row`` int64 [N, ...] of the episodes ``episode`` int64 [N].

    They are read when rows of them are asked for, e.g. ``frames[:32]`` or ``frames[torch.tensor([4, 0])]``.
    """

    def __init__(self, cache: VersionCache, camera: str, episode: np.ndarray, row: np.ndarray) -> None:
        self.cache, self.camera, self.episode, self.row = cache, camera, episode, row
        self.shape = (*row.shape, *cache.image_shape(camera))

    def __getitem__(self, key: Tensor | slice) -> Tensor:
        chosen = np.arange(len(self.row))[key.numpy() if isinstance(key, Tensor) else key]
        row = self.row[chosen]
        episode = self.episode[chosen].reshape(-1, *[1] * (self.row.ndim - 1))
        return self.cache.images((self.camera,), episode, row)[self.camera]


@dataclass(frozen=True)
class RecordedClips:
    """What was recorded of B clips of M frames: as in a `Clip`, but pictures are read when they are asked for.

    - ``frames``: camera -> u8 [B, M, h, w, 3]
    - ``first_frames`` and ``start_frames``: camera -> u8 [B, h, w, 3]: the first of the episode, and the one now
    """

    actions: Tensor
    success: Tensor
    valid: Tensor
    task: tuple[str, ...]
    index: Tensor
    frames: dict[str, StoredFrames]
    first_frames: dict[str, StoredFrames]
    start_frames: dict[str, StoredFrames]


class ClipDataset:
    """Clips of one ``split``, seen by ``cameras``. Clips tell where the objects of ``tasks`` are, if these are given.

    An index row is (episode of the version, frame step at which the clip starts).

    - ``candidates`` int64 [N, 2]: index rows of all frame steps of the split
    - ``candidate_motion`` f64 [N]: how much the images change in the frame step. The change of each camera is divided
      by its average over the split; the value is the mean over cameras. 0: no change, 1: average
    - ``num_open_steps`` int64 [E]: for each episode of the version, the frame steps that began before its success

    Raises ``ValueError`` for a camera that the dataset does not have.
    """

    def __init__(
        self, cache: VersionCache, split: Split, cameras: Sequence[str], tasks: Sequence[TaskSpec] = ()
    ) -> None:
        self.objects = {task.id: [mark for mark in task.landmarks if mark.source == "sim_state"] for task in tasks}
        self.cache, self.split, self.cameras = cache, split, cache.check_cameras(cameras)
        episode = np.repeat(np.arange(len(cache)), cache.num_steps)
        step = np.concatenate([np.arange(n) for n in cache.num_steps])
        self._task_names = np.array([meta.task for meta in cache.metas])
        in_split = np.array([meta.split == split for meta in cache.metas])
        is_open = cache.all_steps("valid").any(axis=1)
        self.num_open_steps = torch.from_numpy(
            np.bincount(episode, weights=is_open, minlength=len(cache)).astype(np.int64)
        )
        chosen = in_split[episode]
        self.candidates = torch.from_numpy(np.stack([episode[chosen], step[chosen]], axis=1))
        motion = [cache.all_steps(f"motion.{camera}")[chosen].astype(np.float64) for camera in self.cameras]
        relative = [values / max(values.mean() if len(values) else 0.0, 1e-12) for values in motion]
        self.candidate_motion = torch.from_numpy(np.mean(relative, axis=0))

    def __len__(self) -> int:
        return len(self.candidates)

    def load(
        self,
        index: Tensor,
        num_frames: int,
        num_context_frames: int = NUM_CONTEXT_FRAMES,
        cameras: Sequence[str] | None = None,
    ) -> Clip:
        """The clips at ``index`` int64 [B, 2] with M = ``num_frames`` target frame steps and K context frames.

        Past the episode's end the last frame and the last actions repeat, and ``valid`` is false. Only images of
        ``cameras`` are read; ``None``: all.
        """
        cameras = self.cameras if cameras is None else cameras
        array = index.numpy()
        episode, now = array.T
        step, is_inside = self._list_steps(array, num_frames)
        rows, column = step + 1, episode[:, None]
        metas = [self.cache.metas[i] for i in episode.tolist()]
        return Clip(
            context=self.cache.images(cameras, column, _context_rows(now, num_context_frames)),
            context_proprio=torch.from_numpy(self.cache.frames("proprio", episode, now)),
            context_landmarks=self._locate(self.objects, episode, now),
            actions=torch.from_numpy(self.cache.steps("actions", column, step)),
            frames=self.cache.images(cameras, column, rows),
            proprio=torch.from_numpy(self.cache.frames("proprio", column, rows)),
            landmarks=self._locate(self.objects, np.broadcast_to(column, rows.shape), rows),
            success=torch.from_numpy(self.cache.steps("succeeded", column, step).astype(np.float32)),
            holds=torch.from_numpy(self.cache.steps("holds", column, step).astype(np.float32)),
            valid=torch.from_numpy(is_inside),
            task=tuple(meta.task for meta in metas),
            instruction=tuple(meta.instruction for meta in metas),
            index=index,
            is_on_policy=torch.tensor([meta.source == "policy" for meta in metas]),
        )

    def _list_steps(self, index: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """The frame steps of clips, int64 [B, M], and which are inside their episodes; others repeat the last one."""
        episode, now = index.T
        last = self.cache.num_steps[episode][:, None]
        if (now < 0).any() or (now >= last[:, 0]).any():
            raise ValueError("a clip starts at a frame step in 0..F-1 of its episode")
        step = now[:, None] + np.arange(num_frames)
        return np.minimum(step, last - 1), step < last

    def describe(self, index: Tensor, num_frames: int) -> RecordedClips:
        """The clips that `load` gives, without their pictures."""
        episode, now = index.numpy().T
        step, is_inside = self._list_steps(index.numpy(), num_frames)
        column = episode[:, None]

        def store(row: np.ndarray) -> dict[str, StoredFrames]:
            return {camera: StoredFrames(self.cache, camera, episode, row) for camera in self.cameras}

        return RecordedClips(
            actions=torch.from_numpy(self.cache.steps("actions", column, step)),
            success=torch.from_numpy(self.cache.steps("succeeded", column, step).astype(np.float32)),
            valid=torch.from_numpy(is_inside),
            task=tuple(str(task) for task in self._task_names[episode]),
            index=index,
            frames=store(step + 1),
            first_frames=store(np.zeros_like(now)),
            start_frames=store(now),
        )

    def whole_episode(self, episode: int) -> Clip:
        """One row: the whole episode as a clip from its first frame, M = F."""
        return self.load(torch.tensor([[episode, 0]]), int(self.cache.num_steps[episode]))

    def observation(self, index: Tensor) -> Observation:
        """The observation at ``index`` int64 [B, 2] = (episode, frame 0..F), to start rollouts from."""
        return make_observation(self.cache, self.cameras, index.numpy())

    def holds_at(self, index: Tensor) -> Tensor:
        """bool [B]: whether the task is solved at the frame at ``index`` int64 [B, 2]; false at an episode's start."""
        episode, now = index.numpy().T
        holds = self.cache.steps("holds", episode, np.maximum(now - 1, 0))
        return torch.from_numpy(holds & (now > 0))

    def landmark_positions(self, spec: SimulatorSpec, index: Tensor) -> Tensor:
        """The landmarks' P coordinates in metres, f32 [B, P], one after the other, at ``index`` int64 [B, 2].

        The landmarks of a row are those of its episode's task in ``spec``.
        """
        episode, now = index.numpy().T
        marks = {str(name): spec.task(str(name)).landmarks for name in np.unique(self._task_names[episode])}
        return self._locate(marks, episode, now)

    def _locate(self, marks: Mapping[str, Sequence[Landmark]], episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """The positions in metres, f32 [..., P], of the landmarks of a row's task at ``frame`` [...] of ``episode``."""
        names = self._task_names[episode]
        num_coordinates = sum(len(mark.columns) for mark in next(iter(marks.values()), ()))
        positions = np.zeros((*episode.shape, num_coordinates), dtype=np.float32)
        for name in np.unique(names) if num_coordinates else ():
            rows = names == name
            values = [
                self.cache.frames(mark.source, episode[rows], frame[rows])[:, list(mark.columns)] * mark.metres_per_unit
                for mark in marks[str(name)]
            ]
            positions[rows] = np.concatenate(values, axis=1)
        return torch.from_numpy(positions)

    def proprio_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest value of each dimension of proprio, f32 [S] each, over all frames of the split."""
        return self._find_range(lambda episode, frame: torch.from_numpy(self.cache.frames("proprio", episode, frame)))

    def landmark_range(self) -> tuple[Tensor, Tensor]:
        """Likewise of the objects' coordinates in metres, f32 [P] each."""
        return self._find_range(lambda episode, frame: self._locate(self.objects, episode, frame))

    def _find_range(self, read: Callable[[np.ndarray, np.ndarray], Tensor]) -> tuple[Tensor, Tensor]:
        episode, step = self.candidates.numpy().T
        low, high = [], []
        for first in range(0, len(step), RANGE_ROWS):
            rows = slice(first, first + RANGE_ROWS)
            for frame in (step[rows], step[rows] + 1):
                values = read(episode[rows], frame)
                low.append(values.amin(0))
                high.append(values.amax(0))
        return torch.stack(low).amin(0), torch.stack(high).amax(0)

    def episode_index(self, **wanted: Any) -> Tensor:
        """int64 [n]: episodes of this split whose meta equals ``wanted``, e.g. ``task="PushCube-v1"``,
        ``source="policy"``, ``outcome=("success", "near_success")``, ``iteration=1``.
        """
        return torch.from_numpy(self.cache.select(split=self.split, **wanted))


@dataclass(frozen=True)
class ClipSamplingConfig:
    """How clips are drawn. All tasks are drawn equally often."""

    on_policy_share: float = 0.5  # share of clips from the policy's own episodes, 0 to 1, if there are any
    motion_weight: float = 1.0  # extra weight of a frame step with average motion, >= 0; 0: motion does not count
    outcome_balance: bool = True  # draw success, near-success and failure equally often within each source
    near_success: bool = True  # false, a control: draw no clip of a near-success episode

    def __post_init__(self) -> None:
        if not 0.0 <= self.on_policy_share <= 1.0:
            raise ValueError(f"clips.on_policy_share is {self.on_policy_share}, allowed: 0..1")
        if not self.motion_weight >= 0.0:
            raise ValueError(f"clips.motion_weight is {self.motion_weight}, allowed: >= 0")


class BalancedClipSampler:
    """Draws clip indices: first the task, then the source (policy or scripted), the outcome, and the frame step.

    Tasks are drawn equally often, and so are the outcomes of a source. Experts and perturbed experts count as one
    source, "scripted": experts have only successes, so balancing their outcomes alone would change nothing. Within an
    outcome, a frame step has the weight ``1 + motion_weight * motion`` (`ClipDataset.candidate_motion`). A missing
    task, source or outcome leaves its share to the others. The draws depend on the generator only.
    """

    def __init__(self, dataset: ClipDataset, config: ClipSamplingConfig) -> None:
        if len(dataset) == 0:
            raise ValueError(f"split {dataset.split!r} has no frame step to sample clips from")
        self.dataset, self.candidates, self.load = dataset, dataset.candidates, dataset.load
        metas = dataset.cache.metas
        tasks = sorted({meta.task for meta in metas})
        # One group for each task, source and outcome; without balance all outcomes are one.
        outcomes = [OUTCOMES.index(m.outcome) if config.outcome_balance else 0 for m in metas]
        code = [
            (tasks.index(m.task) * 2 + (m.source == "policy")) * 3 + o for m, o in zip(metas, outcomes, strict=True)
        ]
        episode = self.candidates[:, 0].numpy()
        group = np.array(code)[episode]
        weight = 1.0 + config.motion_weight * dataset.candidate_motion.numpy()
        if not config.near_success:
            weight *= np.array([m.outcome != "near_success" for m in metas])[episode]
            if not weight.any():
                raise ValueError(f"split {dataset.split!r} has only near-successes, and near_success is false")
        total = np.bincount(group, weights=weight, minlength=len(tasks) * 6)
        group_share = _share_groups(total.reshape(len(tasks), 2, 3) > 0, config.on_policy_share)
        self.probabilities = torch.from_numpy(group_share.reshape(-1)[group] * weight / np.maximum(total[group], 1e-12))
        self._cumulative = self.probabilities.cumsum(0)

    @property
    def num_frame_steps(self) -> Tensor:
        """int64 [E]: frame steps of each episode of the version."""
        return torch.from_numpy(self.dataset.cache.num_steps)

    def sample(self, generator: torch.Generator, batch_size: int) -> Tensor:
        """int64 [B, 2], drawn with replacement."""
        uniform = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        # side="right" never lands on a candidate of probability 0; the clamp guards the last sum's rounding.
        position = torch.searchsorted(self._cumulative, uniform * self._cumulative[-1], right=True)
        last = int(torch.nonzero(self.probabilities)[-1])
        return self.candidates[position.clamp_max(last)]


def _share_groups(has: np.ndarray, on_policy_share: float) -> np.ndarray:
    """The share of each task, source (scripted, policy) and outcome in the draws: f64 [tasks, 2, 3], sums to 1.

    ``has`` bool [tasks, 2, 3] says which of them have a frame step.
    """
    has_source = has.any(axis=2)
    share = np.array([1.0 - on_policy_share, on_policy_share]) * has_source
    # If a task has only one source and its share is 0, that source is used all the same.
    share = np.where(share.any(axis=1, keepdims=True), share, has_source)
    share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
    share = share[:, :, None] * has / np.maximum(has.sum(axis=2, keepdims=True), 1)
    return np.asarray(share / has.any(axis=(1, 2)).sum())
