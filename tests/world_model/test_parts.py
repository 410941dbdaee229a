import dataclasses
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from world_model_toy import TWO_CAMERAS

from worldloop.core.errors import WorldloopError
from worldloop.core.types import Clip
from worldloop.networks import flow
from worldloop.world_model import losses
from worldloop.world_model.codec import PixelCodec
from worldloop.world_model.config import SelfRolloutConfig, WorldModelConfig
from worldloop.world_model.denoiser import Conditioning, DenoiserOutput, FrameMemory
from worldloop.world_model.heads import ErrorHead, GapReader, ProprioHead, SuccessHead
from worldloop.world_model.hybrid import HybridConfig, HybridDenoiser
from worldloop.world_model.sampler import sample


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("denoiser", "magic"),
        ("codec", "vhs"),
        ("precision", "fp8"),
        ("video_loss", "l3"),
        ("success_loss", "hinge"),
        ("zero_time_share", 1.5),
        ("num_sampler_steps", 0),
        ("context_noise", -0.1),
        ("ema_decay", 1.0),
    ],
)
def test_config_names_the_bad_key_and_what_is_allowed(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"world_model\.{key} is .*allowed"):
        WorldModelConfig(**{key: value})  # type: ignore[arg-type]


def test_nested_configs_are_validated() -> None:
    with pytest.raises(ValueError, match=r"hybrid\.dim 30"):
        HybridConfig(dim=30, num_heads=4)
    with pytest.raises(ValueError, match=r"self_rollout\.share"):
        SelfRolloutConfig(share=2.0)
    assert dataclasses.is_dataclass(WorldModelConfig().hybrid)


def test_pixel_codec_round_trip_is_exact() -> None:
    levels = torch.arange(256, dtype=torch.uint8)[:, None].expand(2, 256, 3).contiguous()
    frames = {"base_camera": levels.reshape(2, 16, 16, 3), "above.camera": levels.reshape(2, 8, 32, 3)}
    codec = PixelCodec(TWO_CAMERAS)
    assert codec.sizes == {"base_camera": (16, 16), "above.camera": (8, 12)}
    latents = codec.encode(frames)
    assert latents["above.camera"].shape == (2, 3, 8, 32)
    decoded = codec.decode(latents)
    assert list(decoded) == list(frames)
    assert all(torch.equal(decoded[camera], frames[camera]) for camera in frames)


SIZES = {"base_camera": (16, 16), "above.camera": (8, 12)}


def make_denoiser(*cameras: str) -> tuple[HybridDenoiser, tuple[Any, ...], Conditioning]:
    sizes = {camera: SIZES[camera] for camera in cameras or ("base_camera",)}
    torch.manual_seed(0)
    config = HybridConfig(
        patch=2, width=8, patch_hidden=8, num_res_blocks=1, dim=16, num_heads=2, num_blocks=1, condition_dim=16
    )
    denoiser = HybridDenoiser(config, 3, sizes, 4, 2, 3, instruction_dim=5)
    B = 2
    memory = FrameMemory({camera: torch.rand(B, 3, 3, *size) * 2 - 1 for camera, size in sizes.items()})
    noisy = {camera: torch.randn(B, 1, 3, *size) for camera, size in sizes.items()}
    inputs = (noisy, torch.rand(B), memory)
    return (
        denoiser,
        inputs,
        Conditioning(torch.rand(B, 1, 3, 2), torch.randn(B, 4), torch.randn(B, 1, 4), torch.randn(B, 5)),
    )


def test_hybrid_shapes_and_reward_token_first() -> None:
    denoiser, inputs, conditioning = make_denoiser()
    output = denoiser(*inputs, conditioning)
    assert output.data["base_camera"].shape == (2, 1, 3, 16, 16)
    assert output.features.shape == (2, 1, 1 + 16, 16), "the reward token and the image tokens, no action token"


def test_hybrid_starts_near_a_copy_of_now() -> None:
    denoiser, (noisy, t, memory), conditioning = make_denoiser()
    frames = memory.frames["base_camera"]
    error = (denoiser(noisy, t, memory, conditioning).data["base_camera"][:, 0] - frames[:, -1]).abs().mean()
    other = (frames[:, 0] - frames[:, -1]).abs().mean()
    assert error < 0.5 * other


