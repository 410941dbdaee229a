"""The tables of a run's report, from the records of its iterations and the times of its stages.

A table is a list of rows of cells; the first row is the header. A table without figures is empty.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from worldloop.core.types import OUTCOMES
from worldloop.reporting.records import (
    Record,
    find_worst_task,
    list_changes,
    list_judged_sources,
    list_tasks,
    read_auc,
    read_success,
    read_within_group_auc,
)
from worldloop.sans.store import SansStore

DASH = "\u2013"
INDENT = "\u2003"


def show(figures: dict[str, Any] | None, name: str, style: str = ".3f") -> str:
    """E.g. ``0.680 (0.612 to 0.741)``; the value alone if the bounds are null, a dash if the value is missing."""
    if not figures or figures.get(name) is None:
        return DASH
    value = f"{figures[name]:{style}}"
    return value if figures["low"] is None else f"{value} ({figures['low']:{style}} to {figures['high']:{style}})"


def show_bounds(figures: dict[str, Any] | None) -> str:
    """E.g. ``, 95 %: 0.612 to 0.741``, to append; "" without bounds."""
    if not figures or figures["low"] is None:
        return ""
    return f", 95 %: {figures['low']:.3f} to {figures['high']:.3f}"


def count(record: Record, name: str) -> str:
    """The figure ``name`` of ``record``; a dash in runs of versions that did not count it."""
    value = record.get(name)
    return DASH if value is None else f"{value:,}"


def tabulate_success(records: list[Record]) -> list[list[str]]:
    """Table of success; with several tasks the mean, then each. Success under a swapped instruction, if measured."""
    swaps = any(record.get("swapped_success") for record in records)
    header = ["iteration", "simulated success", "", "gain over the clone", "imagined success", "promoted"]
    rows = [[*header, *(["told to do another task"] if swaps else [])]]

    def show_success(record: Record, iteration: int, promoted: str) -> list[str]:
        success = record.get("simulated_success")
        cells = [
            show(success, "rate"),
            f"{success['k']}/{success['n']}" if success else "",
            show(record.get("paired_gain"), "gain", "+.3f") if iteration else DASH,
            show(record.get("imagined_success"), "rate"),
            promoted,
        ]
        return cells + ([show(record.get("swapped_success"), "rate")] if swaps else [])

    for record in records:
        iteration, worst = record["iteration"], find_worst_task(record, read_success)
        promoted = {True: "yes", False: "no", None: DASH}[record.get("promoted")]
        if promoted == "no" and record.get("promotion_reason"):
            promoted += f", {record['promotion_reason']}"
        rows.append([str(iteration), *show_success(record, iteration, promoted)])
        for task, own in list_tasks(record).items():
            rows.append([_name(task, worst), *show_success(own, iteration, "")])
    return rows


def tabulate_closed_loop(records: list[Record]) -> list[list[str]]:
    """Table of the checks in the closed loop, one row per policy; with several tasks the mean, then each."""
    rates = ("own", "replay", "declared")
    alignments = ("within_group_auc", "auc", "start_only_auc", "true_negative_rate")
    header = [
        "iteration",
        "policy",
        "rollouts",
        *rates,
        "AUC within groups",
        "AUC",
        "AUC, start only",
        "true negatives",
    ]

    def show_figures(figures: Record) -> list[str]:
        return [
            str(figures["n"]),
            *(show(figures[name], "value", ".2f").split(" ")[0] for name in rates),
            *(show(figures[name], "value") for name in alignments),
        ]

    rows = []
    for record in records:
        for entry in (record.get("closed_loop") or {}).get("checkpoints", []):
            name = entry["checkpoint"].rsplit("/", 1)[-1]
            rows.append([str(record["iteration"]), name, *show_figures(entry)])
            worst = find_worst_task(entry, read_within_group_auc)
            rows += [[_name(task, worst), "", *show_figures(own)] for task, own in list_tasks(entry).items()]
    return [header, *rows] if rows else []


def tabulate_trust(records: list[Record]) -> list[list[str]]:
    """Table of the checks; with several tasks the mean, then each; with several cameras also the PSNR of each."""
    cameras = list_cameras(records)
    header = [
        "iteration",
        "episodes",
        "n",
        "AUC",
        "AUC, actions only",
        "balanced accuracy",
        "calibration error",
        "PSNR, dB",
    ]
    rows = [[*header, *(f"{camera}, dB" for camera in cameras)]]

    def show_trust(record: Record, source: str, figures: Record) -> list[str]:
        check = record["world_model_check"][source]
        psnr = [check.get(name) or {} for name in ("psnr_db", *(f"psnr_db/{camera}" for camera in cameras))]
        return [
            source,
            str(figures["n"]),
            show(figures["auc"], "value"),
            show(figures.get("actions_only_auc"), "value"),
            show(figures["balanced_accuracy"], "value"),
            show(figures["expected_calibration_error"], "value"),
            *(show(metric.get("mean"), "value", ".1f") for metric in psnr),
        ]

    for record in records:
        for source, figures in list_judged_sources(record):
            rows.append([str(record["iteration"]), *show_trust(record, source, figures)])
            worst = find_worst_task(record, partial(read_auc, source=source))
            for task, own in list_tasks(record).items():
                if source in (judged := dict(list_judged_sources(own))):
                    rows.append([_name(task, worst), *show_trust(own, source, judged[source])])
    return rows


def list_cameras(records: list[Record]) -> list[str]:
    """The cameras with their own PSNR in the last check; empty with one camera."""
    checked = [r for r in records if list_judged_sources(r)]
    if not checked:
        return []
    metrics = checked[-1]["world_model_check"][list_judged_sources(checked[-1])[0][0]]
    return [name.removeprefix("psnr_db/") for name in metrics if name.startswith("psnr_db/")]


def _name(task: str, worst: str | None) -> str:
    """The first cell of a task's row, below the row of all tasks."""
    return f"{INDENT}{task}" + (" (worst)" if task == worst else "")


