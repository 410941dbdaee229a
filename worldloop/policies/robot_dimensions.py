"""Which dimensions of a robot a policy reads, and over which range it acts."""

from __future__ import annotations

from collections.abc import Sequence

from worldloop.core.specs import RobotSpec


def choose_proprio(robot: RobotSpec, prefixes: Sequence[str], key: str) -> tuple[int, ...]:
    """The dimensions of proprio whose names begin with one of ``prefixes``; "" matches all.

    Raises ``ValueError``, naming the config's ``key``, if none does.
    """
    chosen = tuple(i for i, name in enumerate(robot.proprio_names) if name.startswith(tuple(prefixes)))
    if not chosen:
        raise ValueError(
            f"{key} is {tuple(prefixes)}, which matches no proprio; allowed: beginnings of {robot.proprio_names}"
        )
    return chosen


def find_action_range(
    robot: RobotSpec, low: float, high: float, full_range: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lowest and highest value of each action: [low, high] within the robot's bounds.

    An action whose name starts with one of ``full_range`` (e.g. a gripper) has the robot's whole range. Raises
    ``ValueError`` where no range is left.
    """
    lows, highs = [], []
    for name, bound_low, bound_high in zip(robot.action_names, robot.action_low, robot.action_high, strict=True):
        is_full = name.startswith(tuple(full_range))
        first = bound_low if is_full else max(low, bound_low)
        last = bound_high if is_full else min(high, bound_high)
        if first >= last:
            raise ValueError(
                f"action_low/high [{low}, {high}] leaves no range for action {name!r}, "
                f"whose bounds are [{bound_low}, {bound_high}]"
            )
        lows.append(first)
        highs.append(last)
    return tuple(lows), tuple(highs)
