"""Text about the results of a run, within 80 columns."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from worldloop.reporting.records import (
    Record,
    find_worst_task,
    list_changes,
    list_tasks,
    read_auc,
    read_closed_loop,
    read_psnr,
    read_success,
    read_within_group_auc,
)
from worldloop.storage.run_directory import RunDirectory


def format_report(run_dir: Path) -> str:
    """Success per iteration with intervals, world-model figures, and time per stage.

    With several tasks the mean comes first, then each task.
    """
    directory = RunDirectory(run_dir)
    results = directory.read_results()
    lines = [f"{run_dir}", "", "iteration  simulated success, 95 %      gain over clone       imagined  promoted"]
    for entry in results["iterations"]:
        success, gain, imagined = entry["simulated_success"], entry["paired_gain"], entry["imagined_success"]
        cells = [
            f"{entry['iteration']:>9}",
            "  " + (show_interval(success, "rate") if success else "-").ljust(19),
            (f"{success['k']}/{success['n']}" if success else "").ljust(9),
            (show_interval(gain, "gain", signed=True) if gain and entry["iteration"] else "-").ljust(22),
            (f"{imagined['rate']:.3f}" if imagined else "-").ljust(9),
            {True: "yes", False: "no", None: "-"}[entry["promoted"]],
        ]
        lines += [" ".join(cells).rstrip(), *_task_lines(entry)]
    lines += [
        "",
        *_change_lines(results),
        *_language_lines(results),
        *_robot_lines(results),
        *_alignment_lines(results),
        *_video_lines(results),
        *_timing_lines(directory.read_timings()),
    ]
    lines.append(f"dashboards: tensorboard --logdir {run_dir / 'tensorboard'}")
    lines.append(f"one page:   worldloop report {run_dir} --html report.html")
    return "\n".join(lines)


def _task_lines(entry: Record) -> list[str]:
    """Lines with the success of each task, below the line of all tasks; none with one task."""
    worst, lines = find_worst_task(entry, read_success), []
    for task, own in list_tasks(entry).items():
        success, gain, imagined = (own.get(key) for key in ("simulated_success", "paired_gain", "imagined_success"))
        cells = [
            (show_interval(success, "rate") if success else "-").ljust(20),
            (show_interval(gain, "gain", signed=True) if gain and entry["iteration"] else "-").ljust(23),
            (f"{imagined['rate']:.3f}" if imagined else "-").ljust(5),
            "worst" if task == worst else "",
        ]
        lines += put_name_before(" ".join(cells).rstrip(), task, 22)
    return lines


def put_name_before(text: str, name: str, width: int) -> list[str]:
    """Put ``text`` at column ``width`` after the indented ``name``, or on the next line if ``name`` is too long."""
    start = f"  {name}"
    return [start.ljust(width) + text] if len(start) < width else [start, " " * width + text]


def _change_lines(results: dict[str, Any]) -> list[str]:
    """Lines about settings that were changed while the run went on, below the stage from which they hold."""
    lines = []
    for (iteration, stage), changes in groupby(list_changes(results["iterations"]), key=lambda change: change[:2]):
        lines.append(f"iteration {iteration}, from {stage} on:")
        lines += [f"  {key} {old} -> {new}" for _, _, key, old, new in changes]
    return [*lines, ""] if lines else []


def _language_lines(results: dict[str, Any]) -> list[str]:
    """Lines with the success of a policy at a task under the instruction of another task."""
    lines = []
    for entry in results["iterations"]:
        if swapped := entry.get("swapped_success"):
            rates = f"{show_interval(swapped, 'rate')} {swapped['k']}/{swapped['n']}"
            lines.append(f"iteration {entry['iteration']}, success when told to do another task {rates}")
            for task, own in list_tasks(entry).items():
                lines += put_name_before(show_interval(own["swapped_success"], "rate"), task, 25)
    return [*lines, ""] if lines else []


def show_interval(figures: dict[str, Any], name: str, signed: bool = False) -> str:
    """E.g. ``0.680 (0.612, 0.741)``; the value alone if the bounds are null, as with few episodes."""
    style = "+.3f" if signed else ".3f"
    value = f"{figures[name]:{style}}"
    return value if figures["low"] is None else f"{value} ({figures['low']:{style}}, {figures['high']:{style}})"


def _alignment_lines(results: dict[str, Any]) -> list[str]:
    lines = []
    for entry in results["iterations"]:
        model, tasks = f"world model {entry['iteration']}", list_tasks(entry)
        lines += _closed_loop_lines(model, entry)
        for source in entry["reward_alignment"] or {}:
            if text := _show_alignment(entry, source):
                lines.append(f"{model}, {source:<9} {text}")
                worst = find_worst_task(entry, partial(read_auc, source=source))
                for task, own in tasks.items():
                    lines += put_name_before((_show_alignment(own, source) or "-") + _mark(task, worst), task, 25)
        if skipped := entry.get("improvement_skipped"):
            left_out = "policy improved without" if entry.get("imagined_frames") else "no policy improved in it:"
            lines.append(f"{model}, {left_out} {skipped}")
        if entry["psnr_db"] is not None:
            lines.append(f"{model}, {_show_fidelity(entry)}")
            worst = find_worst_task(entry, read_psnr)
            for task, own in tasks.items():
                if own.get("psnr_db") is not None:
                    lines += put_name_before(_show_fidelity(own) + _mark(task, worst), task, 25)
    return [*lines, ""] if lines else []


def _video_lines(results: dict[str, Any]) -> list[str]:
    """What inverse dynamics, planner and gate were found to be worth, in runs that have them."""
    lines = []
    for entry in results["iterations"]:
        number = entry["iteration"]
        for name, found in (entry.get("inverse_dynamics_check") or {}).items():
            explained = {part: _show_value(found["explained"].get(part)) for part in ("joints", "actions")}
            lines.append(f"{name} {number}, explained: joints {explained['joints']}")
            lines.append(f"  actions {explained['actions']}, n {found['num_episodes']}")
            lines.append(f"  successes followed {_show_rate(found['followed'])}")
        if found := entry.get("planner_check"):
            lines.append(f"planner {number}, success {_show_rate(found['success'])}")
            if plans := found.get("plans"):
                psnr, still = (_show_db(plans.get(name)) for name in ("psnr_db", "still_psnr_db"))
                lines.append(f"  PSNR {psnr}, standing still {still}, n {plans['n']}")
        for source, judged in (entry.get("gate_check") or {}).items():
            lines.append(f"gate {number}, {source:<9} agrees {_show_value(judged['accuracy'])}")
            lines.append(f"  always the same answer {judged['floor']:.3f}, n {judged['num_episodes']}")
    return [*lines, ""] if lines else []


def _show_db(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None else f"{figure['value']:.1f} dB"


def _show_rate(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None else show_interval(figure, "rate")


def _closed_loop_lines(model: str, entry: Record) -> list[str]:
    """What the last check in the closed loop found, with several tasks also in each; no line without a check."""
    found = read_closed_loop(entry)
    if found is None:
        return []
    checkpoint, figures = found
    rates = ", ".join(f"{name} {figures[name]['value']:.3f}" for name in ("own", "replay", "declared"))
    lines = [
        f"{model}, closed loop AUC within groups {_show_value(figures['within_group_auc'])}",
        f"  {checkpoint.rsplit('/', 1)[-1]}: {rates}, n {figures['n']}",
    ]
    worst = find_worst_task(figures, read_within_group_auc)
    for task, own in list_tasks(figures).items():
        lines += put_name_before(_show_value(own["within_group_auc"]) + _mark(task, worst), task, 40)
    return lines


def _show_value(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None else show_interval(figure, "value")


def _show_alignment(record: Record, source: str) -> str:
    """E.g. ``AUC 0.943 (0.910, 0.972) bal. acc. 0.850, n 50``; "" if there is no AUC."""
    figures = (record.get("reward_alignment") or {}).get(source)
    if not isinstance(figures, dict) or not figures["auc"]:
        return ""
    auc, accuracy = figures["auc"], figures["balanced_accuracy"]
    return f"AUC {show_interval(auc, 'value')} bal. acc. {accuracy['value']:.3f}, n {figures['n']}"


def _show_fidelity(record: Record) -> str:
    return f"PSNR {record['psnr_db']:.1f} dB, SSIM {record['ssim']:.3f}"


def _mark(task: str, worst: str | None) -> str:
    return ", worst" if task == worst else ""


def _timing_lines(timings: list[dict[str, Any]]) -> list[str]:
    if not timings:
        return []
    total = sum(t["seconds"] for t in timings)
    by_stage: dict[str, float] = {}
    for entry in timings:
        by_stage[entry["stage"]] = by_stage.get(entry["stage"], 0.0) + entry["seconds"]
    peak = max(t["peak_memory_mib"] for t in timings)
    lines = [f"{total / 60:.1f} min in stages, peak {peak / 1024:.1f} GiB in the stages' process:"]
    width = max(map(len, by_stage))
    lines += [f"  {stage:<{width}} {seconds:8.1f} s" for stage, seconds in by_stage.items()]
    return [*lines, ""]


def _robot_lines(results: dict[str, Any]) -> list[str]:
    """How often the robot succeeded with the policy of each iteration; none in a run with a simulator."""
    lines = [
        f"  iteration {entry['iteration']}: {show_interval(success, 'rate')}, {success['k']}/{success['n']}"
        for entry in results["iterations"]
        if (success := entry.get("logged_success"))
    ]
    return ["success on the robot, 95 % (other states in every iteration)", *lines, ""] if lines else []
