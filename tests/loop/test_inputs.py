"""Inputs that a config names by a path: a run refuses, by name, to go on with one whose content has changed."""

import json
import shutil
from pathlib import Path

import pytest
from hand_recording import edit_table, write_recording

from worldloop.__main__ import main
from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.files import hash_folder
from worldloop.loop.run import _run_next, open_run, run_loop

CONFIG = Path(__file__).resolve().parents[2] / "configs/recorded_cpu.yaml"


BY_COLUMN = "recording.success_key=next.success"


def _load(folder: Path, *settings: str) -> LoopConfig:
    """The config of the run ``folder/recorded_cpu`` of the recording ``folder/arm``."""
    given = [f"recording.root={folder / 'arm'}", f"run_root={folder}", "recording.image_size=16", "chunk_length=2"]
    return load_config(CONFIG, [*given, "recording.actions_per_frame=2", *settings])


def _run(folder: Path, *settings: str) -> Path:
    """Record and import, or if that was done open the run again."""
    if (folder / "recorded_cpu/state.json").exists():
        directory = open_run(_load(folder, *settings))
        directory.unlock()
        return directory.path
    if not (folder / "arm").exists():
        write_recording(folder / "arm", num_episodes=8)
    return run_loop(_load(folder, *settings), only_stage="import_dataset").path


def test_a_relabelled_recording_is_not_gone_on_with(tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    write_recording(tmp_path / "arm", num_episodes=8)
    label = ["sans", "label", str(tmp_path / "arm"), str(labels)]
    assert main([*label, "--success", "1,3,5,7", "--failure", "rest"]) == 0
    by_labels = f"recording.labels={labels}"
    run = _run(tmp_path, by_labels)
    assert _run(tmp_path, by_labels) == run
    before = labels.read_bytes()
    assert main([*label, "--success", "0"]) == 0
    with pytest.raises(WorldloopError, match=r"recording\.labels .*labels\.json has changed since .*: put it back"):
        _run(tmp_path, by_labels)
    labels.write_bytes(before)
    assert _run(tmp_path, by_labels) == run


def test_a_recording_whose_rows_changed_is_named(tmp_path: Path) -> None:
    run = _run(tmp_path, BY_COLUMN)
    kept = shutil.copytree(tmp_path / "arm", tmp_path / "kept")
    for column, row, value in (("next.success", 2, True), ("action", 3, [0.5, 1.0])):
        edit_table(tmp_path / "arm", "data", lambda t, c=column, r=row, v=value: t.at.__setitem__((r, c), v))
        with pytest.raises(WorldloopError, match=r"recording\.root .*arm has changed since .*recorded_cpu was made"):
            _run(tmp_path, BY_COLUMN)
        shutil.rmtree(tmp_path / "arm")
        shutil.copytree(kept, tmp_path / "arm")
    assert _run(tmp_path, BY_COLUMN) == run


def _succeed_at_once(root: Path) -> None:
    edit_table(root, "data", lambda table: table.at.__setitem__((2, "next.success"), True))


def test_a_change_while_the_run_goes_on_is_seen_before_the_next_stage(tmp_path: Path) -> None:
    _run(tmp_path, BY_COLUMN)
    config = _load(tmp_path, BY_COLUMN)
    directory = open_run(config)
    directory.unlock()
    _succeed_at_once(tmp_path / "arm")
    with pytest.raises(WorldloopError, match="has changed since"):
        _run_next(config, directory.read_state(), directory, None, None, None)  # type: ignore[arg-type]


def test_runs_of_earlier_versions_and_absent_inputs_are_not_compared(tmp_path: Path) -> None:
    stored = _run(tmp_path, BY_COLUMN) / "inputs.json"
    assert list(json.loads(stored.read_text())["inputs"]) == ["recording.root"]
    (tmp_path / "arm").rename(tmp_path / "elsewhere")
    _run(tmp_path, BY_COLUMN)  # what has ended can be looked at without its recording
    (tmp_path / "elsewhere").rename(tmp_path / "arm")
    _succeed_at_once(tmp_path / "arm")
    with pytest.raises(WorldloopError, match="has changed since"):
        _run(tmp_path, BY_COLUMN)
    stored.unlink()
    _run(tmp_path, BY_COLUMN)


def test_what_is_doubtful_about_a_recording_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recording(tmp_path / "arm", num_episodes=8)
    edit_table(tmp_path / "arm", "meta/episodes", lambda t: t.__setitem__("length", 7))
    _run(tmp_path, BY_COLUMN)
    said = capsys.readouterr()
    assert "warning: meta/episodes says that episode 0 is 7 rows, data/ has 6 (and 7 others)" in said.out + said.err


def test_folders_of_other_weights_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(3 * 2**20))
    first = hash_folder(folder)
    (folder / ".cache").write_text("when it was downloaded")
    assert hash_folder(folder) == first
    (folder / "model.safetensors").write_bytes(bytes(3 * 2**20 - 1) + b"1")
    second = hash_folder(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert len({first, second, hash_folder(folder)}) == 3
