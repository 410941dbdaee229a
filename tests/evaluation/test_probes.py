"""The frame probe learns to read a scene whose state is known: a bright square on a noisy ground."""

import math

import pytest
import torch
from reporters import RecordingReporter

from worldloop.core.randomness import make_generator
from worldloop.evaluation.probes import FrameProbe, ProbeBatch, fit_frame_probe

SIZE, SQUARE, NUM_ROWS = 32, 6, 400


def _scene() -> ProbeBatch:
    """The square's corner is anywhere; 1 pixel is 1 cm; solved in the right half."""
    generator = make_generator(0, "scene")
    corner = torch.randint(0, SIZE - SQUARE, (NUM_ROWS, 2), generator=generator)
    frames = torch.randint(0, 40, (NUM_ROWS, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    for frame, (y, x) in zip(frames, corner.tolist(), strict=True):
        frame[y : y + SQUARE, x : x + SQUARE, 2] = 220
    return ProbeBatch(frames[:1].expand_as(frames), frames, corner.float() / 100, (corner[:, 1] >= 13).float())


def _fit(scene: ProbeBatch, num_steps: int) -> FrameProbe:
    def load(rows: torch.Tensor) -> ProbeBatch:
        return ProbeBatch(scene.first[rows], scene.frame[rows], scene.position_m[rows], scene.solved[rows])

    reporter = RecordingReporter()
    probe = fit_frame_probe(
        load, 300, num_steps=num_steps, batch_size=32, generator=make_generator(1, "probe"),
        device=torch.device("cpu"), reporter=reporter,
    )  # fmt: skip
    assert len(reporter.bars[0].figures) == num_steps
    return probe


def test_the_probe_reads_unseen_frames() -> None:
    scene = _scene()
    reading = _fit(scene, 150).read(scene.first[300:], scene.frame[300:], batch_size=64)
    error_cm = 100 * (reading.position_m - scene.position_m[300:]).norm(dim=1).mean()
    chance_cm = 100 * (scene.position_m - scene.position_m.mean(0)).norm(dim=1).mean()
    assert error_cm < 0.2 * chance_cm
    right = ((reading.solved_logit > 0) == (scene.solved[300:] > 0.5)).float().mean()
    assert right > 0.9


def test_the_success_loss_weighs_both_classes_equally() -> None:
    """Frames that tell nothing, of which one in eight is solved: the logit of weighed classes is 0, else ln(1 / 7)."""
    frames = torch.full((32, 16, 16, 3), 100, dtype=torch.uint8)
    batch = ProbeBatch(frames, frames, torch.zeros(32, 0), (torch.arange(32) % 8 == 0).float())
    reporter = RecordingReporter()
    probe = fit_frame_probe(
        lambda rows: batch, 32, num_steps=60, batch_size=32, generator=make_generator(1, "probe"),
        device=torch.device("cpu"), reporter=reporter,
    )  # fmt: skip
    assert probe.read(frames[:1], frames[:1]).solved_logit.item() == pytest.approx(0.0, abs=0.1)
    # 4 of 32 weigh 4 and 28 of 32 weigh 4 / 7: the mean weight is 1, and the loss of a logit of 0 is ln 2.
    assert reporter.bars[0].figures[-1]["loss"] == pytest.approx(math.log(2), abs=0.01)


def test_the_probe_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    scene = _scene()
    before = torch.get_rng_state()
    first, second = (_fit(scene, 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)
