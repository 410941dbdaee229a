"""Do different actions from one state lead as far apart in imagination as in the simulator?

A world model that ignores the actions and shows a likely video has good frames, but teaches a policy nothing. This
module compares pairs of held-out episodes from one state at the last frame that both have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.specs import Landmark
from worldloop.core.statistics import Estimate, estimate
from worldloop.evaluation.fidelity import CURVE_RESAMPLES
from worldloop.evaluation.frames import Frames
from worldloop.evaluation.open_loop import Branches
from worldloop.evaluation.visual_state import CM, Seen, slice_landmarks
from worldloop.sans.clips import ClipDataset

PAIRS_AT_ONCE = 8  # of episodes whose images are compared


@dataclass(frozen=True)
class Separation:
    """The distance between the ends of two episodes of a pair: means over pairs, ``imagined`` and ``simulated``.

    ``ratio``: the imagined mean divided by the simulated one; ``correlation``: Pearson's correlation over pairs.
    Intervals resample states.
    """

    imagined: float
    simulated: float
    ratio: Estimate
    correlation: Estimate

    def to_dict(self) -> dict[str, Any]:
        return {
            "imagined": self.imagined,
            "simulated": self.simulated,
            "ratio": self.ratio.to_dict(),
            "correlation": self.correlation.to_dict(),
        }


@dataclass(frozen=True)
class ActionFollowing:
    """The separation of ``num_pairs`` pairs of episodes from ``num_states`` states.

    - ``image``: root mean square difference of pixels in grey levels, the mean over cameras
    - ``landmarks``: name -> distance in cm; imagined positions are the probe's, simulated ones are true
    """

    num_pairs: int
    num_states: int
    image: Separation
    landmarks: dict[str, Separation]

    def to_dict(self) -> dict[str, Any]:
        separations = {"image": self.image, **self.landmarks}
        counts = {"num_pairs": self.num_pairs, "num_states": self.num_states}
        return counts | {name: separation.to_dict() for name, separation in separations.items()}


def follow_actions(
    branches: Branches, dataset: ClipDataset, imagined: Seen, true_m: Tensor, landmarks: tuple[Landmark, ...]
) -> ActionFollowing | None:
    """Compare all pairs of whole episodes that start in one state; ``None`` without such a pair.

    ``true_m`` f32 [N, M, P]: see `locate_landmarks`.
    """
    by_state: dict[str, list[int]] = {}
    for row, episode in enumerate(branches.episode.tolist()):
        by_state.setdefault(dataset.cache.metas[episode].initial_state_id, []).append(row)
    pairs = [(a, b, number) for number, rows in enumerate(by_state.values()) for a, b in combinations(rows, 2)]
    if not pairs:
        return None
    left, right, state = torch.tensor(pairs).T
    length = branches.truth.valid.sum(1)
    frame = torch.minimum(length[left], length[right]) - 1

    def subtract(values: Tensor) -> Tensor:
        return (values[left, frame].double() - values[right, frame].double()).flatten(1)

    def root_mean_square(frames: Mapping[str, Frames]) -> Tensor:
        by_camera = [
            torch.cat([compare_images(frames[camera], rows) for rows in torch.arange(len(pairs)).split(PAIRS_AT_ONCE)])
            for camera in branches.frames
        ]
        return torch.stack(by_camera).mean(0)

    def compare_images(frames: Frames, rows: Tensor) -> Tensor:
        number = torch.arange(len(rows))
        one, other = (frames[side[rows]][number, frame[rows]].double().flatten(1) for side in (left, right))
        return (one - other).square().mean(1).sqrt()

    def distance_cm(position_m: Tensor) -> Tensor:
        return CM * subtract(position_m).norm(dim=1)

    return ActionFollowing(
        num_pairs=len(pairs),
        num_states=len(np.unique(state.numpy())),
        image=_compare(root_mean_square(branches.frames), root_mean_square(branches.truth.frames), state),
        landmarks={
            mark.name: _compare(distance_cm(imagined.position_m[..., part]), distance_cm(true_m[..., part]), state)
            for mark, part in slice_landmarks(landmarks)
            if distance_cm(true_m[..., part]).any()  # a goal that no action moves tells nothing
        },
    )


def _compare(imagined: Tensor, simulated: Tensor, state: Tensor) -> Separation:
    a, b, clusters = imagined.numpy(), simulated.numpy(), state.numpy()

    def ratio(x: np.ndarray, y: np.ndarray) -> float:
        return float(x.mean() / y.mean()) if y.mean() > 0 else float("nan")

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")

    return Separation(
        imagined=round(float(a.mean()), 4),
        simulated=round(float(b.mean()), 4),
        ratio=estimate(ratio, a, b, clusters=clusters, num_resamples=CURVE_RESAMPLES),
        correlation=estimate(correlation, a, b, clusters=clusters, num_resamples=CURVE_RESAMPLES),
    )
