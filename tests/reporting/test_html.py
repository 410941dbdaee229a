"""`worldloop report --html`: one file that needs no other, for finished and for hardly begun runs."""

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worldloop.__main__ import main
from worldloop.core.statistics import Rate
from worldloop.reporting.html import (
    count_episodes,
    find_videos,
    make_cards,
    show,
    tabulate_stages,
    tabulate_success,
    tabulate_trust,
    write_html_report,
)
from worldloop.reporting.tensorboard import open_writer
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
    assert "Imagined on the left, simulated on the right" in html
    assert "each task counts the same" not in html
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


def _figures(k: int, n: int, auc: float, psnr_db: float) -> dict[str, Any]:
    """Of a record with two cameras, the second of them 2 dB worse than the mean."""
    estimate = {"value": auc, "low": None, "high": None}
    alignment = {"n": n, "auc": estimate, "balanced_accuracy": estimate, "expected_calibration_error": None}
    metric = {name: {"mean": {"value": psnr_db + d, "low": None, "high": None}, "by_frame": []} for name, d in (
        ("psnr_db", 0), ("psnr_db/base", 2), ("psnr_db/hand", -2))}  # fmt: skip
    return {
        "simulated_success": Rate.from_counts(k, n).to_dict(),
        "paired_gain": {"gain": 0.1, "low": 0.0, "high": 0.2},
        "reward_alignment": {"on_policy": alignment},
        "world_model_check": {"on_policy": metric},
    }


RECORD = {
    "iteration": 1,
    "promoted": True,
    **_figures(4, 8, 0.75, 24.0),
    "tasks": {"push": _figures(3, 4, 0.9, 25.0), "pull": _figures(1, 4, 0.6, 23.0)},
}


def test_several_tasks_have_rows_below_their_mean_and_the_worst_is_named() -> None:
    header, mean, push, pull = tabulate_success([RECORD])
    assert "told to do another task" not in header
    assert mean[:3] == ["1", "0.500 (0.215 to 0.785)", "4/8"]
    assert (push[0].strip(), push[2], push[5]) == ("push", "3/4", "")
    assert (pull[0].strip(), pull[2]) == ("pull (worst)", "1/4")
    told = [RECORD | {"swapped_success": Rate.from_counts(1, 8).to_dict()}]
    assert [row[-1] for row in tabulate_success(told)] == [
        "told to do another task", "0.125 (0.022 to 0.471)", "\u2013", "\u2013",
    ]  # fmt: skip
    success, _, auc = make_cards([RECORD], [])
    assert success["note"] == "4 of 8 states; worst: pull, 25.0%"
    assert auc["note"] == "on_policy, 0.750, n 8; worst: pull, 0.600"


def test_several_cameras_have_their_own_psnr() -> None:
    header, mean, push, pull = tabulate_trust([RECORD])
    assert header[-3:] == ["PSNR, dB", "base, dB", "hand, dB"]
    assert mean[-3:] == ["24.0", "26.0", "22.0"]
    assert (push[0].strip(), *push[-3:]) == ("push", "25.0", "27.0", "23.0")
    assert pull[0].strip() == "pull (worst)"


def test_videos_are_found_in_the_folder_of_their_task(tmp_path: Path) -> None:
    record = {**RECORD, "tasks": {task: _figures(1, 4, 0.5, 20.0) for task in ("push", "pull")}}
    video = {"name": "best_1", "outcome": "failure", "imagined_success": 0.25, "episode": 7}
    record["tasks"]["pull"]["world_model_check"]["on_policy"]["videos"] = [video]
    with open_writer(tmp_path / "check_world_model/pull", purge_step=1) as writer:
        writer.video("check_world_model/on_policy_best_1", 1, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), fps=4.0)
    videos, _ = find_videos(tmp_path, [record])
    assert [v["caption"] for v in videos] == [
        "pull, on-policy, best: simulated failure, imagined success 0.25 (episode 7)"
    ]
    assert base64.b64decode(videos[0]["data"]).startswith(b"GIF89a")


def test_a_page_of_several_tasks_and_cameras(debug_run: Path, tmp_path: Path) -> None:
    """The debug run's own records, with made-up tasks and cameras."""
    run = tmp_path / "plural"
    shutil.copytree(debug_run, run)
    directory = RunDirectory(run)
    state = directory.read_state()
    first, last = state.records
    for check in (c for c in last["world_model_check"].values() if isinstance(c, dict)):
        check["psnr_db/base"] = check["psnr_db/hand"] = check["psnr_db"]
    last |= {"tasks": {task: dict(last) for task in ("push", "pull")}}
    first |= {"tasks": {task: dict(first) for task in ("push", "pull")}}
    directory.write_state(replace(state, records=(first, last)))
    write_html_report(run, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert len(re.findall(r"data:image/svg", html)) == 9, "success and AUC by task, too"
    assert "each task counts the same" in html
    assert ">base, dB</th><th>hand, dB</th>" in html