@pytest.mark.parametrize("name", ["actions", "proprio", "next_proprio", "instruction"])
def test_hybrid_reads_every_condition(name: str) -> None:
    denoiser, inputs, conditioning = make_denoiser()
    for _, view in denoiser.views.items():
        for block in (*view.down_blocks, *view.up_blocks):
            torch.nn.init.normal_(block.conv2.weight, std=0.1)
    changed = dataclasses.replace(conditioning, **{name: getattr(conditioning, name) + 1})
    before, after = denoiser(*inputs, conditioning), denoiser(*inputs, changed)
    assert (before.data["base_camera"] - after.data["base_camera"]).abs().max() > 1e-4
    assert (before.features - after.features).abs().max() > 1e-4


@torch.no_grad()
def test_hybrid_makes_every_view_in_sight_of_the_others() -> None:
    """Two views of different sizes: a picture of one changes what is predicted of the other."""
    denoiser, (noisy, t, memory), conditioning = make_denoiser(*SIZES)
    output = denoiser(noisy, t, memory, conditioning)
    assert {camera: tuple(data.shape) for camera, data in output.data.items()} == {
        "base_camera": (2, 1, 3, 16, 16),
        "above.camera": (2, 1, 3, 8, 12),
    }
    assert output.features.shape == (2, 1, 1 + 16 + 2 * 3, 16)
    for camera in SIZES:
        frames = {name: -f if name == camera else f for name, f in memory.frames.items()}
        changed = denoiser(noisy, t, FrameMemory(frames), conditioning)
        for name, data in changed.data.items():
            assert (data - output.data[name]).abs().max() > 1e-4, f"{camera} -> {name}"


@torch.no_grad()
def test_hybrid_shifts_every_view() -> None:
    denoiser, (noisy, _, memory), conditioning = make_denoiser(*SIZES)
    latent = {camera: frames[:, 0] for camera, frames in noisy.items()}
    shifted = denoiser.shift(memory, latent, conditioning.instruction)
    for camera, frames in shifted.frames.items():
        assert torch.equal(frames[:, :2], memory.frames[camera][:, [0, 2]])
        assert torch.equal(frames[:, 2], latent[camera])


def test_hybrid_refuses_a_size_that_does_not_fold() -> None:
    with pytest.raises(WorldloopError, match=r"16 x 18 pixels of camera 'hand' do not divide by 2 x .*patch = 4"):
        HybridDenoiser(HybridConfig(patch=2), 3, {"base": (16, 16), "hand": (16, 18)}, 4, 2, 3, instruction_dim=5)


def test_pixel_weights_find_what_moved_and_what_is_rare() -> None:
    now = torch.full((1, 3, 12, 12), -0.5)
    target = now.clone()
    target[:, :, 2:4, 2:4] = 0.5
    weights = losses.weigh_pixels(target, now, now, moved_weight=4.0, rare_weight=0.0)
    assert weights.mean().item() == pytest.approx(1.0)
    assert (weights[0, 0, 3, 3] / weights[0, 0, 9, 9]).item() == pytest.approx(5.0)
    assert weights[0, 0, 1, 1] == weights[0, 0, 3, 3]  # the border counts as moved
    rare = losses.weigh_pixels(target, target, target, moved_weight=4.0, rare_weight=1.0)
    # 140 pixels of one colour, 4 of the other: (140 / 4)^.5 - 1 more
    assert (rare[0, 0, 3, 3] / rare[0, 0, 9, 9]).item() == pytest.approx(35**0.5, rel=1e-4)


@pytest.mark.parametrize(("rare_weight", "ratio"), [(1.0, 21.0), (0.5, 11.0)])
def test_a_rare_colour_weighs_at_most_twenty_more(rare_weight: float, ratio: float) -> None:
    frame = torch.full((1, 3, 24, 24), -0.5)
    frame[:, :, 5, 5] = 0.5  # one of 576 pixels: 575^.5 - 1 = 23 is cut to 20
    weights = losses.weigh_pixels(frame, frame, frame, moved_weight=0.0, rare_weight=rare_weight)
    assert (weights[0, 0, 5, 5] / weights[0, 0, 9, 9]).item() == pytest.approx(ratio)


