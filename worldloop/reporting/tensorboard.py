"""TensorBoard writers. Each stage has its own folder, so that a purge after a resume affects only that stage."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldloop.core.files import disk_errors
from worldloop.core.statistics import compute_reliability
from worldloop.evaluation.events import EVENTS
from worldloop.reporting.records import Record, list_tasks, read_closed_loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Charts = dict[str, dict[str, tuple[str, ...]]]  # page -> chart -> (tag,) or (tag, lower, upper)


def plan_charts() -> Charts:
    """The charts of the custom scalars page, grouped by the questions that users have.

    A chart has one line per TensorBoard run with its tag. Stages, sources, outcomes and tasks each have their own run,
    see `write_iteration`; so each gets its own colour and name.
    """

    def band(tag: str) -> tuple[str, ...]:
        stem = tag.removesuffix("_rate")
        return tag, f"{stem}_low", f"{stem}_high"

    return {
        "Is the policy better?": {
            "success on evaluation states": band("loop/simulated_success_rate"),
            "gain over the clone, same states": band("loop/paired_gain"),
            "success when told to do another task": band("loop/swapped_success_rate"),
        },
        "Can I trust the world model?": {
            "closed loop: AUC within groups": band("loop/closed_loop_within_group_auc"),
            "closed loop, over updates: AUC within groups": band("check_closed_loop/within_group_auc"),
            "closed loop, over updates: true negative rate": ("check_closed_loop/true_negative_rate",),
            "imagined and simulated success": band("success/share"),
            "imagined minus simulated": band("loop/imagined_minus_simulated"),
            "open loop: AUC": band("alignment/auc"),
            "open loop: calibration error": ("alignment/ece",),
        },
        "Do the critics know what comes?": {
            f"AUC of the value at {share} % of the time": band(f"check_value/auc_at_{share}") for share in (25, 50, 75)
        }
        | {
            f"change of the value at {event}": (f"check_value/change_at_{event}",)
            for event in EVENTS
            if event != "success"
        },
        "Can the robot do what a video shows?": {
            "reward of generated videos, over updates": ("align_world_model/reward",),
            "success of the planner": ("check_planner/success",),
            "penalty of plans / real": ("check_planner/penalty_ratio",),
            "path of plans / real": ("check_planner/path_ratio",),
        },
        "What did it cost?": {
            "seconds per stage": ("cost/seconds",),
            "peak memory per stage, MiB": ("cost/peak_memory_mib",),
            "peak GPU memory per stage, MiB": ("cost/peak_gpu_memory_mib",),
            "imagined frames per second": ("loop/imagined_frames_per_s",),
            "environment steps in SANS so far": ("loop/env_steps",),
            "simulator steps so far": ("loop/simulator_steps",),
        },
        "What is in SANS?": {
            "scripted episodes of each iteration, by outcome": ("sans/scripted",),
            "the policy's episodes of each iteration, by outcome": ("sans/policy",),
        },
    }


def choose_charts(charts: Charts, seen: set[str]) -> Charts:
    """The charts whose tags are all in ``seen``: TensorBoard warns about a chart without data."""
    kept = {
        page: {title: line for title, line in content.items() if seen.issuperset(line)}
        for page, content in charts.items()
    }
    return {page: content for page, content in kept.items() if content}


class StageWriter:
    """A `Writer` to the folder of one stage. Every method raises `WorldloopError` if the disk cannot be written."""

    def __init__(self, log_dir: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._what = f"TensorBoard's events in {log_dir}"
        with disk_errors(self._what):
            self._writer = SummaryWriter(log_dir=str(log_dir), purge_step=purge_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with disk_errors(self._what):
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def judgement(self, tag: str, step: int, probability: np.ndarray, is_success: np.ndarray) -> None:
        """Precision and recall (*PR curves*) and a reliability diagram (*Images*) of ``probability`` f [n]."""
        with disk_errors(self._what):
            if is_success.any():
                self._writer.add_pr_curve(f"{tag}_precision_recall", is_success, probability, step)
            self._writer.add_figure(f"{tag}_calibration", draw_reliability(probability, is_success), step)

    def video(self, tag: str, step: int, frames: torch.Tensor, fps: float) -> None:
        """``frames`` u8 [F, h, w, 3]."""
        # Not SummaryWriter.add_video: its encoder needs an older moviepy than the pinned one.
        from tensorboard.compat.proto.summary_pb2 import Summary

        _, height, width, _ = frames.shape
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encode_gif(frames, fps, scale=4)
        )
        with disk_errors(self._what):
            writer = self._writer._get_file_writer()
            writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def layout(self, charts: Charts) -> None:
        """Write ``charts`` as lines with bands, which TensorBoard neither smooths nor clips; one tag has no band."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata

        def draw(title: str, line: tuple[str, ...]) -> layout_pb2.Chart:
            value, low, high = line if len(line) == 3 else line * 3
            series = layout_pb2.MarginChartContent.Series(value=value, lower=low, upper=high)
            return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))

        pages = [
            layout_pb2.Category(
                title=page,
                chart=[draw(title, line) for title, line in content.items()],
            )
            for page, content in charts.items()
        ]
        layout = layout_pb2.Layout(category=pages).SerializeToString()
        # The plugin's summary.pb needs tensorflow, and add_custom_scalars allows only one line per chart.
        value = Summary.Value(
            tag=metadata.CONFIG_SUMMARY_TAG,
            tensor=TensorProto(dtype="DT_STRING", string_val=[layout]),
            metadata=metadata.create_summary_metadata(),
        )
        with disk_errors(self._what):
            self._writer._get_file_writer().add_summary(Summary(value=[value]))

    def close(self) -> None:
        with disk_errors(self._what):
            self._writer.close()


