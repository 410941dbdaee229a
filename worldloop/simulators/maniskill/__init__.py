"""ManiSkill's tabletop tasks by their registered names. No import of mani_skill here."""

from worldloop.simulators.maniskill.family import ManiSkillTask
from worldloop.simulators.maniskill.pick import PICK_CUBE
from worldloop.simulators.maniskill.push_pull import PULL_CUBE, PUSH_CUBE
from worldloop.simulators.maniskill.stack import STACK_CUBE

TASKS: dict[str, ManiSkillTask] = {
    "PushCube-v1": PUSH_CUBE,
    "PullCube-v1": PULL_CUBE,
    "PickCube-v1": PICK_CUBE,
    "StackCube-v1": STACK_CUBE,
}