def tabulate_cost(records: list[Record], timings: list[dict[str, Any]]) -> list[list[str]]:
    rows = [
        [
            "iteration",
            "minutes",
            "steps in SANS",
            "simulator steps",
            "imagined frames",
            "imagined frames/s",
            "peak memory, MiB",
        ]
    ]
    for record in records:
        mine = [t for t in timings if t["iteration"] == record["iteration"]]
        frames = record.get("imagined_frames")
        seconds = sum(t["seconds"] for t in mine if t["stage"] == "improve_policy")
        rows.append(
            [
                str(record["iteration"]),
                f"{sum(t['seconds'] for t in mine) / 60:.1f}",
                count(record, "env_steps"),
                count(record, "simulator_steps"),
                f"{frames:,}" if frames else DASH,
                f"{frames / seconds:,.0f}" if frames and seconds else DASH,
                f"{max((t['peak_memory_mib'] for t in mine), default=0):,}",
            ]
        )
    return rows


def tabulate_stages(timings: list[dict[str, Any]]) -> list[list[str]]:
    """Table of stages over all iterations: total time and peak memory."""
    rows = [["stage", "minutes", "peak memory, MiB", "peak GPU memory, MiB"]]
    for stage in dict.fromkeys(t["stage"] for t in timings):
        mine = [t for t in timings if t["stage"] == stage]
        gpu = max(t["peak_gpu_memory_mib"] for t in mine)
        rows.append(
            [
                stage,
                f"{sum(t['seconds'] for t in mine) / 60:.1f}",
                f"{max(t['peak_memory_mib'] for t in mine):,}",
                f"{gpu:,}" if gpu else DASH,
            ]
        )
    return rows


def tabulate_changes(records: list[Record]) -> list[list[str]]:
    """Table of the settings that changed while the run went on; empty if none did."""
    rows = [list(map(str, change)) for change in list_changes(records)]
    return [["iteration", "from stage", "setting", "old", "new"], *rows] if rows else []


def tabulate_critics(records: list[Record]) -> list[list[str]]:
    """Table of the checks of critics, one row per iteration and source; empty if there were none."""
    rows: list[list[str]] = []
    header: list[str] = []
    for record in records:
        for source, judged in (record.get("value_check") or {}).items():
            header = ["iteration", "episodes", "n", *(f"AUC at {float(s):.0%} of the time" for s in judged["auc"])]
            figures = [show(figure, "value") for figure in judged["auc"].values()]
            rows.append([str(record["iteration"]), source, str(judged["num_episodes"]), *figures])
    return [header, *rows] if rows else []


