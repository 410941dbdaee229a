"""ManiSkill's tabletop tasks by their registered names. No import of mani_skill here."""

from collections.abc import Sequence

from worldloop.simulators.maniskill.family import ManiSkillTask
from worldloop.simulators.maniskill.pick import PICK_CUBE
from worldloop.simulators.maniskill.poke import POKE_CUBE
from worldloop.simulators.maniskill.push_pull import PULL_CUBE, PUSH_CUBE
from worldloop.simulators.maniskill.pyramid import STACK_PYRAMID
from worldloop.simulators.maniskill.roll import ROLL_BALL
from worldloop.simulators.maniskill.stack import PLACE_SPHERE, STACK_CUBE

TASKS: dict[str, ManiSkillTask] = {
    "PushCube-v1": PUSH_CUBE,
    "PullCube-v1": PULL_CUBE,
    "PickCube-v1": PICK_CUBE,
    "StackCube-v1": STACK_CUBE,
    "PlaceSphere-v1": PLACE_SPHERE,
    "PokeCube-v1": POKE_CUBE,
    "StackPyramid-v1": STACK_PYRAMID,
    "RollBall-v1": ROLL_BALL,
}


def require_one_scene(names: Sequence[str]) -> None:
    """Raise ``ValueError`` unless the tasks of these names can share a run, see `ManiSkillTask.scene_kind`."""
    first = names[0]
    alike = [name for name, task in TASKS.items() if task.scene_kind == TASKS[first].scene_kind]
    for name in names:
        if name not in alike:
            raise ValueError(
                f"simulator.maniskill.tasks: {name} cannot share a run with {first}, because their scenes have other "
                f"objects or another place of the arm; give it a run of its own ({', '.join(alike)} can share one)"
            )
