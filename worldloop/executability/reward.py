"""The executability reward of EVA (arXiv:2603.17808): could a robot do what a video shows?

An inverse dynamics model reads joint positions and actions from a video. The penalty P is a weighted sum of terms: it
grows with jerk, with acceleration, and with every limit that the motion breaks. The reward is R = (1 + P / P0)^-gamma,
with P0 the mean penalty of videos before any alignment. All functions are differentiable and stay on their inputs'
device.

Departures:

1. The paper applies a Huber loss to raw jerk and acceleration, with a delta per joint. Here both are divided by the
   joint's envelope, so that the terms have no unit and all joints share one delta. The envelope is 1.1 times the 99.5th
   percentile over real video, read by the same inverse dynamics model.
2. The paper's limits are the joint's own. At four or five stored frames a second no motion reaches them. Here the limit
   of velocity and acceleration is the smaller of the joint's own and the envelope.
3. The paper squares the excess in physical units. Here each excess is relative to its limit or range.
4. Two terms are added: joint positions out of their range, and actions that the controller does not accept. At a low
   frame rate, bad video leaves the bounds of actions first.
5. A video that stands still has no penalty. A guard against that is added: the path that the joints travel must be
   nearly as long as in the real video.
6. A model that is given actions must also show jerky ones, which these terms would punish. `score_following` rewards
   it for doing what the actions say.

Shapes: B rows; T stored frames; J joints, in the order of ``RobotSpec.joints``; s actions a stored frame; A action
dimensions. Joint positions have the units of ``JointSpec`` (rad, or m), actions those of the environment.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from worldloop.core.errors import WorldloopError, require_positive, require_range
from worldloop.core.specs import RobotSpec
from worldloop.core.tensors import check_shape

TERMS = ("jerk", "acceleration", "velocity_limit", "acceleration_limit", "joint_range", "controller_range")

ENVELOPE_PERCENTILE = 99.5
ENVELOPE_MARGIN = 1.1
SMALLEST_MOVE = 1e-3  # rad a stored frame: no envelope is smaller, so a joint that never moves divides nothing by 0
GUARD_WIDTH = 0.2  # path ratio beyond the guard's edge at which its factor is 1 / e
STILL_PATH = 0.05  # rad, all joints together: shorter real paths count as this long, so that their ratio is defined


@dataclass(frozen=True)
class RewardConfig:
    """The weights and the shape of the reward.

    - one weight for each of `TERMS`; 0 turns a term off
    - ``huber_delta``: where the loss of jerk and acceleration turns from a square into a line, in envelopes
    - ``gamma``: how fast the reward falls with the penalty
    - ``guard_low``, ``guard_high``: the ratios of the video's path to the real path that cost nothing

    The weights are those of public code in the style of EVA; it has no range terms. Raises ``ValueError`` that names
    the key.
    """

    jerk: float = 0.5
    acceleration: float = 0.25
    velocity_limit: float = 2.0
    acceleration_limit: float = 1.0
    joint_range: float = 1.0
    controller_range: float = 1.0
    huber_delta: float = 1.0
    gamma: float = 0.5
    guard_low: float = 0.8
    guard_high: float = 1.2

    def __post_init__(self) -> None:
        key = "reward"
        for term, weight in self.weights.items():
            require_range(f"{key}.{term}", weight, 0, 1000)
        if not any(self.weights.values()):
            raise ValueError(f"{key} has no term, allowed: weights of {', '.join(TERMS)}, one of them above 0")
        require_range(f"{key}.huber_delta", self.huber_delta, 0.001, 1000)
        require_range(f"{key}.gamma", self.gamma, 0.001, 100)
        require_range(f"{key}.guard_low", self.guard_low, 0, 1)
        require_range(f"{key}.guard_high", self.guard_high, 1, 1000)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each of `TERMS`."""
        settings = asdict(self)
        return {term: settings[term] for term in TERMS}


@dataclass(frozen=True)
class Envelope:
    """How fast each joint moves in real video.

    f32 [J] each, in rad/s, rad/s^2 and rad/s^3; all above 0. Its device does not matter.
    """

    velocity: Tensor
    acceleration: Tensor
    jerk: Tensor


