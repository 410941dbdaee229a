"""Which action moves nothing: it depends on what an action is, and where the game stands."""

from dataclasses import replace

import pytest
import torch
from summing import CALIBRATIONS, CONFIG, Summing

from worldloop.core.specs import CameraSpec, RobotSpec
from worldloop.play.controls import find_rest, list_kinds, list_labels, to_actions
from worldloop.play.session import PlaySession
from worldloop.simulators.toy.simulator import ToySimulator

ARM = RobotSpec(
    name="arm",
    proprio_names=("elbow", "wrist"),
    action_names=("wrist", "elbow", "gripper"),
    action_low=(-2.0, 10.0, 0.0),
    action_high=(2.0, 30.0, 100.0),
    control_mode="pd_joint_pos",
    hz=10,
    cameras=(CameraSpec("front", 8, 8),),
)
PROPRIO = torch.tensor([25.0, 1.0])


@pytest.mark.parametrize(
    ("control_mode", "holds_targets"),
    [
        ("pd_joint_pos", True), ("pd_ee_pose", True), ("absolute", True), ("recorded", True), ("qpos", True),
        ("pd_ee_delta_pos", False), ("delta_pos", False), ("pd_joint_target_delta_pos", False), ("pd_joint_vel", False),
        ("joint_velocity", False), ("torque", False), ("osc", False),
    ],
)  # fmt: skip
def test_the_control_mode_says_whether_zero_is_no_motion(control_mode: str, holds_targets: bool) -> None:
    assert replace(ARM, control_mode=control_mode).holds_targets == holds_targets


def test_targets_begin_where_the_robot_is_and_stay() -> None:
    assert list_kinds(ARM) == ["slider"] * 3
    assert find_rest(ARM, None, None, PROPRIO) == pytest.approx([0.5, 0.5, 0.0])  # nothing tells the gripper
    first = torch.tensor([-1.0, 12.0, 250.0])
    assert find_rest(ARM, None, first, PROPRIO) == pytest.approx([-0.5, -0.8, 1.0])  # in its bounds
    assert find_rest(ARM, (0.1, 0.2, 0.3), first, PROPRIO) == [0.1, 0.2, 0.3]


def test_motions_rest_at_zero_wherever_their_bounds_are() -> None:
    robot = replace(ARM, control_mode="pd_ee_delta_pos", action_low=(-1.0, -1.0, -1.0), action_high=(3.0, 1.0, 1.0))
    assert list_kinds(robot) == ["axis", "axis", "switch"]
    assert find_rest(robot, None, None, PROPRIO) == pytest.approx([-0.5, 0.0, 1.0])
    rest = find_rest(robot, (0.7, 0.7, -1.0), torch.ones(3), PROPRIO)
    assert rest == pytest.approx([-0.5, 0.0, -1.0])  # the gripper stays closed
    assert to_actions(robot, rest, 2)[0].tolist() == [pytest.approx([0.0, 0.0, -1.0])] * 2
    speed = replace(robot, action_low=(0.5, -1.0, -1.0))
    assert list_kinds(speed)[0] == "slider"  # it cannot stand still


def test_a_gripper_that_closes_above_zero_begins_open() -> None:
    names = ("dx", "dy", "gripper_close")
    robot = replace(
        ARM, control_mode="mocap_delta_pos", action_names=names, action_low=(-1.0,) * 3, action_high=(1.0,) * 3
    )
    assert find_rest(robot, None, None, PROPRIO) == [0.0, 0.0, -1.0]
    assert list_labels(robot)[2] == ("open", "close")


def test_labels_say_what_a_side_does() -> None:
    assert list_labels(ToySimulator.make_spec(CONFIG).robot) == [("left", "right"), ("up", "down")]
    assert list_labels(replace(ARM, control_mode="delta"))[2] == ("close", "open")
    assert list_labels(ARM)[0] == ("wrist \N{MINUS SIGN}", "wrist +")
    with pytest.raises(ValueError, match="action names and labels differ in number"):
        replace(ARM, action_labels=(("left", "right"),))


def _make_recorded(start_actions: torch.Tensor | None, control_mode: str = "recorded") -> PlaySession:
    spec = ToySimulator.make_spec(CONFIG)
    robot = replace(spec.robot, control_mode=control_mode, action_low=(-1.0, 0.0), action_high=(3.0, 10.0))
    world_model = Summing(replace(spec, robot=robot))
    starts = world_model.make_starts(["ToyPush-v1"] * 3)
    return PlaySession(world_model, CALIBRATIONS, starts, start_actions=start_actions)  # type: ignore[arg-type]


def test_waiting_in_a_recording_repeats_its_first_action_until_another_is_given() -> None:
    session = _make_recorded(torch.tensor([[0.0, 1.0], [1.0, 5.0], [3.0, 10.0]]))
    assert session.rest() == pytest.approx([-0.5, -0.8])
    session.reset(1)
    assert session.rest() == pytest.approx([0.0, 0.0])
    session.step(session.rest())
    assert session.moments[1].state["position"].item() == pytest.approx(2.0)  # two actions of 1
    session.step([-0.25, 1.0])
    assert session.rest() == [-0.25, 1.0]
    session.go_to(1)
    assert session.rest() == pytest.approx([0.0, 0.0]), "back to what was held then"


def test_a_recording_of_relative_actions_rests_at_zero() -> None:
    session = _make_recorded(torch.tensor([[2.0, 1.0]] * 3), control_mode="delta_pos")
    session.step(session.rest())
    assert session.moments[1].state["position"].item() == pytest.approx(0.0)


def test_beside_a_simulator_the_recorded_starts_say_nothing() -> None:
    spec = ToySimulator.make_spec(CONFIG)
    names = ("agent_x", "agent_y")
    world_model = Summing(replace(spec, robot=replace(spec.robot, control_mode="pos", action_names=names)))
    session = PlaySession(
        world_model,  # type: ignore[arg-type]
        CALIBRATIONS,
        world_model.make_starts(["ToyPush-v1"]),
        ToySimulator(CONFIG),
        start_actions=torch.ones(1, 2),
    )
    session.reset(5)
    now = session.moments[0].simulated
    assert now is not None
    assert session.rest() == pytest.approx(now.state[:2].tolist())
