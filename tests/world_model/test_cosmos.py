"""The Cosmos denoiser: equal to diffusers' own where it does the same, and streaming equal to computing anew."""

import dataclasses

import pytest
import torch
from world_model_toy import ONE_CAMERA, TWO_CAMERAS, ToyEpisodes, tiny_config, toy_normalisation, toy_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import CameraSpec
from worldloop.world_model.cosmos import CLEAN_TIME, CosmosConfig, CosmosDenoiser, CosmosMemory, _recall, rotate
from worldloop.world_model.denoiser import Conditioning
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.training import compute_joint_loss

pytest.importorskip("diffusers")
TINY = CosmosConfig(patch=4, num_layers=2, num_heads=2, head_dim=16, adaln_lora_dim=8, condition_dim=16)


Views = dict[str, torch.Tensor]
ONE, TWO = {"base": (16, 16)}, {"base": (16, 16), "hand.camera": (8, 12)}


def make_denoiser(config: CosmosConfig = TINY, sizes: dict[str, tuple[int, int]] = ONE) -> CosmosDenoiser:
    torch.manual_seed(0)
    return CosmosDenoiser(config, 3, sizes, 4, 2, 3, instruction_dim=5)


def make_inputs(sizes: dict[str, tuple[int, int]] = ONE) -> tuple[Views, Views, Conditioning]:
    """Noisy frames, eight frames of a video, and conditions."""
    generator = torch.Generator().manual_seed(1)
    B = 2

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    conditioning = Conditioning(normal(B, 1, 3, 2), normal(B, 4), normal(B, 1, 4), normal(B, 5))
    noisy = {camera: normal(B, 1, 3, *size) for camera, size in sizes.items()}
    return noisy, {camera: normal(B, 8, 3, *size) for camera, size in sizes.items()}, conditioning


def take(video: Views, frames: list[int] | int | slice) -> Views:
    return {camera: images[:, frames] for camera, images in video.items()}