def measure_envelope(joints: Tensor, valid: Tensor, dt_s: float) -> Envelope:
    """The envelope of real video: 1.1 times the 99.5th percentile of |v|, |a| and |jerk|, for each joint.

    Args:
        joints: float [B, T, J], read from real video by the inverse dynamics model that reads the judged videos too.
        valid: bool [B, T], see `compute_terms`.
        dt_s: seconds between stored frames.

    Raises ``WorldloopError`` if no row has four valid frames, ``ValueError`` for a position that is not finite.
    """
    check_shape("joints", joints, (None, None, None))
    check_shape("valid", valid, tuple(joints.shape[:2]))
    require_positive("dt_s", dt_s)
    limits = []
    for order, (values, is_valid) in enumerate(_differentiate(joints.detach(), valid, dt_s), start=1):
        if not is_valid.any():
            raise WorldloopError("no real video has four valid frames in a row, so no envelope can be measured")
        # NumPy's, because torch.quantile refuses large tensors
        percentile = np.percentile(values[is_valid].abs().cpu().numpy(), ENVELOPE_PERCENTILE, axis=0)
        if not np.isfinite(percentile).all():
            raise ValueError("a joint position is not finite")
        limits.append(np.maximum(ENVELOPE_MARGIN * percentile, SMALLEST_MOVE / dt_s**order))
    return Envelope(*(torch.tensor(limit, dtype=torch.float32) for limit in limits))


def compute_terms(
    joints: Tensor,
    actions: Tensor,
    valid: Tensor,
    robot: RobotSpec,
    dt_s: float,
    envelope: Envelope,
    huber_delta: float = 1.0,
) -> dict[str, Tensor]:
    """The terms of the penalty before they are weighted, float [B] each, 0 or more, without units.

    Each is a mean over the valid values of a row and over joints or action dimensions:

    - ``jerk``, ``acceleration``: Huber loss of the value over the envelope
    - ``velocity_limit``, ``acceleration_limit``: squared excess of |v|, |a| over the limit, relative to it
    - ``joint_range``: squared excess of the position outside [low, high], relative to high - low
    - ``controller_range``: squared excess of the action outside [low, high], relative to half of high - low

    Args:
        joints: f32 or f64 [B, T, J], in rad; the terms have its dtype.
        actions: float [B, T - 1, s, A], in environment units; ``actions[:, f]`` lead from frame f to frame f + 1.
        valid: bool [B, T], true for the frames that count. A difference counts if all of its frames do, actions count
            if both of their frames do. A term without any valid value is 0. The other frames may hold anything.
        robot: its joints' limits, and the bounds of its actions.
        dt_s: seconds between stored frames.
        envelope: see `measure_envelope`.
        huber_delta: see `RewardConfig`.

    Raises ``WorldloopError`` for a robot without joints, ``ValueError`` for other shapes. A valid value that is not
    finite makes its terms infinite or NaN.
    """
    require_joints(robot)
    check_shape("joints", joints, (None, None, len(robot.joints)))
    B, T, J = joints.shape
    check_shape("actions", actions, (B, T - 1, None, robot.action_dim))
    check_shape("valid", valid, (B, T))
    for name in ("velocity", "acceleration", "jerk"):
        check_shape(f"envelope.{name}", getattr(envelope, name), (J,))

    # --- limits, one for each joint or action dimension
    low = joints.new_tensor([joint.low for joint in robot.joints])
    high = joints.new_tensor([joint.high for joint in robot.joints])
    action_low, action_high = joints.new_tensor(robot.action_low), joints.new_tensor(robot.action_high)
    velocity_scale, acceleration_scale, jerk_scale = (
        scale.to(joints) for scale in (envelope.velocity, envelope.acceleration, envelope.jerk)
    )
    max_velocity = velocity_scale.minimum(joints.new_tensor([joint.max_velocity for joint in robot.joints]))
    max_acceleration = acceleration_scale.minimum(joints.new_tensor([joint.max_acceleration for joint in robot.joints]))

    # --- motion, each with its mask
    derivatives = _differentiate(joints, valid, dt_s)
    (velocity, has_velocity), (acceleration, has_acceleration), (jerk, has_jerk) = derivatives
    positions = _clear_invalid(joints, valid)
    actions = _clear_invalid(actions.to(joints), has_velocity)

    def huber(ratio: Tensor) -> Tensor:
        return huber_loss(ratio, torch.zeros_like(ratio), reduction="none", delta=huber_delta)

    return {
        "jerk": _mean_by_row(huber(jerk / jerk_scale), has_jerk),
        "acceleration": _mean_by_row(huber(acceleration / acceleration_scale), has_acceleration),
        "velocity_limit": _mean_by_row((velocity.abs() / max_velocity - 1).clamp_min(0) ** 2, has_velocity),
        "acceleration_limit": _mean_by_row(
            (acceleration.abs() / max_acceleration - 1).clamp_min(0) ** 2, has_acceleration
        ),
        "joint_range": _mean_by_row((_excess(positions, low, high) / (high - low)) ** 2, valid),
        "controller_range": _mean_by_row(
            (_excess(actions, action_low, action_high) / ((action_high - action_low) / 2)) ** 2, has_velocity
        ),
    }


