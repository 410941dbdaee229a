"""The copy of a run in a store: what another machine finds there, and what becomes of it when a copy is cut short."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import worldloop.loop.run as loop
from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.storage import mirror as module
from worldloop.storage.mirror import Mirror, StoreError

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
    assert not (tmp_path / "there/.incoming").exists()
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


def read_generation(tmp_path: Path) -> int:
    return int(json.loads((tmp_path / "store/first/manifest.json").read_text())["generation"])


def test_a_machine_that_dies_again_and_again_around_its_manifest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(run)
    write = module.write_file

    def die(path: Path, data: bytes, what: str) -> None:
        is_before_the_manifest = bool(json.loads(data)["token"])
        if is_before_the_manifest:
            write(path, data, what)
        if is_before_the_manifest == (moment == "before"):
            raise KeyboardInterrupt

    for number, moment in enumerate(("after", "before", "after", "after", "before", "before")):  # noqa: B007
        (run / "a").write_text(f"change {number}")
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_file", die)
            with pytest.raises(KeyboardInterrupt):
                mirror.push(run)
    mirror.push(run)
    assert not mirror.fetch(run)
    mirror.fetch(tmp_path / "there")
    assert (tmp_path / "there/a").read_text() == "change 5"


def test_nothing_changed_is_nothing_written(tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(run)
    mirror.push(run)
    assert read_generation(tmp_path) == 1


def test_a_copy_of_another_run_is_left_alone(tmp_path: Path) -> None:
    one, other = (make_run(tmp_path / name, a=name) for name in ("one", "other"))
    store, elsewhere = (Mirror(f"file://{tmp_path}/{name}", "first") for name in ("store", "elsewhere"))
    store.push(one)
    for text in ("two", "three"):
        (other / "a").write_text(text)
        elsewhere.push(other)
    with pytest.raises(WorldloopError, match="is the copy of another run"):
        store.push(other)
    assert read_generation(tmp_path) == 1


def test_nothing_is_fetched_over_other_files_nor_out_of_the_folder(tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(run)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/notes.txt").write_text("mine")
    with pytest.raises(WorldloopError, match="holds something that is no run: move it away"):
        mirror.fetch(tmp_path / "there")
    assert read(tmp_path / "there") == {"notes.txt": "mine"}
    path = tmp_path / "store/first/manifest.json"
    whole = json.loads(path.read_text())
    for name in ("../evil", "/evil"):
        path.write_text(json.dumps(whole | {"files": {name: "0" * 64}}))
        with pytest.raises(WorldloopError, match=r"is not what worldloop wrote .*evil"):
            mirror.fetch(tmp_path / "elsewhere")


def test_a_fetch_that_was_cut_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, mirror = make_run(tmp_path / "here", a="one", b="two"), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(run)
    there, rename = tmp_path / "there", Path.rename

    def cut(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            mirror.fetch(there)
    assert not (there / "config.yaml").exists()
    assert mirror.fetch(there)
    assert {k: v for k, v in read(there).items() if k in "ab"} == {"a": "one", "b": "two"}


def test_what_is_damaged_or_out_of_reach_is_one_clear_error(tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), Mirror(f"file://{tmp_path}/store", "first")
    mirror.push(run)
    for path in (tmp_path / "store/first/objects").iterdir():
        path.write_text("x")
    with pytest.raises(WorldloopError, match="is damaged: restore the store"):
        mirror.fetch(tmp_path / "there")
    assert not (tmp_path / "there/config.yaml").exists()
    (tmp_path / "store/first/manifest.json").write_text("{")
    with pytest.raises(WorldloopError, match=r"the manifest of file://.* is not what worldloop wrote"):
        mirror.fetch(tmp_path / "there")
    with pytest.raises(WorldloopError, match="the store gopher://x/first cannot be used"):
        Mirror("gopher://x", "first")


def test_a_loop_goes_on_from_its_copy_on_another_machine(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def configure(machine: str) -> loop.LoopConfig:
        return load_config(
            DEBUG, [f"run_root={tmp_path / machine}", f"mirror=file://{tmp_path}/store", "num_iterations=1"]
        )

    def fail(self: Mirror, run: Path) -> None:
        raise StoreError("the store is out of reach")

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "push", fail)
        with pytest.raises(StoreError):  # not before the end
            loop.run_loop(configure("one"), "seed_dataset")
    assert "not copied, the next stage tries again: the store is out" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    for stage in ("clone_policy", "evaluate_policy", "collect_episodes", "fit_world_model"):
        loop.run_loop(configure("one"), stage)
    with pytest.raises(WorldloopError, match="or delete it and its copy file://"):
        loop.run_loop(replace(configure("three"), seed=1))
    shutil.rmtree(tmp_path / "one")
    directory = loop.run_loop(configure("two"))
    assert (directory.path / "results.json").read_bytes() == (debug_run / "results.json").read_bytes()
    with (tmp_path / "store/debug/manifest.json").open() as file:
        assert "results.json" in json.load(file)["files"]
    shutil.rmtree(tmp_path / "store")
    loop.run_loop(configure("two"))  # ended before: what is not there is copied all the same
    assert (tmp_path / "store/debug/manifest.json").is_file()
