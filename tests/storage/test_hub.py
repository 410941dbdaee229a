"""Export of a debug run's world model: the folder is an environment, and its card says what the check found."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from tiny_pipeline import make_pipeline

import worldloop.envs
from worldloop.__main__ import main
from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.factory.pretrained import find_world_model
from worldloop.loop.run import run_loop
from worldloop.storage import hub

NAME = "worldloop/WorldModel-v0"
DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"


def _first_step(checkpoint: Any, **options: str) -> np.ndarray:
    env = gymnasium.make(NAME, checkpoint=checkpoint, device="cpu", **options)
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
    assert main(["export", str(debug_run), str(out)]) == 0  # the same again
    (out / "notes.txt").write_text("mine")
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
    asked: list[Any] = []

    def download(name: str, revision: str | None, **_: Any) -> str:
        asked.append(revision)
        return str(server / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert main(["export", str(debug_run), str(tmp_path / "out"), "--push", "someone/toy-world"]) == 0
    monkeypatch.chdir(tmp_path)
    for checkpoint, revision in (("hf://someone/toy-world", None), (Path("hf://someone/toy-world@v1"), "v1")):
        assert np.array_equal(_first_step(checkpoint), _first_step(debug_run))
        assert asked[-1] == revision
    assert 'checkpoint="hf://someone/toy-world"' in (tmp_path / "out/README.md").read_text()


@pytest.mark.slow
def test_a_loop_fine_tunes_a_published_pipeline_and_its_model_travels(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path / "tiny-video2world")
    config = load_config(DEBUG, [
        f"run_root={tmp_path}", "num_iterations=1", "world_model.denoiser=cosmos", "world_model.codec=wan",
        f"world_model.pretrained={pipeline}", "world_model.text_tokens=12", "world_model.lora_rank=4",
        "fit_world_model.num_steps=4", "fit_world_model.num_proprio_steps=4", "check_world_model.probe_steps=0",
        "check_world_model.num_videos=0", "check_world_model.reset_every=[]", "check_closed_loop.num_states=2",
        "check_closed_loop.num_training_states=2", "evaluate_policy.num_states=10", "improve_policy.bootstraps=false",
        "check_world_model.required_auc=0", "improve_policy.num_updates=2", "improve_policy.num_candidates=1",
        "improve_policy.groups_per_update=4", "clone_policy.num_steps=4", "improve_policy.num_imitation_steps=4",
    ])  # fmt: skip
    run = run_loop(config).path
    assert run_loop(config).read_state().next_stage == ""
    worldloop.save_pretrained(run, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out/checkpoint.json").read_text()
    assert "the pipeline tiny-video2world: say where" in (tmp_path / "out/README.md").read_text()
    before = _first_step(run)
    pipeline.rename(tmp_path / "moved")
    with pytest.raises(WorldloopError, match=r"world_model\.pretrained tiny-video2world"):
        worldloop.from_pretrained(tmp_path / "out")
    assert np.array_equal(_first_step(tmp_path / "out", pretrained=str(tmp_path / "moved")), before)
    model = worldloop.from_pretrained(tmp_path / "out", pretrained=str(tmp_path / "moved"), device="cpu")
    assert any("lora_A" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_a_card_names_the_published_model_that_it_adapts(debug_run: Path, tmp_path: Path) -> None:
    world_model = Path(shutil.copytree(find_world_model(debug_run), tmp_path / "world_model"))
    description = json.loads((world_model / "checkpoint.json").read_text())
    description["config"]["pretrained"] = "nvidia/Cosmos-Predict2-2B-Video2World"
    (world_model / "checkpoint.json").write_text(json.dumps(description))
    hub.export_world_model(world_model, tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "\nbase_model: nvidia/Cosmos-Predict2-2B-Video2World\n" in text
    assert "nvidia/Cosmos-Predict2-2B-Video2World" in (tmp_path / "out/checkpoint.json").read_text()


def test_what_cannot_be_had_is_one_clear_error(debug_run: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldloopError, match="hf://no-one/nothing@v1 cannot be had from the Hub: "):
        gymnasium.make(NAME, checkpoint="hf://no-one/nothing@v1")
    with pytest.raises(
        WorldloopError, match=r"runs/nothing does not exist: .*; on the Hub it would be hf://runs/nothing$"
    ):
        gymnasium.make(NAME, checkpoint="runs/nothing")
    with pytest.raises(WorldloopError, match="'nothing' is no name on the Hub"):
        hub.push_to_hub(debug_run, "nothing")
    with pytest.raises(WorldloopError, match=r"cannot upload .* `hf auth login` logs in"):
        hub.push_to_hub(debug_run, "no-one/nothing")
    with pytest.raises(WorldloopError, match=r"has no card\.json"):
        hub.export_world_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