@pytest.mark.parametrize("size", [(12, 12), (4, 4), (4, 6)])
def test_weights_of_a_target_look_at_the_frame_before_it_and_at_the_first(size: tuple[int, int]) -> None:
    """Each frame has a bright pixel at a place of its own, whose border counts too: 3 x 3 pixels."""
    frames = torch.full((5, 12, 12, 3), 100, dtype=torch.uint8)
    first, previous, now, before, last = (1, 1), (1, 5), (1, 9), (5, 1), (5, 5)
    for frame, (y, x) in zip(frames, (first, previous, now, before, last), strict=True):
        frame[y, x] = 200
    clip = Clip(
        context={"other": torch.zeros(1, 3, 4, 4, 3, dtype=torch.uint8), "seen": frames[None, :3]},
        frames={"other": torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), "seen": frames[None, 3:]},
        context_proprio=torch.zeros(1, 1), context_landmarks=torch.zeros(1, 0),
        actions=torch.zeros(1, 2, 1, 1), proprio=torch.zeros(1, 2, 1),
        landmarks=torch.zeros(1, 2, 0), success=torch.zeros(1, 2), holds=torch.zeros(1, 2),
        valid=torch.ones(1, 2, dtype=torch.bool), task=("t",), instruction=("i",),
        index=torch.zeros(1, 2, dtype=torch.long), is_on_policy=torch.zeros(1, dtype=torch.bool),
    )  # fmt: skip
    for m, moved in enumerate(((first, now, before), (first, before, last))):
        expected = torch.full((12, 12), 16 / 25)  # 27 pixels of 144 weigh 1 + 3: the mean is 25 / 16
        for y, x in moved:
            expected[y - 1 : y + 2, x - 1 : x + 2] = 4 * 16 / 25
        weights = losses.weigh_target(clip, m, "seen", size, moved_weight=3.0, rare_weight=0.0)
        cells = expected.reshape(size[0], 12 // size[0], size[1], 12 // size[1]).mean(dim=(1, 3))
        torch.testing.assert_close(weights, cells[None, None])


def test_video_loss_by_hand() -> None:
    """Two rows of two channels of two pixels, with errors 3, -1, 0, 2 and 0, 0, 0, -2."""
    target = torch.full((2, 2, 1, 2), 0.25)
    predicted = target + torch.tensor([[[[3.0, -1.0]], [[0.0, 2.0]]], [[[0.0, 0.0]], [[0.0, -2.0]]]])
    weights = torch.tensor([[[[1.5, 0.5]]], [[[0.5, 1.5]]]])
    # (3 x 1.5 + 1 x .5 + 0 + 2 x .5) / 4 and 2 x 1.5 / 4; (9 x 1.5 + 1 x .5 + 0 + 4 x .5) / 4 and 4 x 1.5 / 4
    torch.testing.assert_close(
        losses.compute_video_loss("l1", predicted, target, weights), torch.tensor([1.5, 0.75]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        losses.compute_video_loss("mse", predicted, target, weights), torch.tensor([4.0, 1.5]), atol=1e-5, rtol=0
    )


def test_latent_psnr_by_hand() -> None:
    target = torch.zeros(2, 3, 4, 4)
    predicted = torch.stack([torch.full((3, 4, 4), 0.2), torch.zeros(3, 4, 4)])
    expected = torch.tensor([20.0, 60.0])  # 0.2 of a range of 2 is a tenth; no error is capped
    torch.testing.assert_close(losses.compute_latent_psnr_db(predicted, target), expected)


def test_losses_of_frames_by_hand() -> None:
    """Two rows of two frames, of which the last is not valid: means over three."""
    first = losses.FrameLosses(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0]), torch.tensor([100.0, 200.0]))
    second = losses.FrameLosses(torch.tensor([3.0, 99.0]), torch.tensor([6.0, 99.0]), torch.tensor([300.0, 99.0]))
    valid = torch.tensor([[True, True], [True, False]])
    loss, metrics = losses.add_up([first, second], valid, success_weight=0.5)
    assert metrics == pytest.approx({"loss_video": 2, "loss_success": 3, "loss_error": 200, "loss": 2 + 1.5 + 6})
    assert float(loss) == pytest.approx(9.5)
    read = [replace(frame, actions=torch.tensor([0.5, 1.0])) for frame in (first, second)]
    loss, metrics = losses.add_up(read, valid, success_weight=0.5)
    assert metrics["loss_actions"] == pytest.approx(2 / 3)
    assert float(loss) == pytest.approx(9.5 + 2 / 3)


