"""What a robot's names say about its gripper."""

from worldloop.simulators.libero.simulator import LiberoConfig, LiberoSimulator
from worldloop.simulators.maniskill.simulator import ManiSkillConfig, ManiSkillSimulator


def test_the_gripper_is_found_by_name_in_proprio_and_actions() -> None:
    panda = ManiSkillSimulator.make_spec(ManiSkillConfig()).robot
    named = [panda.proprio_names[i] for i in panda.gripper_proprio]
    assert named == ["qpos_finger1", "qpos_finger2", "qvel_finger1", "qvel_finger2"]
    assert panda.gripper_actions == [3]
    assert LiberoSimulator.make_spec(LiberoConfig()).robot.gripper_actions == [6]