def draw_reliability(probability: np.ndarray, is_success: np.ndarray) -> Figure:
    """Reliability diagram: success rate over predicted probability, as a matplotlib figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="tight")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#c8d0d8", lw=1, ls="--")
    for entry in compute_reliability(probability, is_success):
        point, size = (entry.probability, entry.rate), 4 + 10 * (entry.n / len(probability)) ** 0.5
        axes.plot(*point, "o", color="#2563a8", ms=size, clip_on=False)
        offset = size / 2 + 2, -3
        axes.annotate(f"{entry.n}", point, fontsize=7, textcoords="offset points", xytext=offset)
    axes.set(xlabel="imagined success, mean probability", ylabel="simulated success, share", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"n of {len(probability)} episodes at each point", fontsize=9)
    return figure


def encode_gif(frames: torch.Tensor, fps: float, scale: int = 1) -> bytes:
    """An endless GIF of ``frames`` u8 [F, h, w, 3], enlarged ``scale`` times; the last frame is held for a second."""
    from PIL import Image

    enlarged = frames.cpu().repeat_interleave(scale, 1).repeat_interleave(scale, 2).numpy()
    pictures = [Image.fromarray(frame) for frame in enlarged]
    durations = [round(1000 / fps)] * (len(pictures) - 1) + [1000]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return buffer.getvalue()


@contextmanager
def open_writer(log_dir: Path, purge_step: int) -> Iterator[StageWriter]:
    """A writer whose earlier events at or after ``purge_step`` are dropped by TensorBoard."""
    # TensorBoard reads files by name: the second, then an unpadded counter; so never start two in one second.
    while any(log_dir.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)
    with _quiet_thread():
        writer = StageWriter(log_dir, purge_step)
        try:
            yield writer
        finally:
            writer.close()


@contextmanager
def _quiet_thread() -> Iterator[None]:
    """Stop TensorBoard's thread from printing disk errors; its writer raises them anyway, see `StageWriter`."""
    before = threading.excepthook
    threading.excepthook = lambda hook: None if isinstance(hook.exc_value, OSError) else before(hook)
    try:
        yield
    finally:
        threading.excepthook = before


