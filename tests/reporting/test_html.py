"""`worldloop report --html`: one file that needs no other, for finished and for hardly begun runs."""

import base64
import re
import shutil
from pathlib import Path

import pytest

from worldloop.__main__ import main
from worldloop.reporting.html import count_episodes, show, tabulate_stages, write_html_report
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory


def test_a_finished_run_is_one_page(debug_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(debug_run), "--html", str(out)]) == 0
    html = out.read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", html), "everything is inside"
    charts = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)
    assert len(charts) == 7
    assert all(b"<svg" in base64.b64decode(chart) for chart in charts)
    videos = re.findall(r"data:image/gif;base64,([^\"]+)", html)
    assert videos
    assert all(base64.b64decode(video).startswith(b"GIF89a") for video in videos)
    entry = RunDirectory(debug_run).read_results()["iterations"][1]
    success = entry["simulated_success"]
    assert f"{success['rate']:.3f} ({success['low']:.3f} to {success['high']:.3f})" in html
    assert f"{success['k']} of {success['n']} states" in html
    assert "num_updates" in html
    assert "<h2>What is in SANS?</h2>" in html
    fit = next(row for row in tabulate_stages(RunDirectory(debug_run).read_timings()) if row[0] == "fit_world_model")
    assert all(f">{cell}</td>" in html for cell in fit)


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


def test_a_run_that_has_only_begun_says_what_is_missing(debug_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    shutil.copytree(debug_run, run, ignore=shutil.ignore_patterns("check_world_model"))
    directory = RunDirectory(run)
    state = directory.read_state()
    begun = {**state.to_dict(), "records": state.records[:1], "next_stage": "fit_world_model"}
    directory.write_state(type(state).from_dict(begun))
    write_html_report(run, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "No world model has been checked yet." in html
    assert "No videos: no world model has been checked yet." in html
    assert "next: fit_world_model of iteration" in html


def test_names_from_the_run_are_text(debug_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "<script>alert(1)<"
    shutil.copytree(debug_run, run)
    write_html_report(run, tmp_path / "report.html")
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_no_run_and_no_folder_are_one_line(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "r.html")]) == 2
    assert "has no results.json" in capsys.readouterr().err
    taken = tmp_path / "file"
    taken.touch()
    assert main(["report", str(debug_run), "--html", str(taken / "r.html")]) == 1
    error = capsys.readouterr().err
    assert "cannot write" in error
    assert error.count("\n") == 1


def test_a_figure_without_bounds_is_shown_alone() -> None:
    assert show({"value": 0.68, "low": 0.612, "high": 0.7411}, "value") == "0.680 (0.612 to 0.741)"
    assert show({"value": 0.68, "low": None, "high": None}, "value") == "0.680"
    assert show(None, "value") == "\u2013"