@pytest.mark.parametrize(("padding", "height"), [(False, 16), (True, 16), (True, 8)])
@torch.no_grad()
def test_one_frame_is_what_diffusers_computes(padding: bool, height: int) -> None:
    """Same weights, one frame, no memory, no action, no reward token: the blocks, their order, time and patches."""
    config = dataclasses.replace(TINY, concat_padding_mask=padding)
    denoiser = make_denoiser(config, {"base": (height, 16)})
    noisy, _, conditioning = make_inputs({"base": (height, 16)})
    tau = torch.tensor([0.3, 0.9])
    text = conditioning.instruction[:, None]
    theirs = denoiser.transformer(
        noisy["base"].movedim(1, 2),
        timestep=tau,
        encoder_hidden_states=text,
        condition_mask=torch.zeros(2, 1, 1, height, 16),
        padding_mask=torch.zeros(1, 1, height, 16),
    ).sample[:, :, 0]
    tokens = denoiser._embed(noisy, is_context=0.0)
    place = denoiser.cos[0], denoiser.sin[0]
    tokens, embedded, temb = denoiser._transform(tokens, tau, None, text, place, lambda *_: None)
    (view,) = denoiser.views.children()
    ours = view.unpatch(denoiser.transformer.proj_out(denoiser.transformer.norm_out(tokens, embedded, temb)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_time_for_each_token_is_one_time_where_all_are_equal() -> None:
    """With one token of text and with several; else each token has its own norms."""
    denoiser = make_denoiser()
    noisy, video, conditioning = make_inputs()
    memory = denoiser.remember(take(video, [0, 1, 2]), conditioning.instruction)
    assert isinstance(memory, CosmosMemory)
    tokens, place = denoiser._embed(noisy, is_context=0.0), (denoiser.cos[-1], denoiser.sin[-1])
    tau = torch.tensor([0.3, 0.9])
    by_token = tau[:, None].repeat(1, tokens.shape[1])
    text = conditioning.instruction[:, None]
    for seen in (text, torch.cat([text, -text], dim=1)):
        whole, each = (
            denoiser._transform(tokens, time, None, seen, place, _recall(memory)) for time in (tau, by_token)
        )
        torch.testing.assert_close(each[0], whole[0], atol=1e-5, rtol=1e-4)
        for one, own in zip(whole[1:], each[1:], strict=True):
            torch.testing.assert_close(own, one[:, None].expand_as(own), atol=1e-5, rtol=1e-4)
    other = by_token.clone()
    other[:, 5] = 0.6
    changed, whole = (
        denoiser._transform(tokens, time, None, text, place, _recall(memory))[0] for time in (other, by_token)
    )
    assert (changed - whole).abs().amax(2).argmax(1).tolist() == [5, 5]


@torch.no_grad()
def test_two_views_are_what_diffusers_computes_of_one_wide_picture() -> None:
    """Two equal heights: a picture cut in two is two views, whose tokens are those of the whole in another order."""
    whole = make_denoiser(TINY, {"both": (8, 20)})
    parts = make_denoiser(TINY, {"left": (8, 8), "right": (8, 12)})
    parts.transformer.load_state_dict(whole.transformer.state_dict())
    noisy, _, conditioning = make_inputs({"both": (8, 20)})
    cut = {"left": noisy["both"][..., :8], "right": noisy["both"][..., 8:]}
    theirs = whole.transformer(
        noisy["both"].movedim(1, 2),
        timestep=torch.tensor([0.3, 0.9]),
        encoder_hidden_states=conditioning.instruction[:, None],
        condition_mask=torch.zeros(2, 1, 1, 8, 20),
    ).sample[:, :, 0]
    tokens = parts._embed(cut, is_context=0.0)
    place, text = (parts.cos[0], parts.sin[0]), conditioning.instruction[:, None]
    tokens, embedded, temb = parts._transform(tokens, torch.tensor([0.3, 0.9]), None, text, place, lambda *_: None)
    projected = parts.transformer.proj_out(parts.transformer.norm_out(tokens, embedded, temb))
    left, right = parts.views.children()
    ours = torch.cat([left.unpatch(projected[:, :4]), right.unpatch(projected[:, 4:])], dim=-1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_single_view_has_the_published_rotary_table_and_another_stands_beside_it() -> None:
    one, two = make_denoiser(), make_denoiser(sizes=TWO)
    published = [table.reshape(4, 4, 4, -1) for table in one.transformer.rope(torch.empty(1, 3, 4, 16, 16))]
    wide = [table.reshape(4, 4, 7, -1) for table in one.transformer.rope(torch.empty(1, 3, 4, 16, 28))]
    for name, table, beside in zip(("cos", "sin"), published, wide, strict=True):
        assert torch.equal(getattr(one, name), table.flatten(1, 2))
        base, hand = getattr(two, name).split([16, 6], dim=1)
        assert torch.equal(base, table.flatten(1, 2))
        assert torch.equal(hand, beside[:, :2, 4:].flatten(1, 2))


def test_views_that_are_wider_than_the_rotary_table_are_refused() -> None:
    published = make_denoiser().transformer
    published.rope.max_size = [128, 6, 6]
    with pytest.raises(WorldloopError, match=r"7 columns of patches are more than the 6 .*world_model\.cameras"):
        CosmosDenoiser(TINY, 3, TWO, 4, 2, 3, instruction_dim=5, transformer=published)
    # one of our own is as large as it has to be: 136 columns of one latent
    wide = {"base": (2, 120), "hand": (2, 16)}
    assert make_denoiser(dataclasses.replace(TINY, patch=1), wide).cos.shape[1] == 2 * 136


@pytest.mark.parametrize("sizes", [ONE, TWO])
@pytest.mark.parametrize("num_context_frames", [3, 5])
@torch.no_grad()
def test_streaming_equals_computing_anew(num_context_frames: int, sizes: dict[str, tuple[int, int]]) -> None:
    """Eight frames, one by one: what `shift` carries along equals `remember` of the window, and so do the outputs."""
    K = num_context_frames
    denoiser = make_denoiser(dataclasses.replace(TINY, num_context_frames=K), sizes)
    noisy, video, conditioning = make_inputs(sizes)
    window = take(video, [0] * K)
    memory = denoiser.remember(window, conditioning.instruction)
    t = torch.tensor([0.0, 0.7])
    for now in range(1, 8):
        memory = denoiser.shift(memory, take(video, now), conditioning.instruction)
        window = take(video, [0, *(max(now - back, 0) for back in range(K - 2, -1, -1))])
        anew = denoiser.remember(window, conditioning.instruction)
        assert all(torch.equal(memory.frames[camera], window[camera]) for camera in sizes)
        torch.testing.assert_close(memory.keys, anew.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(memory.values, anew.values, atol=1e-5, rtol=1e-4)
        streamed, full = (denoiser(noisy, t, m, conditioning) for m in (memory, anew))
        for camera in sizes:
            torch.testing.assert_close(streamed.data[camera], full.data[camera], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(streamed.features, full.features, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_new_one_is_close_to_a_copy_of_the_frame_now() -> None:
    denoiser = make_denoiser(sizes=TWO)
    noisy, video, conditioning = make_inputs(TWO)
    memory = denoiser.remember(take(video, [0, 1, 2]), conditioning.instruction)
    data = denoiser(noisy, torch.zeros(2), memory, conditioning).data
    for camera in TWO:
        now, first = video[camera][:, 2], video[camera][:, 0]
        assert (data[camera][:, 0] - now).square().mean() < 0.1 * (now - first).square().mean()
    for _, view in denoiser.views.items():
        view.choice.linear.bias[:] = torch.tensor([-9.0, 9.0, -9.0]).repeat_interleave(16)
    data = denoiser(noisy, torch.zeros(2), memory, conditioning).data
    for camera in TWO:
        torch.testing.assert_close(data[camera][:, 0], video[camera][:, 0], atol=1e-3, rtol=0)


@torch.no_grad()
def test_every_view_is_made_in_sight_of_the_others() -> None:
    denoiser = make_denoiser(sizes=TWO)
    noisy, video, conditioning = make_inputs(TWO)
    window = take(video, [0, 1, 2])
    before = denoiser(noisy, torch.zeros(2), denoiser.remember(window, conditioning.instruction), conditioning)
    assert {camera: tuple(data.shape) for camera, data in before.data.items()} == {
        "base": (2, 1, 3, 16, 16),
        "hand.camera": (2, 1, 3, 8, 12),
    }
    assert before.features.shape == (2, 1, 1 + 16 + 6, 32)
    for camera in TWO:
        memory = denoiser.remember(window | {camera: window[camera] + 1}, conditioning.instruction)
        after = denoiser(noisy, torch.zeros(2), memory, conditioning)
        for name, data in after.data.items():
            shifted = 1.0 if name == camera else 0.0  # a copy of now is shifted itself
            assert (data - before.data[name] - shifted).abs().max() > 1e-4, f"{camera} -> {name}"


@pytest.mark.parametrize("which", ["proprio", "next_proprio"])
@torch.no_grad()
def test_proprio_is_drawn_where_it_places_the_robot(which: str) -> None:
    """The maps of another proprio differ in every cell; without poses there are none."""
    denoiser, (_, _, conditioning) = make_denoiser(), make_inputs()
    other = dataclasses.replace(conditioning, **{which: getattr(conditioning, which) + 1})
    (view,) = denoiser.views.children()
    moved = (view.draw_poses(other) - view.draw_poses(conditioning)).abs().amax(-1)
    assert moved.shape == (2, 16)
    assert (moved > 1e-4).all()
    (view,) = make_denoiser(dataclasses.replace(TINY, num_poses=0)).views.children()
    assert view.draw_poses(conditioning) == 0.0


@torch.no_grad()
def test_pictures_need_not_be_square() -> None:
    sizes = {"base": (8, 16)}
    denoiser, (noisy, video, conditioning) = make_denoiser(sizes=sizes), make_inputs(sizes)
    memory = denoiser.remember(take(video, [0, 1, 2]), conditioning.instruction)
    output = denoiser(noisy, torch.zeros(2), memory, conditioning)
    assert output.data["base"].shape == (2, 1, 3, 8, 16)
    assert output.features.shape == (2, 1, 1 + 2 * 4, 32)


@torch.no_grad()
def test_a_longer_memory_reads_every_frame_of_it() -> None:
    denoiser = make_denoiser(dataclasses.replace(TINY, num_context_frames=6))
    noisy, video, conditioning = make_inputs()
    window = take(video, slice(6))
    before = denoiser(noisy, torch.zeros(2), denoiser.remember(window, conditioning.instruction), conditioning)
    for slot in range(6):
        changed = {"base": window["base"].clone()}
        changed["base"][:, slot] += 1
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
        denoiser(noisy, t, denoiser.remember(take(video, order), conditioning.instruction), conditioning).features
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
        denoiser(noisy, torch.zeros(2), denoiser.remember(take(video, [0, 1, 2]), c.instruction), c)
        for c in (conditioning, changed)
    )
    assert before.data["base"].shape == (2, 1, 3, 16, 16)
    assert before.features.shape == (2, 1, 1 + 16, 32)
    assert (before.data["base"] - after.data["base"]).abs().max() > 1e-4
    assert (before.features - after.features).abs().max() > 1e-4


@torch.no_grad()
def test_velocity_is_the_published_parametrisation() -> None:
    """data = c_skip x + c_out net with c_skip = 1 - tau, c_out = -tau and x = noisy / (1 - tau), as in the pipeline."""
    denoiser = make_denoiser(dataclasses.replace(TINY, prediction="velocity"))
    noisy, video, conditioning = make_inputs()
    memory = denoiser.remember(take(video, [0, 1, 2]), conditioning.instruction)
    t = torch.tensor([0.25, 0.5])
    given: list[torch.Tensor] = []
    handle = denoiser.transformer.proj_out.register_forward_hook(lambda *a: given.append(a[2]))
    data = denoiser(noisy, t, memory, conditioning).data["base"][:, 0]
    handle.remove()
    tau = (1 - t)[:, None, None, None]
    x = noisy["base"][:, 0] / (1 - tau)
    (view,) = denoiser.views.children()
    torch.testing.assert_close(data, (1 - tau) * x - tau * view.unpatch(given[0]))
    assert pytest.approx(1e-4, rel=1e-3) == CLEAN_TIME


def make_model(cameras: tuple[CameraSpec, ...] = ONE_CAMERA, **changes: object) -> VideoWorldModel:
    torch.manual_seed(0)
    config = tiny_config(**{"denoiser": "cosmos", "cosmos": TINY} | changes)
    return VideoWorldModel(config, toy_spec(cameras), toy_normalisation())


def train(model: VideoWorldModel, data: ToyEpisodes, num_steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(num_steps):
        loss, _, _ = compute_joint_loss(model, data.load(data.sample(generator, 32), 1), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for name, p in model.denoiser.named_parameters() if "feature_norm" not in name)
    model.eval()


def test_the_world_model_learns_with_it() -> None:
    data, model = ToyEpisodes(64), make_model(zero_time_share=1.0)
    train(model, data, 70)
    generator = torch.Generator().manual_seed(1)
    clip = data.load(data.sample(generator, 256), 1)
    still = make_model(zero_time_share=1.0)
    torch.nn.init.zeros_(still.denoiser.transformer.proj_out.weight)  # its prediction is the frame now
    with torch.no_grad():
        learned, copied = (compute_joint_loss(m, clip, generator)[1]["loss_video"] for m in (model, still.eval()))
    assert learned < 0.75 * copied


@pytest.mark.parametrize("cameras", [ONE_CAMERA, TWO_CAMERAS])
def test_the_world_model_dreams_with_it(cameras: tuple[CameraSpec, ...]) -> None:
    data, model = ToyEpisodes(64, cameras=cameras), make_model(cameras, zero_time_share=1.0)
    train(model, data, 10)
    state = model.start(data.first_observation(4), torch.arange(4))
    actions = data.actions[:4].flatten(1, 2)
    whole, chunk = model.imagine(state, actions)
    half, first = model.imagine(state, actions[:, :4])
    # a saved state's memory is computed anew, a kept one's carried along; rows fork
    for resumed in (half, model.restore(half.to_tensors())):
        end, rest = model.imagine(resumed, actions[:, 4:])
        for camera, expected in chunk.frames.items():
            frames = torch.cat([first.frames[camera], rest.frames[camera]], dim=1)
            assert (frames.int() - expected.int()).abs().max() <= 1
        torch.testing.assert_close(end.memory.keys, whole.memory.keys, atol=1e-3, rtol=1e-3)
    fork, _ = model.imagine(half.rows([2, 2]), actions[[2, 2], 4:])
    assert list(fork.memory.frames) == [camera.name for camera in cameras]
    for frames in fork.memory.frames.values():
        torch.testing.assert_close(frames[0], frames[1])


def test_a_longer_memory_trains_and_fills_up() -> None:
    data = ToyEpisodes(8)
    model = make_model(cosmos=dataclasses.replace(TINY, num_context_frames=5))
    generator = torch.Generator().manual_seed(0)
    clip = data.load(data.sample(generator, 4), 1)
    clip = dataclasses.replace(clip, context=take(clip.context, [0, 0, 0, 1, 2]))
    loss, _, _ = compute_joint_loss(model, clip, generator)
    loss.backward()
    assert loss.isfinite()
    state, chunk = model.eval().imagine(
        model.start(data.first_observation(4), torch.arange(4)), data.actions[:4, :3].flatten(1, 2)
    )
    (latents,), (context,) = model.codec.encode(chunk.frames).values(), state.context.values()
    assert (context[:, -3:] - latents).abs().max() < 0.02  # rounded to 256 levels
    assert torch.equal(context[:, 0], context[:, 1])


def test_refuses_a_size_that_does_not_divide() -> None:
    with pytest.raises(
        WorldloopError, match=r"16 x 18 of camera 'hand' do not divide by world_model\.cosmos\.patch = 4"
    ):
        make_denoiser(sizes=ONE | {"hand": (16, 18)})
    with pytest.raises(ValueError, match=r"cosmos\.prediction is 'noise', allowed: data, velocity"):
        CosmosConfig(prediction="noise")
