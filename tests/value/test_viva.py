"""ViVa on the toy world of one dot: slots that foresee where the dot will be, and what that is worth."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from critic_rows import fit
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
from worldloop.value.config import ValueConfig
from worldloop.value.critic import ValueRows
from worldloop.value.viva import VivaCritic
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.cosmos import CosmosConfig
from worldloop.world_model.model import VideoWorldModel

DENOISERS = ("hybrid", "cosmos")
Cameras = tuple[CameraSpec, ...]


def configure(denoiser: str, **changes: Any) -> WorldModelConfig:
    if denoiser == "cosmos":
        pytest.importorskip("diffusers")
        sizes = CosmosConfig(patch=4, num_layers=2, num_heads=2, head_dim=16, adaln_lora_dim=8, condition_dim=16)
        changes = {"denoiser": denoiser, "cosmos": sizes} | changes
    return dataclasses.replace(tiny_config(), **changes)


def make_critic(
    denoiser: str = "hybrid", cameras: Cameras = ONE_CAMERA, tasks: tuple[str, ...] = ("Dot",), **settings: Any
) -> VivaCritic:
    """In eval mode, on a world model with fresh weights. The values are mid-way, where none is clamped."""
    return build(make_model(configure(denoiser), cameras, tasks), **settings)


def build(world_model: VideoWorldModel, **settings: Any) -> VivaCritic:
    torch.manual_seed(1)
    critic = VivaCritic(ValueConfig(kind="viva", **settings), world_model).eval()
    with torch.no_grad():
        critic.value_out.weight.mul_(0.1)
    return critic


def load_from(data: ToyEpisodes) -> Callable[[Tensor], ValueRows]:
    """Row 5 e + f is frame f of episode e.

    The further right the dot, the nearer the success. Its position can be seen, but present proprio does not tell it.
    """

    def load(rows: Tensor) -> ValueRows:
        e, f = rows // 5, rows % 5
        window = torch.stack([torch.zeros_like(f), (f - 1).clamp_min(0), f], dim=1)
        frames = {camera: images[e[:, None], window] for camera, images in data.frames.items()}
        B = len(rows)
        observation = Observation(frames, torch.zeros(B, 2), ("Dot",) * B, ("move right",) * B, 2 * f)
        return ValueRows(observation, (data.proprio[e, f, 0] - 1) / 2, data.proprio[e, f + 1])

    return load


def load_rows(num_rows: int, cameras: Cameras = ONE_CAMERA) -> ValueRows:
    return load_from(ToyEpisodes(num_rows, seed=3, cameras=cameras))(torch.arange(num_rows))


def make_noise(critic: VivaCritic, num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, 2, generator=generator), torch.randn(num_rows, critic.num_copies, generator=generator)


def answer(critic: VivaCritic, future: list[float], value: list[float]) -> None:
    """Let ``critic`` predict this for every row, scaled."""
    with torch.no_grad():
        for head, given in ((critic.future_out, future), (critic.value_out, value)):
            head.weight.zero_()
            head.bias.copy_(torch.tensor(given))


def explain(predicted: Tensor, truth: Tensor) -> float:
    return float(1 - (predicted - truth).square().mean() / truth.var(correction=0))


# --- what it learns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("denoiser", "cameras"), [("hybrid", ONE_CAMERA), ("hybrid", TWO_CAMERAS), ("cosmos", TWO_CAMERAS)]
)
def test_it_learns_what_a_state_is_worth_and_where_the_robot_will_be(denoiser: str, cameras: Cameras) -> None:
    critic = make_critic(denoiser, cameras, learning_rate=3e-3)
    fit(critic, load_from(ToyEpisodes(64, cameras=cameras, both_ways=True)), 320, num_steps=100)
    held_out = load_from(ToyEpisodes(64, seed=7, cameras=cameras, both_ways=True))(torch.arange(320))
    value, future = critic.foresee(held_out.observation)
    assert torch.equal(critic.value(held_out.observation), value)
    assert (value.shape, value.dtype, value.requires_grad) == ((320,), torch.float32, False)
    assert ((value >= -1) & (value <= 0)).all()
    assert explain(value, held_out.returns) > 0.6
    for i in range(2):
        assert explain(future[:, i], held_out.future_proprio[:, i]) > 0.4
    still = held_out.observation.proprio
    assert still is not None
    assert not still.any(), "present proprio told nothing"


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_all_of_the_world_model_that_looks_at_the_context_is_trained_further(denoiser: str) -> None:
    critic = make_critic(denoiser, TWO_CAMERAS).train()
    loss, _ = critic.compute_loss(load_rows(4, TWO_CAMERAS), torch.Generator().manual_seed(0))
    loss.backward()
    blocks = "world_model.denoiser." + ("blocks." if denoiser == "hybrid" else "transformer.transformer_blocks.")
    reached = {name for name, p in critic.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    inside = {name for name, _ in critic.named_parameters() if name.startswith(blocks) and "attn2" not in name}
    assert inside
    if denoiser == "cosmos":  # one token of text is what all slots read, however they ask
        assert any(name.startswith(blocks) and "attn2.to_v" in name for name in reached)
    assert inside <= reached
    own = {name for name, _ in critic.named_parameters() if not name.startswith("world_model.")}
    assert own <= reached
    assert any("instruction" in name for name in reached)
    for name in ("success_head", "error_head", "proprio_head"):
        assert not any(name in other for other in reached)


def test_a_fit_changes_the_critics_world_model() -> None:
    critic = make_critic(learning_rate=1e-3)
    before = {name: value.clone() for name, value in critic.world_model.denoiser.state_dict().items()}
    fit(critic, load_from(ToyEpisodes(4)), 20, num_steps=2, batch_size=4)
    after = critic.world_model.denoiser.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("blocks."))


# --- time and noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("copies", ["1", "64"])
def test_pure_noise_is_ignored_and_data_is_read(denoiser: str, copies: str) -> None:
    """At t = 0 other noise gives bit-equal answers; at t > 0 each of both inputs changes both answers."""
    critic, observation = make_critic(denoiser, TWO_CAMERAS, copies=copies), load_rows(3, TWO_CAMERAS).observation
    (future, value), (other_future, other_value) = (make_noise(critic, 3, seed) for seed in (0, 1))
    for t, is_read in ((torch.zeros(3), False), (torch.full((3,), 0.5), True)):
        with torch.no_grad():
            first = critic(observation, future, value, t)
            for given in ((other_future, value), (future, other_value)):
                second = critic(observation, *given, t)
                for a, b in zip(first, second, strict=True):
                    assert a.shape == b.shape
                    assert torch.equal(a, b) != is_read
                    assert not is_read or (a - b).abs().amax(1).min() > 1e-5, "in every row"


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_the_time_itself_is_read(denoiser: str) -> None:
    """Zeros are zeros at any time, so that nothing but the time differs."""
    critic, observation = make_critic(denoiser), load_rows(2).observation
    zeros = torch.zeros(2, 2), torch.zeros(2, critic.num_copies)
    with torch.no_grad():
        early, late = (critic(observation, *zeros, torch.full((2,), t)) for t in (0.25, 0.75))
    assert all((a - b).abs().max() > 1e-5 for a, b in zip(early, late, strict=True))


def test_the_slot_of_proprio_now_is_always_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    critic, observation = make_critic(), load_rows(2).observation
    given: list[tuple[Tensor, Tensor]] = []
    read = critic.world_model.read_slots

    def note(context: Observation, slots: Tensor, t: Tensor) -> Tensor:
        given.append((slots, t))
        return read(context, slots, t)

    monkeypatch.setattr(critic.world_model, "read_slots", note)
    with torch.no_grad():
        critic(observation, *make_noise(critic, 2, 0), torch.tensor([0.0, 0.25]))
        critic(observation, *make_noise(critic, 2, 1), torch.tensor([0.5, 0.75]))
    (slots, t), (later, t_later) = given
    assert slots.shape == (2, 3, critic.world_model.feature_dim)
    assert t.tolist() == [[1, 0, 0], [1, 0.25, 0.25]]
    assert t_later.tolist() == [[1, 0.5, 0.5], [1, 0.75, 0.75]]
    assert torch.equal(slots[:, 0], later[:, 0])
    assert not torch.equal(slots[:, 1:], later[:, 1:])


def note_times(critic: VivaCritic, num_rows: int) -> Tensor:
    """The times of one training batch."""
    seen: list[Tensor] = []
    handle = critic.register_forward_pre_hook(lambda _, given: seen.append(given[3]))
    critic.compute_loss(load_rows(num_rows), torch.Generator().manual_seed(0))
    handle.remove()
    (t,) = seen
    return t


def test_a_share_of_the_training_slots_is_pure_noise() -> None:
    assert not note_times(make_critic(pure_noise_share=1.0), 64).any()
    none = note_times(make_critic(pure_noise_share=0.0), 64)
    assert ((none > 0) & (none < 1)).all()
    half = note_times(make_critic(pure_noise_share=0.5), 200)
    assert float((half == 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(half[half > 0].mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_training_on_pure_noise_alone_is_the_path_of_inference(denoiser: str) -> None:
    """Whatever noise is drawn, the loss is that of what `foresee` says; with data in the slots it is not."""
    rows = load_rows(6)
    critic = make_critic(denoiser, pure_noise_share=1.0)
    losses = [critic.compute_loss(rows, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert torch.equal(losses[0][0], losses[1][0])
    with torch.no_grad():
        future, value = critic(rows.observation, torch.zeros(6, 2), torch.zeros(6, 1), torch.zeros(6))
    of_value = (value[:, 0] - (2 * rows.returns + 1)).square().mean()
    of_future = (future - toy_normalisation().normalise(rows.future_proprio)).square().mean()
    assert float(losses[0][0].detach()) == pytest.approx(float(of_value + 0.5 * of_future), rel=1e-5)
    torch.testing.assert_close(critic.value(rows.observation), ((value[:, 0] - 1) / 2).clamp(-1, 0))
    mixed = make_critic(denoiser, pure_noise_share=0.0)
    first, second = (mixed.compute_loss(rows, torch.Generator().manual_seed(seed))[0] for seed in (0, 1))
    assert not torch.equal(first, second)


# --- by hand ------------------------------------------------------------------------------------------------------


def test_the_value_is_the_mean_of_its_copies_and_the_future_is_in_raw_units() -> None:
    """Copies .2 (32 of them) and .6 (32) mean .4, on the scale of -1 to 1, hence -.3; x = 2 * .5 + .1, y = -.4."""
    critic = make_critic(copies="64")
    answer(critic, [2.0, -1.0], [0.2] * 32 + [0.6] * 32)
    value, future = critic.foresee(load_rows(3).observation)
    torch.testing.assert_close(value, torch.full((3,), -0.3))
    torch.testing.assert_close(future, torch.tensor([[1.1, -0.4]]).expand(3, 2))
    for scaled, end in ((1.5, 0.0), (-1.5, -1.0)):
        answer(critic, [0.0, 0.0], [scaled] * 64)
        assert critic.value(load_rows(3).observation).tolist() == [end] * 3


@pytest.mark.parametrize("future_weight", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("copies", ["1", "64"])
def test_the_loss_by_hand(future_weight: float, copies: str) -> None:
    """Returns -1, -.25 and 0 are -1, .5 and 1 when scaled; all are predicted as 0, so the mean square is 2.25 / 3.

    The future is one standard deviation off in x (.1 + .5 instead of .1) and exact in y: its mean square is 1 / 2.
    """
    critic = make_critic(copies=copies, future_weight=future_weight)
    answer(critic, [0.0, 0.0], [0.0] * critic.num_copies)
    observation = load_rows(3).observation
    rows = ValueRows(observation, torch.tensor([-1.0, -0.25, 0.0]), torch.tensor([[0.6, 0.0]]).expand(3, 2))
    loss, metrics = critic.compute_loss(rows, torch.Generator().manual_seed(0))
    assert metrics == {"loss_value": pytest.approx(0.75), "loss_future": pytest.approx(0.5)}
    assert float(loss.detach()) == pytest.approx(0.75 + future_weight * 0.5)


# --- what it reads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("copies", "number"), [("1", 1), ("64", 64), ("all", 3 * 16 * 16)])
def test_the_copies_are_as_many_as_the_config_says(copies: str, number: int) -> None:
    critic = make_critic(copies=copies)
    assert critic.num_copies == critic.value_in.in_features == critic.value_out.out_features == number
    rows = load_rows(2)
    future, value = critic(rows.observation, *make_noise(critic, 2, 0), torch.tensor([0.0, 0.5]))
    assert (future.shape, value.shape) == ((2, 2), (2, number))
    assert critic.value(rows.observation).shape == (2,)
    assert critic.compute_loss(rows, torch.Generator().manual_seed(0))[0].isfinite()


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_all_copies_are_the_latents_of_every_camera(denoiser: str) -> None:
    critic = make_critic(denoiser, TWO_CAMERAS, copies="all")
    assert critic.num_copies == 3 * 16 * 16 + 3 * 8 * 12


@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("name", ["base_camera", "above.camera", "proprio", "env_step", "instruction"])
def test_everything_that_is_seen_counts(denoiser: str, name: str) -> None:
    critic, observation = make_critic(denoiser, TWO_CAMERAS), load_rows(3, TWO_CAMERAS).observation
    assert observation.proprio is not None
    changed = {
        "proprio": {"proprio": observation.proprio + 1},
        "env_step": {"env_step": observation.env_step + 4},
        "instruction": {"instruction": ("move left",) * 3},
    }.get(name, {"frames": observation.frames | {name: 255 - observation.frames.get(name, torch.zeros(0))}})
    other = dataclasses.replace(observation, **changed)  # type: ignore[arg-type]
    for before, after in zip(critic.foresee(observation), critic.foresee(other), strict=True):
        assert (before - after).abs().max() > 1e-6


def test_the_time_that_has_passed_is_a_share_of_the_tasks_limit() -> None:
    """Half of 10 steps, and of 20 in a task that is longer: nothing else tells them apart."""
    critic = make_critic(tasks=("Dot", "LeftDot"))
    short, long = critic.spec.tasks
    critic.spec = dataclasses.replace(critic.spec, tasks=(short, dataclasses.replace(long, max_episode_steps=20)))
    observation = load_rows(1).observation.rows([0, 0, 0])
    observation = dataclasses.replace(
        observation, task=("Dot", "LeftDot", "LeftDot"), env_step=torch.tensor([5, 10, 5])
    )
    first, second, other = critic.value(observation).tolist()
    assert first == pytest.approx(second, abs=1e-6)
    assert abs(first - other) > 1e-6


def test_missing_proprio_is_one_clear_error() -> None:
    critic, rows = make_critic(), load_rows(2)
    blind = dataclasses.replace(rows.observation, proprio=None)
    with pytest.raises(ValueError, match="ViVa reads proprio, and the observation has none"):
        critic.value(blind)
    with pytest.raises(ValueError, match="ViVa reads proprio"):
        critic.compute_loss(dataclasses.replace(rows, observation=blind), torch.Generator().manual_seed(0))


def test_it_reads_the_cameras_of_its_world_model() -> None:
    critic, observation = make_critic(), load_rows(2, TWO_CAMERAS).observation
    assert critic.spec.robot.camera_names == ("base_camera",)
    assert torch.equal(critic.value(observation), critic.value(observation.with_cameras(["base_camera"])))
    with pytest.raises(ValueError, match=r"no camera 'base_camera': it has above\.camera"):
        critic.value(observation.with_cameras(["above.camera"]))


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_rows_do_not_depend_on_their_batch(denoiser: str) -> None:
    critic, observation = make_critic(denoiser), load_rows(4).observation
    together = critic.value(observation)
    assert len(set(together.tolist())) == 4
    alone = torch.cat([critic.value(observation.rows([row])) for row in range(4)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


# --- weights ------------------------------------------------------------------------------------------------------


def test_weights_that_the_world_model_took_from_elsewhere_are_not_stored() -> None:
    """With frozen weights, as of a published pipeline: neither stored nor trained."""
    world_model = make_model()
    for block in world_model.denoiser.blocks:
        block.requires_grad_(False)
    frozen = frozenset(name for name, p in world_model.named_parameters() if not p.requires_grad)
    world_model.frozen = frozen
    critic = build(world_model, learning_rate=1e-2)
    assert critic.frozen == {f"world_model.{name}" for name in frozen}
    assert critic.frozen
    assert critic.trained_state().keys() == critic.state_dict().keys() - critic.frozen
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    fit(critic, load_from(ToyEpisodes(4)), 20, num_steps=2, batch_size=4)
    after = critic.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in critic.frozen)
    assert any(not torch.equal(before[name], after[name]) for name in critic.trained_state())
    assert make_critic().frozen == frozenset()


def test_weights_load_into_a_fresh_critic() -> None:
    critic, observation = make_critic(copies="64"), load_rows(4).observation
    fit(critic, load_from(ToyEpisodes(4)), 20, num_steps=2, batch_size=4)
    fresh = make_critic(copies="64")
    assert not torch.equal(fresh.value(observation), critic.value(observation))
    fresh.load_state_dict(critic.trained_state())
    assert torch.equal(fresh.value(observation), critic.value(observation))
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_critic(copies="1").load_state_dict(critic.state_dict())


def test_equal_generators_fit_equal_critics() -> None:
    fitted = []
    for seed in (5, 6):
        critic = make_critic()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        fitted.append(fit(critic, load_from(ToyEpisodes(4)), 20, num_steps=3, batch_size=4).state_dict())
        assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers"
    first, second = fitted
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_learning_rate_is_the_configs() -> None:
    assert make_critic(learning_rate=1e-4).learning_rate == 1e-4


def test_bf16_is_only_how_it_computes() -> None:
    """Answers and gradients are f32, and close to those of f32."""
    observation = load_rows(4).observation
    values = []
    for precision in ("fp32", "bf16"):
        critic = build(make_model(configure("hybrid", precision=precision)))
        values.append(critic.value(observation))
        critic.compute_loss(load_rows(4), torch.Generator().manual_seed(0))[0].backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in critic.parameters())
    assert values[1].dtype == torch.float32
    torch.testing.assert_close(values[1], values[0], atol=0.02, rtol=0)
