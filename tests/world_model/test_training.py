"""What a world model learns from: its losses by hand, its statistics, and its objectives in the training loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from reporters import RecordingReporter
from torch import Tensor
from world_model_toy import (
    NUM_FRAMES,
    ONE_CAMERA,
    TWO_CAMERAS,
    ToyEpisodes,
    make_model,
    tiny_config,
    toy_normalisation,
)

from worldloop.core.specs import CameraSpec
from worldloop.core.types import Clip
from worldloop.networks import flow
from worldloop.training.data_parallel import DataParallel
from worldloop.training.optimizer import Optimizer
from worldloop.training.resume import TrainingSetup
from worldloop.training.trainer import BatchObjective, Trainer
from worldloop.world_model.config import SelfRolloutConfig
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.proprio_training import ProprioObjective, ReadingObjective, compute_proprio_loss
from worldloop.world_model.training import (
    ActionTerm,
    DataTarget,
    NoisyFrame,
    WorldModelObjective,
    compute_joint_loss,
    update_positive_rate,
)


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- losses -------------------------------------------------------------------------------------------------------


def test_the_joint_loss_comes_with_metrics_and_the_models_own_prediction() -> None:
    data, model = ToyEpisodes(4, cameras=TWO_CAMERAS), make_model(cameras=TWO_CAMERAS)
    clip = data.load(torch.tensor([[0, 0], [1, 2], [2, 4]]), 2)
    loss, metrics, own = model(compute_joint_loss, clip, make_generator())
    assert loss.requires_grad
    assert loss.shape == ()
    assert metrics["loss"] == float(loss)
    assert set(metrics) == {"loss", "loss_video", "loss_success", "loss_error"}
    assert {camera: tuple(frames.shape) for camera, frames in own.frames.items()} == {
        "base_camera": (3, 16, 16, 3),
        "above.camera": (3, 8, 12, 3),
    }
    assert all(frames.dtype == torch.uint8 for frames in own.frames.values())
    assert own.proprio.shape == (3, 2)
    assert not own.proprio.requires_grad
    assert own.is_prediction.dtype == torch.bool


def test_the_loss_on_actions_by_hand() -> None:
    """Read back as (last - before) of a window's first pixel; the windows end with the prediction, the context's own
    frames come before it."""
    context = {"cam": torch.stack([torch.full((2, 1, 1, 1), value) for value in (9.0, 1.0, 2.0)], dim=1)}
    predicted = {"cam": torch.full((2, 1, 1, 1), 5.0, requires_grad=True)}

    def read(windows: Mapping[str, Tensor]) -> Tensor:
        before, now, following = windows["cam"].flatten(1).unbind(1)
        assert now.tolist() == [2.0, 2.0]
        return (following - before)[:, None, None]

    term = ActionTerm(read, weight=0.5)
    loss = term.compute_loss(context, predicted, torch.tensor([4.0, 2.0])[:, None, None])
    assert loss.tolist() == [0.0, 2.0]  # (5 - 1) - 4, and (5 - 1) - 2, squared, times .5
    loss.sum().backward()
    assert predicted["cam"].grad is not None
    assert predicted["cam"].grad.flatten().tolist() == [0.0, 2.0]


def test_the_joint_loss_includes_the_loss_on_actions() -> None:
    data, model = ToyEpisodes(4), make_model()
    clip = data.load(torch.tensor([[0, 0], [1, 2]]), 2)
    num_read = []

    def read(windows: Mapping[str, Tensor]) -> Tensor:
        num_read.append(windows["base_camera"].shape[1])
        return windows["base_camera"][:, -1].mean((1, 2, 3))[:, None, None].expand(-1, *clip.actions.shape[2:]) + 3

    plain, _, _ = compute_joint_loss(model, clip, make_generator())
    loss, metrics, _ = compute_joint_loss(model, clip, make_generator(), action_term=ActionTerm(read, 2.0))
    assert num_read == [3, 3]
    assert metrics["loss_actions"] > 1
    assert float(loss) == pytest.approx(float(plain) + metrics["loss_actions"], rel=1e-5)


def test_padding_does_not_count() -> None:
    data, model = ToyEpisodes(4), make_model(tiny_config(zero_time_share=1.0, context_noise=0.0))
    clip = data.load(torch.tensor([[0, 4], [1, 1]]), 2)
    assert clip.valid.tolist() == [[True, False], [True, True]]
    wrong = {camera: frames.clone() for camera, frames in clip.frames.items()}
    wrong["base_camera"][0, 1] = 255
    values = [
        compute_joint_loss(model.eval(), dataclasses.replace(clip, frames=f), make_generator())[1]["loss"]
        for f in (clip.frames, wrong)
    ]
    # colour rarity is a statistic of the batch's valid and invalid pixels of that frame, hence the tolerance
    assert values[0] == pytest.approx(values[1], rel=0.05)


def test_only_rows_at_pure_noise_are_predictions() -> None:
    data = ToyEpisodes(16)
    clip = data.load(torch.stack([torch.arange(16), torch.zeros(16).long()], 1), 1)
    for share, expected in ((1.0, True), (0.0, False)):
        _, _, own = compute_joint_loss(make_model(tiny_config(zero_time_share=share)), clip, make_generator())
        assert own.is_prediction.all().item() == expected
        assert own.is_prediction.any().item() == expected


@pytest.mark.parametrize(("t", "weight"), [(0.0, 1.0), (0.2, 1 / 0.64), (0.5, 3.0)])
def test_success_loss_of_both_readers_by_hand(t: float, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of tokens always says 0 and the reader of frames ln 3, of one success and one failure."""
    monkeypatch.setattr(flow, "sample_times", lambda num_rows, *_: torch.full((num_rows,), t))
    data, model = ToyEpisodes(2), make_model(tiny_config(success_time_weight_max=3.0))
    for mlp, logit in ((model.success_head.read_tokens.mlp, 0.0), (model.success_head.frame_mlp, math.log(3))):
        torch.nn.init.zeros_(mlp[-1].weight)
        torch.nn.init.constant_(mlp[-1].bias, logit)
    clip = data.load(torch.tensor([[0, 0], [1, 0]]), 1)
    clip = dataclasses.replace(clip, holds=torch.tensor([[1.0], [0.0]]))
    _, metrics, _ = compute_joint_loss(model, clip, make_generator())
    # By frame ln(4 / 3) and ln 4, by tokens ln 2 twice, which weighs 1 / (1 - t)^2, at most 3.
    expected = (math.log(4 / 3) + math.log(4)) / 2 + weight * math.log(2)
    assert metrics["loss_success"] == pytest.approx(expected, rel=1e-5)
    assert (metrics["loss_error"] > 0) == (t == 0), "imagination starts from noise alone"