def write_iteration(
    log_dir: Path, records: Sequence[Record], timings: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """Write the last of ``records`` and its stages' ``timings`` (see docs/metrics.md) at step = iteration.

    ``settings``: keys and values that differ from the defaults; the HPARAMS page shows them beside the latest success.
    """
    record, iteration = records[-1], records[-1]["iteration"]
    own = [t for t in timings if t["iteration"] == iteration]
    by_run = cost_scalars(own) | episode_scalars(record) | trust_scalars(record) | task_scalars(record)
    seen = {tag for earlier in records for tag in headline_scalars(earlier)}
    for runs in (cost_scalars(timings), *map(episode_scalars, records), *map(trust_scalars, records)):
        seen |= {tag for values in runs.values() for tag in values}
    values = headline_scalars(record)
    improving = sum(t["seconds"] for t in own if t["stage"] == "improve_policy")
    if record.get("imagined_frames") and improving:
        values["loop/imagined_frames_per_s"] = record["imagined_frames"] / improving
    for earlier in records:
        for entry in (earlier.get("closed_loop") or {}).get("checkpoints", []):
            seen |= {f"check_closed_loop/{tag}" for tag in _list_estimate(entry, "within_group_auc")}
            seen |= {f"check_closed_loop/{tag}" for tag in _list_estimate(entry, "true_negative_rate")}
        for judgement in (earlier.get("value_check") or {}).values():
            for share, figure in judgement["auc"].items():
                tag = f"check_value/auc_at_{100 * float(share):.0f}"
                seen |= set(_list_estimate({tag: figure}, tag))
        for changes in (earlier.get("value_at_events") or {}).values():
            seen |= {f"check_value/change_at_{event}" for event in changes}
    if any(earlier.get("imagined_frames") for earlier in records):
        seen.add("loop/imagined_frames_per_s")
    with open_writer(log_dir / "loop", purge_step=iteration) as writer:
        writer.layout(choose_charts(plan_charts(), seen))
        writer.scalars(iteration, values)
    for name, scalars in by_run.items():
        with open_writer(log_dir / name, purge_step=iteration) as writer:
            writer.scalars(iteration, scalars)
    if record.get("simulated_success"):
        write_settings(log_dir / "settings", settings, {"settings/success": record["simulated_success"]["rate"]})


def write_settings(log_dir: Path, settings: dict[str, Any], figures: dict[str, float]) -> None:
    """Write ``settings`` and ``figures`` for the HPARAMS page, in place of earlier ones."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(log_dir, ignore_errors=True)
    plain = {k: v if isinstance(v, str | bool | int | float) else str(v) for k, v in settings.items()}
    with (
        _quiet_thread(),
        disk_errors(f"TensorBoard's events in {log_dir}"),
        SummaryWriter(log_dir=str(log_dir)) as writer,
    ):
        writer.add_hparams(plain, figures, run_name=".")


def cost_scalars(timings: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Run of a stage -> tag -> seconds (the sum over its runs) and peak memory (the maximum)."""
    runs: dict[str, dict[str, float]] = {}
    for entry in timings:
        values = runs.setdefault(f"cost/{entry['stage']}", {"cost/seconds": 0.0})
        values["cost/seconds"] += entry["seconds"]
        for name in ("peak_memory_mib", "peak_gpu_memory_mib"):
            if entry.get(name):
                values[f"cost/{name}"] = max(values.get(f"cost/{name}", 0.0), entry[name])
    return runs


def episode_scalars(record: Record) -> dict[str, dict[str, float]]:
    """Run of an outcome -> tag -> number of episodes that the iteration recorded, scripted and by the policy."""
    runs: dict[str, dict[str, float]] = {}
    for source in ("scripted", "policy"):
        counts = record.get("scripted_episodes" if source == "scripted" else "collected_episodes") or {}
        for outcome, count in counts.items():
            runs.setdefault(f"sans/{outcome}", {})[f"sans/{source}"] = float(count)
    return runs


def task_scalars(record: Record) -> dict[str, dict[str, float]]:
    """Run of a task, in each folder -> tag -> the task's figures; empty with one task."""
    runs: dict[str, dict[str, float]] = {}
    for task, own in list_tasks(record).items():
        runs[f"loop/{task}"] = headline_scalars(own)
        runs |= {f"{name}/{task}": values for name, values in trust_scalars(own).items()}
    return runs


def trust_scalars(record: Record) -> dict[str, dict[str, float]]:
    """Run of a source -> tag -> its `headline_scalars`, under tags that all sources share, for one chart."""
    values = headline_scalars(record)
    runs: dict[str, dict[str, float]] = {}
    for source in ("imagined", "simulated"):
        for key, own in (("rate", "share"), ("low", "share_low"), ("high", "share_high")):
            if (tag := f"loop/{source}_success_{key}") in values:
                runs.setdefault(f"success/{source}", {})[f"success/{own}"] = values[tag]
    for source in ("on_policy", "scripted", "recorded"):
        for key in ("auc", "auc_low", "auc_high", "ece"):
            if (tag := f"loop/alignment_{source}_{key}") in values:
                runs.setdefault(f"alignment/{source}", {})[f"alignment/{key}"] = values[tag]
    return runs


def headline_scalars(record: Record) -> dict[str, float]:
    """Tag -> value from one iteration's record; null values are left out."""
    values: dict[str, float] = {}
    for name in ("simulated_success", "imagined_success", "swapped_success", "logged_success"):
        if record.get(name):
            values |= {f"loop/{name}_{k}": record[name][k] for k in ("rate", "low", "high")}
    for name in ("imagined_success_precision", "imagined_success_recall"):
        if record.get(name):
            values[f"loop/{name}"] = record[name]["rate"]
    for name in ("paired_gain", "imagined_minus_simulated", "swapped_minus_told"):
        if record.get(name):
            values[f"loop/{name}"] = record[name]["gain"]
            values |= {f"loop/{name}_{k}": record[name][k] for k in ("low", "high")}
    for source, figures in (record.get("reward_alignment") or {}).items():
        if isinstance(figures, dict):
            for metric in ("auc", "balanced_accuracy"):
                if figures[metric] is not None and figures[metric]["value"] is not None:
                    name = f"loop/alignment_{source}_{metric}"
                    values[name] = figures[metric]["value"]
                    bounds = {k: figures[metric][k] for k in ("low", "high")}
                    values |= {f"{name}_{k}": v for k, v in bounds.items() if v is not None}
            if (error := figures.get("expected_calibration_error")) is not None:
                values[f"loop/alignment_{source}_ece"] = error["value"]
    if (found := read_closed_loop(record)) is not None:
        for name in ("within_group_auc", "auc", "true_negative_rate", "own_minus_replay", "imagined_minus_simulated"):
            values |= {f"loop/closed_loop_{tag}": value for tag, value in _list_estimate(found[1], name).items()}
    for name in ("psnr_db", "ssim", "lpips", "env_steps", "simulator_steps"):
        if record.get(name) is not None:
            values[f"loop/{name}"] = record[name]
    if record.get("promoted") is not None:
        values["loop/promoted"] = float(record["promoted"])
    return values


def _list_estimate(figures: Record, name: str) -> dict[str, float]:
    """The estimate ``name`` and its bounds, as ``name``, ``name_low`` and ``name_high``; what is null is left out."""
    estimate = figures.get(name) or {}
    keys = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
    return {tag: estimate[key] for key, tag in keys.items() if estimate.get(key) is not None}
