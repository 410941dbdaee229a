"""Which frame steps of stored episodes are an interaction with the object, by a rule; see `InteractionRule`."""

from __future__ import annotations

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.core.interaction import InteractionRule
from worldloop.core.specs import SimulatorSpec
from worldloop.sans.cache import VersionCache

NO_SIGN = (
    "the episodes show none of the signs of interaction {}: 'gripper' needs an action of that name, 'distance' needs "
    "the stored positions of hand and object"
)
NO_POSITIONS = (
    "recorded demonstrations do not tell positions, so the gate cannot be taught by distance alone: add the sign "
    "'gripper', which needs an action of that name"
)
MIN_CHANGE = 0.25  # of an action's range: smaller changes of the gripper are noise


def find_interaction(cache: VersionCache, spec: SimulatorSpec, rule: InteractionRule | None) -> np.ndarray | None:
    """bool [N]: for each frame step of the version, one episode after the other; ``None`` without a rule.

    Raises `WorldloopError` where no sign of the rule can be seen: without a gripper, or without stored positions.
    """
    if rule is None:
        return None
    signs = []
    if "gripper" in rule.signs and (columns := spec.robot.gripper_actions):
        signs.append(_find_gripper_changes(cache, spec, columns, rule.num_frames))
    if "distance" in rule.signs and _has_positions(cache, spec):
        distance_m = _measure_hand_to_object(cache, spec)
        if not signs and not np.isfinite(distance_m).all():
            raise WorldloopError(NO_POSITIONS)
        is_near = distance_m < rule.distance_m  # false where it is unknown: there the gripper decides
        signs.append(is_near & ~_find_holding(cache, spec, spec.robot.gripper_actions))
    if not signs:
        raise WorldloopError(NO_SIGN.format(", ".join(rule.signs)))
    return np.logical_or.reduce(signs)


def require_signs(spec: SimulatorSpec, rule: InteractionRule | None, knows_positions: bool = True) -> None:
    """Raise `WorldloopError` if no sign of the rule can ever be seen in the episodes of ``spec``.

    ``knows_positions``: false if some of them are recorded demonstrations.
    """
    if rule is None:
        raise WorldloopError("a policy with a gate needs `interaction`, the rule by which the gate is taught")
    has_gripper = "gripper" in rule.signs and bool(spec.robot.gripper_actions)
    if not has_gripper and not knows_positions:
        raise WorldloopError(NO_POSITIONS)
    if not has_gripper and not ("distance" in rule.signs and _has_landmarks(spec)):
        raise WorldloopError(NO_SIGN.format(", ".join(rule.signs)))


def _find_gripper_changes(cache: VersionCache, spec: SimulatorSpec, columns: list[int], num_frames: int) -> np.ndarray:
    actions = cache.all_steps("actions")[..., columns]  # [N, s, columns]
    low, high = (np.array(bound)[columns] for bound in (spec.robot.action_low, spec.robot.action_high))
    found = []
    for first, last in zip(cache.first_step, cache.first_step + cache.num_steps, strict=True):
        commands = actions[first:last].reshape(-1, len(columns))
        moved = np.abs(np.diff(commands, axis=0, prepend=commands[:1])) > MIN_CHANGE * (high - low)
        changes = np.flatnonzero(moved.any(1).reshape(last - first, -1).any(1))
        near = np.zeros(last - first, dtype=bool)
        for change in changes:
            near[max(change - num_frames, 0) : change + num_frames + 1] = True
        found.append(near)
    return np.concatenate(found)


def _find_holding(cache: VersionCache, spec: SimulatorSpec, columns: list[int]) -> np.ndarray:
    """bool [N]: the gripper's command at a step's beginning is another than at the beginning of its episode."""
    commands = cache.all_steps("actions")[:, 0, columns]
    low, high = (np.array(bound)[columns] for bound in (spec.robot.action_low, spec.robot.action_high))
    first = np.repeat(cache.first_step, cache.num_steps)
    return np.asarray((np.abs(commands - commands[first]) > MIN_CHANGE * (high - low)).any(axis=1))


def _has_positions(cache: VersionCache, spec: SimulatorSpec) -> bool:
    """Whether every task tells where hand and object are, and the episodes have it."""
    marks = [mark for task in spec.tasks for mark in task.landmarks]
    width = cache.frames("sim_state", np.array([0]), np.array([0])).shape[1]
    needed = [max(mark.columns) for mark in marks if mark.source == "sim_state"]
    return _has_landmarks(spec) and (not needed or width > max(needed))


def _has_landmarks(spec: SimulatorSpec) -> bool:
    return all({mark.name for mark in task.landmarks} >= {"object", "effector"} for task in spec.tasks)


def _measure_hand_to_object(cache: VersionCache, spec: SimulatorSpec) -> np.ndarray:
    """f [N]: metres between hand and object at the beginning of each frame step; NaN if the state is not stored."""
    episode = np.repeat(np.arange(len(cache)), cache.num_steps)
    now = np.concatenate([np.arange(n) for n in cache.num_steps])
    names = np.array([cache.metas[e].task for e in episode.tolist()])
    distance = np.zeros(len(now))
    for task in np.unique(names):
        rows = np.flatnonzero(names == task)
        marks = {mark.name: mark for mark in spec.task(str(task)).landmarks}
        hand, thing = (
            cache.frames(marks[name].source, episode[rows], now[rows])[:, list(marks[name].columns)]
            * marks[name].metres_per_unit
            for name in ("effector", "object")
        )
        distance[rows] = np.linalg.norm(hand - thing, axis=1)
    return distance
