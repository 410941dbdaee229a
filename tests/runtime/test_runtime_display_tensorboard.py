"""Progress that crosses processes, and TensorBoard that stays right after a resume."""

import io
from pathlib import Path

import torch
from PIL import Image

from worldloop.runtime.progress import RemoteDisplay, replay
from worldloop.runtime.tensorboard import encode_gif, headline_scalars, open_writer


class _Recorder:
    def __init__(self) -> None:
        self.events: list[tuple] = []

    def log(self, line: str) -> None:
        self.events.append(("log", line))

    def open(self, label: str, total: int, unit: str) -> None:
        self.events.append(("open", label, total, unit))

    def advance(self, count: int, figures: dict[str, float]) -> None:
        self.events.append(("advance", count, figures))

    def close(self) -> None:
        self.events.append(("close",))


def test_remote_progress_is_replayed_in_order_and_merged() -> None:
    remote, local = RemoteDisplay(), _Recorder()
    remote.open("stage", 3, "step")
    remote.advance(1, {"loss": 2.0})
    remote.advance(2, {"loss": 1.0})
    remote.log("done")
    remote.close()
    replay(remote.drain(), local)
    assert local.events == [
        ("open", "stage", 3, "step"), ("advance", 3, {"loss": 1.0}), ("log", "done"), ("close",),
    ]  # fmt: skip
    assert remote.drain() == []


def test_a_gif_holds_every_frame() -> None:
    frames = torch.stack([torch.full((4, 6, 3), v, dtype=torch.uint8) for v in (10, 120, 250)])
    picture = Image.open(io.BytesIO(encode_gif(frames, fps=4.0, scale=2)))
    assert picture.n_frames == 3
    assert picture.size == (12, 8)


def test_a_resumed_stage_replaces_what_it_repeats(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_writer(tmp_path / "stage", purge_step=0) as writer:
        for step in range(5):
            writer.scalars(step, {"stage/loss": 1.0})
        writer.video("stage/video", 0, torch.zeros(2, 4, 4, 3, dtype=torch.uint8), fps=4.0)
    with open_writer(tmp_path / "stage", purge_step=2) as writer:
        for step in range(2, 4):
            writer.scalars(step, {"stage/loss": 2.0})
    seconds = [path.name.split(".")[3] for path in (tmp_path / "stage").iterdir()]
    assert len(set(seconds)) == 2, "files of one second would be read in the order of '10' < '9'"
    events = EventAccumulator(str(tmp_path / "stage"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("stage/loss")] == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)]
    assert events.Images("stage/video")[0].width == 4


def test_headline_scalars_leave_out_what_is_null() -> None:
    rate = {"k": 1, "n": 4, "rate": 0.25, "low": 0.1, "high": 0.6}
    record = {"iteration": 0, "simulated_success": rate, "imagined_success": None, "promoted": True, "psnr_db": None}
    values = headline_scalars(record)
    assert values["loop/simulated_success_rate"] == 0.25
    assert values["loop/promoted"] == 1.0
    assert not any("imagined" in tag or "psnr" in tag for tag in values)
