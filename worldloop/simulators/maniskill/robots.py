"""The arms that do ManiSkill's tasks, by name: all that depends on which arm it is. No import of mani_skill here.

ManiSkill's agent class says how an arm looks and is driven; an entry here names it, and says what a run records of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from worldloop.core.specs import HalfTurn, JointSpec


@dataclass(frozen=True)
class ManiSkillRobot:
    """One arm with a gripper; its agent in ManiSkill must have a ``tcp``, the point between the fingers.

    Actions are in [-1, 1]: those of ``control_mode`` by ``action_names``. The simulator state ends with the positions
    and the velocities of ``joints`` (rad; fingers m) and the environment step, whatever the scene.
    """

    uid: str  # ManiSkill's name of the arm
    wrist_uid: str  # of the arm with a wrist camera
    wrist_camera: str  # ManiSkill's name of that camera
    wrist_link: str  # the link whose frame is the camera's; its housing is not drawn
    joints: tuple[str, ...]
    limits: tuple[JointSpec, ...]  # of the arm's joints, from its maker
    control_mode: str
    action_names: tuple[str, ...]  # the first two move along x and y
    other_labels: tuple[tuple[str, str], ...]  # what the lowest and the highest value of the others do
    step_m: float  # metres the tcp moves per step and unit of action
    reach_x_m: float  # inverse kinematics fails, and the arm stops without a word, when a command goes beyond

    @property
    def proprio_names(self) -> tuple[str, ...]:
        """Joint positions, joint velocities, tcp position (m) and quaternion."""
        return (
            *(f"qpos_{joint}" for joint in self.joints),
            *(f"qvel_{joint}" for joint in self.joints),
            *(f"tcp_{c}" for c in ("x", "y", "z", "qw", "qx", "qy", "qz")),
        )

    @property
    def half_turn(self) -> HalfTurn:
        """Nothing but the table stands around, and the fingers point down."""
        first, second = (joint for joint in self.joints if joint.startswith("finger"))
        swapped = tuple((f"{kind}_{first}", f"{kind}_{second}") for kind in ("qpos", "qvel"))
        return HalfTurn(self.action_names[:2], swapped)

    @property
    def tcp_in_proprio(self) -> slice:
        """The tcp's position in proprio."""
        start = 2 * len(self.joints)
        return slice(start, start + 3)

    @property
    def qpos(self) -> slice:
        """Joint positions in the simulator state."""
        return slice(-2 * len(self.joints) - 1, -len(self.joints) - 1)

    @property
    def qvel(self) -> slice:
        """Joint velocities in the simulator state."""
        return slice(-len(self.joints) - 1, -1)


# https://frankaemika.github.io/docs/control_parameters.html, limits for Panda: rad, rad/s, rad/s^2
_PANDA_LIMITS = (
    (-2.8973, 2.8973, 2.175, 15.0),
    (-1.7628, 1.7628, 2.175, 7.5),
    (-2.8973, 2.8973, 2.175, 10.0),
    (-3.0718, -0.0698, 2.175, 12.5),
    (-2.8973, 2.8973, 2.61, 15.0),
    (-0.0175, 3.7525, 2.61, 20.0),
    (-2.8973, 2.8973, 2.61, 20.0),
)

ROBOTS: dict[str, ManiSkillRobot] = {
    "panda": ManiSkillRobot(
        uid="panda",
        wrist_uid="panda_wristcam",
        wrist_camera="hand_camera",
        wrist_link="camera_link",
        joints=(*(f"joint{i}" for i in range(1, 8)), "finger1", "finger2"),
        limits=tuple(JointSpec(f"qpos_joint{i}", *limits) for i, limits in enumerate(_PANDA_LIMITS, 1)),
        control_mode="pd_ee_delta_pos",
        action_names=("dx", "dy", "dz", "gripper"),
        other_labels=(("lower", "raise"), ("close", "open")),
        step_m=0.04,
        reach_x_m=0.183,
    ),
}
