"""Charts of the HTML report, from a run's records and timings. Each function returns whether it drew anything."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from worldloop.core.types import OUTCOMES
from worldloop.reporting.records import Record, list_judged_sources, list_tasks, name_tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"success": "#2a9d5c", "near_success": "#e0a526", "failure": "#b9483f"}
AucPoint = tuple[int, dict[str, float | None]]  # iteration and estimate
LINES = {"on_policy": "#1f6fb2", "scripted": "#8c9aa8", "recorded": "#1f6fb2"}


def draw[T](chart: Callable[[Axes, T], bool], data: T) -> str:
    """Draw ``chart(axes, data)`` as SVG in base64; "" if the chart drew nothing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "w"}):
        figure, axes = plt.subplots(figsize=(4.6, 3.0))
        try:
            if not chart(axes, data):
                return ""
            figure.tight_layout()
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        finally:
            plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def draw_success(axes: Axes, records: list[Record]) -> bool:
    drawn = False
    for name, label, colour in (
        ("simulated_success", "simulated", "#1f6fb2"),
        ("imagined_success", "imagined, same states", "#e07b39"),
    ):
        points = [(r["iteration"], r[name]) for r in records if r.get(name)]
        if points:
            drawn = True
            rate = np.array([p["rate"] for _, p in points])
            error = [rate - [p["low"] for _, p in points], [p["high"] for _, p in points] - rate]
            axes.errorbar([x for x, _ in points], rate, yerr=error, marker="o", capsize=3, color=colour, label=label)
    _label_success(axes, records)
    return drawn


def draw_success_by_task(axes: Axes, records: list[Record]) -> bool:
    """Success in the simulator, one line per task; nothing with one task."""
    tasks = name_tasks(records)
    if not tasks:
        return False
    for colour, task in zip(_colour(tasks), tasks, strict=True):
        points = [(r["iteration"], list_tasks(r).get(task, {}).get("simulated_success")) for r in records]
        known = [(iteration, rate) for iteration, rate in points if rate]
        rate, low, high = (np.array([r[key] for _, r in known]) for key in ("rate", "low", "high"))
        x = [iteration for iteration, _ in known]
        axes.errorbar(x, rate, yerr=[rate - low, high - rate], marker="o", capsize=3, color=colour, label=task)
    _label_success(axes, records)
    return True


def _label_success(axes: Axes, records: list[Record]) -> None:
    axes.set(xlabel="iteration", ylabel="success", ylim=(-0.02, 1.02), xticks=[r["iteration"] for r in records])
    _add_legend(axes, frameon=False)


def _colour(names: list[str]) -> list[Any]:
    """One colour per task or stage; they repeat after twenty."""
    import matplotlib

    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"]
    return [colours(number % colours.N) for number in range(len(names))]


def draw_auc(axes: Axes, records: list[Record]) -> bool:
    points: dict[str, list[AucPoint]] = {}
    for record in records:
        for source, figures in list_judged_sources(record):
            if figures["auc"]:
                points.setdefault(source, []).append((record["iteration"], figures["auc"]))
    for source, values in points.items():
        _draw_auc_line(axes, values, source, LINES[source])
    _label_auc(axes, records, "AUC of the success head")
    return bool(points)


