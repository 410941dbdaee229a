"""`worldloop sans label`: it needs pictures alone, and calls its options by their names."""

import shutil
from pathlib import Path

import pytest
from hand_recording import FRONT, edit_info, edit_table, write_recording
from PIL import Image

from worldloop.__main__ import main
from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.sans.recordings import open_recording

CONFIG = Path(__file__).resolve().parents[2] / "configs/recorded_cpu.yaml"


def _rename(root: Path, names: dict[str, str]) -> None:
    """Rename features; those that become "" are left out."""

    def describe(info: dict[str, dict[str, object]]) -> None:
        features = {names.get(key, key): feature for key, feature in info["features"].items()}
        info["features"] = {key: feature for key, feature in features.items() if key}

    def move(table: object) -> None:
        for old, new in names.items():
            if new:
                table[new] = table[old]
            table.drop(columns=old, inplace=True)

    edit_info(root, describe)
    edit_table(root, "data", move)


def test_pictures_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, sheet = write_recording(tmp_path / "arm"), tmp_path / "sheet.png"
    _rename(root, {"observation.state": "", "action": "", "next.success": "", FRONT: "image"})
    label = ["sans", "label", str(root), str(tmp_path / "labels.json")]
    assert main([*label, "--success", "1,3", "--sheet", str(sheet), "--camera", "image"]) == 0
    assert "success      2  1, 3" in capsys.readouterr().out
    assert Image.open(sheet).width > 3 * 96


def test_a_wrong_camera_is_called_by_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_recording(tmp_path / "arm", video=True)
    label = ["sans", "label", str(root), str(tmp_path / "labels.json"), "--sheet", str(tmp_path / "sheet.png")]
    assert main([*label, "--camera", "top"]) == 2
    assert "has the cameras front: --camera: 'top' is none of them" in capsys.readouterr().err
    shutil.rmtree(root / "videos")
    assert main(label) == 2
    error = capsys.readouterr().err
    assert "is missing: restore it, or give --camera without 'front'" in error
    assert "recording.cameras" not in error


def test_keys_of_another_convention_are_settings(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "arm")
    _rename(root, {"observation.state": "state", "action": "actions", FRONT: "image"})
    given = [f"recording.root={root}", "recording.success_key=next.success"]
    with pytest.raises(
        WorldloopError, match=r"recording\.state_key asks .* of numbers are: state, actions, next\.succ"
    ):
        open_recording(load_config(CONFIG, given).recording)
    with pytest.raises(WorldloopError, match=r"recording\.action_key asks .* for 'action', which it does not have"):
        open_recording(load_config(CONFIG, [*given, "recording.state_key=state"]).recording)
    keys = ["recording.state_key=state", "recording.action_key=actions", "recording.cameras=[image]"]
    recording = open_recording(load_config(CONFIG, [*given, *keys]).recording)
    assert recording.numbers[1].state[2].tolist() == [1, 2]
