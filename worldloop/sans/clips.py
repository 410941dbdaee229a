"""Training windows for the world model: `ClipDataset` cuts them, `BalancedClipSampler` chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.core.specs import Landmark
from worldloop.core.types import Clip, Observation, Split
from worldloop.sans.cache import VersionCache


def _context_rows(now: np.ndarray, num_frames: int) -> np.ndarray:
    """int64 [..., K]: the rows (first of the episode, ..., previous, now), or now alone for K = 1."""
    rows = np.maximum(now[..., None] - np.arange(num_frames - 1, -1, -1), 0)
    if num_frames > 1:
        rows[..., 0] = 0
    return rows


def make_observation(
    cache: VersionCache, camera: str, index: np.ndarray, num_context_frames: int = NUM_CONTEXT_FRAMES
) -> Observation:
    """The `Observation` at ``index`` int64 [B, 2] = (episode, frame 0..F); K = 1 or at least 3 context frames."""
    if num_context_frames != 1 and num_context_frames < NUM_CONTEXT_FRAMES:
        raise ValueError(f"num_context_frames is {num_context_frames}, allowed: 1, or {NUM_CONTEXT_FRAMES} and more")
    episode, now = index[:, 0], index[:, 1]
    rows = _context_rows(now, num_context_frames)
    sim_state = torch.from_numpy(cache.frames("sim_state", episode, now))
    return Observation(
        frames=torch.from_numpy(cache.frames(f"frames.{camera}", episode[:, None], rows)),
        proprio=torch.from_numpy(cache.frames("proprio", episode, now)),
        instruction=tuple(cache.metas[i].instruction for i in episode.tolist()),
        env_step=torch.from_numpy(now * cache.actions_per_frame),
        sim_state=sim_state if sim_state.shape[1] else None,
    )


class ClipDataset:
    """Clips of one ``split`` and ``camera``. An index row is (episode of the version, frame step of "now").

    ``candidates`` int64 [N, 2]: every frame step that was simulated. ``num_open_steps`` int64 [E]: frame steps of each
    episode of the version that began before its success.
    """

    def __init__(self, cache: VersionCache, split: Split, camera: str) -> None:
        if camera not in cache.cameras:
            raise ValueError(f"camera {camera!r} is not in the dataset, allowed: {', '.join(cache.cameras)}")
        self.cache, self.split, self.camera = cache, split, camera
        episode = np.repeat(np.arange(len(cache)), cache.num_steps)
        step = np.concatenate([np.arange(n) for n in cache.num_steps])
        in_split = np.array([meta.split == split for meta in cache.metas])
        is_open = cache.all_steps("valid").any(axis=1)
        self.num_open_steps = torch.from_numpy(
            np.bincount(episode, weights=is_open, minlength=len(cache)).astype(np.int64)
        )
        chosen = in_split[episode]
        self.candidates = torch.from_numpy(np.stack([episode[chosen], step[chosen]], axis=1))
        self.candidate_motion = torch.from_numpy(cache.all_steps(f"motion.{camera}")[chosen])

    def __len__(self) -> int:
        return len(self.candidates)

    def load(self, index: Tensor, num_frames: int, num_context_frames: int = NUM_CONTEXT_FRAMES) -> Clip:
        """The clips at ``index`` int64 [B, 2] with M = ``num_frames`` target frame steps and K context frames.

        Past the episode's end the last frame repeats, actions are zeros (hold) and ``valid`` is false.
        """
        array = index.numpy()
        episode, now = array[:, 0], array[:, 1]
        last = self.cache.num_steps[episode][:, None]
        if (now < 0).any() or (now >= last[:, 0]).any():
            raise ValueError("a clip starts at a frame step in 0..F-1 of its episode")
        step = now[:, None] + np.arange(num_frames)
        is_inside = step < last
        step = np.minimum(step, last - 1)
        rows, column = step + 1, episode[:, None]
        actions = self.cache.steps("actions", column, step)
        actions[~is_inside] = 0.0
        observation = make_observation(self.cache, self.camera, array, num_context_frames)
        assert observation.proprio is not None
        return Clip(
            context=observation.frames,
            context_proprio=observation.proprio,
            actions=torch.from_numpy(actions),
            frames=torch.from_numpy(self.cache.frames(f"frames.{self.camera}", column, rows)),
            proprio=torch.from_numpy(self.cache.frames("proprio", column, rows)),
            success=torch.from_numpy(self.cache.steps("succeeded", column, step).astype(np.float32)),
            valid=torch.from_numpy(is_inside),
            instruction=observation.instruction,
            index=index,
            is_on_policy=torch.tensor([self.cache.metas[i].source == "policy" for i in episode.tolist()]),
        )

    def whole_episode(self, episode: int) -> Clip:
        """One row: the whole episode as a clip from its first frame, M = F."""
        return self.load(torch.tensor([[episode, 0]]), int(self.cache.num_steps[episode]))

    def observation(self, index: Tensor) -> Observation:
        """The observation at ``index`` int64 [B, 2] = (episode, frame 0..F), to start rollouts from."""
        return make_observation(self.cache, self.camera, index.numpy())

    def success_before(self, index: Tensor) -> Tensor:
        """bool [B]: the episode had already succeeded at or before the frame ``index`` points at."""
        episode, now = index.numpy().T
        succeeded = self.cache.steps("succeeded", episode, np.maximum(now - 1, 0))
        return torch.from_numpy(succeeded & (now > 0))

    def landmark_positions(self, landmarks: tuple[Landmark, ...], index: Tensor) -> Tensor:
        """f32 [B, P] metres: the coordinates of all ``landmarks``, one after the other, at ``index`` int64 [B, 2]."""
        episode, now = index.numpy().T
        values = [
            self.cache.frames(mark.source, episode, now)[:, list(mark.columns)] * mark.metres_per_unit
            for mark in landmarks
        ]
        return torch.from_numpy(np.concatenate([np.zeros((len(index), 0)), *values], axis=1)).float()

    def episode_index(self, **wanted: Any) -> Tensor:
        """int64 [n]: episodes of this split whose meta equals ``wanted``, e.g. ``source="policy"``,
        ``outcome=("success", "near_success")``, ``iteration=1``.
        """
        return torch.from_numpy(self.cache.select(split=self.split, **wanted))


@dataclass(frozen=True)
class ClipSamplingConfig:
    """How clips are drawn."""

    on_policy_share: float = 0.5  # share of clips from the policy's own episodes, 0..1, where there are any
    motion_weight: float = 1.0  # extra weight of a frame step whose image moves as much as the average one, >= 0
    outcome_balance: bool = True  # success, near-success and failure equally often within each source
    near_success: bool = True  # control: false draws no clip of a near-success episode

    def __post_init__(self) -> None:
        if not 0.0 <= self.on_policy_share <= 1.0:
            raise ValueError(f"clips.on_policy_share is {self.on_policy_share}, allowed: 0..1")
        if not self.motion_weight >= 0.0:
            raise ValueError(f"clips.motion_weight is {self.motion_weight}, allowed: >= 0")


class BalancedClipSampler:
    """Draws clip indices: first the source (policy or scripted), then the outcome, then the frame step.

    Experts and perturbed experts count as one source, "scripted": experts hold successes only, so that balancing
    each of them alone would balance nothing. Within an outcome, a frame step weighs
    ``1 + motion_weight * motion / mean motion of the split``. A missing source or outcome leaves its share to the
    others. Pure: what is drawn depends on the generator alone.
    """

    def __init__(self, dataset: ClipDataset, config: ClipSamplingConfig) -> None:
        if len(dataset) == 0:
            raise ValueError(f"split {dataset.split!r} has no frame step to sample clips from")
        self.dataset, self.candidates = dataset, dataset.candidates
        metas = dataset.cache.metas
        outcomes = ("success", "near_success", "failure")
        code = [
            int(m.source == "policy") * 3 + (outcomes.index(m.outcome) if config.outcome_balance else 0) for m in metas
        ]
        group = np.array(code)[self.candidates[:, 0].numpy()]
        motion = dataset.candidate_motion.double().numpy()
        weight = 1.0 + config.motion_weight * motion / max(motion.mean(), 1e-12)
        if not config.near_success:
            weight *= np.array([m.outcome != "near_success" for m in metas])[self.candidates[:, 0].numpy()]
            if not weight.any():
                raise ValueError(f"split {dataset.split!r} has only near-successes, and near_success is false")
        total = np.bincount(group, weights=weight, minlength=6)
        has = total.reshape(2, 3) > 0
        share: np.ndarray = np.array([1.0 - config.on_policy_share, config.on_policy_share]) * has.any(axis=1)
        if share.sum() == 0:  # the only source there is has a share of 0: use it rather than nothing
            share = np.asarray(has.any(axis=1), dtype=np.float64)
        group_share = (share / share.sum())[:, None] * has / np.maximum(has.sum(axis=1, keepdims=True), 1)
        self.probabilities = torch.from_numpy(group_share.reshape(-1)[group] * weight / np.maximum(total[group], 1e-12))
        self._cumulative = self.probabilities.cumsum(0)

    @property
    def num_frame_steps(self) -> Tensor:
        """int64 [E]: frame steps of each episode of the version."""
        return torch.from_numpy(self.dataset.cache.num_steps)

    def load(self, index: Tensor, num_frames: int, num_context_frames: int = NUM_CONTEXT_FRAMES) -> Clip:
        """See `ClipDataset.load`."""
        return self.dataset.load(index, num_frames, num_context_frames)

    def sample(self, generator: torch.Generator, batch_size: int) -> Tensor:
        """int64 [B, 2], drawn with replacement."""
        uniform = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        # side="right" never lands on a candidate of probability 0; the clamp guards the last sum's rounding.
        position = torch.searchsorted(self._cumulative, uniform * self._cumulative[-1], right=True)
        last = int(torch.nonzero(self.probabilities)[-1])
        return self.candidates[position.clamp_max(last)]
