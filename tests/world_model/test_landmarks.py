"""Landmarks that the world model carries on beside proprio."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from world_model_toy import ABOVE, BASE, ToyEpisodes, draw_dots, fit, make_model, tiny_config, toy_normalisation

from worldloop.core.images import to_network
from worldloop.core.specs import Landmark
from worldloop.world_model.heads import ProprioHead
from worldloop.world_model.landmarks import LandmarkReader, compute_landmark_loss
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.variation import vary_landmarks

MARKS = (
    Landmark("effector", "proprio", (2, 0), 0.01),
    Landmark("object", "sim_state", (5, 6)),
    Landmark("lid", "sim_state", (7, 8, 9)),
)


def make_reader() -> LandmarkReader:
    return LandmarkReader(3, {"base_camera": (8, 8)}, proprio_dim=3, text_dim=4, marks=MARKS)


def test_units_and_ways_by_hand() -> None:
    """Only the object has as many coordinates as the effector, which proprio tells in cm: at (.3, .1) m."""
    reader = make_reader()
    assert (reader.num_coordinates, reader.num_way_coordinates) == (5, 2)
    reader.set_range(torch.tensor([-0.1, 0.0, 0.0, 0.0, 0.0]), torch.tensor([0.1, 0.4, 0.0, 0.0, 1.0]))
    assert reader.centre.tolist() == pytest.approx([0.0, 0.2, 0.0, 0.0, 0.5])
    scaled = reader.scale(torch.tensor([[0.05, 0.1, 0.0, 0.2, 0.5]]))
    assert scaled.tolist() == [pytest.approx([0.5, -1.0, 0.0, 2.0, 0.0])]
    ways = reader.find_ways(scaled, torch.tensor([[10.0, 99.0, 30.0]]))
    assert ways.tolist() == [pytest.approx([(0.05 - 0.3) / 0.033, (0.1 - 0.1) / 0.033], abs=1e-5)]


def test_what_decides_how_objects_move_by_hand() -> None:
    """The way from the effector at (.3, .1) m to the object, the lid's height, a move of the effector by (2, -1) cm."""
    reader = make_reader()
    scaled = reader.scale(torch.tensor([[0.05, 0.1, 0.0, 0.2, 0.5]]))
    now, later = torch.tensor([[10.0, 99.0, 30.0]]), torch.tensor([[9.0, 98.0, 32.0]])
    relative = reader.find_relative(scaled, now, later)
    assert relative.shape == (1, reader.num_relative)
    assert relative[0].tolist() == pytest.approx([-0.25 / 0.033, 0.0, 0.5 / 0.033, 0.2, -0.1], abs=1e-5)
    assert reader.find_robot(now)[0].tolist() == pytest.approx([3.0, 1.0])


def test_gaps_by_hand() -> None:
    """Where object and lid are, and from the effector to the object (3, 4) cm: 5 cm."""
    reader = make_reader()
    scaled = reader.scale(torch.tensor([[0.33, 0.14, 0.1, 0.2, 0.5]]))
    gaps = reader.find_gaps(scaled, torch.tensor([[10.0, 99.0, 30.0]]))
    assert gaps.shape == (1, reader.num_gaps)
    assert gaps[0].tolist() == pytest.approx([3.3, 1.4, 1.0, 2.0, 5.0, 3 / 3.3, 4 / 3.3, 5 / 3.3], abs=1e-5)


def test_two_objects_are_as_far_apart_as_they_are_wherever_the_robot_is() -> None:
    marks = (MARKS[0], MARKS[1], Landmark("goal", "sim_state", (7, 8)))
    reader = LandmarkReader(3, {"base_camera": (8, 8)}, proprio_dim=3, text_dim=4, marks=marks)
    gaps = reader.find_gaps(reader.scale(torch.tensor([[0.3, 0.1, 0.3, 0.2]] * 2)), torch.randn(2, 3))
    assert gaps.shape == (2, 4 + 3 * 3)
    between = gaps[:, [4, 5, 10]]  # three ways of two coordinates, then three lengths
    assert between.tolist() == [pytest.approx([0.0, -0.1 / 0.033, 0.1 / 0.033], abs=1e-5)] * 2


