"""The frame probe learns to read a scene whose state is known: a bright square on a noisy ground."""

import math
from dataclasses import replace

import pytest
import torch
from reporters import RecordingReporter

from worldloop.core.randomness import make_generator
from worldloop.evaluation.probes import FrameProbe, ProbeBatch, ProbeReading, fit_frame_probe

SIZE, SQUARE, NUM_ROWS = 32, 6, 400
TASK = ("push",)


def _draw(height: int, width: int, corner: torch.Tensor, name: str) -> torch.Tensor:
    """A bright square on noise with its corner [N, 2] = (y, x) there."""
    frames = torch.randint(0, 40, (len(corner), height, width, 3), generator=make_generator(0, name), dtype=torch.uint8)
    for frame, (y, x) in zip(frames, corner.tolist(), strict=True):
        frame[y : y + SQUARE, x : x + SQUARE, 2] = 220
    return frames


def _scene() -> ProbeBatch:
    """The square's corner is anywhere; 1 pixel is 1 cm; solved in the right half."""
    corner = torch.randint(0, SIZE - SQUARE, (NUM_ROWS, 2), generator=make_generator(0, "scene"))
    frames = _draw(SIZE, SIZE, corner, "noise")
    solved = (corner[:, 1] >= 13).float()
    return ProbeBatch({"base": frames[:1].expand_as(frames)}, {"base": frames}, TASK * NUM_ROWS, corner / 100, solved)


def _load(scene: ProbeBatch, rows: torch.Tensor) -> ProbeBatch:
    def take(views: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {camera: frames[rows] for camera, frames in views.items()}

    tasks = tuple(scene.task[row] for row in rows.tolist())
    return ProbeBatch(take(scene.first), take(scene.frame), tasks, scene.position_m[rows], scene.solved[rows])


def _fit(scene: ProbeBatch, num_steps: int) -> FrameProbe:
    reporter = RecordingReporter()
    probe = fit_frame_probe(
        lambda rows: _load(scene, rows), 300, tuple(dict.fromkeys(scene.task)), num_steps=num_steps, batch_size=32,
        generator=make_generator(1, "probe"), device=torch.device("cpu"), reporter=reporter,
    )  # fmt: skip
    assert len(reporter.bars[0].figures) == num_steps
    return probe


def _read_unseen(probe: FrameProbe, scene: ProbeBatch) -> tuple[ProbeReading, ProbeBatch]:
    unseen = _load(scene, torch.arange(300, NUM_ROWS))
    return probe.read(unseen.first, unseen.frame, unseen.task, batch_size=64), unseen


def _share_right(reading: ProbeReading, unseen: ProbeBatch) -> float:
    return ((reading.solved_logit > 0) == (unseen.solved > 0.5)).float().mean().item()


def test_the_probe_reads_unseen_frames() -> None:
    scene = _scene()
    reading, unseen = _read_unseen(_fit(scene, 150), scene)
    error_cm = 100 * (reading.position_m - unseen.position_m).norm(dim=1).mean()
    chance_cm = 100 * (scene.position_m - scene.position_m.mean(0)).norm(dim=1).mean()
    assert error_cm < 0.2 * chance_cm
    assert _share_right(reading, unseen) > 0.9


def test_two_tasks_that_share_a_scene_are_told_apart_by_the_row() -> None:
    """What solves one is the failure of the other, and its landmark is mirrored."""
    scene = _scene()
    is_other = torch.arange(NUM_ROWS) % 2 == 1
    mirrored = replace(
        scene,
        task=tuple("pull" if other else "push" for other in is_other.tolist()),
        position_m=torch.where(is_other[:, None], -scene.position_m, scene.position_m),
        solved=torch.where(is_other, 1 - scene.solved, scene.solved),
    )
    reading, unseen = _read_unseen(_fit(mirrored, 100), mirrored)
    error_cm = 100 * (reading.position_m - unseen.position_m).norm(dim=1).mean()
    assert error_cm < 5.0, "between the two lie 20 cm and more"
    assert _share_right(reading, unseen) > 0.9


def test_cameras_of_different_sizes_are_read_together() -> None:
    """One shows where the square is along y, the other along x."""
    scene = _scene()
    y, x = (100 * scene.position_m).round().long().unbind(1)
    views = {
        "tall": _draw(SIZE, 8, torch.stack([y, torch.ones_like(y)], 1), "tall"),
        "wide": _draw(8, SIZE, torch.stack([torch.ones_like(x), x], 1), "wide"),
    }
    both = replace(scene, first={name: view[:1].expand_as(view) for name, view in views.items()}, frame=views)
    reading, unseen = _read_unseen(_fit(both, 100), both)
    error_cm = 100 * (reading.position_m - unseen.position_m).abs().mean(0)
    assert (error_cm < 2.0).all(), "both coordinates"
    assert _share_right(reading, unseen) > 0.9


def test_the_success_loss_weighs_both_classes_of_each_task_equally() -> None:
    """Frames that tell nothing, of which one in eight and three in four are solved.

    The logits of weighed classes are 0, else ln(1 / 7) and ln(3).
    """
    frames = {"base": torch.full((64, 16, 16, 3), 100, dtype=torch.uint8)}
    number = torch.arange(64)
    solved = torch.where(number < 32, number % 8 == 0, number % 4 > 0).float()
    batch = ProbeBatch(frames, frames, ("push",) * 32 + ("pull",) * 32, torch.zeros(64, 0), solved)
    reporter = RecordingReporter()
    probe = fit_frame_probe(
        lambda rows: batch, 64, ("push", "pull"), num_steps=60, batch_size=64, generator=make_generator(1, "probe"),
        device=torch.device("cpu"), reporter=reporter,
    )  # fmt: skip
    reading = probe.read(frames, frames, batch.task)
    assert reading.solved_logit[[0, 32]].tolist() == pytest.approx([0.0, 0.0], abs=0.1)
    # E.g. 4 of 32 weigh 4 and 28 of 32 weigh 4 / 7: the mean weight is 1, and the loss of a logit of 0 is ln 2.
    assert reporter.bars[0].figures[-1]["loss"] == pytest.approx(math.log(2), abs=0.01)


def test_the_probe_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    scene = _scene()
    before = torch.get_rng_state()
    first, second = (_fit(scene, 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)
