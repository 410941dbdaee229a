import copy
import dataclasses
import math

import pytest
import torch
from world_model_toy import ToyEpisodes, tiny_config, toy_normalisation, toy_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import WorldModelOutput
from worldloop.core.types import Observation
from worldloop.networks import flow
from worldloop.training.ema import EmaWeights
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.cosmos import CosmosConfig
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.self_rollout import SelfRolloutPool


def make_model(config: WorldModelConfig | None = None) -> VideoWorldModel:
    torch.manual_seed(0)
    return VideoWorldModel(config or tiny_config(), toy_spec(), toy_normalisation())


def fit(model: VideoWorldModel, data: ToyEpisodes, num_steps: int, batch_size: int = 16) -> VideoWorldModel:
    """A miniature of the fitting stage; returns the averaged model."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ema = EmaWeights(model, 0.9)
    pool = SelfRolloutPool(batch_size, model.config.self_rollout.share, data.num_frame_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model.compute_proprio_loss(data.load(data.choose(batch_size, generator), 3)).backward()
        optimizer.step()
    for _ in range(num_steps):
        clip = pool.compose(lambda n: data.choose(n, generator), data.load)
        output = model(clip, generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        ema.update(model)
        pool.update(clip, output)
    return ema.module


@pytest.fixture(scope="module")
def trained() -> VideoWorldModel:
    return fit(make_model(), ToyEpisodes(64), num_steps=150)


def full_chunk(data: ToyEpisodes, num_rows: int) -> torch.Tensor:
    return data.actions[:num_rows].flatten(1, 2)


def test_compute_loss_gives_the_contract() -> None:
    data, model = ToyEpisodes(4), make_model()
    clip = data.load(torch.tensor([[0, 0], [1, 2], [2, 4]]), 2)
    output = model(clip, torch.Generator().manual_seed(0))
    assert isinstance(output, WorldModelOutput)
    assert output.loss.requires_grad
    assert output.loss.shape == ()
    assert set(output.metrics) == {"loss", "loss_video", "loss_success", "loss_error"}
    assert output.next_frames.shape == (3, 16, 16, 3)
    assert output.next_frames.dtype == torch.uint8
    assert output.next_proprio.shape == (3, 2)
    assert not output.next_proprio.requires_grad
    assert output.is_prediction.dtype == torch.bool


def test_padding_does_not_count() -> None:
    data, model = ToyEpisodes(4), make_model(tiny_config(zero_time_share=1.0, context_noise=0.0))
    clip = data.load(torch.tensor([[0, 4], [1, 1]]), 2)
    assert clip.valid.tolist() == [[True, False], [True, True]]
    wrong = clip.frames.clone()
    wrong[0, 1] = 255
    losses = [
        model.eval()(dataclasses.replace(clip, frames=f), torch.Generator().manual_seed(0)).metrics["loss"]
        for f in (clip.frames, wrong)
    ]
    # colour rarity is a statistic of the batch's valid and invalid pixels of that frame, hence the tolerance
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_only_rows_at_pure_noise_are_predictions() -> None:
    data = ToyEpisodes(16)
    clip = data.load(torch.stack([torch.arange(16), torch.zeros(16).long()], 1), 1)
    for share, expected in ((1.0, True), (0.0, False)):
        output = make_model(tiny_config(zero_time_share=share))(clip, torch.Generator().manual_seed(0))
        assert output.is_prediction.all().item() == expected
        assert output.is_prediction.any().item() == expected


@pytest.mark.parametrize(("t", "weight"), [(0.0, 1.0), (0.2, 1 / 0.64), (0.5, 3.0)])
def test_success_loss_of_both_readers_by_hand(t: float, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of tokens always says 0 and the reader of frames ln 3, of one success and one failure."""
    monkeypatch.setattr(flow, "sample_times", lambda num_rows, *_: torch.full((num_rows,), t))
    data, model = ToyEpisodes(2), make_model(tiny_config(success_time_weight_max=3.0))
    for mlp, logit in ((model.success_head.read_tokens.mlp, 0.0), (model.success_head.frame_mlp, math.log(3))):
        torch.nn.init.zeros_(mlp[-1].weight)
        torch.nn.init.constant_(mlp[-1].bias, logit)
    clip = data.load(torch.tensor([[0, 0], [1, 0]]), 1)
    clip = dataclasses.replace(clip, success=torch.tensor([[1.0], [0.0]]))
    metrics = model(clip, torch.Generator().manual_seed(0)).metrics
    # By frame ln(4 / 3) and ln 4, by tokens ln 2 twice, which weighs 1 / (1 - t)^2, at most 3.
    expected = (math.log(4 / 3) + math.log(4)) / 2 + weight * math.log(2)
    assert metrics["loss_success"] == pytest.approx(expected, rel=1e-5)
    assert (metrics["loss_error"] > 0) == (t == 0), "imagination starts from noise alone"


