"""The copy of a run in a store: what another machine finds there, and what becomes of it when a copy is cut short."""

import json
import shutil
from pathlib import Path

import pytest

import worldloop.loop as loop
from worldloop.config import load_config
from worldloop.errors import WorldloopError
from worldloop.runtime.mirror import Mirror

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
pytest.importorskip("pyarrow")


def make_run(folder: Path, **files: str) -> Path:
    for name, text in {"config.yaml": "seed: 0", **files}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def read(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_copy_is_the_run_without_what_can_be_made_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "here", sans__shards__a="one", sans__cache__b="decoded", partial__c="half", twin="one")
    (run / ".lock").touch()
    mirror = Mirror(f"file://{tmp_path}/store", "first")
    assert not mirror.fetch(tmp_path / "nobody")
    mirror.push(run)
    assert len(list((tmp_path / "store/first/objects").iterdir())) == 2  # equal files are kept once
    assert mirror.fetch(tmp_path / "there")
    found = read(tmp_path / "there")
    del found[".mirror.json"]
    assert found == {"config.yaml": "seed: 0", "sans/shards/a": "one", "twin": "one"}


def test_a_copy_follows_what_changes_and_goes(tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one", b="two"), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(run)
    (run / "a").write_text("three")
    (run / "b").unlink()
    mirror.push(run)
    mirror.fetch(tmp_path / "there")
    assert {k: v for k, v in read(tmp_path / "there").items() if k in "ab"} == {"a": "three"}
    objects = [p.read_text() for p in (tmp_path / "store/first/objects").iterdir()]
    assert sorted(objects) == ["seed: 0", "three"], "what no file has any more is gone"


def test_whoever_is_behind_is_told_and_overwrites_nothing(tmp_path: Path) -> None:
    here, mirror = make_run(tmp_path / "here", a="one"), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(here)
    there = tmp_path / "there"
    mirror.fetch(there)
    (there / "a").write_text("further")
    mirror.push(there)
    for attempt in (mirror.push, mirror.fetch):
        with pytest.raises(WorldloopError, match=r"is behind its copy .*delete the folder"):
            attempt(here)
    shutil.rmtree(here)
    assert mirror.fetch(here)
    assert (here / "a").read_text() == "further"


def test_a_copy_that_is_cut_short_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, mirror = make_run(tmp_path / "here", a="one" * 100), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(run)
    (run / "a").write_text("two" * 100)

    def fail(source: object, out: object, *_: object) -> None:
        out.write(b"tw")  # type: ignore[attr-defined]
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", fail)
        with pytest.raises(WorldloopError, match=r"store file://.*/first cannot be used: connection lost"):
            mirror.push(run)
    mirror.fetch(tmp_path / "between")
    assert (tmp_path / "between/a").read_text() == "one" * 100
    mirror.push(run)
    mirror.fetch(tmp_path / "after")
    assert (tmp_path / "after/a").read_text() == "two" * 100


def test_a_machine_that_died_between_manifest_and_its_own_note_goes_on(tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(run)
    token = json.loads((tmp_path / "store/first/manifest.json").read_text())["token"]
    note = json.loads((run / ".mirror.json").read_text()) | {"generation": 0, "token": token}
    (run / ".mirror.json").write_text(json.dumps(note))
    mirror.push(run)
    assert json.loads((tmp_path / "store/first/manifest.json").read_text())["generation"] == 2


def test_what_is_damaged_or_out_of_reach_is_one_clear_error(tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(run)
    for path in (tmp_path / "store/first/objects").iterdir():
        path.write_text("x")
    with pytest.raises(WorldloopError, match="is damaged: restore the store"):
        mirror.fetch(tmp_path / "there")
    assert not (tmp_path / "there").exists()
    (tmp_path / "store/first/manifest.json").write_text("{")
    with pytest.raises(WorldloopError, match=r"the manifest of file://.* is not what worldloop wrote"):
        mirror.fetch(tmp_path / "there")
    with pytest.raises(WorldloopError, match="the store gopher://x/first cannot be used"):
        Mirror("gopher://x", "first")


def test_a_loop_goes_on_from_its_copy_on_another_machine(debug_run: Path, tmp_path: Path) -> None:
    def configure(machine: str) -> loop.LoopConfig:
        return load_config(
            DEBUG, [f"run_root={tmp_path / machine}", f"mirror=file://{tmp_path}/store", "num_iterations=1"]
        )

    for stage in ("seed_dataset", "clone_policy", "evaluate_policy", "collect_episodes", "fit_world_model"):
        loop.run_loop(configure("one"), stage)
    shutil.rmtree(tmp_path / "one")
    directory = loop.run_loop(configure("two"))
    assert (directory.path / "results.json").read_bytes() == (debug_run / "results.json").read_bytes()
    with (tmp_path / "store/debug/manifest.json").open() as file:
        assert "results.json" in json.load(file)["files"]
