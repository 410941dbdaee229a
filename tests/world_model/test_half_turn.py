"""Scenes that are turned by half a turn about the vertical."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from worldloop.core.specs import CameraSpec, HalfTurn, Landmark, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.types import Normalisation
from worldloop.world_model.half_turn import HalfTurnedScene
from worldloop.world_model.heads import ProprioHead
from worldloop.world_model.landmarks import LandmarkReader

MARKS = (Landmark("object", "sim_state", (0, 1, 2)), Landmark("effector", "proprio", (2, 3, 4)))
ROBOT = RobotSpec(
    name="claw",
    proprio_names=("finger_left", "finger_right", "x", "y", "z"),
    action_names=("dx", "dy", "dz", "close"),
    action_low=(-1.0, -1.0, -1.0, 0.0),
    action_high=(1.0, 1.0, 1.0, 1.0),
    control_mode="delta",
    hz=10.0,
    cameras=(CameraSpec("front", 8, 8),),
)
TURN = HalfTurn(("dx", "dy"), (("finger_left", "finger_right"),))
SPEC = SimulatorSpec(ROBOT, (TaskSpec("Lift", ("lift it",), 0.0, 10, MARKS),), 2, "0", half_turn=TURN)
# the left finger is on average at .1 with a spread of .2, the right one at .4 with a spread of .1
NORMALISATION = Normalisation(torch.tensor([0.1, 0.4, 0, 0, 0]), torch.tensor([0.2, 0.1, 1, 1, 1]))


def make_scene() -> tuple[LandmarkReader, HalfTurnedScene]:
    reader = LandmarkReader(3, {"front": (8, 8)}, ROBOT.proprio_dim, 4, MARKS)
    return reader, HalfTurnedScene(SPEC, reader, ROBOT.gripper_proprio, NORMALISATION)


def test_a_turned_scene_by_hand() -> None:
    reader, turned = make_scene()
    relative = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])  # way, two heights, move of the effector
    assert reader.num_relative == len(relative)
    held = torch.tensor([0.5, 2.0])  # the left finger at .2, the right one at .6
    signs, swapped, actions = turned(relative, held, torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2))
    assert signs.tolist() == [-1, -2, 3, 4, 5, -6, -7, 8]
    assert swapped.tolist() == pytest.approx([(0.6 - 0.1) / 0.2, (0.2 - 0.4) / 0.1])
    assert actions.tolist() == [pytest.approx([-0.1, -0.2, 0.3, 0.4])] * 2
    change = turned.turn_change(torch.tensor([1.0, 2.0, 3.0, 0.5, 2.0]))  # object, fingers: .1 and .2
    assert change.tolist() == pytest.approx([-1, -2, 3, 0.2 / 0.2, 0.1 / 0.1])


def test_two_half_turns_lead_back() -> None:
    _, turned = make_scene()
    scene = torch.randn(4, 1, 8), torch.randn(4, 1, 2), torch.randn(4, 2, 4)
    for back, before in zip(turned(*turned(*scene)), scene, strict=True):
        torch.testing.assert_close(back, before)
    change = torch.randn(4, 5)
    torch.testing.assert_close(turned.turn_change(turned.turn_change(change)), change)


@torch.no_grad()
def test_the_turned_scene_moves_like_the_scene() -> None:
    reader, turned = make_scene()
    torch.manual_seed(0)

    def move(head: ProprioHead, low_dim: torch.Tensor, after: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        proprio, later = (NORMALISATION.denormalise(values) for values in (low_dim[..., :5], after))
        relative = reader.find_relative(low_dim[..., 5:], proprio, later)
        return head.move_objects(low_dim, after, relative, actions)

    def turn(low_dim: torch.Tensor) -> torch.Tensor:
        raw = NORMALISATION.denormalise(low_dim[..., :5])[..., [1, 0, 2, 3, 4]] * torch.tensor([1.0, 1, -1, -1, 1])
        return torch.cat([NORMALISATION.normalise(raw), low_dim[..., 5:] * torch.tensor([-1.0, -1, 1])], dim=-1)

    low_dim, after, actions = torch.randn(3, 2, 8), torch.randn(3, 2, 5), torch.randn(3, 2, 4)
    landmarks = low_dim[..., 5:]
    after_turned = turn(torch.cat([after, landmarks], dim=-1))[..., :5]
    size = {"relative_dim": reader.num_relative, "num_members": 2}
    for scene, is_alike in ((turned, True), (None, False)):
        head = ProprioHead(8, 3, 3, 8, 3, [], gripper=ROBOT.gripper_proprio, turned=scene, **size)
        expected = turn(move(head, low_dim, after, actions))
        found = move(head, turn(low_dim), after_turned, actions * torch.tensor([-1.0, -1, 1, 1]))
        assert torch.allclose(found, expected, atol=1e-4) == is_alike


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (HalfTurn(("dw",)), "'dw' is no action"),
        (HalfTurn(("close",)), "'close' is no action with bounds"),
        (HalfTurn(("dx",), (("finger_left", "thumb"),)), "'thumb' is not in proprio"),
    ],
)
def test_a_half_turn_of_what_the_robot_lacks_is_refused(turn: HalfTurn, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, half_turn=turn)
