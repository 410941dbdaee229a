"""How well an inverse dynamics model reads motion from true video: the gate before EVA (arXiv:2603.17808).

The paper executes the inferred motion of true videos in the simulator and counts successes. A model that misreads true
video cannot judge imagined video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.statistics import Estimate, estimate
from worldloop.core.types import Episode, InitialStates
from worldloop.executability.inverse_dynamics import InverseDynamics, Motion
from worldloop.rollout.following import Video
from worldloop.sans.normalisation import MIN_STD

PARTS = ("proprio", "joints", "actions")


@dataclass(frozen=True)
class InverseDynamicsJudgement:
    """The motion that a model reads from n held-out episodes, beside the recorded one.

    ``explained``: one of `PARTS` -> the share of the variance over frames that it explains, the mean over dimensions.
    1 is perfect, 0 is what the mean of these episodes would have. ``joints`` is missing if the robot tells none.
    Dimensions with a standard deviation below `MIN_STD` are left out: the network does not learn them in their own
    scale. Intervals resample episodes.
    """

    num_episodes: int
    explained: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        figures = {name: figure.to_dict() for name, figure in self.explained.items()}
        return {"num_episodes": self.num_episodes, "explained": figures}


def infer_episode(model: InverseDynamics, episode: Episode) -> Motion:
    """The motion that ``model`` reads from the frames of ``episode``, B = 1."""
    return model.infer_frames({camera: torch.from_numpy(frames)[None] for camera, frames in episode.frames.items()})


def judge_inverse_dynamics(
    model: InverseDynamics, episodes: Sequence[Episode], motions: Sequence[Motion]
) -> InverseDynamicsJudgement:
    """Compare ``motions``, which ``model`` read from ``episodes``, with what was recorded; actions up to a success."""
    names = model.spec.robot.proprio_names
    columns = [names.index(joint.name) for joint in model.spec.robot.joints]
    proprio = [(motion.proprio[0].cpu().numpy(), e.proprio) for motion, e in zip(motions, episodes, strict=True)]
    actions = [
        (motion.actions[0].cpu().numpy()[e.valid], e.actions[e.valid])
        for motion, e in zip(motions, episodes, strict=True)
    ]
    pairs = {"proprio": proprio, "joints": [(a[:, columns], b[:, columns]) for a, b in proprio], "actions": actions}
    explained = {}
    for name in PARTS:
        inferred, real = (np.concatenate(values) for values in zip(*pairs[name], strict=True))
        changes = real.std(axis=0) >= MIN_STD
        if changes.any():
            clusters = np.repeat(np.arange(len(episodes)), [len(a) for a, _ in pairs[name]])
            explained[name] = estimate(
                explain, inferred[:, changes], real[:, changes], clusters=clusters, num_resamples=200
            )
    return InverseDynamicsJudgement(len(episodes), explained)


def explain(inferred: np.ndarray, real: np.ndarray) -> float:
    """1 - squared error / variance of ``real`` f [n, D], the mean over dimensions; NaN if one does not change."""
    variance = real.astype(np.float64).var(axis=0)
    if (variance == 0).any():
        return float("nan")
    return float(np.mean(1 - np.square(inferred.astype(np.float64) - real).mean(axis=0) / variance))


def cut_videos(
    cameras: Sequence[str], checkpoint: str, episodes: Sequence[Episode], chunk_length: int
) -> tuple[InitialStates, Video, Tensor]:
    """The states that ``episodes`` started from, their videos, and their lengths in chunks, int64 [n].

    The episodes are of one split. ``checkpoint`` is that of the model that follows the videos, by ``cameras``. After an
    episode's end its last frame repeats.
    """
    length = max(episode.num_frame_steps for episode in episodes) + 1

    def pad(frames: np.ndarray) -> Tensor:
        shown = torch.from_numpy(frames)
        return torch.cat([shown, shown[-1:].expand(length - len(shown), *shown.shape[1:])])

    frames = {camera: torch.stack([pad(episode.frames[camera]) for episode in episodes]) for camera in cameras}
    steps = [episode.actions.shape[0] * episode.actions.shape[1] for episode in episodes]
    states = InitialStates(
        episodes[0].meta.split,
        tuple(f"{episode.meta.initial_state_id}/{number}" for number, episode in enumerate(episodes)),
        tuple(episode.meta.task for episode in episodes),
        torch.stack([torch.from_numpy(episode.sim_state[0]) for episode in episodes]),
    )
    return states, Video(frames, checkpoint), torch.tensor([-(-count // chunk_length) for count in steps])
