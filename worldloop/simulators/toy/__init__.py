"""The toy simulator in pure torch, for tests that take seconds. `TASKS` lists its tasks by their names in configs."""

from worldloop.simulators.toy.push import PUSH
from worldloop.simulators.toy.reach import REACH
from worldloop.simulators.toy.scene import ToyTask

TASKS: dict[str, ToyTask] = {
    "ToyPush-v1": PUSH,
    "ToyReach-v1": REACH,
}