def test_a_later_range_keeps_the_centre_that_the_weights_have_learned_with() -> None:
    reader = make_reader()
    reader.set_range(torch.zeros(5), torch.ones(5))
    reader.set_range(torch.zeros(5), 2 * torch.ones(5))
    assert reader.centre.tolist() == [0.5] * 5
    assert (reader.low.tolist(), reader.high.tolist()) == ([-5.0] * 5, [15.0] * 5)


def test_loss_by_hand() -> None:
    """5 mm off is squared, 2 cm off linear: 9 x (.05^2 / 2 and .1 x (.2 - .05)), a mean over two coordinates."""
    loss = compute_landmark_loss(torch.tensor([[0.05, -0.2]]), torch.zeros(1, 2))
    assert loss.tolist() == pytest.approx([9 * (0.00125 + 0.015) / 2])


def carrying(num_steps: int = 0) -> VideoWorldModel:
    """A model of the toy that carries on where the dot is, and has hardly learned to draw it."""
    data, model = ToyEpisodes(64, cameras=(ABOVE,)), make_model(tiny_config(landmarks=True), (ABOVE,))
    assert model.landmarks is not None
    model.landmarks.set_range(torch.tensor([-0.1, -0.1]), torch.tensor([0.1, 0.1]))
    return fit(model, data, num_steps, batch_size=32, num_video_steps=1) if num_steps else model


def test_proprio_and_landmarks_make_a_round_trip() -> None:
    model = carrying()
    proprio, landmarks_m = torch.randn(3, 2), torch.randn(3, 2) / 10
    low_dim = model.normalise(proprio, landmarks_m)
    assert low_dim.shape == (3, model.low_dim_size) == (3, 4)
    torch.testing.assert_close(low_dim[:, :2], toy_normalisation().normalise(proprio))
    for back, known in zip(model.denormalise(low_dim), (proprio, landmarks_m), strict=True):
        torch.testing.assert_close(back, known)
    plain = make_model(cameras=(ABOVE,))
    assert plain.landmarks is None
    assert plain.normalise(proprio, landmarks_m).shape == (3, 2)


def test_a_task_without_objects_has_none_to_carry_on() -> None:
    spec = carrying().spec
    bare = dataclasses.replace(spec, tasks=tuple(dataclasses.replace(task, landmarks=()) for task in spec.tasks))
    model = VideoWorldModel(tiny_config(landmarks=True), bare, toy_normalisation())
    assert (model.landmarks, model.num_coordinates, model.low_dim_size) == (None, 0, 2)


def test_training_sees_true_landmarks_as_inexact_as_readings() -> None:
    model, data = carrying(), ToyEpisodes(64, cameras=(ABOVE,))
    clip = data.load(torch.stack([torch.arange(64), torch.zeros(64).long()], 1), 1)
    varied = vary_landmarks(model, clip.context_proprio, clip.context_landmarks, torch.Generator())
    off_mm = 1000 * (model.denormalise(varied)[1] - clip.context_landmarks)
    assert off_mm.std() == pytest.approx(2.0, abs=0.4)  # three standard errors


