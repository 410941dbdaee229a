"""Slots: further tokens that attend to what a world model sees, on both denoisers."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from world_model_toy import (
    ONE_CAMERA,
    TWO_CAMERAS,
    ToyEpisodes,
    make_model,
    tiny_config,
    toy_normalisation,
)

from worldloop.core.specs import CameraSpec
from worldloop.core.types import Observation
from worldloop.world_model.cosmos import CosmosConfig
from worldloop.world_model.denoiser import Conditioning, FrameMemory
from worldloop.world_model.model import VideoWorldModel

DENOISERS = ("hybrid", "cosmos")
B, N = 2, 4  # rows, slots


def make(denoiser: str, cameras: tuple[CameraSpec, ...] = TWO_CAMERAS, **changes: Any) -> VideoWorldModel:
    if denoiser == "cosmos":
        pytest.importorskip("diffusers")
    cosmos = CosmosConfig(patch=4, num_layers=2, num_heads=2, head_dim=16, adaln_lora_dim=8, condition_dim=16)
    return make_model(dataclasses.replace(tiny_config(), denoiser=denoiser, cosmos=cosmos, **changes), cameras).eval()


def make_context() -> Observation:
    """Three frames in which the dot moves."""
    data = ToyEpisodes(B, seed=2, cameras=TWO_CAMERAS)
    frames = {camera: images[:, [0, 1, 2]] for camera, images in data.frames.items()}
    return dataclasses.replace(data.first_observation(B), frames=frames, proprio=data.proprio[:, 2])


def make_slots(model: VideoWorldModel) -> tuple[Tensor, Tensor]:
    """Four slots and their times."""
    generator = torch.Generator().manual_seed(0)
    slots = torch.randn(B, N, model.feature_dim, generator=generator)
    return slots, torch.tensor([[1.0, 0.0, 0.5, 0.25], [1.0, 0.75, 0.0, 0.5]])


def differences(a: Tensor, b: Tensor) -> Tensor:
    """[B, n]: by how much the slots differ at most."""
    return (a - b).abs().amax(2)


@pytest.mark.parametrize("cameras", [ONE_CAMERA, TWO_CAMERAS])
@pytest.mark.parametrize("denoiser", DENOISERS)
def test_slots_are_tokens_with_gradients(denoiser: str, cameras: tuple[CameraSpec, ...]) -> None:
    model = make(denoiser, cameras)
    assert model.feature_dim == 32
    assert model.num_latents == 3 * 16 * 16 + (3 * 8 * 12 if cameras == TWO_CAMERAS else 0)
    slots, t = make_slots(model)
    slots.requires_grad_()
    state = torch.get_rng_state()
    read = model.read_slots(make_context(), slots, t)
    assert torch.equal(torch.get_rng_state(), state)
    assert (read.shape, read.dtype) == ((B, N, 32), torch.float32)
    read.square().sum().backward()
    assert slots.grad is not None
    assert (slots.grad.abs().amax(2) > 0).all()
    with torch.no_grad():
        assert torch.equal(read, model.read_slots(make_context(), slots, t)), "the same every time"


@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("change", ["base_camera now", "base_camera first", "above.camera now", "instruction"])
@torch.no_grad()
def test_every_slot_attends_to_the_context(denoiser: str, change: str) -> None:
    """In the second row alone something is different: so are all of its slots, and those of the first row are not."""
    model, context = make(denoiser), make_context()
    name, _, frame = change.partition(" ")
    if name == "instruction":
        other = dataclasses.replace(context, instruction=("move right", "move left"))
    else:
        images = context.frames[name].clone()
        at = 0 if frame == "first" else -1
        images[1, at] = 255 - images[1, at]
        other = dataclasses.replace(context, frames=context.frames | {name: images})
    before, after = (model.read_slots(c, *make_slots(model)) for c in (context, other))
    assert (differences(before, after)[1] > 1e-5).all()
    torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("denoiser", "is_read"), [("hybrid", True), ("cosmos", False)])
@torch.no_grad()
def test_proprio_is_among_the_tokens_of_hybrid_alone(denoiser: str, is_read: bool) -> None:
    """For both denoisers, whoever makes the slots puts it into one, as `VivaCritic` does."""
    model, context = make(denoiser), make_context()
    assert context.proprio is not None
    moved = dataclasses.replace(context, proprio=context.proprio + torch.tensor([[0.0], [1.0]]))
    before, after = (model.read_slots(c, *make_slots(model)) for c in (context, moved))
    assert (differences(before, after)[1] > 1e-5).tolist() == [is_read] * N


@pytest.mark.parametrize("denoiser", DENOISERS)
@torch.no_grad()
def test_slots_attend_to_one_another(denoiser: str) -> None:
    model, context = make(denoiser), make_context()
    slots, t = make_slots(model)
    before = model.read_slots(context, slots, t)
    for number in range(N):
        other = slots.clone()
        other[:, number] *= -1
        assert (differences(before, model.read_slots(context, other, t)) > 1e-5).all(), number
    fewer = model.read_slots(context, slots[:, :3], t[:, :3])
    assert (differences(before[:, :3], fewer) > 1e-5).all()


@pytest.mark.parametrize("denoiser", DENOISERS)
@torch.no_grad()
def test_a_slot_is_told_from_others_by_its_content_alone(denoiser: str) -> None:
    """In another order, each with its time, they read the same; two that are equal stay equal."""
    model, context = make(denoiser), make_context()
    slots, t = make_slots(model)
    read = model.read_slots(context, slots, t)
    assert (differences(read[:, [0]], read[:, 1:]) > 0.01).all()
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        model.read_slots(context, slots[:, order], t[:, order]), read[:, order], atol=1e-5, rtol=1e-4
    )
    twins = model.read_slots(context, slots[:, [0, 1, 1]], t[:, [0, 1, 1]])
    torch.testing.assert_close(twins[:, 1], twins[:, 2], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_cosmos_reads_the_time_of_every_slot() -> None:
    model, context = make("cosmos"), make_context()
    slots, t = make_slots(model)
    before = model.read_slots(context, slots, t)
    for number in range(N):
        other = t.clone()
        other[:, number] = 1 - other[:, number] + 0.1
        changed = differences(before, model.read_slots(context, slots, other))
        assert (changed[:, number] > 1e-3).all()
        # others only see that one differently: their own norms stay
        assert (changed.argmax(1) == number).all()


@torch.no_grad()
def test_hybrid_has_no_time_per_slot() -> None:
    """Whoever makes the slots embeds it in them, as `VivaCritic` does."""
    model, context = make("hybrid"), make_context()
    slots, t = make_slots(model)
    assert torch.equal(model.read_slots(context, slots, t), model.read_slots(context, slots, 1 - t))


@pytest.mark.parametrize("denoiser", DENOISERS)
@torch.no_grad()
def test_no_action_is_known_and_proprio_stands_still(denoiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = make(denoiser), make_context()
    assert context.proprio is not None
    slots, t = make_slots(model)
    given: list[Conditioning] = []
    read = model.denoiser.read_slots

    def note(slots: Tensor, t: Tensor, memory: FrameMemory, conditioning: Conditioning) -> Tensor:
        given.append(conditioning)
        return read(slots, t, memory, conditioning)

    monkeypatch.setattr(model.denoiser, "read_slots", note)
    model.read_slots(context, slots, t)
    (conditioning,) = given
    assert conditioning.actions.shape == (B, 1, 2, 2)
    assert not conditioning.actions.any(), "mid-way between the bounds"
    now = toy_normalisation().normalise(context.proprio)
    torch.testing.assert_close(conditioning.proprio, now)
    torch.testing.assert_close(conditioning.next_proprio, now[:, None])


@pytest.mark.parametrize("denoiser", DENOISERS)
@torch.no_grad()
def test_a_context_of_one_frame_is_an_episodes_start(denoiser: str) -> None:
    model, context = make(denoiser), make_context()
    now = {camera: frames[:, -1:] for camera, frames in context.frames.items()}
    single = dataclasses.replace(context, frames=now)
    still = dataclasses.replace(context, frames={camera: f.expand(-1, 3, -1, -1, -1) for camera, f in now.items()})
    one, three = (model.read_slots(c, *make_slots(model)) for c in (single, still))
    torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("denoiser", DENOISERS)
@torch.no_grad()
def test_in_bf16_slots_are_close_to_those_in_fp32(denoiser: str) -> None:
    models = [make(denoiser, precision=precision) for precision in ("fp32", "bf16")]
    whole, half = (model.read_slots(make_context(), *make_slots(model)) for model in models)
    assert half.dtype == torch.float32
    assert not torch.equal(whole, half)
    assert (whole - half).abs().mean() < 0.02
