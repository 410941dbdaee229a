"""What `worldloop status` and `worldloop compare` print."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worldloop.__main__ import main
from worldloop.config.loading import load_config, to_yaml
from worldloop.core.errors import WorldloopError
from worldloop.reporting.tables import _expect, format_comparison, format_report, format_status
from worldloop.runtime.memory import PeakMemory
from worldloop.storage.run_directory import RunDirectory

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"


def test_a_run_that_has_ended_says_so(debug_run: Path) -> None:
    assert re.fullmatch(rf"{re.escape(str(debug_run))}: ended, \d+:\d\d ago", format_status(debug_run))
    assert (debug_run / "logs/iteration_001_evaluate_policy.jsonl").is_file()


def running(tmp_path: Path, pid: int, **changes: object) -> Path:
    now = time.time()
    status = {
        "schema_version": 1, "state": "running", "pid": pid, "host": socket.gethostname(), "iteration": 1,
        "num_iterations": 2, "stage": "improve_policy", "stage_number": 3, "num_stages": 6, "stage_began": now - 130,
        "updated": now - 5, "progress": {"unit": "update", "count": 7, "total": 28, "began": now - 70, "figures":
        {"imagined_success": 0.5}}, "left": ["promote_policy", "evaluate_policy"],
    }  # fmt: skip
    (tmp_path / "status.json").write_text(json.dumps(status | changes))
    return tmp_path


def test_a_run_that_is_running_shows_where_it_is(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        directory = RunDirectory(running(tmp_path, process.pid))
        nothing = format_status(tmp_path).splitlines()
        directory.add_timing(0, "evaluate_policy", 30.0, PeakMemory(1.0, 0.0))
        some = format_status(tmp_path).splitlines()
        directory.add_timing(0, "promote_policy", 60.0, PeakMemory(1.0, 0.0))
        lines = format_status(tmp_path).splitlines()
        process.communicate(b"\n")
    assert lines[0] == f"{tmp_path}: running, process {process.pid} on {socket.gethostname()}"
    assert lines[1] == "iteration 1/2, stage 3/6: improve_policy, for 2:10"
    assert lines[2] == "  [#####---------------] 7/28 updates, 0.1/s, 3:30 left, imagined_success 0.500"
    assert nothing[3] == "2 stages to come, of which none has run yet"
    assert some[3] == "about 4:00 for this and 1 of 2 stages to come; the others have not run yet"
    assert lines[3] == "about 5:00 to the end of the loop, if stages take as long as before"
    assert max(map(len, (*lines[1:], *some[1:]))) <= 80
    now, times = time.time(), RunDirectory(tmp_path).read_timings()
    unknown = {"stage": "import_dataset", "progress": None, "stage_began": now - 9, "left": []}
    assert _expect(unknown, times, now) == "the last stage; it has not run before"
    unknown["left"] = ["promote_policy", "fit_world_model"]
    assert _expect(unknown, times, now) == "about 1:00 for 1 of 2 stages to come; this one has not run before"
    bar = {"count": 99, "total": 100, "began": now - 99}
    several = {"stage": "promote_policy", "progress": bar, "stage_began": now - 20, "left": []}
    assert _expect(several, times, now).startswith("about 0:40 to the end")
    assert "its process is gone, last seen 0:05 ago" in format_status(tmp_path)


def test_a_run_elsewhere_may_have_died(tmp_path: Path) -> None:
    directory = running(tmp_path, 1, host="node-7", updated=time.time() - 600)
    assert "running, process 1 on node-7, no sign of life for 10:0" in format_status(directory)


def test_two_runs_are_compared_on_the_same_states(debug_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(debug_run, other)
    directory = RunDirectory(other)
    state = directory.read_state()
    better = (state.evaluation_success[0], (True,) * len(state.evaluation_success[1]))
    values = {**state.to_dict(), "evaluation_success": better}
    directory.write_state(type(state).from_dict(values))
    config = load_config(
        DEBUG, ["runtime=inline", "num_iterations=1", "clone_policy.num_steps=7", "run_root=elsewhere"]
    )
    (other / "config.yaml").write_text(to_yaml(config))
    text = format_comparison(debug_run, other)
    rate = sum(state.evaluation_success[1]) / len(better[1])
    assert "success on the same 40 states" in text
    assert "+0.000 (+0.000, +0.000)  p 1.000" in text.splitlines()[4]
    assert f"  iteration 1  {rate:.3f} 1.000  {1 - rate:+.3f} (" in text
    assert "clone_policy.num_steps (100 -> 7)" in text
    assert "run_root" not in text
    assert max(map(len, text.splitlines()[2:])) <= 80
    assert format_comparison(debug_run, debug_run).endswith("the same settings")


def test_runs_on_other_states_are_not_compared(debug_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(debug_run, other)
    directory = RunDirectory(other)
    states = directory.read_initial_states("evaluation")
    assert states is not None
    directory.write_initial_states(states.select(range(1, len(states))))
    with pytest.raises(WorldloopError, match="were evaluated on different states"):
        format_comparison(debug_run, other)


@pytest.mark.parametrize("command", [["status", "."], ["compare", ".", "."]])
def test_no_run_is_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("worldloop: . has no ")
    assert error.count("\n") == 1


BAD_TIMING = """{"schema_version": 1, "stages": [
    {"iteration": 0, "stage": ["a"], "seconds": 1, "peak_memory_mib": 1, "finished": ""}]}"""


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("timings.json", '{"schema_version": 1}'),
        ("timings.json", '{"schema_version": 1, "stages": [{"stage": 3}]}'),
        ("timings.json", BAD_TIMING),
        ("results.json", '{"schema_version": 1, "iterations": [{"iteration": 0}]}'),
        ("results.json", '{"schema_version": 1, "iterations": 7}'),
        ("status.json", '{"schema_version": 1, "state": "running"}'),
    ],
)
def test_files_of_other_contents_are_one_line(
    debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(debug_run, run)
    (run / file).write_text(text)
    command = "status" if file == "status.json" else "report"
    assert main([command, str(run)]) == 2
    error = capsys.readouterr().err
    assert "is not what worldloop wrote" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["seed: 3\n  a: [", "- 1\n", "seed: ${x\n"])
def test_a_damaged_config_of_a_run_is_one_line(
    debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    run = tmp_path / "debug"
    shutil.copytree(debug_run, run)
    (run / "config.yaml").write_text(text)
    config = str(Path(__file__).resolve().parents[2] / "configs/debug.yaml")
    for command in (["compare", str(run), str(debug_run)], ["run", config, f"run_root={tmp_path}"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "config.yaml is not what worldloop wrote" in error
        assert error.count("\n") == 1


def test_a_report_of_few_episodes_shows_their_auc_without_bounds(debug_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(debug_run, run)
    results = json.loads((run / "results.json").read_text())
    results["iterations"][1]["reward_alignment"]["scripted"]["auc"] = {"value": 0.25, "low": None, "high": None}
    (run / "results.json").write_text(json.dumps(results))
    assert "world model 1, scripted  AUC 0.250 bal. acc. " in format_report(run)