def compute_path_length(joints: Tensor, valid: Tensor) -> Tensor:
    """The path that all joints travel: the sum of |q_(t+1) - q_t| over time and joints, float [B].

    ``joints`` float [B, T, J]; ``valid`` bool [B, T], see `compute_terms`.
    """
    steps, is_step = _differentiate(joints, valid, dt_s=1.0)[0]
    return (steps.abs() * is_step[..., None]).sum((1, 2))


def compute_guard(path: Tensor, real_path: Tensor, low: float = 0.8, high: float = 1.2) -> tuple[Tensor, Tensor]:
    """A factor that is 1 while the path is about as long as the real one, and the ratio of the two; float [B] each.

    The factor is 1 for a ratio in [low, high]. Outside it is exp(-(d / .2)^2), with d the distance to the nearer edge.
    The divisor is at least `STILL_PATH`. So if the real robot rests, a video that rests gets 1, and one that moves gets
    almost 0.

    Example: ratios 0, .8, 1, 1.2, 2 -> factors 1e-7, 1, 1, 1, 1e-7.
    """
    scale = real_path.clamp_min(STILL_PATH)
    distance = _excess(path, low * real_path, high * real_path) / scale
    return torch.exp(-((distance / GUARD_WIDTH) ** 2)), path / scale


