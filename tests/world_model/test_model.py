"""The world model as what imagines with it sees it: rows, forks, noise, and what a trained one gets right."""

import copy
import dataclasses

import pytest
import torch
from world_model_toy import (
    ONE_CAMERA,
    TWO_CAMERAS,
    ToyEpisodes,
    fit,
    make_model,
    tiny_config,
    toy_normalisation,
)

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import CameraSpec
from worldloop.world_model.cosmos import CosmosConfig
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.training import compute_joint_loss


@pytest.fixture(scope="module")
def trained() -> VideoWorldModel:
    return fit(make_model(), ToyEpisodes(64), num_steps=100)


def full_chunk(data: ToyEpisodes, num_rows: int) -> torch.Tensor:
    return data.actions[:num_rows].flatten(1, 2)


def test_trained_model_beats_copying_the_last_frame(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(64, seed=7)
    state = trained.start(data.first_observation(64), torch.arange(64))
    _, chunk = trained.imagine(state, full_chunk(data, 64))
    truth = data.frames["base_camera"][:, 1:].float()
    error = (chunk.frames["base_camera"].float() - truth).square().mean(dim=(0, 2, 3, 4))
    copy = (data.frames["base_camera"][:, :1].float() - truth).square().mean(dim=(0, 2, 3, 4))
    assert (error < 0.6 * copy).all()
    proprio_error = (chunk.proprio - data.proprio[:, 1:]).abs().mean()
    assert proprio_error < 0.3 * (data.proprio[:, :1] - data.proprio[:, 1:]).abs().mean()


def test_trained_model_expects_the_error_that_it_makes(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(64, seed=7)
    state = trained.start(data.first_observation(64), torch.arange(64))
    _, chunk = trained.imagine(state, full_chunk(data, 64))
    assert chunk.expected_psnr_db is not None
    truth = data.frames["base_camera"][:, 1:].float()
    error = ((chunk.frames["base_camera"].float() - truth) / 255).square().mean(dim=(2, 3, 4))
    actual = -10 * torch.log10(error)
    assert chunk.expected_psnr_db.shape == actual.shape
    assert (chunk.expected_psnr_db.mean() - actual.mean()).abs() < 2.0


def test_trained_success_head_tells_outcomes_apart(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(64, seed=7)
    state = trained.start(data.first_observation(64), torch.arange(64))
    _, chunk = trained.imagine(state, full_chunk(data, 64))
    score, succeeded = chunk.success_logit.amax(1), data.success[:, -1] > 0
    assert 5 < succeeded.sum() < 60
    above = (score[succeeded][:, None] > score[~succeeded][None]).float().mean()
    assert above > 0.8


def test_same_key_same_result_other_key_other_noise() -> None:
    data, model = ToyEpisodes(3), make_model(tiny_config(num_sampler_steps=2))  # one step gives the mean
    observation, actions = data.first_observation(3), full_chunk(data, 3)
    keys = torch.tensor([5, 5, 9])
    first, again = (model.imagine(model.start(observation, keys), actions)[1] for _ in range(2))
    assert torch.equal(first.frames["base_camera"], again.frames["base_camera"])
    assert torch.equal(first.success_logit, again.success_logit)
    other = model.imagine(model.start(observation, keys + 1), actions)[1]
    assert not torch.equal(first.success_logit, other.success_logit)
    twins = model.imagine(model.start(observation, keys).rows([0, 0, 0]), actions[[0, 0, 0]])[1]
    torch.testing.assert_close(twins.success_logit[0], twins.success_logit[1], atol=1e-4, rtol=1e-4)


def test_a_fork_and_a_saved_state_continue_bit_equal(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(4, seed=3)
    actions = full_chunk(data, 4)
    state, _ = trained.imagine(trained.start(data.first_observation(4), torch.arange(4)), actions[:, :4])
    assert state.step.tolist() == [2] * 4
    order = [3, 2, 1, 0]
    restored = trained.restore({k: v.clone() for k, v in state.to_tensors().items()})
    end, chunk = trained.imagine(state, actions[:, 4:])
    for fork, rows in ((state.rows(order), order), (restored, [0, 1, 2, 3])):
        fork_end, fork_chunk = trained.imagine(fork, actions[rows, 4:])
        assert torch.equal(fork_chunk.success_logit, chunk.success_logit[rows])
        assert torch.equal(fork_end.context["base_camera"], end.context["base_camera"][rows])


def test_rows_do_not_depend_on_their_batch(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(6, seed=3)
    actions, keys = full_chunk(data, 6), torch.arange(6)
    state = trained.start(data.first_observation(6), keys)
    _, together = trained.imagine(state, actions)
    for row in range(6):
        _, alone = trained.imagine(state.rows([row]), actions[row : row + 1])
        torch.testing.assert_close(alone.success_logit[0], together.success_logit[row], atol=1e-3, rtol=1e-3)
        one, all_rows = (chunk.frames["base_camera"].int() for chunk in (alone, together))
        assert (one[0] - all_rows[row]).abs().max() <= 1


def test_one_chunk_equals_frame_by_frame(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(2, seed=3)
    actions = full_chunk(data, 2)
    state = trained.start(data.first_observation(2), torch.arange(2))
    _, whole = trained.imagine(state, actions)
    parts = []
    for f in range(5):
        state, chunk = trained.imagine(state, actions[:, 2 * f : 2 * f + 2])
        parts.append(chunk.success_logit)
    torch.testing.assert_close(whole.success_logit, torch.cat(parts, 1), atol=1e-3, rtol=1e-3)


def test_state_dict_restores_everything_but_config(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(2, seed=3)
    copy = make_model().requires_grad_(False)  # as the averaged model; convolutions round otherwise with gradients
    copy.proprio_mean.zero_()
    copy.load_state_dict(trained.state_dict())
    torch.testing.assert_close(copy.normalisation.proprio_std, toy_normalisation().proprio_std)
    torch.testing.assert_close(copy.normalisation.proprio_mean, toy_normalisation().proprio_mean)
    state = copy.start(data.first_observation(2), torch.arange(2))
    expected = (data.proprio[:2, 0] - toy_normalisation().proprio_mean) / toy_normalisation().proprio_std
    torch.testing.assert_close(state.low_dim, expected)
    actions = full_chunk(data, 2)
    copied, original = (model.imagine(state, actions)[1].frames["base_camera"] for model in (copy, trained))
    assert torch.equal(copied, original)


def test_imagined_proprio_stays_where_real_proprio_has_been() -> None:
    data, model = ToyEpisodes(4), make_model()
    mean, std = model.proprio_mean, model.proprio_std
    model.set_proprio_range(mean - 0.5 * std, mean + torch.tensor([1.0, 7.0]) * std)
    torch.testing.assert_close(model.proprio_low, torch.tensor([-0.5, -0.5]))
    with torch.no_grad():
        list(model.proprio_head.parameters())[-1].fill_(2.0)  # two standard deviations further with every frame
    state = model.eval().start(data.first_observation(2), torch.arange(2))
    actions = full_chunk(data, 2)
    _, imagined = model.imagine(state, torch.cat([actions, actions], dim=1))
    normalised = model.normalisation.normalise(imagined.proprio[:, -1])
    torch.testing.assert_close(normalised, torch.tensor([[1.0, 7.0]]).expand(2, 2))
    with torch.no_grad():
        list(model.proprio_head.parameters())[-1].fill_(-2.0)
    _, imagined = model.imagine(state, torch.cat([actions, actions], dim=1))
    normalised = model.normalisation.normalise(imagined.proprio[:, -1])
    torch.testing.assert_close(normalised, torch.full((2, 2), -0.5))


def test_success_is_judged_by_frame_proprio_and_instruction() -> None:
    model, data = make_model(), ToyEpisodes(2)
    (latents,) = model.encode(data.first_observation(2).frames).values()
    first, negative = {"base_camera": latents[:, 0]}, {"base_camera": -latents[:, 0]}
    right, left = (model.instruction((words,) * 2) for words in ("move right", "move left"))
    here, there = (model.success_head.read_frame(first, first, torch.full((2, 2), x), right) for x in (0.0, 1.0))
    assert (here != there).all()
    assert (here != model.success_head.read_frame(first, negative, torch.zeros(2, 2), right)).all()
    assert (here != model.success_head.read_frame(first, first, torch.zeros(2, 2), left)).all()


def test_features_are_tokens_with_gradients() -> None:
    data, model = ToyEpisodes(3), make_model()
    tokens = model.features(data.first_observation(3))
    assert tokens.shape == (3, 1 + 16, 32)
    tokens.sum().backward()
    (view,) = model.denoiser.views.children()
    assert view.stem.linear.weight.grad is not None


def test_bf16_runs_close_to_fp32(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(4, seed=3)
    low = make_model(dataclasses.replace(trained.config, precision="bf16"))
    low.load_state_dict(trained.state_dict())
    state = trained.start(data.first_observation(4), torch.arange(4))
    actions = full_chunk(data, 4)[:, :2]
    half, whole = (model.imagine(state, actions)[1].frames["base_camera"].float() for model in (low, trained))
    assert (half - whole).abs().mean() < 3
    loss, _, _ = compute_joint_loss(low.train(), data.load(torch.tensor([[0, 0]]), 1), torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("cameras", [ONE_CAMERA, TWO_CAMERAS])
@pytest.mark.parametrize("denoiser", ["hybrid", "cosmos"])
def test_weights_that_are_cast_for_good_imagine_the_same(denoiser: str, cameras: tuple[CameraSpec, ...]) -> None:
    cosmos = CosmosConfig(patch=4, num_layers=2, num_heads=2, head_dim=16, adaln_lora_dim=8)
    config = dataclasses.replace(tiny_config(), denoiser=denoiser, cosmos=cosmos, precision="bf16")
    data, model = ToyEpisodes(4, cameras=cameras), make_model(config, cameras)
    settled = copy.deepcopy(model).for_imagination()
    assert any(p.dtype == torch.bfloat16 for p in settled.parameters())
    chunks = [
        m.imagine(m.start(data.first_observation(4), torch.arange(4)), full_chunk(data, 4))[1] for m in (model, settled)
    ]
    for camera in cameras:
        assert torch.equal(chunks[0].frames[camera.name], chunks[1].frames[camera.name])
    assert torch.equal(chunks[0].success_logit, chunks[1].success_logit)
    assert torch.equal(chunks[0].proprio, chunks[1].proprio)


def test_mistakes_are_named() -> None:
    data, model = ToyEpisodes(2), make_model()
    observation = data.first_observation(2)
    blind = dataclasses.replace(observation, proprio=None)
    with pytest.raises(WorldloopError, match="needs proprio"):
        model.start(blind, torch.arange(2))
    state = model.start(observation, torch.arange(2))
    with pytest.raises(ValueError, match="2 per frame"):
        model.imagine(state, torch.zeros(2, 3, 2))
