"""The command line as a person meets it: exit codes, one-line errors, and what is printed."""

import subprocess
import sys
from pathlib import Path

import pytest

from worldloop.__main__ import main
from worldloop.loop.run import STAGES

ROOT = Path(__file__).resolve().parents[2]
LONG = "x" * 300
DEBUG = str(ROOT / "configs/debug.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", DEBUG, "sed=1"], "worldloop: command line: unknown key sed; did you mean seed?"),
        (["run", DEBUG, "seed=x"], "bad value for seed"),
        (["run", DEBUG, "mirror=/backup"], "mirror must be an address"),
        (["run", DEBUG, "mirror=s3://b/r?client_secret=abc"], "must hold no credentials"),
        (["run", DEBUG, "mirror=s3://key@bucket/r"], "must hold no credentials"),
        (["run", DEBUG, "mirror=s3://key:secret@bucket"], "must hold no credentials"),
        (["run", DEBUG, "mirror=s3://b/r?endpoint_override=key:secret@host:9000"], "must hold no credentials"),
        (["run", DEBUG, "run_root=s3://bucket/runs"], "run_root 's3://bucket/runs' must be a folder"),
        (["run", DEBUG, "run_root=/dev/null/never", "policy.token_vla.proprio_prefixes=[tcp]"], "matches no proprio"),
        (["run", DEBUG, "run_root=/dev/null/never", "simulator.toy.image_size=18"], "frames of 18 x 18 pixels"),
        (["run", DEBUG, "run_root=/dev/null/never", "world_model.hybrid.patch=3"], "by 2 x world_model.hybrid.patch"),
        (["run", DEBUG, "run_root=/dev/null/never", "seed_dataset.episodes={expert: 5, clumsy: 3}"], "'clumsy' is not"),
        (["run", "nowhere.yaml"], "config nowhere.yaml does not exist"),
        (["run", str(ROOT / "configs")], "configs is a folder: name a YAML file"),
        (["run", DEBUG, "simulator.kind=maniskill", "simulator.maniskill.tasks=[Push-v9]"], "'Push-v9' is not one"),
        (["stage", "dance", DEBUG], f"unknown stage 'dance'; stages: {', '.join(STAGES)}"),
        (["report", "/nonexistent"], "/nonexistent has no results.json: it does not exist"),
        (["report", str(ROOT)], "has no results.json: no run directory"),
        (["report", "/nonexistent", "--html", str(ROOT)], f"--html {ROOT} is a folder: name a file in it"),
        (["status", "/nonexistent"], "/nonexistent has no status.json: it does not exist"),
        (["sans", "list", "/nonexistent"], "dataset folder /nonexistent does not exist"),
        (["sans", "list", str(ROOT / "configs")], "has no versions of a dataset; those of a run are in RUN_DIR"),
        (["run", LONG], f"{LONG}: file name too long; choose another file or folder"),
        (["report", LONG], f"{LONG}/results.json: file name too long"),
        (["export", LONG, "out"], f"{LONG}: file name too long"),
    ],
)
def test_user_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("run_root", ["/dev/null/never", "/proc/never", "/tmp/" + "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(run_root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", DEBUG, "runtime=inline", f"run_root={run_root}"]) == 1
    error = capsys.readouterr().err
    assert f"cannot write the run folder {run_root}/debug: " in error
    assert error.count("\n") == 1


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text("{}")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"worldloop: {tmp_path}/results.json: permission denied; ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "invalid choice: 'dance'"),
        ([], "required: COMMAND"),
        (["run"], "required: config"),
        (["sans", "paint", "x"], "invalid choice: 'paint'"),
        (["stage"], "required: NAME"),
        (["stage", "fit_world_model"], "required: config (see"),
    ],
)
def test_unknown_commands_exit_2_without_a_traceback(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("worldloop: ")
    assert message in error


def test_report_and_sans_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"run_root={tmp_path}", "num_iterations=0", "clone_policy.num_steps=5"]
    assert main(["run", DEBUG, *overrides]) == 0
    run_dir = tmp_path / "debug"
    table = capsys.readouterr().out
    assert "simulated success, 95 %" in table
    assert max(len(line) for line in table.splitlines() if str(tmp_path) not in line) <= 80
    assert main(["report", str(run_dir)]) == 0
    assert main(["sans", "list", str(run_dir / "sans")]) == 0
    assert capsys.readouterr().out.endswith("v000                       1 shard       96 episodes\n")
    assert main(["sans", "show", str(run_dir / "sans")]) == 0
    assert "96 episodes" in capsys.readouterr().out
    assert main(["sans", "verify", str(run_dir / "sans"), "v000"]) == 0
    assert "match their hashes" in capsys.readouterr().out
    assert main(["sans", "show", str(run_dir / "sans"), "v9"]) == 2
    assert "no version 'v9'" in capsys.readouterr().err


def test_both_ways_to_call_it() -> None:
    for command in ([sys.executable, "-m", "worldloop"], [str(Path(sys.executable).parent / "worldloop")]):
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30)
        assert result.returncode == 0
        assert result.stdout.startswith("worldloop ")