def score_following(inferred: Tensor, actions: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """How well a video does what the actions say: exp(-mse / temperature), float [B] in [0, 1].

    Args:
        inferred: float [B, F, s, A], actions that the inverse dynamics model reads from the video, scaled to [-1, 1].
        actions: float [B, F, s, A], the actions that the video was made with, scaled in the same way.
        valid: bool [B, F] or [B, F, s], true for the steps that count. The mean of a row is over these; a row without
            any gets 1. The other steps may hold anything.
        temperature: the mean squared error at which the reward is 1 / e.

    Raises ``ValueError`` for other shapes, or a temperature that is not positive.
    """
    check_shape("inferred", inferred, (None, None, None, None))
    check_shape("actions", actions, tuple(inferred.shape))
    check_shape("valid", valid, tuple(inferred.shape[: 3 if valid.dim() == 3 else 2]))
    require_positive("temperature", temperature)
    if valid.dim() == 2:
        valid = valid[..., None].expand(inferred.shape[:3])
    inferred, actions, valid = inferred.flatten(1, 2), actions.to(inferred).flatten(1, 2), valid.flatten(1, 2)
    error = _clear_invalid(inferred, valid) - _clear_invalid(actions, valid)
    return torch.exp(-_mean_by_row(error**2, valid) / temperature)


def require_joints(robot: RobotSpec) -> None:
    """Raise ``WorldloopError`` if the robot tells no joint limits."""
    if not robot.joints:
        raise WorldloopError(
            f"robot {robot.name!r} tells no joint limits, so no motion of it can be judged: give RobotSpec.joints"
        )


@dataclass(frozen=True)
class ExecutabilityReward:
    """Scores motions of one robot by R = (1 + P / P0)^-gamma.

    - ``dt_s``: seconds between stored frames
    - ``envelope``: of real video, see `measure_envelope`
    - ``reference_penalty``: P0. `calibrate` gives a copy that has it; without it there is a penalty but no score

    Raises ``WorldloopError`` for a robot without joints, ``ValueError`` for another number that is not above 0.
    """

    robot: RobotSpec
    dt_s: float
    config: RewardConfig
    envelope: Envelope
    reference_penalty: float | None = None

    def __post_init__(self) -> None:
        require_joints(self.robot)
        require_positive("dt_s", self.dt_s)
        if self.reference_penalty is not None:
            require_positive("reference_penalty", self.reference_penalty)

    def weigh_terms(self, joints: Tensor, actions: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """The weighted terms of the penalty, float [B] each; arguments as in `compute_terms`."""
        delta = self.config.huber_delta
        terms = compute_terms(joints, actions, valid, self.robot, self.dt_s, self.envelope, delta)
        # A term that is off is left out, because 0 times an infinite term is NaN.
        return {name: weight * terms[name] for name, weight in self.config.weights.items() if weight}

    def compute_penalty(self, joints: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """P, float [B]: the sum of the weighted terms; arguments as in `compute_terms`."""
        return torch.stack(list(self.weigh_terms(joints, actions, valid).values())).sum(0)

    def calibrate(self, penalties: Tensor) -> ExecutabilityReward:
        """A copy whose P0 is the mean of ``penalties``, float [n]: `compute_penalty` of videos before any alignment.

        A video of average penalty then scores 2^-gamma. Raises ``WorldloopError`` unless the mean is finite and above
        0.
        """
        mean = float(penalties.double().mean())
        if not 0 < mean < math.inf:
            raise WorldloopError(
                f"the reference videos have a mean penalty of {mean}, so the reward has no scale: they must move, and "
                f"their joints must be finite"
            )
        return replace(self, reference_penalty=mean)

    def score(
        self, joints: Tensor, actions: Tensor, valid: Tensor, real_path: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward, float [B] in [0, 1], and what it is made of.

        R is 1 for a robot at rest within its joints' ranges, and for a row without valid frames.

        ``real_path``, float [B], turns the guard against standing still on: the reward is R times the guard's factor.
        It is `compute_path_length` of the real video of the same episode, over the same valid frames and read by the
        same inverse dynamics model, whose noise lengthens both paths alike. ``None``: the reward is R.

        The breakdown is for logs, float [B] each without gradients: the weighted terms, their sum ``penalty``,
        ``executability`` (R) and, with ``real_path``, ``path_ratio`` and ``guard``.

        Other arguments as in `compute_terms`. Raises ``ValueError`` before `calibrate`, or for other shapes.
        """
        if self.reference_penalty is None:
            raise ValueError("the reward has no reference penalty: calibrate it first")
        breakdown = self.weigh_terms(joints, actions, valid)
        penalty = torch.stack(list(breakdown.values())).sum(0)
        # Not ((1 + P) / P0)^-gamma, as some print it: that is not 1 at rest.
        reward = (1 + penalty / self.reference_penalty) ** -self.config.gamma
        breakdown |= {"penalty": penalty, "executability": reward}
        if real_path is not None:
            check_shape("real_path", real_path, tuple(penalty.shape))
            path = compute_path_length(joints, valid)
            guard, ratio = compute_guard(path, real_path.to(path), self.config.guard_low, self.config.guard_high)
            breakdown |= {"path_ratio": ratio, "guard": guard}
            reward = reward * guard
        return reward, {name: value.detach() for name, value in breakdown.items()}


def _differentiate(joints: Tensor, valid: Tensor, dt_s: float) -> list[tuple[Tensor, Tensor]]:
    """Velocity, acceleration and jerk by finite differences, float [B, T - 1 (T - 2, T - 3), J], with their masks."""
    values = _clear_invalid(joints, valid)
    derivatives = []
    for _ in range(3):
        values = (values[:, 1:] - values[:, :-1]) / dt_s
        valid = valid[:, 1:] & valid[:, :-1]
        derivatives.append((values, valid))
    return derivatives


def _clear_invalid(values: Tensor, valid: Tensor) -> Tensor:
    """``values`` [B, n, ...] with zeros where ``valid`` [B, n] is false: a NaN there would survive a mask's product."""
    return torch.where(valid.reshape(*valid.shape, *[1] * (values.dim() - 2)), values, 0.0)


def _excess(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """By how much values lie outside [low, high]; 0 inside."""
    return (low - values).clamp_min(0) + (values - high).clamp_min(0)


def _mean_by_row(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of ``values`` [B, n, ...] over the n where ``valid`` [B, n] and over all later dimensions, float [B]."""
    means = values.flatten(2).mean(2)
    return (means * valid).sum(1) / valid.sum(1).clamp_min(1)
