"""LIBERO's suites and their tasks, by LIBERO's names and in its order. No import of libero here."""

from worldloop.simulators.libero.family import LiberoTask
from worldloop.simulators.libero.goal_suite import GOAL_TASKS

SUITES: dict[str, dict[str, LiberoTask]] = {
    "libero_goal": {task.id: task for task in GOAL_TASKS},
}
