"""Planner mode: what a plan depends on, and what it learns, on both denoisers."""

import dataclasses
from functools import partial

import pytest
import torch
from planner_toy import DENOISERS, B, M, keys, make_planner, make_start
from reporters import RecordingReporter
from torch import Tensor
from world_model_toy import TWO_CAMERAS, ToyEpisodes, make_model, tiny_config, toy_normalisation, toy_spec

from worldloop.core.types import Clip
from worldloop.training.optimizer import Optimizer
from worldloop.training.resume import TrainingSetup
from worldloop.training.trainer import Trainer
from worldloop.world_model.planner import PlannerObjective, VideoPlanner, compute_plan_loss


def largest_change(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """[B]: by how much a pixel differs at most, over all frames and cameras."""
    return torch.stack([(a[c].int() - b[c].int()).abs().flatten(1).amax(1) for c in a]).amax(0)


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_a_plan_is_a_function_of_frames_instruction_and_noise(denoiser: str) -> None:
    planner, start = make_planner(denoiser), make_start()
    plan = planner.plan(start, keys(1, 2, 3), M)
    assert {camera: tuple(frames.shape) for camera, frames in plan.items()} == {
        "base_camera": (B, M, 16, 16, 3),
        "above.camera": (B, M, 8, 12, 3),
    }
    assert largest_change(plan, planner.plan(start, keys(1, 2, 3), M)).tolist() == [0] * B
    moved = dataclasses.replace(start, proprio=torch.full_like(start.proprio, 0.7))  # type: ignore[arg-type]
    assert largest_change(plan, planner.plan(moved, keys(1, 2, 3), M)).tolist() == [0] * B, "no proprio is read"
    told = dataclasses.replace(start, instruction=("move left", *start.instruction[1:]))
    assert (largest_change(plan, planner.plan(told, keys(1, 2, 3), M)) > 0).tolist() == [True, False, False]
    other = {camera: torch.cat([255 - images[:1], images[1:]]) for camera, images in start.frames.items()}
    seen = planner.plan(dataclasses.replace(start, frames=other), keys(1, 2, 3), M)
    assert (largest_change(plan, seen) > 0).tolist() == [True, False, False]
    assert (largest_change(plan, planner.plan(start, keys(9, 2, 3), M)) > 0).tolist() == [True, False, False]
    assert largest_change(planner.plan(start, None, M), planner.plan(start, None, M)).tolist() == [0] * B


def test_one_step_plans_the_mean_and_draws_no_noise() -> None:
    planner, start = make_planner(num_sampler_steps=1), make_start()
    assert largest_change(planner.plan(start, keys(1, 2, 3), M), planner.plan(start, None, M)).tolist() == [0] * B


def test_a_longer_plan_begins_with_the_shorter_one() -> None:
    planner, start = make_planner(), make_start()
    short, long = (planner.plan(start, keys(1, 2, 3), n) for n in (1, 3))
    assert largest_change(short, {camera: frames[:, :1] for camera, frames in long.items()}).tolist() == [0] * B


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_no_pose_is_drawn_and_the_stand_ins_learn(denoiser: str) -> None:
    """Gradients reach the stand-ins and the denoiser, but neither pose maps nor heads."""
    planner = make_planner(denoiser).train()
    clip = ToyEpisodes(8, cameras=TWO_CAMERAS).load(torch.tensor([[0, 0], [1, 1], [2, 2]]), M)
    loss, metrics = compute_plan_loss(planner, clip, torch.Generator().manual_seed(0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert metrics["loss"] == pytest.approx(float(loss.detach()))
    assert planner.unknown_actions.grad is not None
    assert float(planner.unknown_actions.grad.abs().max()) > 0
    assert float(planner.unknown_proprio.grad.abs().max()) > 0  # type: ignore[union-attr]
    unused = ("poses", "draw.", "proprio_head", "success_head", "error_head")
    for name, parameter in planner.named_parameters():
        if any(part in name for part in unused):
            assert parameter.grad is None, name


def test_frames_past_the_end_do_not_count() -> None:
    planner = make_planner()
    clip = ToyEpisodes(8, cameras=TWO_CAMERAS).load(torch.tensor([[0, 4], [1, 4]]), M)
    assert clip.valid.tolist() == [[True, False]] * 2
    changed = {camera: frames.clone() for camera, frames in clip.frames.items()}
    for frames in changed.values():
        frames[:, 1] = 255 - frames[:, 1]

    def measure(clip: Clip) -> float:
        return float(compute_plan_loss(planner, clip, torch.Generator().manual_seed(0))[0])

    # weights of rare colours are of one frame, so what is not valid changes nothing
    assert measure(dataclasses.replace(clip, frames=changed)) == measure(clip)


def test_it_starts_from_a_fitted_world_model() -> None:
    model = make_model(tiny_config(), TWO_CAMERAS)
    planner = VideoPlanner(tiny_config(num_sampler_steps=2), model.spec, model.normalisation)
    planner.start_from(model)
    for name, value in model.state_dict().items():
        assert torch.equal(planner.state_dict()[f"world_model.{name}"], value)
    assert not any(p.requires_grad for p in planner.world_model.success_head.parameters())


def test_it_learns_to_go_where_successes_go() -> None:
    """All episodes go right by .5 a frame; a plan of two frames is nearer to the real ones than standing still."""
    data = ToyEpisodes(32)
    data.actions[..., 0], data.actions[..., 1] = 1.0, 0.0
    data.proprio = torch.stack([(data.proprio[:, 0] + torch.tensor([0.4 * f, 0.0])).clamp(-1, 1) for f in range(6)], 1)
    from world_model_toy import BASE, draw_dots

    data.frames = {BASE.name: draw_dots(data.proprio, BASE)}
    torch.manual_seed(0)
    config = tiny_config(num_sampler_steps=2, zero_time_share=0.5)
    planner = VideoPlanner(config, toy_spec(), toy_normalisation())
    setup = TrainingSetup()
    index = torch.cartesian_prod(torch.arange(32), torch.arange(3))

    def draw_starts(generator: torch.Generator, number: int) -> Tensor:
        return index[torch.randint(len(index), (number,), generator=generator)]

    objective = PlannerObjective(planner, data, draw_starts, setup.make_generators("plan"), batch_size=16, num_frames=2)
    make_optimizer = partial(Optimizer, learning_rate=3e-3, num_steps=None, warmup_steps=0)
    trainer = Trainer(planner, make_optimizer, setup, RecordingReporter(), name="planner", ema_decay=0.9)
    planner = trainer.fit(objective, 80).eval()
    start = ToyEpisodes.first_observation(data, 8)
    plan = planner.plan(start, None, 2)[BASE.name].float()
    real, still = data.frames[BASE.name][:8, 1:3].float(), data.frames[BASE.name][:8, :1].float()
    assert float((plan - real).square().mean()) < 0.5 * float((still - real).square().mean())
