"""When does a success count? The rule, in one place, for simulators, imagination and judgement.

- `classify_outcome` names the outcome of a simulated episode: success, near-success or failure.
- A simulated episode goes on for ``SimulatorSpec.success_hold_frames`` frames after its success, so that the world
  model sees what a solved task looks like. `simulators.base` and `sans.recordings` count them.
- An imagined success is declared when ``SimulatorSpec.success_confirm_frames`` further frames agree: `confirm` over
  whole episodes, `declare` while frames are still being imagined.
- `Calibration` turns the success head's logits into probabilities, and says from which one on a success is declared.
- `Trust` says whether a policy may learn from imagined success at all.

World-VLA-Loop trains its reward on failures that almost succeed, but gives no number. Ours: an episode is a
near-success when it failed and its smallest distance to the goal's *centre* was at most twice the success radius r,
that is, its distance to the success *region* was at most r.

Provision (a deviation from that plain rule): in some tasks the object starts this close (PushCube starts at exactly
2r), so an episode that touches nothing would count. A near-success must also have come at least
``MIN_PROGRESS_M`` closer than where it started.
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
    """Raise ``ValueError`` unless 0 <= ``confirm_frames`` <= ``hold_frames``, the two settings of config ``section``.

    Nothing after a success could confirm it if the episode did not go on for as long.
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

    ``distances_m`` f32 [T] is the distance to the success region after each executed step (0 = inside),
    ``start_distance_m`` the same before the first step. ``margin_m`` is the smallest of them all, 0 on success.
    Raises ``ValueError`` for an empty or non-finite list of distances and for a radius that is not positive.

    Worked example, r = 0.1: starting at 0.1, ``[0.08, 0.05, 0.06]`` is a near-success with margin 0.05;
    ``[0.1, 0.095, 0.1]`` is a failure (5 mm of progress); ``[0.15, 0.12]`` is a failure (too far).
    """
    distances = np.asarray(distances_m, dtype=np.float64).reshape(-1)
    if distances.size == 0 or not np.isfinite(distances).all() or not np.isfinite(start_distance_m):
        raise ValueError("distances_m and start_distance_m must be finite and distances_m must not be empty")
    if not success_radius_m > 0:
        raise ValueError(f"success_radius_m is {success_radius_m}, allowed: > 0")
    if success:
        return "success", 0.0
    smallest = float(distances.min())
    margin_m = max(min(smallest, float(start_distance_m)), 0.0)
    # Distances are stored as f32: without the tolerance, 0.1 -> 0.09 would fail 10 mm of progress by rounding.
    tolerance = 1e-6
    is_close = smallest <= success_radius_m + tolerance
    has_progressed = start_distance_m - smallest >= MIN_PROGRESS_M - tolerance
    return ("near_success" if is_close and has_progressed else "failure"), margin_m


@dataclass(frozen=True)
class Calibration:
    """How to read the heads, from held-out imagined frames: Platt scaling of success, and what PSNR to expect.

    p = sigmoid(scale * logit + bias); success is declared at p >= threshold. ``psnr_bias_db`` is subtracted from the
    frames' expected PSNR; what is then below ``floor_db`` lies outside of what is known to be imagined well.

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
    """The `Calibration` of each task, by its id; a task without one is read by the identity."""

    by_task: Mapping[str, Calibration] = field(default_factory=dict)

    def of(self, task: str) -> Calibration:
        return self.by_task.get(task, Calibration())

    def column(self, name: str, task: Sequence[str]) -> Tensor:
        """f32 [B]: the field called ``name`` of each row's task, e.g. ``threshold``, on the CPU."""
        return torch.tensor([getattr(self.of(t), name) for t in task], dtype=torch.float32)

    def probability(self, logit: Tensor, task: Sequence[str]) -> Tensor:
        """f32 [B, ...] of success, from logits [B, ...] of rows whose tasks are ``task``."""
        shape = (-1, *[1] * (logit.ndim - 1))
        scale, bias = (self.column(name, task).to(logit.device).reshape(shape) for name in ("scale", "bias"))
        return torch.sigmoid(scale * logit.float() + bias)


@dataclass(frozen=True)
class Trust:
    """Whether a policy may be improved in a world model, by its check; ``reason`` says why not.

    Raises ``ValueError`` for a refusal without a reason, or a reason without a refusal.
    """

    is_trusted: bool
    reason: str = ""

    def __post_init__(self) -> None:
        if self.is_trusted == bool(self.reason):
            raise ValueError(
                f"trust needs a reason exactly where it is refused, got {self.is_trusted}, {self.reason!r}"
            )


def _agree(values: Tensor, confirm_frames: int) -> Tensor:
    """[B, M + confirm_frames] -> [B, M]: the lowest of each frame's value and of the ``confirm_frames`` after it."""
    return values.unfold(1, confirm_frames + 1, 1).amin(2)


def confirm(values: Tensor, confirm_frames: int) -> Tensor:
    """[B, M] -> [B, M]: the lowest of each frame's value and of the ``confirm_frames`` that follow it.

    What a single false frame says does not count. At the end fewer frames have to agree, as at an episode's time limit.
    """
    return _agree(torch.nn.functional.pad(values, (0, confirm_frames), value=torch.inf), confirm_frames)


def declare(shows: Tensor, is_last: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
    """`confirm` while frames arrive: bool [B, M], whether success has been declared at or before each frame.

    ``shows`` bool [B, M]: the frame shows a success; ``is_last`` bool [B, M]: no frame counts after it. ``recent`` bool
    [B, confirm_frames]: what the frames before these showed, false before the first; also returned, for those to come.
    """
    confirm_frames, M = recent.shape[1], shows.shape[1]
    seen = torch.cat([recent, shows], dim=1)
    declared = _agree(seen, confirm_frames) | (shows & is_last)
    return declared.cummax(1).values, seen[:, M:]


def find_highest_confirmed(values: Tensor, valid: Tensor, confirm_frames: int) -> Tensor:
    """f [N]: the highest confirmed of ``values`` [N, M] that are ``valid`` bool [N, M], -inf where none is."""
    return confirm(values.masked_fill(~valid, torch.inf), confirm_frames).masked_fill(~valid, -torch.inf).amax(1)
