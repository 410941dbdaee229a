"""A robot and tasks by hand, for tests that need a `SimulatorSpec` but no simulator."""

from __future__ import annotations

from worldloop.core.specs import CameraSpec, Landmark, RobotSpec, SimulatorSpec, TaskSpec

CAMERAS = {"base": (8, 8), "wrist": (6, 10)}  # height, width
TASKS = ("PushCube-v1", "PullCube-v1")


def make_spec(
    cameras: dict[str, tuple[int, int]] = CAMERAS,
    tasks: tuple[str, ...] = TASKS,
    proprio_names: tuple[str, ...] = tuple("abcde"),
    action_names: tuple[str, ...] = ("x", "y", "z", "grip"),
) -> SimulatorSpec:
    """Two cameras of different sizes and two tasks, whose ``object`` lies in different columns of ``sim_state``."""
    return SimulatorSpec(
        robot=RobotSpec(
            name="arm",
            proprio_names=proprio_names,
            action_names=action_names,
            action_low=(-1.0,) * len(action_names),
            action_high=(1.0,) * len(action_names),
            control_mode="pd_ee_delta_pos",
            hz=20.0,
            cameras=tuple(CameraSpec(name, height, width) for name, (height, width) in cameras.items()),
        ),
        tasks=tuple(
            TaskSpec(
                id=task,
                instructions=(f"do {task}", f"please do {task}"),
                success_radius_m=0.1,
                max_episode_steps=50 + 10 * number,
                landmarks=(
                    Landmark("object", "sim_state", (number, number + 1), metres_per_unit=2.0),
                    Landmark("effector", "proprio", (0,)),
                ),
            )
            for number, task in enumerate(tasks)
        ),
        actions_per_frame=2,
        simulator_version="hand-made",
        success_hold_frames=1,
        success_confirm_frames=1,
    )
