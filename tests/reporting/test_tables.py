"""What `worldloop report` and `worldloop status` print."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hand_records import GATE, PLANS

from worldloop.__main__ import main
from worldloop.core.statistics import Rate
from worldloop.reporting.status import _expect, format_status
from worldloop.reporting.tables import format_report
from worldloop.storage.run_directory import PeakMemory, RunDirectory


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


def test_the_state_of_a_run_is_told_without_torch(tmp_path: Path) -> None:
    running(tmp_path, os.getpid())
    (tmp_path / "timings.json").write_text(json.dumps({"schema_version": 1, "stages": []}))
    code = f"""
import sys
from worldloop.__main__ import main
main(["status", {str(tmp_path)!r}])
print({{"torch", "numpy", "omegaconf", "gymnasium"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "stage 3/6: improve_policy" in done.stdout
    assert done.stdout.endswith("set()\n")


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
    again = "to continue, run the command again that started it"
    assert format_status(tmp_path) == f"{tmp_path}: its process is gone, last seen 0:05 ago\n{again}"
    stopped = format_status(running(tmp_path, 1, state="interrupted"))
    assert stopped == f"{tmp_path}: interrupted, 0:05 ago\n{again}"


def test_a_run_elsewhere_may_have_died(tmp_path: Path) -> None:
    directory = running(tmp_path, 1, host="node-7", updated=time.time() - 600)
    assert "running, process 1 on node-7, no sign of life for 10:0" in format_status(directory)


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


LONG = "libero_object/pick_up_the_milk_and_place_it_in_the_basket"


def _rate(k: int, n: int) -> dict[str, float]:
    return Rate.from_counts(k, n).to_dict()


def _gain(gain: float) -> dict[str, float]:
    return {"gain": gain, "low": gain - 0.1, "high": gain + 0.1, "p_value": 0.5, "n": 20}


def _alignment(auc: float | None) -> dict[str, object]:
    figures = None if auc is None else {"value": auc, "low": auc - 0.05, "high": auc + 0.05}
    return {"on_policy": {"n": 120, "auc": figures, "balanced_accuracy": figures}, "scripted": None}


def _plural_record() -> dict[str, object]:
    """Two tasks, of which the one with the long name is the worst."""
    tasks = {
        "PushCube-v1": {
            "simulated_success": _rate(8, 10), "paired_gain": _gain(0.2), "imagined_success": _rate(9, 10),
            "swapped_success": _rate(1, 10), "reward_alignment": _alignment(0.9), "psnr_db": 25.0, "ssim": 0.8,
        },
        LONG: {
            "simulated_success": _rate(2, 10), "paired_gain": _gain(-0.2), "imagined_success": _rate(9, 10),
            "swapped_success": _rate(0, 10), "reward_alignment": _alignment(None), "psnr_db": 21.0, "ssim": 0.7,
        },
    }  # fmt: skip
    return {
        "iteration": 1, "simulated_success": _rate(10, 20), "paired_gain": _gain(0.0),
        "imagined_success": _rate(18, 20), "swapped_success": _rate(1, 20),
        "reward_alignment": _alignment(0.9), "psnr_db": 23.0, "ssim": 0.75,
        "promoted": False, "imagined_frames": 100, "improvement_skipped": f"{LONG}: AUC too low", "tasks": tasks,
    }  # fmt: skip


def test_inverse_dynamics_planner_and_gate_are_told(tmp_path: Path) -> None:
    results = {"schema_version": 1, "iterations": [_plural_record() | PLANS | GATE]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    lines = format_report(tmp_path).splitlines()
    first = lines.index("inverse_dynamics 1, explained: joints 0.700 (0.600, 0.800)")
    assert lines[first + 1 : first + 8] == [
        "  actions -, n 90",
        "  successes followed 0.470 (0.400, 0.540)",
        "planner 1, success 0.340 (0.280, 0.410)",
        "  PSNR 19.0 dB, standing still 19.8 dB, n 52",
        "gate 1, scripted  agrees 0.900 (0.850, 0.940)",
        "  always the same answer 0.700, n 12",
        "",
    ]


def test_several_tasks_have_a_row_each_below_their_mean(tmp_path: Path) -> None:
    results = {"schema_version": 1, "iterations": [_plural_record()]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    lines = format_report(tmp_path).splitlines()[2:]
    assert lines[:14] == [
        "iteration  simulated success, 95 %      gain over clone       imagined  promoted",
        "        1   0.500 (0.299, 0.701) 10/20     +0.000 (-0.100, +0.100) 0.900     no",
        "  PushCube-v1         0.800 (0.490, 0.943) +0.200 (+0.100, +0.300) 0.900",
        f"  {LONG}",
        "                      0.200 (0.057, 0.510) -0.200 (-0.300, -0.100) 0.900 worst",
        "",
        "iteration 1, success when told to do another task 0.050 (0.009, 0.236) 1/20",
        "  PushCube-v1            0.100 (0.018, 0.404)",
        f"  {LONG}",
        "                         0.000 (0.000, 0.278)",
        "",
        "world model 1, on_policy AUC 0.900 (0.850, 0.950) bal. acc. 0.900, n 120",
        "  PushCube-v1            AUC 0.900 (0.850, 0.950) bal. acc. 0.900, n 120",
        f"  {LONG}",
    ]
    assert lines[14:20] == [
        "                         -",
        f"world model 1, policy improved without {LONG}: AUC too low",
        "world model 1, PSNR 23.0 dB, SSIM 0.750",
        "  PushCube-v1            PSNR 25.0 dB, SSIM 0.800",
        f"  {LONG}",
        "                         PSNR 21.0 dB, SSIM 0.700, worst",
    ]
    with_paths = ("without", "dashboards", "one page")
    assert max(len(line) for line in lines if not any(name in line for name in with_paths)) <= 80
    assert lines[-1] == f"one page:   worldloop report {tmp_path} --html report.html"
