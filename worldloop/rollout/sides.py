"""On which side of the table an episode begins. With data of one side a test on the other shows generalisation.

Left is where the object's second coordinate is above zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import InitialStates

SIDES = ("left", "right")


def require_sides(spec: SimulatorSpec) -> None:
    """Raise `WorldloopError` if a task of ``spec`` does not say where its object is."""
    for task in spec.tasks:
        _find_column(task.id, spec)


def find_side(states: InitialStates, spec: SimulatorSpec, side: str) -> np.ndarray:
    """bool [n]: whether the object begins on ``side``; `WorldloopError` if a task does not say where its object is."""
    return np.array(
        [
            _begins_left(state, task, spec) == (side == "left")
            for state, task in zip(states.states, states.tasks, strict=True)
        ],
        dtype=bool,
    )


def begins_on(sim_state: np.ndarray, task: str, spec: SimulatorSpec, side: str) -> bool:
    """The same of one state, f [D]."""
    return _begins_left(torch.as_tensor(sim_state), task, spec) == (side == "left")


def _begins_left(state: Tensor, task: str, spec: SimulatorSpec) -> bool:
    return bool(state[_find_column(task, spec)] > 0)


def _find_column(task: str, spec: SimulatorSpec) -> int:
    for mark in spec.task(task).landmarks:
        if mark.name == "object" and mark.source == "sim_state" and len(mark.columns) >= 2:
            return mark.columns[1]
    raise WorldloopError(
        f"task {task!r} does not say where its object is, so that no side of the table can be held out"
    )