def test_a_prediction_does_not_depend_on_the_target() -> None:
    data, model = ToyEpisodes(8), make_model(tiny_config(zero_time_share=1.0))
    clip = data.load(torch.stack([torch.arange(8), torch.ones(8).long()], 1), 1)
    inverse = {camera: 255 - frames for camera, frames in clip.frames.items()}
    other = dataclasses.replace(clip, frames=inverse, proprio=clip.proprio + 1, holds=1 - clip.holds)
    one, two = (compute_joint_loss(model, c, make_generator())[2] for c in (clip, other))
    assert torch.equal(one.frames["base_camera"], two.frames["base_camera"])
    assert torch.equal(one.proprio, two.proprio)


def test_proprio_loss_by_hand() -> None:
    """With a head that stays put, the error is the normalised distance from the start, over valid frames alone.

    An error e counts e^2 / .6 up to .3 standard deviations and e - .15 from there on.
    """
    data, model = ToyEpisodes(4), make_model()
    for parameter in model.proprio_head.members[0][-1].parameters():
        torch.nn.init.zeros_(parameter)
    clip = data.load(torch.tensor([[0, 4], [1, 1]]), 2)
    assert clip.valid.tolist() == [[True, False], [True, True]]
    moved = (clip.proprio - clip.context_proprio[:, None]).abs() / toy_normalisation().proprio_std
    assert (moved[clip.valid] < 0.3).any()
    assert (moved[clip.valid] > 0.3).any()
    expected = torch.where(moved < 0.3, moved**2 / 0.6, moved - 0.15).mean(2)[clip.valid].mean()
    torch.testing.assert_close(compute_proprio_loss(model, clip, make_generator()), expected)


