"""Export of a debug run's world model: the folder is an environment, and its card says what the check found."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import worldloop.gym_env  # noqa: F401
from worldloop.__main__ import main
from worldloop.errors import WorldloopError
from worldloop.runtime import hub

NAME = "worldloop/WorldModel-v0"


def _first_step(checkpoint: Any) -> np.ndarray:
    env = gymnasium.make(NAME, checkpoint=checkpoint, device="cpu")
    env.reset(seed=0)
    return np.asarray(env.step(np.zeros(env.action_space.shape, dtype=np.float32))[0]["image"])


def test_an_exported_folder_is_an_environment_with_a_card(
    debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toy-world"
    assert main(["export", str(debug_run), str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {*hub.FILES, "README.md"}
    assert np.array_equal(_first_step(out), _first_step(debug_run))
    text = (out / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: worldloop\n")
    figures = json.loads((out / "card.json").read_text())["figures"]
    auc = figures["on_policy"]["auc"]
    assert f"on-policy, n {figures['on_policy']['n']}" in text
    assert f"| {figures['scripted']['auc']['value']:.3f} (" in text
    assert f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})" in text
    assert f"| PSNR | {figures['on_policy']['psnr_db']:.1f} dB | {figures['scripted']['psnr_db']:.1f} dB |" in text
    capsys.readouterr()
    assert main(["export", str(debug_run), str(out)]) == 2
    assert "exists: export into a folder that does not exist yet" in capsys.readouterr().err


def test_the_hub_is_asked_for_what_is_not_here(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's client answers from a folder that stands for its servers: no test reaches the network."""
    import huggingface_hub

    server = tmp_path / "server"

    class Api:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            assert (private, exist_ok) == (True, True)
            (server / name).mkdir(parents=True)

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
            shutil.copytree(folder_path, server / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(server / name))
    assert main(["export", str(debug_run), str(tmp_path / "out"), "--push", "someone/toy-world"]) == 0
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(_first_step("someone/toy-world"), _first_step(debug_run))


def test_what_cannot_be_had_is_one_clear_error(debug_run: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldloopError, match="checkpoint no-one/nothing does not exist here, and cannot be had"):
        gymnasium.make(NAME, checkpoint="no-one/nothing")
    with pytest.raises(WorldloopError, match="'nothing' is no name on the Hub"):
        hub.push_to_hub(debug_run, "nothing")
    with pytest.raises(WorldloopError, match=r"cannot upload .* `hf auth login` logs in"):
        hub.push_to_hub(debug_run, "no-one/nothing")
    with pytest.raises(WorldloopError, match=r"has no card\.json"):
        hub.export_world_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
