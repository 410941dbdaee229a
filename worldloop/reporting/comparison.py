"""Compare two runs within 80 columns: success on the same states, cost, and different settings."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.core.statistics import Rate, paired_gain
from worldloop.evaluation.by_task import Outcomes, pool_outcomes
from worldloop.reporting.tables import put_name_before, show_interval
from worldloop.storage.run_directory import RunDirectory

TaskPair = tuple[str, str]  # the name of one task in run A and in run B


def format_comparison(a: Path, b: Path, find_differences: Callable[[str, str], list[str]]) -> str:
    """Compare success on the states that both runs evaluated (B minus A), their costs, and their settings.

    With several tasks, only shared tasks count: all together, then each. ``find_differences(a, b)`` lists the
    differences of two YAML configs, see `worldloop.config.loading`. Raises `WorldloopError` if the runs share no
    evaluated states.
    """
    runs = [RunDirectory(path) for path in (a, b)]
    results = [run.read_results()["iterations"] for run in runs]
    lines = [f"A {a}", f"B {b}", "", *_compare_success(runs[0], runs[1])]
    lines += ["", f"{'cost so far':<28}{'A':>12}{'B':>12}"]
    timings = [run.read_timings() for run in runs]
    rows: list[tuple[str, list[float]]] = [
        ("simulator steps in SANS", [r[-1].get("env_steps", 0) for r in results]),
        # Earlier versions did not count those that only judge.
        ("simulator steps", [r[-1].get("simulator_steps", math.nan) for r in results]),
        ("imagined frames", [sum(e.get("imagined_frames") or 0 for e in r) for r in results]),
        ("minutes in stages", [sum(t["seconds"] for t in times) / 60 for times in timings]),
        ("peak memory, MiB", [max((t["peak_memory_mib"] for t in times), default=0) for times in timings]),
    ]
    for name, values in rows:
        lines.append(f"{name:<28}" + "".join(f"{'-' if math.isnan(v) else f'{v:,.0f}':>12}" for v in values))
    differences = find_differences(runs[0].read_config(), runs[1].read_config())
    lines += ["", "settings (A -> B):" if differences else "the same settings"]
    return "\n".join([*lines, *(f"  {difference}" for difference in differences)])


def _compare_success(a: RunDirectory, b: RunDirectory) -> list[str]:
    """One line per iteration, and below it with several tasks one line per task."""
    of_a, of_b = (run.read_state().evaluation_success for run in (a, b))
    for run, outcomes in ((a, of_a), (b, of_b)):
        if not outcomes:
            raise WorldloopError(f"{run.path} has not evaluated a policy yet: nothing to compare")
    pairs = _pair_tasks(of_a[0], of_b[0])
    if not pairs:
        raise WorldloopError(f"{a.path} and {b.path} have no task in common: they cannot be compared")
    shared = min(min(len(of_a[0][in_a]), len(of_b[0][in_b])) for in_a, in_b in pairs)
    for in_a, in_b in pairs:
        states = (a.read_initial_states("evaluation", in_a), b.read_initial_states("evaluation", in_b))
        if states[0] is None or states[1] is None or states[0].ids[:shared] != states[1].ids[:shared]:
            raise WorldloopError(f"{a.path} and {b.path} were evaluated on different states: they cannot be compared")
    each = f" of each of {len(pairs)} tasks" if len(pairs) > 1 else ""
    lines = [f"success on the same {shared} states{each}, and B minus A, 95 %:"]
    for iteration in range(min(len(of_a), len(of_b))):
        one: Outcomes = {in_b: of_a[iteration][in_a][:shared] for in_a, in_b in pairs}
        other: Outcomes = {in_b: of_b[iteration][in_b][:shared] for _, in_b in pairs}
        lines.append(f"  iteration {iteration}  {_compare(pool_outcomes(one, one), pool_outcomes(other, other))}")
        for task in one if len(pairs) > 1 else ():
            text = _compare(np.array(one[task]), np.array(other[task]))
            lines += put_name_before(text, f"  {task}", 25)
    for side, (name, tasks) in enumerate((("A", of_a[0]), ("B", of_b[0]))):
        shared_tasks = {pair[side] for pair in pairs}
        if alone := [task for task in tasks if task not in shared_tasks]:
            lines += textwrap.wrap(f"only in {name}: {', '.join(alone)}", 80, subsequent_indent="  ")
    return lines


def _pair_tasks(of_a: Outcomes, of_b: Outcomes) -> list[TaskPair]:
    """The tasks that both runs have. If each run has one task, the two are paired whatever their names.

    The caller checks that the states are the same. In old runs the only task has no name.
    """
    if len(of_a) == len(of_b) == 1:
        return [(next(iter(of_a)), next(iter(of_b)))]
    return [(task, task) for task in of_b if task in of_a]


def _compare(one: np.ndarray, other: np.ndarray) -> str:
    """E.g. ``0.485 0.860  +0.375 (+0.305, +0.450)  p < 0.001``, from success bool [n] on the same states."""
    gain = paired_gain(one, other)
    difference = show_interval(gain.to_dict(), "gain", signed=True)
    chance = f"p {gain.p_value:.3f}" if gain.p_value >= 0.001 else "p < 0.001"
    return f"{Rate.of(one).rate:.3f} {Rate.of(other).rate:.3f}  {difference}  {chance}"
