"""TensorBoard's files, read and thinned event by event."""

from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldloop.reporting.event_files import find_images, list_event_files, measure_videos, remove_videos
from worldloop.reporting.tensorboard import open_writer


def write(root: Path, step: int, grey: int) -> None:
    """What a stage writes in iteration ``step``: a curve, a picture and a video."""
    with open_writer(root / "check", step) as writer:
        writer.scalars(step, {"check/auc": float(grey)})
        writer.judgement("check/on_policy", step, torch.tensor([0.2, 0.9]).numpy(), torch.tensor([0, 1]).bool().numpy())
        writer.video("check/video", step, torch.full((3, 4, 4, 3), grey, dtype=torch.uint8), 4.0)


def test_videos_of_past_steps_go_and_all_else_stays(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step, step)
    folder = tmp_path / "check"
    before = {step: find_images(folder, step) for step in (1, 2)}
    sizes = [measure_videos(path) for path in list_event_files(folder)]
    assert [list(steps) for steps in sizes] == [[1], [2]]
    for path in list_event_files(folder):
        remove_videos(path, 2)
    assert [list(measure_videos(path)) for path in list_event_files(folder)] == [[], [2]]
    assert find_images(folder, 2) == before[2]
    assert find_images(folder, 1) == {t: image for t, image in before[1].items() if t != "check/video"}
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert [(e.step, e.value) for e in events.Scalars("check/auc")] == [(1, 1.0), (2, 2.0)]
    assert [e.step for e in events.Images("check/video")] == [2]
    assert [e.step for e in events.Images("check/on_policy_calibration")] == [1, 2]


def test_of_a_stage_that_ran_again_the_last_run_counts(tmp_path: Path) -> None:
    write(tmp_path, 1, 10)
    write(tmp_path, 1, 20)
    folder = tmp_path / "check"
    assert len(list_event_files(folder)) == 2
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    (video,) = events.Images("check/video")
    assert find_images(folder, 1)["check/video"] == video.encoded_image_string
    assert find_images(folder, 7) == {}
    assert find_images(tmp_path / "nothing", 1) == {}


def test_an_event_that_was_cut_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    (path,) = list_event_files(tmp_path / "check")
    path.write_bytes(path.read_bytes()[:-20])
    assert measure_videos(path) == {}
