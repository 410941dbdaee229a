"""The tables of the HTML report, cell by cell."""

from pathlib import Path

from hand_records import CRITICS, GATE, PLANS, RECORD

from worldloop.core.statistics import Rate
from worldloop.reporting.html_tables import (
    count_episodes,
    show,
    tabulate_critics,
    tabulate_events,
    tabulate_gates,
    tabulate_inverse_dynamics,
    tabulate_plans,
    tabulate_stages,
    tabulate_success,
    tabulate_trust,
)
from worldloop.sans.store import SansStore


def test_a_stage_costs_the_sum_of_its_times_and_the_most_of_its_memory() -> None:
    times = {"finished": "", "peak_gpu_memory_mib": 0}
    rows = tabulate_stages(
        [
            {"iteration": 0, "stage": "clone_policy", "seconds": 30.0, "peak_memory_mib": 700, **times},
            {"iteration": 1, "stage": "fit_world_model", "seconds": 90.0, "peak_memory_mib": 1500, **times},
            {"iteration": 2, "stage": "fit_world_model", "seconds": 60.0, "peak_memory_mib": 1200, **times},
        ]
    )
    assert rows[1:] == [["clone_policy", "0.5", "700", "\u2013"], ["fit_world_model", "2.5", "1,500", "\u2013"]]


def test_sans_is_counted_by_source_iteration_and_outcome(debug_run: Path) -> None:
    store = SansStore(debug_run / "sans")
    counts = count_episodes(store, "v001")
    summary = store.summary(store.version("v001"))
    assert next(iter(counts)).endswith(", 0")
    assert sum(sum(row.values()) for row in counts.values()) == summary["num_episodes"]
    for outcome, number in summary["outcome"].items():
        assert sum(row[outcome] for row in counts.values()) == number


def test_a_figure_without_bounds_is_shown_alone() -> None:
    assert show({"value": 0.68, "low": 0.612, "high": 0.7411}, "value") == "0.680 (0.612 to 0.741)"
    assert show({"value": 0.68, "low": None, "high": None}, "value") == "0.680"
    assert show(None, "value") == "\u2013"


def test_several_tasks_have_rows_below_their_mean_and_the_worst_is_named() -> None:
    header, mean, push, pull = tabulate_success([RECORD])
    assert "told to do another task" not in header
    assert mean[:3] == ["1", "0.500 (0.215 to 0.785)", "4/8"]
    assert (push[0].strip(), push[2], push[5]) == ("push", "3/4", "")
    assert (pull[0].strip(), pull[2]) == ("pull (worst)", "1/4")
    for reason, shown in (({}, "no"), ({"promotion_reason": "undecided"}, "no, undecided")):
        assert tabulate_success([RECORD | {"promoted": False} | reason])[1][5] == shown
    told = [RECORD | {"swapped_success": Rate.from_counts(1, 8).to_dict()}]
    assert [row[-1] for row in tabulate_success(told)] == [
        "told to do another task", "0.125 (0.022 to 0.471)", "\u2013", "\u2013",
    ]  # fmt: skip


def test_several_cameras_have_their_own_psnr() -> None:
    header, mean, push, pull = tabulate_trust([RECORD])
    assert header[-3:] == ["PSNR, dB", "base, dB", "hand, dB"]
    assert mean[-3:] == ["24.0", "26.0", "22.0"]
    assert (push[0].strip(), *push[-3:]) == ("push", "25.0", "27.0", "23.0")
    assert pull[0].strip() == "pull (worst)"


def test_critics_have_a_row_per_source_and_event() -> None:
    assert tabulate_critics([RECORD, RECORD | CRITICS]) == [
        ["iteration", "episodes", "n", "AUC at 25% of the time", "AUC at 50% of the time"],
        ["1", "on_policy", "90", "0.770 (0.650 to 0.880)", "\u2013"],
    ]
    assert tabulate_events([RECORD | CRITICS, RECORD])[1:] == [
        ["on_policy", "contact", "12", "+0.100 (+0.050 to +0.150)", "+0.020 (-0.010 to +0.050)", "0.75 (0.50 to 0.90)"]
    ]
    assert tabulate_critics([RECORD]) == tabulate_events([RECORD]) == []


def test_plans_have_a_row_before_and_after_alignment_and_one_for_what_was_kept() -> None:
    header, *rows = tabulate_plans([RECORD, RECORD | PLANS])
    assert header[3:5] == ["penalty / real", "path / real"]
    before = ["52", "1.30 (1.10 to 1.60)", "\u2013", "19.0 (18.0 to 20.0)", "19.8 (19.0 to 20.5)"]
    assert rows == [
        ["1", "before alignment", *before, "\u2013"],
        ["1", "aligned (refused)", *["\u2013"] * 6],
        ["1", "the planner kept", *before, "0.340 (0.280 to 0.410)"],
    ]
    following = RECORD | {"alignment": {"mode": "follow", "accepted": True, "before": {}, "after": {}}}
    assert tabulate_plans([RECORD, following]) == []


def test_inverse_dynamics_has_a_row_per_model() -> None:
    assert tabulate_inverse_dynamics([RECORD, RECORD | PLANS])[1:] == [
        ["1", "inverse_dynamics", "90", "0.700 (0.600 to 0.800)", "\u2013", "0.470 (0.400 to 0.540)"]
    ]
    assert tabulate_inverse_dynamics([RECORD]) == []


def test_a_gate_has_a_row_per_source() -> None:
    assert tabulate_gates([RECORD, RECORD | GATE])[1:] == [
        ["1", "scripted", "12", "0.900 (0.850 to 0.940)", "0.700", "\u2013", "0.31 (0.25 to 0.38)", "2.1 (1.8 to 2.4)"]
    ]
    assert tabulate_gates([RECORD]) == []