def _add_legend(axes: Axes, **options: Any) -> None:
    """A legend, unless nothing with a label was drawn: matplotlib warns about that."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def draw_auc_by_task(axes: Axes, records: list[Record]) -> bool:
    """AUC of the last judged source, one line per task; nothing with one task."""
    checked = [r for r in records if list_judged_sources(r)]
    tasks = name_tasks(checked)
    if not tasks:
        return False
    source = list_judged_sources(checked[-1])[-1][0]
    for colour, task in zip(_colour(tasks), tasks, strict=True):
        own = [(r["iteration"], dict(list_judged_sources(list_tasks(r).get(task, {}))).get(source)) for r in checked]
        _draw_auc_line(axes, [(i, figures["auc"]) for i, figures in own if figures and figures["auc"]], task, colour)
    _label_auc(axes, records, f"AUC of the success head, {source}")
    return True


def _draw_auc_line(axes: Axes, values: list[AucPoint], label: str, colour: Any) -> None:
    # A bound is null if few resamples have both outcomes; as NaN it is not drawn.
    auc, low, high = (np.array([v[key] for _, v in values], dtype=float) for key in ("value", "low", "high"))
    error = [auc - low, high - auc]
    axes.errorbar([i for i, _ in values], auc, yerr=error, marker="o", capsize=3, color=colour, label=label)


def _label_auc(axes: Axes, records: list[Record], text: str) -> None:
    axes.axhline(0.5, color="#c8d0d8", lw=1, ls="--")
    axes.set(xlabel="iteration", ylabel=text, ylim=(min(0.45, axes.dataLim.y0 - 0.02), 1.02))
    axes.set_xticks([r["iteration"] for r in records if list_judged_sources(r)])
    _add_legend(axes, frameon=False)


def draw_precision_recall(axes: Axes, records: list[Record]) -> bool:
    checked = [r for r in records if list_judged_sources(r)]
    for source, figures in list_judged_sources(checked[-1]) if checked else []:
        curve = figures["precision_recall_curve"]
        if curve:
            values = [[p[k] for p in curve] for k in ("recall", "precision")]
            axes.plot(*values, marker=".", color=LINES[source], label=source)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"imagined success, iteration {checked[-1]['iteration']}" if checked else "", fontsize=9)
    _add_legend(axes, frameon=False)
    return bool(checked)


def draw_calibration(axes: Axes, records: list[Record]) -> bool:
    checked = [r for r in records if list_judged_sources(r)]
    drawn = False
    axes.plot([0, 1], [0, 1], color="#c8d0d8", lw=1, ls="--")
    for source, figures in list_judged_sources(checked[-1]) if checked else []:
        if bins := figures.get("reliability"):  # runs of earlier versions have none
            drawn = True
            values = [[b[k] for b in bins] for k in ("probability", "rate")]
            axes.plot(*values, marker="o", color=LINES[source], label=source)
    axes.set(
        xlabel="imagined success, mean probability", ylabel="simulated success, share", xlim=(0, 1), ylim=(0, 1.02)
    )
    if drawn:
        _add_legend(axes, frameon=False)
    return drawn


def draw_horizon(axes: Axes, records: list[Record]) -> bool:
    checked = [r for r in records if list_judged_sources(r)]
    for source, _ in list_judged_sources(checked[-1]) if checked else []:
        check = checked[-1]["world_model_check"][source]
        for name, style in (("psnr_db", "-"), ("psnr_db_first_frame", ":")):
            points = check[name]["by_frame"]
            label = source if style == "-" else f"{source}, first frame copied"
            axes.plot(
                [p["frame"] for p in points], [p["value"] for p in points], style, color=LINES[source], label=label
            )
    axes.set(xlabel="imagined frame", ylabel="PSNR, dB")
    _add_legend(axes, frameon=False, fontsize=7)
    return bool(checked)


def draw_time(axes: Axes, timings: list[dict[str, Any]]) -> bool:
    iterations = sorted({t["iteration"] for t in timings})
    left = np.zeros(len(iterations))
    stages = list(dict.fromkeys(t["stage"] for t in timings))
    for colour, stage in zip(_colour(stages), stages, strict=True):
        minutes = np.array(
            [sum(t["seconds"] for t in timings if (t["stage"], t["iteration"]) == (stage, i)) / 60 for i in iterations]
        )
        axes.barh(iterations, minutes, left=left, label=stage, color=colour, height=0.6)
        left += minutes
    axes.set(xlabel="minutes", ylabel="iteration", yticks=iterations)
    axes.invert_yaxis()
    _add_legend(axes, frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return bool(timings)


def draw_sans(axes: Axes, counts: dict[str, dict[str, int]]) -> bool:
    names = list(counts)
    left = np.zeros(len(names))
    for outcome in OUTCOMES:
        values = np.array([counts[name][outcome] for name in names])
        axes.barh(names, values, left=left, color=COLOURS[outcome], label=outcome.replace("_", "-"), height=0.6)
        left += values
    axes.set(xlabel="episodes", ylabel="source, iteration")
    axes.invert_yaxis()
    _add_legend(axes, frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return bool(names)
