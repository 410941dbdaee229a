"""Traced frames: they are what the model generates, and every step can be computed again."""

import dataclasses

import pytest
import torch
from planner_toy import DENOISERS, M, keys, make_config, make_planner, make_start
from torch import Tensor
from world_model_toy import TWO_CAMERAS, ToyEpisodes, make_model

from worldloop.world_model.tracing import (
    ActionTracer,
    PlanTracer,
    Sampling,
    TracedFrames,
    compute_random_steps,
    predict_last,
    trace,
)

RANDOM = Sampling(4, (1, 2), 0.7)


def same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert list(a) == list(b)
    for camera in a:
        torch.testing.assert_close(a[camera], b[camera], **tolerance)


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_without_random_steps_it_is_the_plan(denoiser: str) -> None:
    planner, start = make_planner(denoiser), make_start()
    traced = trace(PlanTracer(planner), start, keys(1, 2, 3), M, Sampling(3))
    plan = planner.plan(start, keys(1, 2, 3), M)
    for number, frames in enumerate(traced):
        assert frames.noisy["base_camera"].shape == (3, 0, 3, 16, 16)
        shown = planner.world_model.codec.decode(frames.data)
        same(shown, {camera: images[:, number] for camera, images in plan.items()})


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("denoiser", DENOISERS)
def test_with_actions_it_is_what_the_world_model_imagines(denoiser: str, num_steps: int) -> None:
    model = make_model(make_config(denoiser, num_sampler_steps=num_steps), TWO_CAMERAS).eval()
    start, data = make_start(), ToyEpisodes(3, seed=2, cameras=TWO_CAMERAS)
    actions = data.actions[:, :M]
    traced = trace(ActionTracer(model, actions), start, keys(1, 2, 3), M, Sampling(num_steps))
    _, imagined = model.imagine(model.start(start, keys(1, 2, 3)), actions.flatten(1, 2))
    for number, frames in enumerate(traced):
        shown = model.codec.decode(frames.data)
        same(shown, {camera: images[:, number] for camera, images in imagined.frames.items()})
        proprio = frames.next_proprio * model.proprio_std + model.proprio_mean
        torch.testing.assert_close(proprio, imagined.proprio[:, number])


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_random_steps_have_ratio_1_and_distance_0_until_the_model_changes(denoiser: str) -> None:
    planner, start = make_planner(denoiser, num_sampler_steps=4), make_start()
    tracer = PlanTracer(planner)
    traced = TracedFrames.cat(trace(tracer, start, keys(1, 1, 1), M, RANDOM, keys(4, 5, 6)))
    first, again = (compute_random_steps(tracer, traced, RANDOM) for _ in range(2))
    assert first.log_probs.shape == (3 * M, 2)
    assert torch.equal(first.log_probs, again.log_probs)
    # that of a standard normal draw, in units of the step's own deviation: its mean over many pixels
    draws = (traced.reached["base_camera"] - first.means["base_camera"]) / first.stds[:, None, None, None]
    assert float(draws.std()) == pytest.approx(1, abs=0.05)
    assert float(draws.mean()) == pytest.approx(0, abs=0.05)
    above = traced.reached["above.camera"] - first.means["above.camera"]
    shared = min(draws[0, 0].numel(), above[0, 0].numel())
    pair = torch.stack([draws[0, 0].flatten()[:shared], above[0, 0].flatten()[:shared]]).detach()
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.3, "cameras have noise of their own"
    first.log_probs.sum().backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in planner.parameters())
    with torch.no_grad():
        for parameter in planner.world_model.denoiser.parameters():
            parameter.mul_(1.05)
    moved = compute_random_steps(tracer, traced, RANDOM)
    assert not torch.allclose(moved.log_probs, first.log_probs)


def test_rows_with_one_key_differ_by_their_random_steps_alone() -> None:
    """So do the members of a group: same start, same initial noise."""
    planner, start = make_planner(num_sampler_steps=4), make_start().rows([0, 0, 0])
    tracer = PlanTracer(planner)
    frames = trace(tracer, start, keys(1, 1, 1), 1, RANDOM, keys(4, 4, 5))[0]
    data = frames.data["base_camera"]
    assert torch.equal(data[0], data[1])
    assert not torch.equal(data[0], data[2])
    assert torch.equal(frames.noisy["base_camera"][0, 0], frames.noisy["base_camera"][2, 0])
    assert not torch.equal(frames.reached["base_camera"][0, 0], frames.reached["base_camera"][2, 0])


@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_last_step_gives_the_frames_and_their_gradient(num_steps: int) -> None:
    """The gradient of a weight, beside finite differences; earlier steps count as constants."""
    planner, start = make_planner(num_sampler_steps=num_steps), make_start()
    sampling = Sampling(num_steps)
    traced = TracedFrames.cat(trace(PlanTracer(planner), start, keys(1, 2, 3), M, sampling))
    tracer = PlanTracer(planner)
    weight = dict(planner.named_parameters())["unknown_actions"]

    def measure() -> Tensor:
        return predict_last(tracer, traced, sampling)["base_camera"].square().sum()

    same(predict_last(tracer, traced, sampling), traced.data, atol=1e-4, rtol=1e-4)
    measure().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    gradient = weight.grad[0, 1].item()
    with torch.no_grad():
        values = []
        for change in (1e-2, -2e-2):
            weight[0, 1] += change
            values.append(float(measure()))
    assert gradient == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.05)


def test_the_first_and_last_step_cannot_be_random() -> None:
    for steps in ((0,), (3,), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match=r"allowed: 1\.\.2 of 4 steps"):
            Sampling(4, steps)


def test_other_actions_are_recalled_with_their_frames() -> None:
    model = make_model(make_config("hybrid"), TWO_CAMERAS).eval()
    start = make_start()
    actions = torch.linspace(-1, 1, 3 * M * 2 * 2).reshape(3, M, 2, 2)
    traced = TracedFrames.cat(trace(ActionTracer(model, actions), start, keys(1, 2, 3), M, Sampling(1)))
    same(predict_last(ActionTracer(model), traced, Sampling(1)), traced.data, atol=1e-5, rtol=1e-5)
    changed = dataclasses.replace(traced, actions=-traced.actions)
    other = predict_last(ActionTracer(model), changed, Sampling(1))["base_camera"]
    assert not torch.allclose(other, traced.data["base_camera"], atol=1e-5)