def tabulate_events(records: list[Record]) -> list[list[str]]:
    """Table of what critics notice, one row per source and event of the last check; empty if there are no events."""
    checked = [r for r in records if r.get("value_at_events")]
    rows = [
        [
            source,
            event,
            str(figures["change"]["n"]),
            show(figures["change"], "value", "+.3f"),
            show(figures["above_usual"], "value", "+.3f"),
            show(figures["detected"], "value", ".2f"),
        ]
        for source, events in (checked[-1]["value_at_events"] if checked else {}).items()
        for event, figures in events.items()
    ]
    header = ["episodes", "event", "n", "change of the value", "above the usual", "share noticed"]
    return [header, *rows] if rows else []


def tabulate_inverse_dynamics(records: list[Record]) -> list[list[str]]:
    """Table of what inverse dynamics reads from held-out video, one row per iteration and model."""
    rows = [
        [
            str(record["iteration"]),
            name,
            str(checked["num_episodes"]),
            *(show(checked["explained"].get(part), "value") for part in ("joints", "actions")),
            show(checked["followed"], "rate"),
        ]
        for record in records
        for name, checked in (record.get("inverse_dynamics_check") or {}).items()
    ]
    header = ["iteration", "model", "n", "joints explained", "actions explained", "successes followed"]
    return [header, *rows] if rows else []


def tabulate_gates(records: list[Record]) -> list[list[str]]:
    """Table of what a policy's gate says in held-out episodes, one row per iteration and source."""
    rows = [
        [
            str(record["iteration"]),
            source,
            str(judged["num_episodes"]),
            show(judged["accuracy"], "value"),
            f"{judged['floor']:.3f}",
            show(judged["auc"], "value"),
            show(judged["interaction"], "value", ".2f"),
            show(judged["switches"], "value", ".1f"),
        ]
        for record in records
        for source, judged in (record.get("gate_check") or {}).items()
    ]
    header = ["iteration", "episodes", "n", "agrees", "always the same", "AUC", "called interaction", "switches"]
    return [header, *rows] if rows else []


def tabulate_plans(records: list[Record]) -> list[list[str]]:
    """Table of a planner's videos: before and after alignment, if there was one, and the planner that was kept."""
    rows = []
    for record in records:
        alignment, checked = record.get("alignment") or {}, record.get("planner_check") or {}
        entries = [(name, alignment.get(name), None) for name in ("before", "after") if alignment.get("mode") == "plan"]
        if checked:
            entries.append(("kept", checked.get("plans"), checked.get("success")))
        for name, plans, success in entries:
            figures = plans or {}
            verdict = {True: " (kept)", False: " (refused)"}[alignment["kept"]] if name == "after" else ""
            rows.append(
                [
                    str(record["iteration"]),
                    {"before": "before alignment", "after": "aligned"}.get(name, "the planner kept") + verdict,
                    str(figures.get("n", DASH)),
                    *(show(figures.get(figure), "value", ".2f") for figure in ("penalty_ratio", "path_ratio")),
                    *(show(figures.get(figure), "value", ".1f") for figure in ("psnr_db", "still_psnr_db")),
                    show(success, "rate"),
                ]
            )
    header = [
        "iteration",
        "videos of",
        "n",
        "penalty / real",
        "path / real",
        "PSNR, dB",
        "standing still, dB",
        "success",
    ]
    return [header, *rows] if rows else []


def count_episodes(store: SansStore, version: str) -> dict[str, dict[str, int]]:
    """``source, iteration`` -> outcome -> number of episodes in SANS version ``version``, in order of collection.

    With several tasks the key is ``task, source, iteration``.
    """
    metas = store.metas(store.version(version)) if version else []
    is_plural = len({meta.task for meta in metas}) > 1
    counts: dict[str, dict[str, int]] = {}
    for meta in metas:
        name = f"{meta.source}, {meta.iteration}"
        row = counts.setdefault(f"{meta.task}, {name}" if is_plural else name, dict.fromkeys(OUTCOMES, 0))
        row[meta.outcome] += 1
    return counts
