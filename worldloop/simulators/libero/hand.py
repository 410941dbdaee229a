"""The hand of LIBERO's Panda, as a scripted expert moves it: from one waypoint to the next, closing a loop at 20 Hz.

An action is of OSC_POSE: motion of the hand in units of 5 cm, rotation in units of 0.5 rad, and the fingers (-1 open,
1 closed). The methods yield actions; a script strings them together with ``yield from``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from worldloop.simulators.libero.deviation import Deviation

Vector = NDArray[np.float64]

OPEN, CLOSED = -1.0, 1.0
UNIT_M, UNIT_RAD = 0.05, 0.5  # of motion and rotation, per action of 1
MAX_TURN = 0.5  # largest rotation action: faster, and what is held slips
GRASP_STEPS, RELEASE_STEPS = 12, 6  # environment steps that the fingers take
STALL_M, STALL_STEPS = 1e-3, 15  # a hand that comes no nearer by so much in so many steps has stalled
PUSH_WITHIN_M, PUSH_GAIN, MAX_PUSH_M = 0.04, 0.1, 0.03
UP = np.array([0.0, 0.0, 1.0])


class SceneView(Protocol):
    """What scripts may know of a scene: all of it is privileged."""

    @property
    def hand_position(self) -> Vector: ...

    @property
    def hand_rotation(self) -> Vector: ...

    @property
    def goal(self) -> tuple[str, ...]:
        """The first predicate of the task's goal, e.g. ("on", "akita_black_bowl_1", "plate_1")."""
        ...

    @property
    def movable(self) -> tuple[str, ...]:
        """The names of the objects that are not fixed."""
        ...

    def position_of(self, name: str) -> Vector:
        """Where an object's, a fixture's or a region's frame is, f64 [3]."""
        ...

    def rotation_of(self, name: str) -> Vector:
        """The axes of an object's or a fixture's frame, f64 [3, 3]."""
        ...

    def bounds_of(self, name: str, part: str = "") -> tuple[Vector, Vector]:
        """The corners f64 [3] of the box around what can be touched of an object, or of a part: a body's name in it."""
        ...

    def parts_of(self, name: str, part: str) -> list[tuple[Vector, Vector]]:
        """The corners of the box around each shape of it."""
        ...


def point_down(yaw: float = 0.0, roll: float = 0.0) -> Vector:
    """The rotation f64 [3, 3] of a hand whose fingers point down and open along y.

    ``yaw`` (rad) turns it about z, ``roll`` then about the world's x: -pi/2 points the fingers along -y.
    """
    down = np.diag([1.0, -1.0, -1.0])
    return np.asarray(Rotation.from_euler("x", roll).as_matrix() @ Rotation.from_euler("z", yaw).as_matrix() @ down)


class Hand:
    """Moves through ``scene`` as ``deviation`` says."""

    def __init__(self, scene: SceneView, deviation: Deviation) -> None:
        self.scene = scene
        self.deviation = deviation

    @property
    def position(self) -> Vector:
        return self.scene.hand_position

    def toward(self, point: Vector, fingers: float, pose: Vector, cap: float = 1.0) -> Vector:
        """The action f64 [7] that brings the hand nearer to ``point`` and into ``pose``; ``cap``: largest motion."""
        motion = (point - self.position) / UNIT_M
        cap = cap * self.deviation.speed
        motion *= min(1.0, cap / max(np.abs(motion).max(), 1e-9))
        turn = Rotation.from_matrix(pose @ self.scene.hand_rotation.T).as_rotvec() / UNIT_RAD
        return np.array([*motion, *turn.clip(-MAX_TURN, MAX_TURN), fingers])

    def move(
        self,
        goal: Vector | Callable[[], Vector],
        fingers: float,
        pose: Vector,
        within_m: float = 0.01,
        max_steps: int = 80,
        cap: float = 1.0,
    ) -> Iterator[Vector]:
        """Go to ``goal``, which may move, until the hand is ``within_m`` of it, stalls, or ``max_steps`` are over.

        The controller also holds the arm's posture, and alone would stop up to two centimetres away. So what is left
        of the way adds up to a push.
        """
        nearest, num_stalled = np.inf, 0
        push: Vector = np.zeros(3)
        for _ in range(max_steps):
            point = goal() if callable(goal) else goal
            distance = float(np.linalg.norm(point - self.position))
            is_nearer = distance < nearest - STALL_M
            nearest, num_stalled = (distance, 0) if is_nearer else (nearest, num_stalled + 1)
            if distance < within_m or num_stalled > STALL_STEPS:
                return
            if distance < PUSH_WITHIN_M:
                push = (push + PUSH_GAIN * (point - self.position)).clip(-MAX_PUSH_M, MAX_PUSH_M)
            yield self.toward(point + push, fingers, pose, cap)

    def hold(self, fingers: float, pose: Vector, num_steps: int) -> Iterator[Vector]:
        """Stay here, which gives the fingers time."""
        here = self.position
        for _ in range(num_steps):
            yield self.toward(here, fingers, pose)

    def wander(self, pose: Vector) -> Iterator[Vector]:
        """Move about in the air, for ever."""
        phase = self.deviation.noise_phase[0].numpy()
        centre = self.position
        for step in range(10**6):
            angle = 2 * np.pi * phase[:3] + 0.05 * step * (0.5 + phase[3:6])
            offset = np.array([0.08, 0.15, 0.06]) * np.sin(angle) + 0.05 * UP
            yield self.toward(centre + offset, OPEN, pose)
