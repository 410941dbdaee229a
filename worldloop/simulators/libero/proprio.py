"""What proprio holds: `full`, or the 8 numbers that LIBERO's published datasets in LeRobot's format have."""

from __future__ import annotations

import math

import numpy as np

from worldloop.simulators.libero.scene import Scene

JOINTS = (*(f"joint{i}" for i in range(1, 8)), "finger1", "finger2")
_TCP = tuple(f"tcp_{axis}" for axis in "xyz")
PROPRIO_NAMES: dict[str, tuple[str, ...]] = {
    "full": (
        *(f"qpos_{joint}" for joint in JOINTS),
        *(f"qvel_{joint}" for joint in JOINTS),
        *_TCP,
        *(f"tcp_r{row}{column}" for column in range(2) for row in range(3)),
    ),
    "lerobot": (*_TCP, *(f"tcp_a{axis}" for axis in "xyz"), "qpos_finger1", "qpos_finger2"),
}


def find_tcp(kind: str) -> tuple[int, int, int]:
    """The dimensions of proprio that hold the tcp's position."""
    first = PROPRIO_NAMES[kind].index("tcp_x")
    return first, first + 1, first + 2


def read_proprio(kind: str, scene: Scene) -> np.ndarray:
    """Proprio f64 of ``scene`` now.

    - ``full``, 27: qpos 9 (rad; fingers m), qvel 9, tcp position 3 (m), the first two columns of its rotation matrix, 6
    - ``lerobot``, 8: tcp position 3 (m), its rotation as axis times angle 3 (rad), fingers 2 (m), in the order of
      LeRobot's ``LiberoProcessorStep``
    """
    data, robot = scene.data, scene.env.robots[0]
    fingers = list(robot._ref_gripper_joint_pos_indexes)
    if kind == "lerobot":
        return np.concatenate([scene.hand_position, to_axis_angle(scene.hand_quaternion), data.qpos[fingers]])
    joints = [*robot._ref_joint_pos_indexes, *fingers]
    rates = [*robot._ref_joint_vel_indexes, *robot._ref_gripper_joint_vel_indexes]
    turned = scene.hand_rotation[:, :2].T.ravel()
    return np.concatenate([data.qpos[joints], data.qvel[rates], scene.hand_position, turned])


def to_axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Axis times angle (rad, 0 to 2 pi) of ``quaternion`` (w, x, y, z), as robosuite has it.

    It jumps where the quaternion changes its sign: a hand that points down is near there.
    """
    w = float(np.clip(quaternion[0], -1.0, 1.0))
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    turned: np.ndarray = quaternion[1:] * (2.0 * math.acos(w) / sine)
    return turned
