"""LIBERO's suites and their tasks, by LIBERO's names and in its order. No import of libero here."""

from worldloop.simulators.libero.family import LiberoTask
from worldloop.simulators.libero.goal_suite import GOAL_TASKS
from worldloop.simulators.libero.object_suite import OBJECT_TASKS
from worldloop.simulators.libero.spatial_suite import SPATIAL_TASKS

SUITES: dict[str, dict[str, LiberoTask]] = {
    "libero_spatial": {task.id: task for task in SPATIAL_TASKS},
    "libero_object": {task.id: task for task in OBJECT_TASKS},
    "libero_goal": {task.id: task for task in GOAL_TASKS},
}
