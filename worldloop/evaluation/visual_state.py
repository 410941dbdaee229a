"""State error and visual alignment: landmark positions and success that the frame probe reads from branches.

Visual alignment is the agreement between the outcome *seen* in the video and the simulated one (World-VLA-Loop,
arXiv:2602.06508, table 2). There people or a language model judge the video; here the probe does. The probe has errors
too, so every figure is also computed on simulated frames. Shapes: N branches, M frames, P landmark coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.reporting import Reporter
from worldloop.core.specs import Landmark, SimulatorSpec
from worldloop.core.statistics import best_threshold
from worldloop.core.success import find_highest_confirmed
from worldloop.core.types import Outcome
from worldloop.evaluation.alignment import Alignment, compute_alignment
from worldloop.evaluation.fidelity import FrameMetric
from worldloop.evaluation.frames import BLOCK_BYTES, Frames
from worldloop.evaluation.open_loop import Branches
from worldloop.evaluation.probes import FrameProbe, ProbeBatch, fit_frame_probe
from worldloop.sans.clips import ClipDataset

CM = 100.0  # cm per metre
FRAMES_AT_ONCE = 512  # most that the probe reads
THRESHOLD_EPISODES = 200  # the threshold is chosen on at least so many episodes, or on all if there are fewer


@dataclass(frozen=True)
class FittedProbe:
    """A frame probe, and by task the success logit from which an episode counts as solved."""

    network: FrameProbe
    success_thresholds: dict[str, float]


def fit_probe(
    dataset: ClipDataset,
    spec: SimulatorSpec,
    *,
    num_steps: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    reporter: Reporter,
) -> FittedProbe:
    """Fit a probe on all frames of ``dataset`` in the cameras of ``spec``, for the landmarks and tasks of ``spec``.

    Episodes without the simulator's state are left out, because nothing says where their landmarks are.
    A task's threshold has the best balanced accuracy on its episodes; 0 if all ended alike. ``reporter`` shows the
    optimizer steps.
    """
    cache, cameras = dataset.cache, spec.robot.camera_names
    episodes = dataset.episode_index().numpy()
    episodes = episodes[cache.knows_state[episodes]]
    length = cache.num_steps[episodes] + 1
    episode = torch.from_numpy(np.repeat(episodes, length))
    frame = torch.from_numpy(np.concatenate([np.arange(n) for n in length]))

    def load(rows: Tensor) -> ProbeBatch:
        index = torch.stack([episode[rows], frame[rows]], dim=1)
        e, f = index.numpy().T
        return ProbeBatch(
            first=cache.images(cameras, e, np.zeros_like(f)),
            frame=cache.images(cameras, e, f),
            task=tuple(cache.metas[i].task for i in e),
            position_m=dataset.landmark_positions(spec, index),
            solved=dataset.holds_at(index).float(),
        )

    network = fit_frame_probe(
        load,
        len(episode),
        spec.task_ids,
        num_steps=num_steps,
        batch_size=batch_size,
        generator=generator,
        device=device,
        reporter=reporter,
    )
    thresholds = {
        task: _choose_threshold(network, dataset, task, spec.success_confirm_frames) for task in spec.task_ids
    }
    return FittedProbe(network, thresholds)


def _choose_threshold(network: FrameProbe, dataset: ClipDataset, task: str, confirm_frames: int) -> float:
    episodes = dataset.episode_index(task=task)
    some = episodes[:: max(1, len(episodes) // THRESHOLD_EPISODES)]
    if not len(some):
        return 0.0
    num_frames = int(dataset.cache.num_steps[some.numpy()].max())
    clips = dataset.describe(torch.stack([some, torch.zeros_like(some)], dim=1), num_frames)
    frames = {camera: clips.frames[camera] for camera in network.cameras}
    nothing = torch.zeros(*clips.valid.shape, 0)
    truth = Branches(frames, nothing, nothing.sum(-1), clips, confirm_frames=confirm_frames)
    success = truth.succeeds.numpy()
    if success.all() or not success.any():
        return 0.0
    return best_threshold(find_highest_seen(truth, see(network, truth, frames)), success)


@dataclass(frozen=True)
class Seen:
    """The probe's output for all frames of N branches: ``position_m`` [N, M, P], ``solved_logit`` [N, M]."""

    position_m: Tensor
    solved_logit: Tensor


