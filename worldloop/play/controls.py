"""What the controls of a game do: which kind each dimension of the actions has, and which action means "no motion".

Actions are shares here: -1 is the lower bound, 1 the upper one.

- An *axis* is a motion: it springs back to zero motion, in environment units.
- A *slider* holds a target, e.g. a joint position, or something that has no zero. It stays where it is.
- A *switch* is a gripper that opens and closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from worldloop.core.specs import RobotSpec

Kind = Literal["axis", "slider", "switch"]
OPENS = {"gripper": 1.0, "gripper_close": -1.0}  # by the name of a switch's action: the share that opens the gripper


def list_kinds(robot: RobotSpec) -> list[Kind]:
    """The kind of each dimension of the robot's actions."""
    return [_find_kind(robot, i) for i in range(robot.action_dim)]


def _find_kind(robot: RobotSpec, i: int) -> Kind:
    if robot.holds_targets:
        return "slider"
    if robot.action_names[i] in OPENS:
        return "switch"
    return "axis" if robot.action_low[i] < 0 < robot.action_high[i] else "slider"


def list_labels(robot: RobotSpec) -> list[tuple[str, str]]:
    """What the lower and the upper side of each dimension do; less and more of it where the robot does not say."""
    if robot.action_labels:
        return list(robot.action_labels)
    return [_label(name, kind) for name, kind in zip(robot.action_names, list_kinds(robot), strict=True)]


def _label(name: str, kind: Kind) -> tuple[str, str]:
    if kind == "switch":
        return ("close", "open") if OPENS[name] > 0 else ("open", "close")
    return f"{name} \N{MINUS SIGN}", f"{name} +"


def find_rest(robot: RobotSpec, last: Sequence[float] | None, first: Tensor | None, proprio: Tensor) -> list[float]:
    """The action that moves nothing: shares [A] in [-1, 1].

    Axes rest at zero motion. The others keep the ``last`` action (shares [A]). At the start of a game, without one,
    they have the ``first`` recorded action f32 [A] (environment units), or what ``proprio`` f32 [S] tells under the
    same name. Where nothing is known, a gripper is open, and a slider is in its middle.
    """
    rest = []
    for i, kind in enumerate(list_kinds(robot)):
        name = robot.action_names[i]
        if kind == "axis":
            rest.append(_to_share(robot, i, 0.0))
        elif last is not None:
            rest.append(float(last[i]))
        elif first is not None:
            rest.append(_to_share(robot, i, float(first[i])))
        elif kind == "slider" and name in robot.proprio_names:
            rest.append(_to_share(robot, i, float(proprio[robot.proprio_names.index(name)])))
        else:
            rest.append(OPENS[name] if kind == "switch" else 0.0)
    return rest


def _to_share(robot: RobotSpec, i: int, value: float) -> float:
    """``value``, in environment units, of dimension ``i``; a value out of bounds counts as the bound."""
    low, high = robot.action_low[i], robot.action_high[i]
    return min(max(2 * (value - low) / (high - low) - 1, -1.0), 1.0)


def to_actions(robot: RobotSpec, shares: Sequence[float], repeats: int) -> Tensor:
    """``shares`` [A], ``repeats`` times, in environment units: f32 [1, repeats, A]."""
    share = (torch.tensor(shares, dtype=torch.float32) + 1) / 2
    low, high = torch.tensor(robot.action_low), torch.tensor(robot.action_high)
    return (low + share * (high - low)).expand(1, repeats, -1).contiguous()
