"""The Cosmos denoiser: equal to diffusers' own where it does the same, and streaming equal to computing anew."""

import dataclasses

import pytest
import torch
from world_model_toy import ToyEpisodes, tiny_config, toy_normalisation, toy_spec

from worldloop.core.errors import WorldloopError
from worldloop.world_model.cosmos import CLEAN_TIME, CosmosConfig, CosmosDenoiser, rotate
from worldloop.world_model.denoiser import Conditioning
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.training import compute_joint_loss

pytest.importorskip("diffusers")
TINY = CosmosConfig(patch=4, num_layers=2, num_heads=2, head_dim=16, adaln_lora_dim=8, condition_dim=16)


def make_denoiser(config: CosmosConfig = TINY, size: int = 16) -> CosmosDenoiser:
    torch.manual_seed(0)
    return CosmosDenoiser(config, 3, size, 4, 2, 3, instruction_dim=5)


def make_inputs() -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    B, size = 2, 16

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    conditioning = Conditioning(normal(B, 1, 3, 2), normal(B, 4), normal(B, 1, 4), normal(B, 5))
    return normal(B, 1, 3, size, size), normal(B, 8, 3, size, size), conditioning


@pytest.mark.parametrize(("padding", "height"), [(False, 16), (True, 16), (True, 8)])
@torch.no_grad()
def test_one_frame_is_what_diffusers_computes(padding: bool, height: int) -> None:
    """Same weights, one frame, no memory, no action, no reward token: the blocks, their order, time and patches."""
    config = dataclasses.replace(TINY, concat_padding_mask=padding)
    denoiser = CosmosDenoiser(config, 3, (height, 16), 4, 2, 3, instruction_dim=5)
    noisy, _, conditioning = make_inputs()
    noisy = noisy[..., :height, :]
    tau = torch.tensor([0.3, 0.9])
    text = conditioning.instruction[:, None]
    theirs = denoiser.transformer(
        noisy.movedim(1, 2),
        timestep=tau,
        encoder_hidden_states=text,
        condition_mask=torch.zeros(2, 1, 1, height, 16),
        padding_mask=torch.zeros(1, 1, height, 16),
    ).sample[:, :, 0]
    tokens = denoiser._embed(noisy, is_context=0.0)[:, 0]
    place = denoiser.cos[0], denoiser.sin[0]
    tokens, embedded, temb = denoiser._transform(tokens, tau, None, text, place, lambda *_: None)
    ours = denoiser._unpatch(denoiser.transformer.proj_out(denoiser.transformer.norm_out(tokens, embedded, temb)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_context_frames", [3, 5])
@torch.no_grad()
def test_streaming_equals_computing_anew(num_context_frames: int) -> None:
    """Eight frames, one by one: what `shift` carries along equals `remember` of the window, and so do the outputs."""
    K = num_context_frames
    denoiser = make_denoiser(dataclasses.replace(TINY, num_context_frames=K))
    noisy, video, conditioning = make_inputs()
    window = video[:, [0] * K]
    memory = denoiser.remember(window, conditioning.instruction)
    t = torch.tensor([0.0, 0.7])
    for now in range(1, video.shape[1]):
        memory = denoiser.shift(memory, video[:, now], conditioning.instruction)
        window = video[:, [0, *(max(now - back, 0) for back in range(K - 2, -1, -1))]]
        anew = denoiser.remember(window, conditioning.instruction)
        assert torch.equal(memory.frames, window)
        torch.testing.assert_close(memory.keys, anew.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(memory.values, anew.values, atol=1e-5, rtol=1e-4)
        streamed, full = (denoiser(noisy, t, m, conditioning) for m in (memory, anew))
        torch.testing.assert_close(streamed.data, full.data, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(streamed.features, full.features, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_new_one_is_close_to_a_copy_of_the_frame_now() -> None:
    denoiser = make_denoiser()
    noisy, video, conditioning = make_inputs()
    memory = denoiser.remember(video[:, :3], conditioning.instruction)
    data = denoiser(noisy, torch.zeros(2), memory, conditioning).data[:, 0]
    now, first = video[:, 2], video[:, 0]
    assert (data - now).square().mean() < 0.1 * (now - first).square().mean()
    denoiser.choice.linear.bias[:] = torch.tensor([-9.0, 9.0, -9.0]).repeat_interleave(16)
    data = denoiser(noisy, torch.zeros(2), memory, conditioning).data[:, 0]
    torch.testing.assert_close(data, first, atol=1e-3, rtol=0)


@pytest.mark.parametrize("which", ["proprio", "next_proprio"])
@torch.no_grad()
def test_proprio_is_drawn_where_it_places_the_robot(which: str) -> None:
    """The maps of another proprio differ in every cell; without poses there are none."""
    denoiser, (_, _, conditioning) = make_denoiser(), make_inputs()
    other = dataclasses.replace(conditioning, **{which: getattr(conditioning, which) + 1})
    moved = (denoiser._draw_poses(other) - denoiser._draw_poses(conditioning)).abs().amax(-1)
    assert moved.shape == (2, 16)
    assert (moved > 1e-4).all()
    assert make_denoiser(dataclasses.replace(TINY, num_poses=0))._draw_poses(conditioning) == 0.0


@torch.no_grad()
def test_pictures_need_not_be_square() -> None:
    denoiser = CosmosDenoiser(TINY, 3, (8, 16), 4, 2, 3, instruction_dim=5)
    noisy, video, conditioning = make_inputs()
    memory = denoiser.remember(video[:, :3, :, :8], conditioning.instruction)
    output = denoiser(noisy[..., :8, :], torch.zeros(2), memory, conditioning)
    assert output.data.shape == (2, 1, 3, 8, 16)
    assert output.features.shape == (2, 1, 1 + 2 * 4, 32)


@torch.no_grad()
def test_a_longer_memory_reads_every_frame_of_it() -> None:
    denoiser = make_denoiser(dataclasses.replace(TINY, num_context_frames=6))
    noisy, video, conditioning = make_inputs()
    before = denoiser(noisy, torch.zeros(2), denoiser.remember(video[:, :6], conditioning.instruction), conditioning)
    for slot in range(6):
        changed = video[:, :6].clone()
        changed[:, slot] += 1
        memory = denoiser.remember(changed, conditioning.instruction)
        after = denoiser(noisy, torch.zeros(2), memory, conditioning)
        assert (after.features - before.features).abs().max() > 1e-3, slot


@torch.no_grad()
def test_memory_is_rotated_to_where_it_stands() -> None:
    """The same frames in another order give other outputs: attention knows which frame is which."""
    denoiser = make_denoiser()
    noisy, video, conditioning = make_inputs()
    t = torch.zeros(2)
    orders = ([0, 1, 2], [1, 0, 2])
    a, b = (
        denoiser(noisy, t, denoiser.remember(video[:, order], conditioning.instruction), conditioning).features
        for order in orders
    )
    assert (a - b).abs().max() > 1e-3


def test_rotation_depends_on_distance_alone() -> None:
    cos, sin = make_denoiser().transformer.rope(torch.empty(1).expand(1, 3, 8, 16, 16))
    cos, sin = cos.reshape(8, 16, -1), sin.reshape(8, 16, -1)
    query, key = torch.randn(2, 1, 1, 16, 16).unbind(0)

    def product(at: int, distance: int) -> torch.Tensor:
        turned = rotate(query, cos[at], sin[at]) * rotate(key, cos[at - distance], sin[at - distance])
        return turned.sum(-1)

    torch.testing.assert_close(product(3, 2), product(7, 2), atol=1e-5, rtol=1e-5)
    assert (product(3, 2) - product(3, 1)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["actions", "proprio", "next_proprio", "instruction"])
@torch.no_grad()
def test_reads_every_condition(name: str) -> None:
    denoiser = make_denoiser()
    noisy, video, conditioning = make_inputs()
    changed = dataclasses.replace(conditioning, **{name: getattr(conditioning, name) + 1})
    before, after = (
        denoiser(noisy, torch.zeros(2), denoiser.remember(video[:, :3], c.instruction), c)
        for c in (conditioning, changed)
    )
    assert before.data.shape == (2, 1, 3, 16, 16)
    assert before.features.shape == (2, 1, 1 + 16, 32)
    assert (before.data - after.data).abs().max() > 1e-4
    assert (before.features - after.features).abs().max() > 1e-4


@torch.no_grad()
def test_velocity_is_the_published_parametrisation() -> None:
    """data = c_skip x + c_out net with c_skip = 1 - tau, c_out = -tau and x = noisy / (1 - tau), as in the pipeline."""
    denoiser = make_denoiser(dataclasses.replace(TINY, prediction="velocity"))
    noisy, video, conditioning = make_inputs()
    memory = denoiser.remember(video[:, :3], conditioning.instruction)
    t = torch.tensor([0.25, 0.5])
    given: list[torch.Tensor] = []
    handle = denoiser.transformer.proj_out.register_forward_hook(lambda *a: given.append(a[2]))
    data = denoiser(noisy, t, memory, conditioning).data[:, 0]
    handle.remove()
    tau = (1 - t)[:, None, None, None]
    x = noisy[:, 0] / (1 - tau)
    torch.testing.assert_close(data, (1 - tau) * x - tau * denoiser._unpatch(given[0]))
    assert pytest.approx(1e-4, rel=1e-3) == CLEAN_TIME


def make_model(**changes: object) -> VideoWorldModel:
    torch.manual_seed(0)
    config = tiny_config(**{"denoiser": "cosmos", "cosmos": TINY} | changes)
    return VideoWorldModel(config, toy_spec(), toy_normalisation())


def test_the_world_model_learns_and_dreams_with_it() -> None:
    data, model = ToyEpisodes(64), make_model(zero_time_share=1.0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss, _, _ = compute_joint_loss(model, data.load(data.sample(generator, 32), 1), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for name, p in model.denoiser.named_parameters() if "feature_norm" not in name)

    model.eval()
    clip = data.load(data.sample(generator, 256), 1)
    still = make_model(zero_time_share=1.0)
    torch.nn.init.zeros_(still.denoiser.transformer.proj_out.weight)  # its prediction is the frame now
    with torch.no_grad():
        learned, copied = (compute_joint_loss(m, clip, generator)[1]["loss_video"] for m in (model, still.eval()))
    assert learned < 0.75 * copied

    state = model.start(data.first_observation(4), torch.arange(4))
    actions = data.actions[:4].flatten(1, 2)
    whole, chunk = model.imagine(state, actions)
    half, first = model.imagine(state, actions[:, :4])
    # a saved state's memory is computed anew, a kept one's carried along; rows fork
    for resumed in (half, model.restore(half.to_tensors())):
        end, rest = model.imagine(resumed, actions[:, 4:])
        frames = torch.cat([first.frames, rest.frames], dim=1)
        assert (frames.int() - chunk.frames.int()).abs().max() <= 1
        torch.testing.assert_close(end.memory.keys, whole.memory.keys, atol=1e-3, rtol=1e-3)
    fork, _ = model.imagine(half.rows([2, 2]), actions[[2, 2], 4:])
    torch.testing.assert_close(fork.memory.frames[0], fork.memory.frames[1])


def test_a_longer_memory_trains_and_fills_up() -> None:
    data = ToyEpisodes(8)
    model = make_model(cosmos=dataclasses.replace(TINY, num_context_frames=5))
    generator = torch.Generator().manual_seed(0)
    clip = data.load(data.sample(generator, 4), 1)
    clip = dataclasses.replace(clip, context=clip.context[:, [0, 0, 0, 1, 2]])
    loss, _, _ = compute_joint_loss(model, clip, generator)
    loss.backward()
    assert loss.isfinite()
    state, chunk = model.eval().imagine(
        model.start(data.first_observation(4), torch.arange(4)), data.actions[:4, :3].flatten(1, 2)
    )
    latents = model.codec.encode(chunk.frames)
    assert (state.context[:, -3:] - latents).abs().max() < 0.02  # rounded to 256 levels
    assert torch.equal(state.context[:, 0], state.context[:, 1])


def test_refuses_a_size_that_does_not_divide() -> None:
    with pytest.raises(WorldloopError, match=r"18 pixels do not divide by world_model\.cosmos\.patch = 4"):
        make_denoiser(size=18)
    with pytest.raises(ValueError, match=r"cosmos\.prediction is 'noise', allowed: data, velocity"):
        CosmosConfig(prediction="noise")