def see(probe: FrameProbe, branches: Branches, frames: Mapping[str, Frames]) -> Seen:
    """Read ``frames``, camera name -> u8 [N, M, h, w, 3], the imagined or simulated frames of ``branches``."""
    N, M = branches.truth.valid.shape
    readings = []
    frame_bytes = max(math.prod(frames[camera].shape[2:]) for camera in branches.frames)
    size = max(1, min(FRAMES_AT_ONCE, BLOCK_BYTES // frame_bytes))
    for number in torch.arange(N * M).split(size):  # of all frames, branch after branch
        rows = number // M
        needed = torch.arange(int(rows[0]), int(rows[-1]) + 1)
        readings.append(
            probe.read(
                {camera: first[needed][rows - rows[0]] for camera, first in branches.first_frames.items()},
                {camera: frames[camera][needed].flatten(0, 1)[number - rows[0] * M] for camera in branches.frames},
                tuple(branches.truth.task[row] for row in rows.tolist()),
            )
        )
    position_m, solved_logit = (
        torch.cat(parts).unflatten(0, (N, M))
        for parts in zip(*((r.position_m, r.solved_logit) for r in readings), strict=True)
    )
    return Seen(position_m, solved_logit)


def find_highest_seen(branches: Branches, seen: Seen) -> np.ndarray:
    """f [N]: the highest confirmed success logit of the probe in valid frames."""
    return find_highest_confirmed(seen.solved_logit, branches.truth.valid, branches.confirm_frames).numpy()


def locate_landmarks(branches: Branches, dataset: ClipDataset, spec: SimulatorSpec) -> Tensor:
    """True landmark positions in metres at each target frame, f32 [N, M, P]; past the end, those of the last frame."""
    episode, now = branches.truth.index.T
    last = torch.from_numpy(dataset.cache.num_steps)[episode]
    frame = torch.minimum(now[:, None] + 1 + torch.arange(branches.truth.valid.shape[1]), last[:, None])
    index = torch.stack([episode[:, None].expand_as(frame), frame], dim=-1).flatten(0, 1)
    return dataset.landmark_positions(spec, index).unflatten(0, frame.shape)


def slice_landmarks(landmarks: tuple[Landmark, ...]) -> list[tuple[Landmark, slice]]:
    """Each landmark with the slice of its coordinates among all P."""
    ends = np.cumsum([len(mark.columns) for mark in landmarks]).tolist()
    return [(mark, slice(end - len(mark.columns), end)) for mark, end in zip(landmarks, ends, strict=True)]


@dataclass(frozen=True)
class StateError:
    """Distance in cm between the estimated and the true position of one landmark.

    - ``imagined``: estimated by the probe from the imagined frame
    - ``floor``: estimated by the probe from the simulated frame; this is the probe's own error
    - ``proprio``: taken from the imagined proprio; ``None`` if the landmark is not part of proprio
    """

    imagined: FrameMetric
    floor: FrameMetric
    proprio: FrameMetric | None

    def name_metrics(self, landmark: str) -> dict[str, FrameMetric]:
        """The metrics that exist, by their names in results.json."""
        metrics = {
            f"{landmark}_error_cm": self.imagined,
            f"{landmark}_error_cm_floor": self.floor,
            f"{landmark}_error_cm_proprio": self.proprio,
        }
        return {name: metric for name, metric in metrics.items() if metric is not None}


def measure_state_errors(
    branches: Branches, imagined: Seen, simulated: Seen, true_m: Tensor, landmarks: tuple[Landmark, ...]
) -> dict[str, StateError]:
    """Landmark -> its error against ``true_m`` f32 [N, M, P], see `locate_landmarks`."""
    valid = branches.truth.valid
    errors = {}
    for mark, part in slice_landmarks(landmarks):
        truth = true_m[..., part]

        def measure(position_m: Tensor, truth: Tensor = truth) -> FrameMetric:
            return FrameMetric.summarise(CM * (position_m - truth).norm(dim=-1), valid)

        proprio = None
        if mark.source == "proprio":
            proprio = measure(branches.proprio[..., list(mark.columns)] * mark.metres_per_unit)
        errors[mark.name] = StateError(
            imagined=measure(imagined.position_m[..., part]),
            floor=measure(simulated.position_m[..., part]),
            proprio=proprio,
        )
    return errors


@dataclass(frozen=True)
class VisualAlignment:
    """Agreement of the outcome that the probe sees with the true one, in ``imagined`` and in ``simulated`` video."""

    imagined: Alignment
    simulated: Alignment

    def to_dict(self) -> dict[str, Any]:
        chosen = ("n", "num_success", "balanced_accuracy", "auc", "accuracy")
        both = {"imagined": self.imagined.to_dict(), "simulated": self.simulated.to_dict()}
        return {name: {k: alignment[k] for k in chosen} for name, alignment in both.items()}


def compute_visual_alignment(
    branches: Branches, imagined: Seen, simulated: Seen, outcomes: tuple[Outcome, ...], success_threshold: float
) -> VisualAlignment:
    """Visual alignment of whole episodes with these ``outcomes``; ``success_threshold`` is a logit of the probe."""
    is_success = branches.succeeds.numpy()

    def align(seen: Seen) -> Alignment:
        return compute_alignment(find_highest_seen(branches, seen), is_success, outcomes, success_threshold)

    return VisualAlignment(align(imagined), align(simulated))
