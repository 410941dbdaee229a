"""The rule that says when a success counts, for simulators, imagination and evaluation.

- `classify_outcome` names the outcome of a simulated episode: success, near-success or failure.
- A simulated episode goes on for ``SimulatorSpec.success_hold_frames`` frames after its success, so that the world
  model sees what a solved task looks like. `simulators.base` and `sans.recordings` count them.
- An imagined success is declared when ``SimulatorSpec.success_confirm_frames`` further frames also show it. `confirm`
  applies this to whole episodes, `declare` to frames as they are imagined.
- `Calibration` turns the success head's logits into probabilities and holds the threshold for a success.
- `Trust` says whether a policy may learn from imagined success.

World-VLA-Loop trains its reward on failures that almost succeed, but gives no number. Here a failed episode is a
near-success if both hold:

1. Its smallest distance to the success *region* was at most the success radius r. That is at most 2r to the goal's
   *centre*.
2. It came at least ``MIN_PROGRESS_M`` closer than it started. Without this rule an episode that touches nothing could
   count: in PushCube the object starts exactly 2r from the centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from worldloop.core.types import Outcome

MIN_PROGRESS_M = 0.01


def require_success_frames(section: str, hold_frames: int, confirm_frames: int) -> None:
    """Raise ``ValueError`` unless 0 <= ``confirm_frames`` <= ``hold_frames``, two settings of config ``section``.

    An episode must go on long enough after a success for later frames to confirm it.
    """
    if not 0 <= confirm_frames <= hold_frames:
        raise ValueError(
            f"{section}.success_confirm_frames is {confirm_frames}, allowed: 0 to "
            f"{section}.success_hold_frames = {hold_frames}"
        )


def classify_outcome(
    success: bool, distances_m: np.ndarray, start_distance_m: float, success_radius_m: float
) -> tuple[Outcome, float]:
    """(outcome, margin_m) of an episode.

    ``distances_m`` f32 [T] is the distance to the success region after each executed step (0 = inside).
    ``start_distance_m`` is the distance before the first step. ``margin_m`` is the smallest of all these distances, 0
    on success. A task that knows no distances (all NaN) has no near-success, and the margin of its failures is NaN.
    Raises ``ValueError`` for empty or other non-finite distances and for a radius that is not positive.

    Worked example, r = 0.1: starting at 0.1, ``[0.08, 0.05, 0.06]`` is a near-success with margin 0.05;
    ``[0.1, 0.095, 0.1]`` is a failure (5 mm of progress); ``[0.15, 0.12]`` is a failure (too far).
    """
    distances = np.asarray(distances_m, dtype=np.float64).reshape(-1)
    if distances.size and np.isnan(distances).all() and np.isnan(start_distance_m):
        return ("success", 0.0) if success else ("failure", float("nan"))
    if distances.size == 0 or not np.isfinite(distances).all() or not np.isfinite(start_distance_m):
        raise ValueError("distances_m and start_distance_m must be finite and distances_m must not be empty")
    if not success_radius_m > 0:
        raise ValueError(f"success_radius_m is {success_radius_m}, allowed: > 0")
    if success:
        return "success", 0.0
    smallest = float(distances.min())
    margin_m = max(min(smallest, float(start_distance_m)), 0.0)
    # Distances are stored as f32: by rounding, 0.1 -> 0.09 would be less than 10 mm of progress.
    tolerance = 1e-6
    is_close = smallest <= success_radius_m + tolerance
    has_progressed = start_distance_m - smallest >= MIN_PROGRESS_M - tolerance
    return ("near_success" if is_close and has_progressed else "failure"), margin_m


@dataclass(frozen=True)
class Calibration:
    """How to read the success and error heads, fitted on held-out imagined frames; see `evaluation.calibration`.

    Success (Platt scaling): p = sigmoid(scale * logit + bias), and a frame shows a success if p >= threshold. Error:
    ``psnr_bias_db`` is subtracted from a frame's expected PSNR; a frame below ``floor_db`` then counts as uncertain.

    Raises ``ValueError`` unless scale > 0 and 0 < threshold < 1.
    """

    scale: float = 1.0
    bias: float = 0.0
    threshold: float = 0.5
    psnr_bias_db: float = 0.0
    floor_db: float = 0.0

    def __post_init__(self) -> None:
        if not (self.scale > 0 and 0 < self.threshold < 1):
            raise ValueError(f"bad calibration: scale {self.scale} must be > 0, threshold {self.threshold} in (0, 1)")

    def probability(self, logit: Tensor) -> Tensor:
        return torch.sigmoid(self.scale * logit.float() + self.bias)


@dataclass(frozen=True)
class Calibrations:
    """The `Calibration` of each task, by its id; a task without one uses `Calibration()`, which changes nothing."""

    by_task: Mapping[str, Calibration] = field(default_factory=dict)

    def of(self, task: str) -> Calibration:
        return self.by_task.get(task, Calibration())

    def column(self, name: str, task: Sequence[str]) -> Tensor:
        """f32 [B] on the CPU: the field called ``name``, e.g. ``threshold``, for the task of each row."""
        return torch.tensor([getattr(self.of(t), name) for t in task], dtype=torch.float32)

    def probability(self, logit: Tensor, task: Sequence[str]) -> Tensor:
        """Success probability f32 [B, ...] from logits [B, ...]; ``task`` has the task id of each row."""
        shape = (-1, *[1] * (logit.ndim - 1))
        scale, bias = (self.column(name, task).to(logit.device).reshape(shape) for name in ("scale", "bias"))
        return torch.sigmoid(scale * logit.float() + bias)


@dataclass(frozen=True)
class Trust:
    """Whether the check of a world model allows a policy to be improved in it; ``reason`` says why not.

    ``can_improve``: a further fit may mend what is wrong; it cannot where too few episodes were held out to judge.

    Raises ``ValueError`` for a refusal without a reason, or a reason without a refusal.
    """

    is_trusted: bool
    reason: str = ""
    can_improve: bool = False

    def __post_init__(self) -> None:
        if self.is_trusted == bool(self.reason):
            raise ValueError(
                f"trust needs a reason exactly where it is refused, got {self.is_trusted}, {self.reason!r}"
            )


def _agree(values: Tensor, confirm_frames: int) -> Tensor:
    """[B, M + confirm_frames] -> [B, M]: the minimum over each frame and the ``confirm_frames`` after it."""
    return values.unfold(1, confirm_frames + 1, 1).amin(2)


def confirm(values: Tensor, confirm_frames: int) -> Tensor:
    """[B, M] -> [B, M]: the minimum over each frame's value and the ``confirm_frames`` that follow it.

    So a single wrong frame cannot declare a success. Near the end fewer frames follow, and those that do must agree.
    """
    return _agree(torch.nn.functional.pad(values, (0, confirm_frames), value=torch.inf), confirm_frames)


def declare(shows: Tensor, is_last: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
    """`confirm` while frames arrive: (declared bool [B, M], the next ``recent``).

    - ``declared``: a success has been declared within this call, at or before the frame
    - ``shows`` bool [B, M]: the frame shows a success
    - ``is_last`` bool [B, M]: no later frame counts, so one frame is enough
    - ``recent`` bool [B, confirm_frames]: ``shows`` of the frames before these; false before an episode's start
    """
    confirm_frames, M = recent.shape[1], shows.shape[1]
    seen = torch.cat([recent, shows], dim=1)
    declared = _agree(seen, confirm_frames) | (shows & is_last)
    return declared.cummax(1).values, seen[:, M:]


def find_highest_confirmed(values: Tensor, valid: Tensor, confirm_frames: int, counts: Tensor | None = None) -> Tensor:
    """f [N]: the highest confirmed value (see `confirm`) among the ``valid`` bool [N, M] ones of ``values`` [N, M].

    Where ``counts`` bool [N, M] is false, a valid value only confirms earlier ones. A row without values that count
    gives -inf.
    """
    among = valid if counts is None else valid & counts
    return confirm(values.masked_fill(~valid, torch.inf), confirm_frames).masked_fill(~among, -torch.inf).amax(1)
