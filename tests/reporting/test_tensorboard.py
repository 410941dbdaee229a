"""Progress that crosses processes, and TensorBoard that stays right after a resume."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_disk import disk_of

from worldloop.core.errors import WorldloopError
from worldloop.reporting.progress import RemoteDisplay, replay
from worldloop.reporting.tensorboard import draw_reliability, encode_gif, headline_scalars, open_writer, write_iteration


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


def test_a_judgement_is_a_curve_and_a_diagram(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    probability, is_success = np.array([0.1, 0.2, 0.75, 0.8]), np.array([False, False, True, False])
    with open_writer(tmp_path, purge_step=0) as writer:
        writer.judgement("check/on_policy", 3, probability, is_success)
        writer.judgement("check/scripted", 3, probability, np.zeros(4, dtype=bool))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["tensors"] == ["check/on_policy_precision_recall"], "no curve where nothing succeeds"
    (event,) = events.Tensors("check/on_policy_precision_recall")
    true_positives, false_positives = tensor_util.make_ndarray(event.tensor_proto)[:2]
    assert (true_positives[0], false_positives[0]) == (1, 3)
    at_half = int(126 * 0.5)
    assert (true_positives[at_half], false_positives[at_half]) == (1, 1)
    assert [e.step for e in events.Images("check/on_policy_calibration")] == [3]
    (axes,) = draw_reliability(probability, is_success).axes
    points = [tuple(np.round(np.concatenate(line.get_data()), 3)) for line in axes.lines[1:]]
    assert points == [(0.1, 0.0), (0.2, 0.0), (0.75, 1.0), (0.8, 0.0)]


def test_a_disk_that_fills_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        with open_writer(tmp_path, purge_step=0) as writer:
            for step in range(100):
                writer.scalars(step, {"stage/loss": 1.0})

    with disk_of(1000), pytest.raises(WorldloopError, match=r"cannot write TensorBoard's events in .*: File too large"):
        write()
    assert capsys.readouterr().err == ""


def test_headline_scalars_leave_out_what_is_null() -> None:
    rate = {"k": 1, "n": 4, "rate": 0.25, "low": 0.1, "high": 0.6}
    record = {"iteration": 0, "simulated_success": rate, "imagined_success": None, "promoted": True, "psnr_db": None}
    values = headline_scalars(record)
    assert values["loop/simulated_success_rate"] == 0.25
    assert values["loop/promoted"] == 1.0
    assert not any("imagined" in tag or "psnr" in tag for tag in values)


def test_an_iteration_has_its_cost_its_episodes_its_settings_and_charts_of_nothing_else(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    rate = {"k": 1, "n": 4, "rate": 0.25, "low": 0.1, "high": 0.6}
    record = {"iteration": 0, "simulated_success": rate, "scripted_episodes": {"failure": 3, "success": 2}}
    record["imagined_frames"] = 1000
    known = {"value": 0.8, "low": 0.7, "high": 0.9}
    record["value_check"] = {"scripted": {"auc": {"0.25": None, "0.50": known}}, "on_policy": {"auc": {"0.50": None}}}
    record["value_at_events"] = {
        "scripted": {},
        "on_policy": {"grasp": {"change": known, "above_usual": known, "detected": known}},
    }
    timings = [
        {"iteration": 0, "stage": "fit_world_model", "seconds": 2.0, "peak_memory_mib": 300},
        {"iteration": 0, "stage": "fit_world_model", "seconds": 3.0, "peak_memory_mib": 200},
        {"iteration": 0, "stage": "improve_policy", "seconds": 4.0, "peak_memory_mib": 200},
    ]
    write_iteration(tmp_path, [record], timings, {"seed": 3, "resources.device": "cpu"})
    fit, failures = (EventAccumulator(str(tmp_path / name)) for name in ("cost/fit_world_model", "sans/failure"))
    fit.Reload()
    failures.Reload()
    assert fit.Scalars("cost/seconds")[0].value == 5.0
    assert fit.Scalars("cost/peak_memory_mib")[0].value == 300
    assert failures.Scalars("sans/scripted")[0].value == 3
    events = EventAccumulator(str(tmp_path / "loop"))
    events.Reload()
    assert events.Scalars("loop/imagined_frames_per_s")[0].value == 250.0
    stored = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    pages = {page.title: page.chart for page in layout_pb2.Layout.FromString(stored).category}
    assert [chart.title for chart in pages["Is the policy better?"]] == ["success on evaluation states"]
    (series,) = pages["Is the policy better?"][0].margin.series
    stem = "loop/simulated_success"
    assert (series.value, series.lower, series.upper) == (f"{stem}_rate", f"{stem}_low", f"{stem}_high")
    assert [chart.title for chart in pages["Do the critics know what comes?"]] == [
        "AUC of the value at 50 % of the time",
        "change of the value at grasp",
    ]
    (scripted,) = pages["What is in SANS?"]
    assert [line.value for line in scripted.margin.series] == ["sans/scripted"]
    trusted = EventAccumulator(str(tmp_path / "success/simulated"))
    trusted.Reload()
    assert [trusted.Scalars(f"success/{key}")[0].value for key in ("share", "share_low")] == pytest.approx([0.25, 0.1])
    assert "peak GPU memory per stage, MiB" not in [chart.title for chart in pages["What did it cost?"]]
    settings = EventAccumulator(str(tmp_path / "settings"))
    settings.Reload()
    assert settings.Scalars("settings/success")[0].value == 0.25
    plugin = settings.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert b"resources.device" in plugin.content


def test_each_task_has_the_same_tags_in_a_run_of_its_own(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def make_figures(value: float) -> dict[str, object]:
        rate = {"k": 1, "n": 4, "rate": value, "low": 0.0, "high": 1.0}
        estimate = {"value": value, "low": None, "high": None}
        alignment = {"auc": estimate, "balanced_accuracy": None, "expected_calibration_error": None}
        return {"simulated_success": rate, "swapped_success": rate, "reward_alignment": {"on_policy": alignment}}

    record = {"iteration": 2, **make_figures(0.5), "tasks": {"push": make_figures(0.75), "pull": make_figures(0.25)}}
    write_iteration(tmp_path, [record], [], {})
    expected = {
        "loop": ("loop/simulated_success_rate", 0.5),
        "loop/push": ("loop/simulated_success_rate", 0.75),
        "loop/pull": ("loop/swapped_success_rate", 0.25),
        "success/simulated": ("success/share", 0.5),
        "success/simulated/push": ("success/share", 0.75),
        "alignment/on_policy/pull": ("alignment/auc", 0.25),
    }
    for folder, (tag, value) in expected.items():
        events = EventAccumulator(str(tmp_path / folder))
        events.Reload()
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [(2, value)], folder