def test_a_prediction_does_not_depend_on_the_target() -> None:
    data, model = ToyEpisodes(8), make_model(tiny_config(zero_time_share=1.0))
    clip = data.load(torch.stack([torch.arange(8), torch.ones(8).long()], 1), 1)
    other = dataclasses.replace(clip, frames=255 - clip.frames, proprio=clip.proprio + 1, success=1 - clip.success)
    outputs = [model(c, torch.Generator().manual_seed(0)) for c in (clip, other)]
    assert torch.equal(outputs[0].next_frames, outputs[1].next_frames)
    assert torch.equal(outputs[0].next_proprio, outputs[1].next_proprio)


def test_proprio_loss_by_hand() -> None:
    """With a head that stays put, the error is the normalised distance from the start, over valid frames alone."""
    data, model = ToyEpisodes(4), make_model()
    for parameter in model.proprio_head.mlp[-1].parameters():
        torch.nn.init.zeros_(parameter)
    clip = data.load(torch.tensor([[0, 4], [1, 1]]), 2)
    assert clip.valid.tolist() == [[True, False], [True, True]]
    moved = (clip.proprio - clip.context_proprio[:, None]).abs() / toy_normalisation().proprio_std
    expected = moved.mean(2)[clip.valid].mean()
    torch.testing.assert_close(model.compute_proprio_loss(clip), expected)


