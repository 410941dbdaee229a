"""Frames in files give the same figures as frames in memory."""

from dataclasses import replace

import pytest
import torch

from worldloop.core.errors import WorldloopError
from worldloop.evaluation.action_following import follow_actions
from worldloop.evaluation.fidelity import compute_mean_psnr, measure_fidelity
from worldloop.evaluation.frames import FrameFile
from worldloop.evaluation.probes import FrameProbe
from worldloop.evaluation.visual_state import locate_landmarks, see

CAMERA = "base_camera"


def test_rows_come_back_as_they_were_written(tmp_path) -> None:
    rows = torch.randint(0, 256, (5, 2, 3, 4, 3), dtype=torch.uint8)
    file = FrameFile(tmp_path / "new")
    file.append(rows[:3])
    assert torch.equal(file[torch.tensor([1])], rows[[1]])
    file.append(rows[3:])
    assert file.shape == (5, 2, 3, 4, 3)
    for key in (slice(None), slice(1, 4), torch.tensor([4, 0, 4])):
        assert torch.equal(file[key], rows[key])
    assert list((tmp_path / "new").iterdir()) == [], "no file is left by a process that is killed"


def test_a_folder_that_takes_no_file_is_one_clear_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorldloopError, match="cannot write imagined frames"):
        FrameFile(tmp_path / "file")


def test_figures_do_not_depend_on_where_the_frames_are(truth, toy_clips, spec, tmp_path) -> None:
    noise = torch.randint(0, 30, truth.frames[CAMERA].shape, dtype=torch.uint8)
    in_memory = replace(truth, frames={CAMERA: truth.frames[CAMERA] // 2 + noise})
    file = FrameFile(tmp_path)
    for rows in in_memory.frames[CAMERA].split(4):
        file.append(rows)
    recorded = toy_clips.describe(truth.truth.index, truth.logit.shape[1])
    in_files = replace(in_memory, frames={CAMERA: file}, truth=recorded)
    assert torch.equal(in_files.best_logit, in_memory.best_logit)
    assert torch.equal(in_files.succeeds, in_memory.succeeds)
    assert torch.equal(compute_mean_psnr(in_files), compute_mean_psnr(in_memory))
    assert measure_fidelity(in_files) == measure_fidelity(in_memory)
    torch.manual_seed(0)
    size = truth.truth.frames[CAMERA].shape[2:4]
    num_coordinates = sum(len(mark.columns) for mark in spec.task(spec.task_ids[0]).landmarks)
    positions = torch.zeros(num_coordinates), torch.ones(num_coordinates)
    probe = FrameProbe({CAMERA: torch.zeros(3, *size)}, spec.task_ids, *positions)
    seen = [see(probe, branches, branches.frames) for branches in (in_files, in_memory)]
    assert torch.equal(seen[0].position_m, seen[1].position_m)
    assert torch.equal(seen[0].solved_logit, seen[1].solved_logit)
    true_m = locate_landmarks(truth, toy_clips, spec)
    landmarks = spec.task(spec.task_ids[0]).landmarks
    followed = [
        follow_actions(b, toy_clips, s, true_m, landmarks) for b, s in zip((in_files, in_memory), seen, strict=True)
    ]
    assert followed[0] == followed[1] is not None