def test_loss_decreases_when_overfitting_one_clip() -> None:
    data, model = ToyEpisodes(2), make_model(tiny_config(zero_time_share=1.0))
    clip = data.load(torch.tensor([[0, 1], [1, 2]]), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator, values = make_generator(), []
    for _ in range(60):
        loss, metrics, _ = compute_joint_loss(model, clip, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(metrics["loss"])
    assert sum(values[-5:]) < 0.5 * sum(values[:5])


@pytest.mark.parametrize("cameras", [ONE_CAMERA, TWO_CAMERAS])
@pytest.mark.parametrize("changes", [{}, {"landmarks": True}, {"landmarks": True, "num_members": 2}])
def test_every_parameter_gets_a_gradient(cameras: tuple[CameraSpec, ...], changes: dict[str, object]) -> None:
    data, model = ToyEpisodes(8, cameras=cameras), make_model(tiny_config(**changes), cameras)
    apart = [model.proprio_head] if model.landmarks is None else [model.proprio_head, model.landmarks]
    clip = data.load(torch.stack([torch.arange(8), torch.ones(8).long()], 1), 1)
    for _ in range(2):  # residual branches start at zero and block some gradients at the very first step
        compute_joint_loss(model, clip, make_generator())[0].backward()
        assert all(p.grad is None for part in apart for p in part.parameters()), "trained apart"
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.01)
    clip = data.load(torch.tensor([[0, 0], [1, 1]]), 2)
    generators: Mapping[int, torch.Generator] = {0: make_generator()}
    ProprioObjective(model, data, generators, batch_size=2, num_frames=2).compute_loss(clip, 0)[0].backward()
    if model.landmarks is not None:
        ReadingObjective(model, data, generators, batch_size=2).compute_loss(clip, 0)[0].backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


@dataclass(frozen=True)
class Constant:
    """A `Target`: the same latents ``value`` for every frame, all rows at time ``t``. What it was asked is kept."""

    value: float
    t: float
    asked: list[NoisyFrame] = dataclasses.field(default_factory=list)

    def sample_times(self, num_rows: int, generator: torch.Generator) -> Tensor:
        return torch.full((num_rows,), self.t)

    def find(self, frame: NoisyFrame) -> dict[str, Tensor]:
        self.asked.append(frame)
        return {camera: torch.full_like(data, self.value) for camera, data in frame.data.items()}


def test_the_target_is_what_predictions_are_compared_with() -> None:
    """Success and error heads go on learning from the real frame; only the video loss has another aim."""
    data, model = ToyEpisodes(4), make_model(tiny_config(context_noise=0.0))
    clip = data.load(torch.tensor([[0, 0], [1, 2]]), 1)
    first, far = Constant(0.0, 0.25), Constant(5.0, 0.25)
    metrics = [compute_joint_loss(model, clip, make_generator(), target)[1] for target in (first, far)]
    assert metrics[1]["loss_video"] > metrics[0]["loss_video"] + 3.0
    assert metrics[1]["loss_success"] == metrics[0]["loss_success"]
    (frame,) = first.asked
    real, context = model.encode(clip.frames), model.encode(clip.context)
    torch.testing.assert_close(frame.data, {camera: latents[:, 0] for camera, latents in real.items()})
    torch.testing.assert_close(frame.context, context)
    torch.testing.assert_close(frame.low_dim, model.normalisation.normalise(clip.context_proprio))
    torch.testing.assert_close(frame.actions, clip.actions[:, 0])  # the bounds are -1 and 1
    assert frame.instruction == clip.instruction
    assert frame.t.tolist() == [0.25, 0.25]
    noise = (frame.noisy["base_camera"] - 0.25 * frame.data["base_camera"]) / 0.75
    assert noise.std() == pytest.approx(1.0, abs=0.05)


def test_the_data_target_is_the_real_frame_and_a_share_starts_from_noise() -> None:
    data, target = torch.randn(2, 3, 4, 4, generator=make_generator()), DataTarget(zero_time_share=0.4)
    noisy, real, context = ({"cam": value} for value in (data + 1, data, data[:, None]))
    frame = NoisyFrame(noisy, torch.zeros(2), real, context, data[:, 0, 0], data[:, 0], ("go", "go"))
    assert target.find(frame) is real
    times = target.sample_times(2000, make_generator())
    assert ((times >= 0) & (times < 1)).all()
    assert (times == 0).float().mean() == pytest.approx(0.4, abs=0.04)  # four standard errors


def test_what_follows_a_blind_prediction_is_conditioned_on_it() -> None:
    """From pure noise the second frame sees the model's own first; from half-way it sees the real one."""
    data, model = ToyEpisodes(4, cameras=TWO_CAMERAS), make_model(tiny_config(context_noise=0.0), TWO_CAMERAS)
    clip = data.load(torch.tensor([[0, 0], [1, 2]]), 2)
    real = {camera: latents[:, 0] for camera, latents in model.encode(clip.frames).items()}
    for t, is_real in ((0.0, False), (0.5, True)):
        target = Constant(0.0, t)
        _, _, own = compute_joint_loss(model, clip, make_generator(), target)
        assert own.is_prediction.tolist() == [not is_real] * 2
        first, second = target.asked
        now = {camera: context[:, -1] for camera, context in second.context.items()}
        for camera, latents in now.items():
            assert torch.equal(second.context[camera][:, 0], first.context[camera][:, 0])
            assert torch.equal(latents, real[camera]) == is_real
        if not is_real:
            torch.testing.assert_close(model.codec.decode(now), own.frames, atol=0, rtol=0)
            torch.testing.assert_close(model.normalise(own.proprio, own.landmarks), second.low_dim)


# --- statistics ---------------------------------------------------------------------------------------------------


def statistics_clip(data: ToyEpisodes) -> Clip:
    """Three rows of one frame: a success, a failure, and one that does not count."""
    clip = data.load(torch.tensor([[0, 0], [1, 2], [2, 4]]), 1)
    success, valid = torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([[True], [True], [False]])
    return dataclasses.replace(clip, holds=success, valid=valid)


def test_statistics_by_hand_however_a_batch_falls_into_microbatches() -> None:
    clip = statistics_clip(ToyEpisodes(4))
    for parts in ([clip], [clip.rows([0]), clip.rows([1, 2])], [clip.rows([i]) for i in range(3)]):
        model = make_model()
        update_positive_rate(model, parts, DataParallel())
        assert float(model.positive_rate) == pytest.approx(0.99 * 0.5 + 0.01 * 1 / 2)


@dataclass(frozen=True)
class BesideAnother(DataParallel):
    """The main one of two ranks, of which the other saw three successes in four frames more."""

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        return values + torch.tensor([3.0, 4.0])


def test_statistics_are_those_of_all_ranks() -> None:
    model = make_model()
    update_positive_rate(model, [statistics_clip(ToyEpisodes(4))], BesideAnother())
    assert float(model.positive_rate) == pytest.approx(0.99 * 0.5 + 0.01 * 4 / 6)


# --- objectives ---------------------------------------------------------------------------------------------------


def make_objective(model: VideoWorldModel, num_microbatches: int = 1, pool_from: int = 0) -> WorldModelObjective:
    setup = TrainingSetup(num_microbatches=num_microbatches)
    return WorldModelObjective(
        model, ToyEpisodes(16), setup.make_generators("video"), setup.data_parallel, batch_size=8, pool_from=pool_from
    )


def train(model: VideoWorldModel, objective: BatchObjective[Clip], num_steps: int) -> None:
    setup = TrainingSetup(num_microbatches=len(objective.generators))
    make_optimizer = partial(Optimizer, learning_rate=1e-3, num_steps=None)
    Trainer(model, make_optimizer, setup, RecordingReporter(), name="fit").fit(objective, num_steps)


def test_the_pool_takes_part_from_its_step_on() -> None:
    config = tiny_config(zero_time_share=1.0, self_rollout=SelfRolloutConfig(share=0.5))
    model = make_model(config)
    objective = make_objective(model, num_microbatches=2, pool_from=3)
    train(model, objective, 3)
    assert [len(pool) for pool in objective.pools.values()] == [0, 0]
    train(model, objective, 5)
    assert [len(pool) for pool in objective.pools.values()] == [4, 4]
    batches = next(iter(objective.batches(5)))
    for number, clip in batches.items():
        real = objective.clips.load(clip.index, 1)
        assert torch.equal(clip.frames["base_camera"], real.frames["base_camera"])
        context, real_context = clip.context["base_camera"], real.context["base_camera"]
        assert not torch.equal(context[:4, -1], real_context[:4, -1]), f"{number}: the model's own frames"
        assert torch.equal(context[4:], real_context[4:])


def test_an_objective_keeps_generator_and_pool_of_every_microbatch() -> None:
    model = make_model(tiny_config(zero_time_share=1.0))
    objective = make_objective(model, num_microbatches=2)
    train(model, objective, 2)
    again = make_objective(make_model(), num_microbatches=2)
    for number, states in objective.microbatch_state().items():
        assert set(states) == {"generator", "pool"}
        for name, state in states.items():
            tensors = {key: value.clone() for key, value in state.state_dict().items()}
            again.microbatch_state()[number][name].load_state_dict(tensors)
    one, other = (next(iter(o.batches(2))) for o in (objective, again))
    for number in (0, 1):
        assert torch.equal(one[number].index, other[number].index)
        assert torch.equal(one[number].context["base_camera"], other[number].context["base_camera"])


def test_microbatches_weigh_by_their_valid_frames() -> None:
    model = make_model()
    clip = ToyEpisodes(4).load(torch.tensor([[0, NUM_FRAMES - 1], [1, 1]]), 2)
    generators: Mapping[int, torch.Generator] = {0: make_generator()}
    proprio = ProprioObjective(model, ToyEpisodes(4), generators, batch_size=2, num_frames=2)
    assert int(proprio.count(clip)) == int(make_objective(model).count(clip)) == 3


def test_statistics_are_brought_up_to_date_before_the_losses() -> None:
    model = make_model()
    objective = make_objective(model)
    batches = next(iter(objective.batches(0)))
    expected = make_model()
    update_positive_rate(expected, list(batches.values()), DataParallel())
    objective.prepare_update(batches)
    assert model.positive_rate != 0.5
    assert torch.equal(model.positive_rate, expected.positive_rate)


def test_the_proprio_objective_trains_its_head_and_nothing_else() -> None:
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = ProprioObjective(model, ToyEpisodes(16), {0: make_generator()}, batch_size=8, num_frames=3)
    clip = next(iter(objective.batches(0)))[0]
    assert clip.valid.shape == (8, 3)
    loss, metrics = objective.compute_loss(clip, 0)
    assert metrics == {"loss_proprio": float(loss.detach())}
    train(model, objective, 2)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("proprio_head.") for name in changed)


def test_with_landmarks_the_proprio_head_learns_without_images_and_the_reader_apart() -> None:
    model, data = make_model(tiny_config(landmarks=True)), ToyEpisodes(16)
    generators: Mapping[int, torch.Generator] = {0: make_generator()}
    proprio = ProprioObjective(model, data, generators, batch_size=8, num_frames=3)
    clip = next(iter(proprio.batches(0)))[0]
    assert (clip.context, clip.frames) == ({}, {})
    for objective, part in (
        (proprio, "proprio_head."),
        (ReadingObjective(model, data, generators, batch_size=8), "landmarks."),
    ):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, objective, 2)
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert changed
        assert all(name.startswith(part) for name in changed)
