"""`worldloop report --html`: one file that needs no other, for finished and for hardly begun runs."""

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hand_records import RECORD, make_figures

from worldloop.__main__ import main
from worldloop.reporting.html import (
    _caption_strip,
    find_strip_videos,
    find_videos,
    make_cards,
    write_html_report,
)
from worldloop.reporting.html_tables import tabulate_stages
from worldloop.reporting.tables import format_report
from worldloop.reporting.tensorboard import open_writer
from worldloop.storage.run_directory import RunDirectory


def test_a_finished_run_is_one_page(debug_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(debug_run), "--html", str(out)]) == 0
    html = out.read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", html), "everything is inside"
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
    assert "<h2>Do the critics know what comes?</h2>" in html
    assert ">on-policy, best 1: " in html
    assert "each task counts the same" not in html
    assert "<h2>What is in SANS?</h2>" in html
    fit = next(row for row in tabulate_stages(RunDirectory(debug_run).read_timings()) if row[0] == "fit_world_model")
    assert all(f">{cell}</td>" in html for cell in fit)


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
    assert "Do the critics know" not in html


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


def test_cards_name_the_worst_task() -> None:
    success, _, auc = make_cards([RECORD], [])
    assert success["note"] == "4 of 8 states; worst: pull, 25.0%"
    assert auc["note"] == "on_policy, 8 episodes; worst: pull, 0.600"


def test_videos_are_found_in_the_folder_of_their_task(tmp_path: Path) -> None:
    record = {**RECORD, "tasks": {task: make_figures(1, 4, 0.5, 20.0) for task in ("push", "pull")}}
    video = {"name": "best_1", "outcome": "failure", "imagined_success": 0.25, "episode": 7}
    record["tasks"]["pull"]["world_model_check"]["on_policy"]["videos"] = [video]
    with open_writer(tmp_path / "check_world_model/pull", purge_step=1) as writer:
        writer.video("check_world_model/on_policy_best_1", 1, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), fps=4.0)
    videos, _ = find_videos(tmp_path, [record])
    assert [v["caption"] for v in videos] == [
        "pull, on-policy, best: simulated failure, imagined success 0.25 (episode 7)"
    ]
    assert base64.b64decode(videos[0]["data"]).startswith(b"GIF89a")


@pytest.mark.parametrize(
    ("tag", "caption"),
    [
        ("on_policy_worst_2_near_success", "on-policy, worst 2: near-success"),
        ("scripted_11_failure", "scripted, 11: failure"),
        ("of another version", "of another version"),
    ],
)
def test_captions_of_strips(tag: str, caption: str) -> None:
    assert _caption_strip(tag) == caption


def test_critics_and_their_videos_are_shown(debug_run: Path) -> None:
    last = RunDirectory(debug_run).read_results()["iterations"][-1]
    videos = find_strip_videos(debug_run / "tensorboard", [last], "value_check", "check_value")
    captions = [video["caption"] for video in videos]
    assert captions[0].startswith("on-policy, best 1: ")
    assert captions[-1].startswith("scripted, worst ")
    assert all(base64.b64decode(video["data"]).startswith(b"GIF89a") for video in videos)
    assert (
        find_strip_videos(debug_run / "tensorboard", [last | {"iteration": 7}], "value_check", "check_value") == []
    ), "of that check alone"


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


def test_settings_that_changed_are_at_the_top_and_in_a_table(debug_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(debug_run, tmp_path / "changed")
    out = tmp_path / "report.html"
    write_html_report(run, out)
    assert "settings have changed" not in out.read_text()
    directory = RunDirectory(run)
    changed = {"promote_policy": {"promote_policy.net_wins": [2, 3], "improve_policy.group_size": [4, 5]}}
    directory.write_state(directory.read_state().record(changed_settings=changed))
    write_html_report(run, out)
    html = out.read_text()
    assert "settings have changed while the run went on" in html.split("<h2>")[0]
    iteration = len(directory.read_results()["iterations"]) - 1
    cells = [iteration, "promote_policy", "promote_policy.net_wins", 2, 3]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in html
    lines = [f"iteration {iteration}, from promote_policy on:", "  improve_policy.group_size 4 -> 5"]
    assert "\n".join([*lines, "  promote_policy.net_wins 2 -> 3", "", ""]) in format_report(run)