def test_success_loss_balances_classes() -> None:
    logit, success = torch.zeros(10), torch.tensor([1.0] + [0.0] * 9)
    loss = losses.compute_success_loss("bce", logit, success, torch.tensor(0.1))
    assert loss[0].item() == pytest.approx(loss[1:].sum().item(), rel=1e-5)
    assert loss.mean().item() == pytest.approx(0.6931, rel=1e-3)
    squared = losses.compute_success_loss("mse", logit, success, torch.tensor(0.5))
    torch.testing.assert_close(squared, torch.full((10,), 0.25))


@pytest.mark.parametrize(("rate", "of_success", "of_failure"), [(0.0, 25.0, 0.5 / 0.98), (1.0, 0.5 / 0.98, 25.0)])
def test_a_class_never_seen_weighs_as_if_one_in_fifty(rate: float, of_success: float, of_failure: float) -> None:
    logit, success = torch.zeros(2), torch.tensor([1.0, 0.0])
    weights = torch.tensor([of_success, of_failure])
    cross_entropy = losses.compute_success_loss("bce", logit, success, torch.tensor(rate))
    torch.testing.assert_close(cross_entropy, weights * math.log(2))
    squared = losses.compute_success_loss("mse", logit, success, torch.tensor(rate))
    torch.testing.assert_close(squared, weights * 0.25)


