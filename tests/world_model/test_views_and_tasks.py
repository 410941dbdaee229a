"""A world model of two cameras of different sizes, and of two tasks that differ in the instruction alone."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from world_model_toy import ONE_CAMERA, TWO_CAMERAS, ToyEpisodes, fit, make_model, tiny_config, toy_spec

from worldloop.core.types import Clip, Observation
from worldloop.factory import checkpoints
from worldloop.world_model import losses
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.proprio_training import compute_proprio_loss
from worldloop.world_model.training import DataTarget, NoisyFrame, compute_joint_loss

CAMERAS = [camera.name for camera in TWO_CAMERAS]


@pytest.fixture(scope="module")
def trained() -> VideoWorldModel:
    return fit(make_model(cameras=TWO_CAMERAS), ToyEpisodes(64, cameras=TWO_CAMERAS), num_steps=60)


# --- cameras --------------------------------------------------------------------------------------------------------


def test_every_camera_is_learned(trained: VideoWorldModel) -> None:
    """Each is imagined better than by copying its last frame."""
    data = ToyEpisodes(64, seed=7, cameras=TWO_CAMERAS)
    state = trained.start(data.first_observation(64), torch.arange(64))
    _, chunk = trained.imagine(state, data.actions.flatten(1, 2))
    assert list(chunk.frames) == CAMERAS
    for camera, frames in chunk.frames.items():
        truth = data.frames[camera][:, 1:].float()
        error = (frames.float() - truth).square().mean()
        copied = (data.frames[camera][:, :1].float() - truth).square().mean()
        assert error < 0.6 * copied, camera


def test_forks_and_saved_states_of_two_cameras_continue_bit_equal(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(4, seed=3, cameras=TWO_CAMERAS)
    actions = data.actions.flatten(1, 2)
    state, _ = trained.imagine(trained.start(data.first_observation(4), torch.arange(4)), actions[:, :4])
    tensors = state.to_tensors()
    names = {"context.base_camera", "context.above.camera", "low_dim", "instruction", "noise_key", "step"}
    assert set(tensors) == names
    assert all(isinstance(tensor, torch.Tensor) and tensor.is_contiguous() for tensor in tensors.values())
    restored = trained.restore({name: tensor.clone() for name, tensor in tensors.items()})
    end, chunk = trained.imagine(state, actions[:, 4:])
    order = [3, 2, 1, 0]
    for fork, rows in ((state.rows(order), order), (restored, [0, 1, 2, 3])):
        fork_end, fork_chunk = trained.imagine(fork, actions[rows, 4:])
        assert torch.equal(fork_chunk.success_logit, chunk.success_logit[rows])
        for camera in CAMERAS:
            assert torch.equal(fork_chunk.frames[camera], chunk.frames[camera][rows])
            assert torch.equal(fork_end.context[camera], end.context[camera][rows])


def test_noise_is_the_same_for_one_camera_whatever_is_drawn_beside_it() -> None:
    """Several sampler steps begin with noise, of which every camera has its own."""
    data = ToyEpisodes(2, cameras=TWO_CAMERAS)
    models = [make_model(tiny_config(num_sampler_steps=2), cameras) for cameras in (ONE_CAMERA, TWO_CAMERAS)]
    states = [model.start(data.first_observation(2), torch.tensor([5, 6])) for model in models]
    one, two = (model.draw_noise(state) for model, state in zip(models, states, strict=True))
    assert {camera: tuple(noise.shape) for camera, noise in two.items()} == {
        "base_camera": (2, 1, 3, 16, 16),
        "above.camera": (2, 1, 3, 8, 12),
    }
    assert two["base_camera"].std() == pytest.approx(1, abs=0.1)
    assert torch.equal(one["base_camera"], two["base_camera"])
    assert not torch.equal(two["above.camera"].flatten(), two["base_camera"].flatten()[: 2 * 3 * 8 * 12])
    single = [make_model(cameras=TWO_CAMERAS).draw_noise(states[1])]
    assert not any(noise.any() for noise in single[0].values()), "a single step ignores it"


def test_a_model_reads_the_cameras_it_was_made_for_and_their_order_does_not_matter() -> None:
    data = ToyEpisodes(2, cameras=TWO_CAMERAS)
    model = make_model(tiny_config(cameras=("above.camera",)), TWO_CAMERAS).eval()
    assert model.spec.robot.camera_names == ("above.camera",)
    observation = data.first_observation(2)
    state, chunk = model.imagine(model.start(observation, torch.arange(2)), data.actions[:, 0])
    assert list(state.context) == list(chunk.frames) == ["above.camera"]
    assert chunk.frames["above.camera"].shape == (2, 1, 8, 12, 3)

    model = make_model(cameras=TWO_CAMERAS).eval()
    turned = dataclasses.replace(observation, frames=dict(reversed(observation.frames.items())))
    one, other = (model.imagine(model.start(o, torch.arange(2)), data.actions[:, 0])[1] for o in (observation, turned))
    assert list(other.frames) == CAMERAS
    assert torch.equal(one.success_logit, other.success_logit)
    with pytest.raises(ValueError, match=r"no camera 'above\.camera'"):
        model.start(observation.with_cameras(["base_camera"]), torch.arange(2))


def test_heads_read_the_cameras_that_the_config_names() -> None:
    data = ToyEpisodes(2, cameras=TWO_CAMERAS)
    model = make_model(tiny_config(head_cameras=("above.camera",)), TWO_CAMERAS)
    assert model.head_cameras == ("above.camera",)
    assert model.success_head.encoders.cameras == ("above.camera",)
    assert make_model(cameras=TWO_CAMERAS).head_cameras == ("base_camera", "above.camera")
    observation = data.first_observation(2)
    dark = {camera: torch.zeros_like(frames) for camera, frames in observation.frames.items()}
    proprio = {}
    for name in ("", *CAMERAS):
        frames = observation.frames | ({name: dark[name]} if name else {})
        state = model.start(dataclasses.replace(observation, frames=frames), torch.arange(2))
        proprio[name] = model.imagine(state, data.actions[:, 0])[0].low_dim
    assert torch.equal(proprio["base_camera"], proprio[""])
    assert not torch.equal(proprio["above.camera"], proprio[""])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": ("front",)}, r"world_model\.cameras: camera 'front' is not one of base_camera, above\.camera"),
        ({"head_cameras": ("front",)}, r"world_model\.head_cameras: camera 'front' is not one of base_camera, above"),
        (
            {"cameras": ("base_camera",), "head_cameras": ("above.camera",)},
            r"world_model\.head_cameras: camera 'above\.camera' is not one of base_camera",
        ),
    ],
)
def test_a_camera_that_there_is_not_is_named_with_its_setting(
    settings: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelConfig(**settings).select_cameras(toy_spec(TWO_CAMERAS))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        make_model(tiny_config(**settings), TWO_CAMERAS)


@dataclass(frozen=True)
class AimByCamera(DataTarget):
    """A `Target`: the same latents everywhere for every camera, from pure noise."""

    zero_time_share: float = 1.0
    aims: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def find(self, frame: NoisyFrame) -> dict[str, Tensor]:
        return {camera: torch.full_like(data, self.aims[camera]) for camera, data in frame.data.items()}


def test_the_video_loss_is_the_mean_over_cameras() -> None:
    """An aim of 3 in one camera alone costs half of what it costs where that camera is the only one."""
    data, model = ToyEpisodes(4, cameras=TWO_CAMERAS), make_model(tiny_config(moved_weight=0.0), TWO_CAMERAS)
    model.eval().config = dataclasses.replace(model.config, context_noise=0.0, rare_weight=0.0)
    clip = data.load(torch.tensor([[0, 0], [1, 2]]), 1)
    predicted: dict[str, Tensor] = {}
    handle = model.denoiser.register_forward_hook(lambda *a: predicted.update(a[2].data))
    for aims in ({"base_camera": 3.0, "above.camera": 0.0}, {"base_camera": 0.0, "above.camera": 3.0}):
        _, metrics, _ = compute_joint_loss(model, clip, torch.Generator().manual_seed(0), AimByCamera(aims=aims))
        errors = [(predicted[camera] - aim).square().mean() for camera, aim in aims.items()]
        assert metrics["loss_video"] == pytest.approx(float(sum(errors) / 2), rel=1e-4)
    handle.remove()


def test_the_error_head_learns_the_mean_psnr_of_the_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    by_size = {(16, 16): 30.0, (8, 12): 20.0}
    monkeypatch.setattr(
        losses, "compute_latent_psnr_db", lambda p, *_: torch.full((len(p),), by_size[tuple(p.shape[2:])])
    )
    data, model = ToyEpisodes(4, cameras=TWO_CAMERAS), make_model(tiny_config(zero_time_share=1.0), TWO_CAMERAS)
    torch.nn.init.zeros_(model.error_head.read_tokens.mlp[-1].weight)
    torch.nn.init.zeros_(model.error_head.read_tokens.mlp[-1].bias)  # it expects 25 dB
    _, metrics, _ = compute_joint_loss(model, data.load(torch.tensor([[0, 0]]), 1), torch.Generator().manual_seed(0))
    assert metrics["loss_error"] == pytest.approx(0.0, abs=1e-8)


def test_clips_may_be_of_more_cameras_than_the_model_reads() -> None:
    both, base = (ToyEpisodes(4, cameras=cameras) for cameras in (TWO_CAMERAS, ONE_CAMERA))
    index = torch.tensor([[0, 0], [1, 2]])
    model = make_model(tiny_config(cameras=("base_camera",)), TWO_CAMERAS)
    assert model.spec.robot.cameras == ONE_CAMERA
    one, other = (
        compute_joint_loss(model, data.load(index, 2), torch.Generator().manual_seed(0)) for data in (both, base)
    )
    assert one[1] == other[1]
    assert list(one[2].frames) == ["base_camera"]
    proprio = [compute_proprio_loss(model, data.load(index, 2), torch.Generator()) for data in (both, base)]
    assert torch.equal(*proprio)
    with pytest.raises(ValueError, match=r"reads camera 'above\.camera', the frames are of base_camera"):
        compute_joint_loss(make_model(cameras=TWO_CAMERAS), base.load(index, 1), torch.Generator().manual_seed(0))


def test_a_checkpoint_holds_the_cameras_that_the_model_was_made_for(tmp_path: Path) -> None:
    data = ToyEpisodes(2, cameras=TWO_CAMERAS, tasks=("Dot", "LeftDot"))
    config = tiny_config(cameras=("above.camera",), head_cameras=("above.camera",))
    model = make_model(config, TWO_CAMERAS, ("Dot", "LeftDot")).eval()
    checkpoints.save_world_model(model, tmp_path / "checkpoint")
    loaded = checkpoints.load_world_model(tmp_path / "checkpoint")
    assert (loaded.config, loaded.spec, loaded.head_cameras) == (model.config, model.spec, model.head_cameras)
    observation, actions = data.first_observation(2), data.actions[:, 0]
    one, other = (m.imagine(m.start(observation, torch.arange(2)), actions)[1] for m in (model, loaded))
    assert torch.equal(one.frames["above.camera"], other.frames["above.camera"])


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_two_tasks_that_share_every_frame_are_told_apart_by_their_instruction() -> None:
    """The same walks twice: one task succeeds at the right edge, the other at the left."""
    tasks = ("Dot", "LeftDot")
    right, left = (ToyEpisodes(64, tasks=(task,), both_ways=True) for task in tasks)
    assert torch.equal(right.frames["base_camera"], left.frames["base_camera"])
    model, generator = make_model(tasks=tasks), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        index = right.sample(generator, 16)
        clip = Clip.cat([right.load(index, 1), left.load(index, 1)])
        loss = compute_joint_loss(model, clip, generator)[0] + compute_proprio_loss(model, clip, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    index = torch.cartesian_prod(torch.arange(64), torch.arange(5))
    logits = []
    for data in (right, left):
        clip = data.load(index, 1)
        step = torch.zeros(len(index), dtype=torch.long)
        start = Observation(clip.context, clip.context_proprio, clip.task, clip.instruction, env_step=step)
        state = model.start(start, torch.arange(len(index)))
        logits.append(model.imagine(state, clip.actions[:, 0])[1].success_logit[:, 0])
    prefers_right, x = logits[0] - logits[1], clip.proprio[:, 0, 0]
    at_right, at_left = prefers_right[x > 0.7], prefers_right[x < -0.7]
    assert min(len(at_right), len(at_left)) > 10
    assert at_right.mean() > 2
    assert at_left.mean() < -2
