"""What a probe sees where the answer is known: the truth itself, a shifted one, a blind probe."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reporters import RecordingReporter

from worldloop.core.randomness import make_generator
from worldloop.core.specs import Landmark
from worldloop.evaluation.probes import ProbeReading
from worldloop.evaluation.visual_state import (
    compute_visual_alignment,
    fit_probe,
    locate_landmarks,
    measure_state_errors,
    see,
    slice_landmarks,
)

CAMERA = "base_camera"


def test_frames_are_read_in_their_order_with_their_episodes_first_frame_and_task(truth) -> None:
    class Probe:
        def read(self, first, frames, task) -> ProbeReading:
            assert torch.equal(first[CAMERA][:: truth.logit.shape[1]], truth.first_frames[CAMERA])
            assert task == ("ToyPush-v1",) * truth.logit.numel()
            means = frames[CAMERA].float().mean((1, 2, 3))
            return ProbeReading(means[:, None], -means)

    seen = see(Probe(), truth, truth.frames)  # type: ignore[arg-type]
    means = truth.frames[CAMERA].float().mean((2, 3, 4))
    assert torch.allclose(seen.position_m[..., 0], means)
    assert torch.allclose(seen.solved_logit, -means)


def test_each_landmark_has_its_part_of_the_coordinates() -> None:
    marks = (Landmark("object", "sim_state", (4, 5, 6)), Landmark("effector", "proprio", (0, 1)))
    assert slice_landmarks(marks) == [(marks[0], slice(0, 3)), (marks[1], slice(3, 5))]
    assert slice_landmarks(()) == []


def test_landmarks_are_in_metres_and_held_after_the_end(truth, toy_clips, spec) -> None:
    metres = locate_landmarks(truth, toy_clips, spec)
    assert metres.shape == (*truth.logit.shape, 6)  # object x y, goal x y, effector x y
    state = torch.from_numpy(toy_clips.cache.episode(0).sim_state)
    assert torch.allclose(metres[0, 0], 0.1 * state[1, [4, 5, 6, 7, 0, 1]])
    last = len(state) - 1
    assert torch.allclose(metres[0, last - 1 :], 0.1 * state[last, [4, 5, 6, 7, 0, 1]].expand_as(metres[0, last - 1 :]))


def test_state_error_is_in_centimetres_beside_its_floor(truth, toy_clips, spec, see_truth) -> None:
    moved = replace(truth, proprio=truth.proprio + torch.tensor([0.2, 0.0, 0.0, 0.0]))
    true_m = locate_landmarks(truth, toy_clips, spec)
    errors = measure_state_errors(
        moved, see_truth(offset_m=0.03), see_truth(offset_m=0.01), true_m, spec.tasks[0].landmarks
    )
    valid = truth.truth.valid
    count = int(valid.sum())
    assert errors["object"].imagined.values[valid].tolist() == pytest.approx([3.0] * count, abs=1e-4)
    assert errors["object"].floor.values[valid].tolist() == pytest.approx([1.0] * count, abs=1e-4)
    assert errors["object"].imagined.end.value == pytest.approx(3.0, abs=1e-4)
    assert errors["effector"].floor.values[valid].max() < 1e-4
    # the effector is in the proprio as well: 0.2 units are 2 cm
    assert errors["effector"].proprio.values[valid].mean().item() == pytest.approx(2.0, abs=1e-4)
    assert errors["object"].proprio is None
    assert list(errors["object"].name_metrics("cube")) == ["cube_error_cm", "cube_error_cm_floor"]
    assert list(errors["effector"].name_metrics("hand"))[2] == "hand_error_cm_proprio"


def test_visual_alignment_compares_what_is_seen_with_what_was_simulated(truth, toy_clips, see_truth) -> None:
    outcomes = tuple(m.outcome for m in toy_clips.cache.metas)
    blind = see_truth(logit=torch.full_like(truth.logit, 3.0))
    alignment = compute_visual_alignment(truth, blind, see_truth(), outcomes, 0.0)
    assert alignment.imagined.balanced_accuracy.value == 0.5
    assert alignment.simulated.balanced_accuracy.value == 1.0
    figures = alignment.to_dict()
    assert figures["imagined"]["balanced_accuracy"]["value"] == 0.5
    assert set(figures["simulated"]) == {"n", "num_success", "balanced_accuracy", "auc", "accuracy"}


def test_a_probe_learns_nothing_of_episodes_whose_state_is_unknown(toy_clips, spec) -> None:
    """Of nine episodes the first three are given no state; a single NaN would make the loss one."""
    cache, reporter = toy_clips.cache, RecordingReporter()
    read = cache.frames

    def forget(name, episode, row):
        values = read(name, episode, row)
        if name == "sim_state":
            values[np.broadcast_to(episode, row.shape) < 3] = np.nan
        return values

    cache.frames = forget
    assert cache.knows_state.tolist() == [False] * 3 + [True] * 6
    fit_probe(
        toy_clips, spec, num_steps=10, batch_size=32, generator=make_generator(0, "probe"),
        device=torch.device("cpu"), reporter=reporter,
    )  # fmt: skip
    assert all(np.isfinite(figures["loss"]) for figures in reporter.bars[0].figures)


def test_a_probe_is_fitted_on_all_frames_and_gets_a_threshold_between_the_outcomes(toy_clips, spec) -> None:
    reporter = RecordingReporter()
    probe = fit_probe(
        toy_clips, spec, num_steps=60, batch_size=32, generator=make_generator(0, "probe"),
        device=torch.device("cpu"), reporter=reporter,
    )  # fmt: skip
    assert len(reporter.bars[0].figures) == 60
    assert reporter.bars[0].figures[-1]["loss"] < reporter.bars[0].figures[0]["loss"]
    episodes = toy_clips.episode_index()
    clip = toy_clips.load(torch.stack([episodes, torch.zeros_like(episodes)], 1), int(toy_clips.cache.num_steps.max()))
    reading = probe.network.read(
        {CAMERA: clip.context[CAMERA][:, :1].expand_as(clip.frames[CAMERA]).flatten(0, 1)},
        {CAMERA: clip.frames[CAMERA].flatten(0, 1)},
        ("ToyPush-v1",) * clip.valid.numel(),
    ).solved_logit.unflatten(0, clip.valid.shape)
    solved = reading.masked_fill(~clip.valid, -torch.inf).amax(1) >= probe.success_thresholds["ToyPush-v1"]
    assert (solved == (clip.success * clip.valid).amax(1).bool()).float().mean() > 0.7