def test_time_weights_by_hand() -> None:
    weights = losses.weigh_times(torch.tensor([0.0, 0.5, 0.999]), maximum=4.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 4.0, 4.0]))


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_sampler_with_an_oracle_returns_the_data_and_stays_on_the_path(num_steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, data = ({c: torch.randn(3, 1, 3, *s, generator=generator) for c, s in SIZES.items()} for _ in range(2))
    times = []

    def denoise(noisy: Mapping[str, torch.Tensor], t: torch.Tensor) -> DenoiserOutput:
        times.append(t[0].item())
        assert t.shape == (3,)
        for camera in SIZES:
            expected = flow.interpolate(noise[camera], data[camera], t)
            torch.testing.assert_close(noisy[camera], expected, atol=1e-5, rtol=1e-5)
        return DenoiserOutput(data, torch.zeros(3, 1, 1, 1))

    sampled = sample(denoise, noise, num_steps).data
    assert all(torch.equal(sampled[camera], data[camera]) for camera in SIZES)
    assert times == pytest.approx([i / num_steps for i in range(num_steps)])


def test_success_is_the_mean_of_both_readers() -> None:
    torch.manual_seed(0)
    head = SuccessHead(feature_dim=8, channels=3, sizes=SIZES, proprio_dim=2, text_dim=4)
    features, proprio, words = (torch.randn(2, *shape) for shape in ((2, 5, 8), (2, 2), (4,)))
    first, frames = ({c: torch.randn(2, *before, 3, *s) for c, s in SIZES.items()} for before in ((), (2,)))
    judged = [{camera: f[:, i] for camera, f in frames.items()} for i in range(2)]
    by_frame = torch.stack([head.read_frame(first, judged[i], proprio[:, i], words) for i in range(2)], dim=1)
    by_tokens = head.read_tokens(features)
    for spread in (by_frame, by_tokens):
        assert spread.std() > 1e-3
    expected = 0.5 * by_frame + 0.5 * by_tokens
    nothing = torch.zeros(2, 2, 0)
    torch.testing.assert_close(head(features, first, frames, proprio, nothing, words), expected, atol=1e-5, rtol=1e-5)


def test_where_gaps_are_known_success_depends_on_them_and_the_instruction_alone() -> None:
    torch.manual_seed(0)
    head = SuccessHead(feature_dim=8, channels=3, sizes=SIZES, proprio_dim=2, text_dim=4, num_gaps=5)
    assert head.read_gaps is not None

    def judge(seed: int, gaps: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        features, proprio = (torch.randn(2, *shape, generator=generator) for shape in ((3, 5, 8), (3, 2)))
        first, frames = (
            {c: torch.randn(2, *before, 3, *s, generator=generator) for c, s in SIZES.items()} for before in ((), (3,))
        )
        return head(features, first, frames, proprio, gaps, words)

    gaps, words = torch.randn(2, 3, 5), torch.randn(2, 4)
    expected = torch.stack([head.read_gaps(gaps[:, i], words) for i in range(3)], dim=1)
    assert expected.shape == (2, 3)
    assert torch.equal(judge(0, gaps, words), expected)
    assert torch.equal(judge(1, gaps, words), expected)
    assert not torch.allclose(judge(0, gaps + 1, words), expected)
    assert not torch.allclose(judge(0, gaps, -words), expected)


def test_the_reader_of_gaps_tells_millimetres_apart_under_autocast() -> None:
    """Bf16 would read .6004 and .6000 decimetres as one number."""
    torch.manual_seed(0)
    reader = GapReader(num_gaps=1, text_dim=4)
    gaps = torch.tensor([[0.6000], [0.6004]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = reader(gaps, torch.ones(2, 4))
    assert logits.dtype == torch.float32
    assert logits[0] != logits[1]


@torch.no_grad()
def test_heads_read_their_own_cameras_alone() -> None:
    torch.manual_seed(0)
    success = SuccessHead(feature_dim=8, channels=3, sizes={"above.camera": (8, 12)}, proprio_dim=2, text_dim=4)
    proprio_head = ProprioHead(2, 0, 0, 4, 3, ["above.camera"])
    first, now = ({camera: torch.randn(2, 3, *size) for camera, size in SIZES.items()} for _ in range(2))
    proprio, actions, words = torch.randn(2, 2), torch.randn(2, 2, 2), torch.randn(2, 4)

    def judge(now: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return success.read_frame(first, now, proprio, words), proprio_head(
            proprio[:, None], proprio[:, None, :0], actions, now
        )

    before = judge(now)
    for camera, is_read in (("above.camera", True), ("base_camera", False)):
        after = judge(now | {camera: -now[camera]})
        assert [bool((a != b).any()) for a, b in zip(after, before, strict=True)] == [is_read, is_read]


@torch.no_grad()
def test_the_success_head_reads_the_mean_of_an_instruction_s_tokens_without_its_padding() -> None:
    torch.manual_seed(0)
    head = SuccessHead(feature_dim=8, channels=3, sizes={"base_camera": (16, 16)}, proprio_dim=2, text_dim=4)
    frame, proprio = {"base_camera": torch.randn(1, 3, 16, 16)}, torch.randn(1, 2)
    a, b, padding = torch.randn(1, 4), torch.randn(1, 4), torch.zeros(1, 4)
    padded = head.read_frame(frame, frame, proprio, torch.cat([a, b, padding, padding], dim=1))
    torch.testing.assert_close(padded, head.read_frame(frame, frame, proprio, (a + b) / 2))
    assert head.read_frame(frame, frame, proprio, padding).isfinite().all()


def test_error_head_learns_what_its_tokens_tell() -> None:
    torch.manual_seed(0)
    head = ErrorHead(8)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    features = torch.randn(256, 1, 5, 8)
    actual_db = 22 + 3 * features[:, :, 0, 0]
    for _ in range(150):
        loss = head.compute_loss(head(features), actual_db).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(features) - actual_db).abs().mean() < 1.0, "of a spread of 3 dB"
    assert head.compute_loss(torch.tensor(27.0), torch.tensor(22.0)).item() == pytest.approx(1.0)
    features.requires_grad_()
    assert not torch.autograd.grad(head(features).sum(), features, allow_unused=True)[0], "tokens get no gradient"