def test_the_reader_finds_a_dot_of_which_proprio_tells_nothing() -> None:
    torch.manual_seed(0)
    reader = LandmarkReader(3, {BASE.name: (16, 16)}, proprio_dim=3, text_dim=4, marks=MARKS[:2])
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)

    def draw(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        position = torch.rand(number, 2) * 1.6 - 0.8
        images = draw_dots(position[:, None], BASE)[:, 0]
        read = reader(*[{BASE.name: to_network(images)}] * 2, torch.randn(number, 3), torch.ones(number, 4))
        return read, position

    for _ in range(150):
        loss = compute_landmark_loss(*draw(32)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    read, position = draw(200)
    knows_nothing = position.norm(dim=1).mean()
    assert (read - position).norm(dim=1).mean() < 0.25 * knows_nothing


def test_a_rollout_reads_the_landmarks_from_its_start_and_carries_them_on() -> None:
    model, data = carrying(150).eval().requires_grad_(False), ToyEpisodes(32, seed=5, cameras=(ABOVE,))
    start = data.first_observation(32)
    assert start.sim_state is None
    state = model.start(start, torch.arange(32))
    error = (model.denormalise(state.low_dim)[1] - data.proprio[:, 0] / 10).norm(dim=1)
    spread = (data.proprio[:, 0] / 10 - data.proprio[:, 0].mean(0) / 10).norm(dim=1)
    assert error.mean() < 0.35 * spread.mean()
    moved, imagined = model.imagine(state, data.actions[:, 0])
    assert imagined.proprio.shape == (32, 1, 2)
    ahead = (model.denormalise(moved.low_dim)[1] - data.proprio[:, 1] / 10).norm(dim=1)
    still = (data.proprio[:, 0] - data.proprio[:, 1]).norm(dim=1) / 10
    assert ahead.mean() < 0.5 * still.mean()
    restored = model.restore({name: tensor.clone() for name, tensor in moved.to_tensors().items()})
    again = [model.imagine(s, data.actions[:, 1])[0].low_dim for s in (restored, moved)]
    assert torch.equal(*again)


def test_a_model_prepared_for_imagination_in_bf16_imagines_and_judges_the_same() -> None:
    model, data = carrying(), ToyEpisodes(4, cameras=(ABOVE,))
    model.config = dataclasses.replace(model.config, precision="bf16")
    model.eval().requires_grad_(False)

    def imagine() -> tuple[torch.Tensor, torch.Tensor]:
        state, chunk = model.imagine(model.start(data.first_observation(4), torch.arange(4)), data.actions[:, 0])
        return state.low_dim, chunk.success_logit

    before = imagine()
    model.for_imagination()
    assert all(torch.equal(*pair) for pair in zip(before, imagine(), strict=True))


@torch.no_grad()
def test_objects_move_alike_wherever_the_table_is() -> None:
    """With the same networks, a scene that is moved as a whole moves its objects by as much."""
    torch.manual_seed(0)
    head = ProprioHead(6, 3, 2, 4, 3, ["above.camera"], relative_dim=5, gripper=(1,))
    low_dim, relative, actions = torch.randn(2, 1, 6), torch.randn(2, 1, 5), torch.randn(2, 1, 4)
    moved = torch.randn(2, 1, 3)
    following = head.move_objects(low_dim, moved, relative, actions)
    assert torch.equal(following[..., [0, 2]], moved[..., [0, 2]])
    assert not torch.equal(following[..., 1], moved[..., 1]), "the gripper is moved with the objects"
    elsewhere = low_dim.clone()
    elsewhere[..., [0, 2, 3, 4, 5]] += 1.0
    shifted = head.move_objects(elsewhere, moved, relative, actions)
    torch.testing.assert_close(shifted[..., 3:] - elsewhere[..., 3:], following[..., 3:] - low_dim[..., 3:])
    assert torch.equal(shifted[..., 1], following[..., 1])


# --- members of the proprio head ----------------------------------------------------------------------------------


def test_imagination_follows_the_mean_of_the_members() -> None:
    model, data = make_model(tiny_config(landmarks=True, num_members=3), (ABOVE,)), ToyEpisodes(4, cameras=(ABOVE,))
    assert model.landmarks is not None
    model.landmarks.set_range(torch.tensor([-0.1, -0.1]), torch.tensor([0.1, 0.1]))
    model.requires_grad_(False)
    start = model.start(data.first_observation(4), torch.arange(4))
    now = {camera: frames[:, -1] for camera, frames in start.context.items()}
    everyone = start.low_dim[:, None].expand(-1, 3, -1)
    predicted = model.predict_low_dim(everyone, data.actions[:, 0], now)
    assert predicted.shape == (4, 3, 4)
    assert not torch.allclose(predicted[:, 0], predicted[:, 1])  # other weights
    moved, _ = model.imagine(start, data.actions[:, 0])
    torch.testing.assert_close(moved.low_dim, predicted.mean(1))
    others = everyone.clone()
    others[:, 1] += 1
    changed = model.predict_low_dim(others, data.actions[:, 0], now) != predicted
    assert changed.any(dim=(0, 2)).tolist() == [False, True, False]