def test_loss_decreases_when_overfitting_one_clip() -> None:
    data, model = ToyEpisodes(2), make_model(tiny_config(zero_time_share=1.0))
    clip = data.load(torch.tensor([[0, 1], [1, 2]]), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        output = model(clip, generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.metrics["loss"])
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_every_parameter_gets_a_gradient() -> None:
    data, model = ToyEpisodes(8), make_model()
    clip = data.load(torch.stack([torch.arange(8), torch.ones(8).long()], 1), 1)
    for _ in range(2):  # residual branches start at zero and block some gradients at the very first step
        output = model(clip, torch.Generator().manual_seed(0))
        output.loss.backward()
        assert all(p.grad is None for p in model.proprio_head.parameters()), "trained apart"
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.01)
    model.compute_proprio_loss(data.load(torch.tensor([[0, 0], [1, 1]]), 2)).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_trained_model_beats_copying_the_last_frame(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(64, seed=7)
    state = trained.start(data.first_observation(64), torch.arange(64))
    _, chunk = trained.imagine(state, full_chunk(data, 64))
    truth = data.frames[:, 1:].float()
    error = (chunk.frames.float() - truth).square().mean(dim=(0, 2, 3, 4))
    copy = (data.frames[:, :1].float() - truth).square().mean(dim=(0, 2, 3, 4))
    assert (error < 0.6 * copy).all()
    proprio_error = (chunk.proprio - data.proprio[:, 1:]).abs().mean()
    assert proprio_error < 0.3 * (data.proprio[:, :1] - data.proprio[:, 1:]).abs().mean()


def test_trained_model_expects_the_error_that_it_makes(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(64, seed=7)
    state = trained.start(data.first_observation(64), torch.arange(64))
    _, chunk = trained.imagine(state, full_chunk(data, 64))
    assert chunk.expected_psnr_db is not None
    error = ((chunk.frames.float() - data.frames[:, 1:].float()) / 255).square().mean(dim=(2, 3, 4))
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
    assert torch.equal(first.frames, again.frames)
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
        assert torch.equal(fork_end.context, end.context[rows])


def test_rows_do_not_depend_on_their_batch(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(6, seed=3)
    actions, keys = full_chunk(data, 6), torch.arange(6)
    state = trained.start(data.first_observation(6), keys)
    _, together = trained.imagine(state, actions)
    for row in range(6):
        _, alone = trained.imagine(state.rows([row]), actions[row : row + 1])
        torch.testing.assert_close(alone.success_logit[0], together.success_logit[row], atol=1e-3, rtol=1e-3)
        assert (alone.frames[0].int() - together.frames[row].int()).abs().max() <= 1


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
    copy = make_model()
    copy.proprio_mean.zero_()
    copy.load_state_dict(trained.state_dict())
    torch.testing.assert_close(copy.normalisation.proprio_std, toy_normalisation().proprio_std)
    torch.testing.assert_close(copy.normalisation.proprio_mean, toy_normalisation().proprio_mean)
    state = copy.start(data.first_observation(2), torch.arange(2))
    expected = (data.proprio[:2, 0] - toy_normalisation().proprio_mean) / toy_normalisation().proprio_std
    torch.testing.assert_close(state.proprio, expected)
    actions = full_chunk(data, 2)
    assert torch.equal(copy.imagine(state, actions)[1].frames, trained.imagine(state, actions)[1].frames)


def test_parts_of_a_batch_add_up_to_its_statistics() -> None:
    data, model = ToyEpisodes(4), make_model()
    clip = data.load(torch.tensor([[0, 0], [1, 2], [2, 4]]), 1)
    success, valid = torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([[True], [True], [False]])
    clip = dataclasses.replace(clip, success=success, valid=valid)
    counts, reach = model.measure(clip)
    assert counts.tolist() == [1.0, 2.0]
    parts = [model.measure(clip.rows([i])) for i in range(3)]
    torch.testing.assert_close(torch.stack([c for c, _ in parts]).sum(0), counts)
    torch.testing.assert_close(torch.stack([r for _, r in parts]).amax(0), reach)
    model.take_in(torch.tensor([1.0, 10.0]), reach)
    assert float(model.positive_rate) == pytest.approx(0.99 * 0.5 + 0.01 * 0.1)


def test_imagined_proprio_stays_where_real_proprio_has_been() -> None:
    data, model = ToyEpisodes(4), make_model()
    clip = data.load(torch.tensor([[0, 0], [1, 2], [2, 4]]), 1)
    far = clip.proprio.clone()
    far[0, 0, 1] = model.proprio_mean[1] + 7 * model.proprio_std[1]
    model.take_in(*model.measure(dataclasses.replace(clip, proprio=far)))
    torch.testing.assert_close(model.proprio_reach, torch.tensor([3.0, 7.0]))
    model.take_in(*model.measure(clip))
    torch.testing.assert_close(model.proprio_reach, torch.tensor([3.0, 7.0]))  # what was once reached stays so
    with torch.no_grad():
        list(model.proprio_head.parameters())[-1].fill_(2.0)  # two standard deviations further with every frame
    state = model.eval().start(data.first_observation(2), torch.arange(2))
    actions = full_chunk(data, 2)
    _, imagined = model.imagine(state, torch.cat([actions, actions], dim=1))
    normalised = model.normalisation.normalise(imagined.proprio[:, -1])
    torch.testing.assert_close(normalised, torch.tensor([[3.0, 7.0]]).expand(2, 2))


def test_success_is_judged_by_frame_and_proprio() -> None:
    model, data = make_model(), ToyEpisodes(2)
    first = model.codec.encode(data.first_observation(2).frames)[:, 0]
    here, there = (model.success_head.read_frame(first, first, torch.full((2, 2), x)) for x in (0.0, 1.0))
    assert (here != there).all()
    assert (here != model.success_head.read_frame(first, -first, torch.zeros(2, 2))).all()


def test_features_are_tokens_with_gradients() -> None:
    data, model = ToyEpisodes(3), make_model()
    tokens = model.features(data.first_observation(3))
    assert tokens.shape == (3, 1 + 2 + 2 + 1 + 16, 32)
    tokens.sum().backward()
    assert model.denoiser.stem.linear.weight.grad is not None


def test_bf16_runs_close_to_fp32(trained: VideoWorldModel) -> None:
    data = ToyEpisodes(4, seed=3)
    low = make_model(dataclasses.replace(trained.config, precision="bf16"))
    low.load_state_dict(trained.state_dict())
    state = trained.start(data.first_observation(4), torch.arange(4))
    actions = full_chunk(data, 4)[:, :2]
    difference = low.imagine(state, actions)[1].frames.float() - trained.imagine(state, actions)[1].frames.float()
    assert difference.abs().mean() < 3
    low.train()(data.load(torch.tensor([[0, 0]]), 1), torch.Generator().manual_seed(0)).loss.backward()


@pytest.mark.parametrize("denoiser", ["hybrid", "cosmos"])
def test_weights_that_are_cast_for_good_imagine_the_same(denoiser: str) -> None:
    cosmos = CosmosConfig(patch=4, num_layers=2, num_heads=2, head_dim=16, adaln_lora_dim=8)
    config = dataclasses.replace(tiny_config(), denoiser=denoiser, cosmos=cosmos, precision="bf16")
    data, model = ToyEpisodes(4), make_model(config)
    settled = copy.deepcopy(model).for_imagination()
    assert any(p.dtype == torch.bfloat16 for p in settled.parameters())
    chunks = [
        m.imagine(m.start(data.first_observation(4), torch.arange(4)), full_chunk(data, 4))[1] for m in (model, settled)
    ]
    assert torch.equal(chunks[0].frames, chunks[1].frames)
    assert torch.equal(chunks[0].success_logit, chunks[1].success_logit)
    assert torch.equal(chunks[0].proprio, chunks[1].proprio)


def test_mistakes_are_named() -> None:
    data, model = ToyEpisodes(2), make_model()
    observation = data.first_observation(2)
    blind = Observation(observation.frames, None, observation.instruction, observation.env_step)
    with pytest.raises(WorldloopError, match="needs proprio"):
        model.start(blind, torch.arange(2))
    state = model.start(observation, torch.arange(2))
    with pytest.raises(ValueError, match="2 per frame"):
        model.imagine(state, torch.zeros(2, 3, 2))
