"""Tables about runs (within 80 columns): what came out, what a run is doing, and how two of them compare."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.config.loading import find_differences
from worldloop.core.errors import WorldloopError
from worldloop.core.statistics import Rate, paired_gain
from worldloop.reporting.progress import format_minutes
from worldloop.reporting.status import is_alive, read_status
from worldloop.storage.run_directory import RunDirectory

SIGN_OF_LIFE_S = 120.0  # without one for longer, a run on another machine may have died


def format_report(run_dir: Path) -> str:
    """Success per iteration with intervals, world-model figures, and where the time went."""
    directory = RunDirectory(run_dir)
    results = directory.read_results()
    lines = [f"{run_dir}", "", "iteration  simulated success, 95 %      gain over clone       imagined  promoted"]
    for entry in results["iterations"]:
        success, gain, imagined = entry["simulated_success"], entry["paired_gain"], entry["imagined_success"]
        cells = [
            f"{entry['iteration']:>9}",
            "  " + (_interval(success, "rate") if success else "-").ljust(19),
            (f"{success['k']}/{success['n']}" if success else "").ljust(9),
            (_interval(gain, "gain", signed=True) if gain and entry["iteration"] else "-").ljust(22),
            (f"{imagined['rate']:.3f}" if imagined else "-").ljust(9),
            {True: "yes", False: "no", None: "-"}[entry["promoted"]],
        ]
        lines.append(" ".join(cells).rstrip())
    lines += ["", *_alignment_lines(results), *_timing_lines(directory.read_timings())]
    lines.append(f"dashboards: tensorboard --logdir {run_dir / 'tensorboard'}")
    return "\n".join(lines)


def _interval(figures: dict[str, Any], name: str, signed: bool = False) -> str:
    """``0.680 (0.612, 0.741)``; the value alone where the bounds are null, as those of a few episodes may be."""
    style = "+.3f" if signed else ".3f"
    value = f"{figures[name]:{style}}"
    return value if figures["low"] is None else f"{value} ({figures['low']:{style}}, {figures['high']:{style}})"


def _alignment_lines(results: dict[str, Any]) -> list[str]:
    lines = []
    for entry in results["iterations"]:
        for source, figures in (entry["reward_alignment"] or {}).items():
            if isinstance(figures, dict) and figures["auc"]:
                auc, accuracy = figures["auc"], figures["balanced_accuracy"]
                lines.append(
                    f"world model {entry['iteration']}, {source:<9} AUC {_interval(auc, 'value')}"
                    f" bal. acc. {accuracy['value']:.3f}, n {figures['n']}"
                )
        if entry.get("improvement_skipped"):
            lines.append(f"world model {entry['iteration']}, no policy improved in it: {entry['improvement_skipped']}")
        if entry["psnr_db"] is not None:
            lines.append(f"world model {entry['iteration']}, PSNR {entry['psnr_db']:.1f} dB, SSIM {entry['ssim']:.3f}")
    return [*lines, ""] if lines else []


def _timing_lines(timings: list[dict[str, Any]]) -> list[str]:
    if not timings:
        return []
    total = sum(t["seconds"] for t in timings)
    by_stage: dict[str, float] = {}
    for entry in timings:
        by_stage[entry["stage"]] = by_stage.get(entry["stage"], 0.0) + entry["seconds"]
    peak = max(t["peak_memory_mib"] for t in timings)
    lines = [f"{total / 60:.1f} min in stages, peak {peak / 1024:.1f} GiB in the stages' process:"]
    lines += [f"  {stage:<18} {seconds:8.1f} s" for stage, seconds in by_stage.items()]
    return [*lines, ""]


def format_status(run_dir: Path) -> str:
    """What the run in ``run_dir`` is doing, or how it stopped and what to do."""
    status = read_status(run_dir)
    if status is None:
        raise WorldloopError(f"{run_dir} has no status.json: no run directory, or nothing has run in it yet")
    now = time.time()
    ago = format_minutes(max(0.0, now - status["updated"]))
    if status["state"] != "running":
        again = "" if status["state"] == "ended" else "; the command that started it goes on"
        return f"{run_dir}: {status['state']}, {ago} ago{again}"
    alive = is_alive(status)
    if alive is False:
        return f"{run_dir}: its process is gone, last seen {ago} ago; the command that started it goes on"
    lines = [f"{run_dir}: running, process {status['pid']} on {status['host']}"]
    if alive is None and now - status["updated"] > SIGN_OF_LIFE_S:
        lines[0] += f", no sign of life for {ago}"
    lines.append(
        f"iteration {status['iteration']}/{status['num_iterations']}, stage {status['stage_number']}/"
        f"{status['num_stages']}: {status['stage']}, for {format_minutes(now - status['stage_began'])}"
    )
    if progress := status["progress"]:
        lines.append(_bar(progress, now))
    lines.append(_expect(status, RunDirectory(run_dir).read_timings(), now))
    return "\n".join(lines)


def _bar(progress: dict[str, Any], now: float, width: int = 20) -> str:
    count, total = progress["count"], max(1, progress["total"])
    done = min(width, width * count // total)
    rate = count / max(1e-9, now - progress["began"])
    left = f", {format_minutes((total - count) / rate)} left" if count else ""
    figures = "".join(f", {name} {value:.3f}" for name, value in progress["figures"].items())
    return f"  [{'#' * done}{'-' * (width - done)}] {count}/{total} {progress['unit']}s, {rate:.2g}/s{left}{figures}"


def _expect(status: dict[str, Any], timings: list[dict[str, Any]], now: float) -> str:
    """How long the rest of the loop will take if every stage takes as long as it last did."""
    last = {t["stage"]: t["seconds"] for t in timings}
    left = status.get("left", [])
    known = [last[stage] for stage in left if stage in last]
    progress, here = status["progress"], []
    if progress and progress["count"]:
        here.append((progress["total"] - progress["count"]) * (now - progress["began"]) / progress["count"])
    if status["stage"] in last:  # a stage may have several bars, of which one is shown
        here.append(max(0.0, last[status["stage"]] - (now - status["stage_began"])))
    seconds = format_minutes(max(here, default=0.0) + sum(known))
    if not here and not left:
        return "the last stage; it has not run before"
    if not here:
        return f"about {seconds} for {len(known)} of {len(left)} stages to come; this one has not run before"
    if len(known) == len(left):
        return f"about {seconds} to the end of the loop, if stages take as long as before"
    if not known:
        return f"{len(left)} stages to come, of which none has run yet"
    return f"about {seconds} for this and {len(known)} of {len(left)} stages to come; the others have not run yet"


def format_comparison(a: Path, b: Path) -> str:
    """Success of both runs on the states that both evaluated, B minus A, cost side by side, and other settings."""
    runs = [RunDirectory(path) for path in (a, b)]
    results = [run.read_results()["iterations"] for run in runs]
    evaluated = [run.read_state().evaluation_success for run in runs]
    if not all(evaluated):
        raise WorldloopError(f"{(a, b)[bool(evaluated[0])]} has not evaluated a policy yet: nothing to compare")
    states = [run.read_initial_states("evaluation") for run in runs]
    shared = min(len(outcomes[0]) for outcomes in evaluated)
    if any(s is None for s in states) or states[0].ids[:shared] != states[1].ids[:shared]:  # type: ignore[union-attr]
        raise WorldloopError(f"{a} and {b} were evaluated on different states: they cannot be compared")
    lines = [f"A {a}", f"B {b}", "", f"success on the same {shared} states, and B minus A, 95 %:"]
    for iteration in range(min(len(outcomes) for outcomes in evaluated)):
        one, other = (np.array(outcomes[iteration][:shared]) for outcomes in evaluated)
        gain = paired_gain(one, other)
        rates = f"{Rate.of(one).rate:.3f} {Rate.of(other).rate:.3f}"
        difference = _interval(gain.to_dict(), "gain", signed=True)
        chance = f"p {gain.p_value:.3f}" if gain.p_value >= 0.001 else "p < 0.001"
        lines.append(f"  iteration {iteration}  {rates}  {difference}  {chance}")
    lines += ["", f"{'cost so far':<28}{'A':>12}{'B':>12}"]
    timings = [run.read_timings() for run in runs]
    rows: list[tuple[str, list[float]]] = [
        ("simulator steps recorded", [r[-1].get("env_steps", 0) for r in results]),
        ("imagined frames", [sum(e.get("imagined_frames") or 0 for e in r) for r in results]),
        ("minutes in stages", [sum(t["seconds"] for t in times) / 60 for times in timings]),
        ("peak memory, MiB", [max((t["peak_memory_mib"] for t in times), default=0) for times in timings]),
    ]
    lines += [f"{name:<28}{values[0]:>12,.0f}{values[1]:>12,.0f}" for name, values in rows]
    differences = find_differences(runs[0].read_config(), runs[1].read_config())
    lines += ["", "settings (A -> B):" if differences else "the same settings"]
    return "\n".join([*lines, *(f"  {difference}" for difference in differences)])
