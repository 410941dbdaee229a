"""The copy of a run in a store: what another machine finds there, and what becomes of it when a copy is cut short.

Each test runs on a folder and on an S3-compatible server.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from object_servers import SECRET, S3Server, cutting, name_bucket

from worldloop.core.errors import WorldloopError
from worldloop.core.files import hash_file, to_json
from worldloop.storage import mirror as module
from worldloop.storage import object_store
from worldloop.storage.mirror import Mirror
from worldloop.storage.mirror_upload import CancelledError
from worldloop.storage.object_store import PART, ObjectStore, StoreError
from worldloop.storage.snapshot import FileChangedError

pytest.importorskip("obstore")
HOURS = timedelta(hours=1)


@dataclass
class Place:
    """Where copies are, and what a test does to them."""

    address: str
    folder: Path
    server: S3Server | None = None

    def mirror(self) -> Mirror:
        return Mirror(self.address, "first")

    @property
    def store(self) -> ObjectStore:
        return ObjectStore(self.address, "first")

    def list(self, below: str) -> list[str]:
        return sorted(path.removeprefix(f"{below}/") for path in self.store.entries(below))

    def read_objects(self) -> list[str]:
        return sorted(self.store.read(f"objects/{name}").decode() for name in self.list("objects"))

    def replace(self, path: str, data: bytes) -> None:
        self.store.write(path, len(data), [data])

    def age(self, by: timedelta) -> None:
        """Make all that is stored older by the store's own clock."""
        if self.server is not None:
            self.server.age("bucket", by)
        for path in self.folder.rglob("*"):
            changed = path.stat().st_mtime - by.total_seconds()
            os.utime(path, (changed, changed))


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    folder = tmp_path / "store"
    if request.param == "folder":
        return Place(f"file://{folder}", folder)
    server: S3Server = request.getfixturevalue("s3")
    return Place(name_bucket("bucket", server.port), folder, server)


def make_run(folder: Path, named: dict[str, str] | None = None, **files: str) -> Path:
    """Write files: ``named`` by their paths, ``files`` with __ for /."""
    for name, text in ({"config.yaml": "seed: 0"} | {k.replace("__", "/"): v for k, v in files.items()}).items():
        write_text(folder / name, text)
    for name, text in (named or {}).items():
        write_text(folder / name, text)
    return folder


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_checkpoint(run: Path, step: int, size: int = 1) -> None:
    """A checkpoint as `training.resume` writes it, in its order."""
    folder = run / "partial/fit"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{part}_{step}.safetensors" for part in ("shared", "part_0")]
    for name in names:
        (folder / name).write_text(f"{name} " * size)
    hashes = {name: hash_file(folder / name) for name in names}
    (folder / "new.json").write_bytes(to_json({"num_steps": step, "sha256": hashes}))
    (folder / "new.json").rename(folder / "partial.json")
    for path in folder.glob("*.safetensors"):
        if path.name not in names:
            path.unlink()


def read(folder: Path) -> dict[str, str]:
    files = {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop(".mirror.json", None)
    return files


def fetch(place: Place, folder: Path) -> dict[str, str]:
    assert place.mirror().fetch(folder)
    return read(folder)


def test_a_copy_is_the_run_without_what_can_be_made_again(place: Place, tmp_path: Path) -> None:
    run = make_run(tmp_path / "here", sans__shards__a="one", sans__cache__b="decoded", twin="one")
    (run / "status.json").touch()
    (run / ".lock").touch()
    assert not place.mirror().exists
    assert not place.mirror().fetch(tmp_path / "nobody")
    assert not place.folder.exists()
    place.mirror().push(run)
    assert place.read_objects() == ["one", "seed: 0"], "equal files are stored once"
    assert fetch(place, tmp_path / "there") == {"config.yaml": "seed: 0", "sans/shards/a": "one", "twin": "one"}
    assert not (tmp_path / "there/.incoming").exists()
    for name in ("sans/shards/a", "config.yaml"):
        assert (tmp_path / "there" / name).stat().st_mtime_ns == (run / name).stat().st_mtime_ns, "blocks go by it"


def test_a_copy_follows_what_changes_and_goes(place: Place, tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one", b="two"), place.mirror()
    mirror.push(run)
    (run / "a").write_text("three")
    (run / "b").unlink()
    mirror.push(run)
    assert fetch(place, tmp_path / "there") == {"config.yaml": "seed: 0", "a": "three"}


def test_the_last_two_generations_stay_and_older_objects_for_an_hour(place: Place, tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), place.mirror()
    for text in ("one", "two", "three"):
        (run / "a").write_text(text)
        mirror.push(run)
    assert place.list("manifests") == ["000000002.json", "000000003.json"]
    assert place.read_objects() == ["one", "seed: 0", "three", "two"], "young"
    place.age(0.9 * HOURS)
    (run / "a").write_text("four")
    mirror.push(run)
    assert place.read_objects() == ["four", "one", "seed: 0", "three", "two"]
    place.age(0.2 * HOURS)
    (run / "a").write_text("five")
    mirror.push(run)
    assert place.list("manifests") == ["000000004.json", "000000005.json"]
    assert place.read_objects() == ["five", "four", "seed: 0"]


def test_an_object_that_might_be_deleted_at_any_moment_is_not_relied_on(place: Place, tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), place.mirror()
    for text in ("one", "two", "three"):
        (run / "a").write_text(text)
        mirror.push(run)
    place.age(0.9 * HOURS)
    (run / "a").write_text("one")
    mirror.push(run)
    place.age(0.2 * HOURS)
    (run / "a").write_text("four")
    mirror.push(run)
    assert "one" in place.read_objects(), "it was uploaded anew"
    (run / "a").write_text("five")
    uploads: list[str] = []
    write = ObjectStore.write
    with pytest.MonkeyPatch.context() as patch:

        def count(self: ObjectStore, path: str, size: int, blocks: Iterable[bytes]) -> None:
            uploads.append(path)
            write(self, path, size, blocks)

        def die(*_: object) -> bool:
            raise StoreError("the line is cut")

        patch.setattr(ObjectStore, "write", count)
        patch.setattr(ObjectStore, "create", die)
        for _ in range(2):
            with pytest.raises(StoreError):
                place.mirror().push(run)
    assert len([path for path in uploads if path.startswith("objects/")]) == 1, "a young one is relied on"


def test_whoever_is_behind_is_told_and_overwrites_nothing(place: Place, tmp_path: Path) -> None:
    here, there = make_run(tmp_path / "here", a="one"), tmp_path / "there"
    place.mirror().push(here)
    fetch(place, there)
    (there / "a").write_text("further")
    place.mirror().push(there)
    for attempt in (place.mirror().push, place.mirror().fetch):
        with pytest.raises(WorldloopError, match=r"is behind its copy .*delete the folder"):
            attempt(here)
    shutil.rmtree(here)
    assert fetch(place, here)["a"] == "further"


@pytest.mark.parametrize("winner", ["here", "there"])
@pytest.mark.parametrize("is_new", [False, True])
def test_of_two_machines_that_push_at_once_one_wins_and_no_object_is_lost(
    place: Place, tmp_path: Path, winner: str, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"here": make_run(tmp_path / "here", a="one"), "there": tmp_path / "there"}
    if is_new:
        make_run(runs["there"], a="two")
    else:
        place.mirror().push(runs["here"])
        fetch(place, runs["there"])
    place.age(2 * HOURS)
    create, gate, done, met = ObjectStore.create, threading.Barrier(2), threading.Event(), set()

    def meet(self: ObjectStore, path: str, data: bytes) -> bool:
        name = threading.current_thread().name
        if name not in met:
            met.add(name)
            gate.wait(30)
            if name != winner:
                assert done.wait(30)
        return create(self, path, data)

    errors: dict[str, Exception] = {}

    def push(name: str) -> None:
        (runs[name] / "a").write_text(f"of {name}")
        try:
            place.mirror().push(runs[name])
        except Exception as error:
            errors[name] = error
        done.set()

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "create", meet)
        threads = [threading.Thread(target=push, args=(name,), name=name) for name in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    loser = next(name for name in runs if name != winner)
    assert list(errors) == [loser]
    expected = "is the copy of another run" if is_new else "is behind its copy"
    assert expected in str(errors[loser])
    with pytest.raises(WorldloopError, match=expected):
        place.mirror().push(runs[loser])
    assert fetch(place, tmp_path / "third")["a"] == f"of {winner}"
    (runs[winner] / "a").write_text("further")
    place.mirror().push(runs[winner])
    assert fetch(place, tmp_path / "fourth")["a"] == "further"


def test_a_machine_that_wakes_up_late_destroys_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = make_run(tmp_path / "here", a="one"), tmp_path / "there"
    place.mirror().push(here)
    fetch(place, there)
    create = ObjectStore.create

    def sleep(self: ObjectStore, path: str, data: bytes) -> bool:
        monkeypatch.setattr(ObjectStore, "create", create)
        for number in range(4):  # so many that the sleeper's own number is free again
            place.age(2 * HOURS)
            (there / "a").write_text(f"number {number}")
            place.mirror().push(there)
        assert path.removeprefix("manifests/") not in place.list("manifests")
        return create(self, path, data)

    monkeypatch.setattr(ObjectStore, "create", sleep)
    (here / "a").write_text("late")
    with pytest.raises(WorldloopError, match="is behind its copy"):
        place.mirror().push(here)
    place.mirror().push(there)
    assert fetch(place, tmp_path / "third")["a"] == "number 3"


def test_a_store_that_overwrites_what_should_be_created_is_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(self: ObjectStore, path: str, data: bytes) -> bool:
        self.write(path, len(data), [data])
        return True

    monkeypatch.setattr(ObjectStore, "create", overwrite)
    with pytest.raises(StoreError, match="it overwrites files that should only be created"):
        place.mirror().push(make_run(tmp_path / "here", a="one"))


def test_a_fetch_during_pushes_gets_a_whole_run(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = make_run(tmp_path / "here", a="one", b="stays")
    place.mirror().push(here)
    read_blocks, reads = ObjectStore.read_blocks, []

    def go_on() -> None:
        for text in ("two", "three", "four"):
            place.age(2 * HOURS)
            (here / "a").write_text(text)
            place.mirror().push(here)

    def read(self: ObjectStore, path: str) -> Iterable[bytes]:
        reads.append(path)
        if len(reads) == 1:
            go_on()
        return read_blocks(self, path)

    monkeypatch.setattr(ObjectStore, "read_blocks", read)
    assert fetch(place, tmp_path / "there") == {"config.yaml": "seed: 0", "a": "four", "b": "stays"}
    place.mirror().push(tmp_path / "there")


def test_a_fetch_of_a_copy_that_never_rests_says_so(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make_run(tmp_path / "here", a="one")
    place.mirror().push(here)

    def vanish(self: ObjectStore, path: str) -> Iterable[bytes]:
        (here / "a").write_text((here / "a").read_text() + "!")
        place.mirror().push(here)
        raise FileNotFoundError(path)

    monkeypatch.setattr(ObjectStore, "read_blocks", vanish)
    with pytest.raises(WorldloopError, match="is being written all the time: try again"):
        place.mirror().fetch(tmp_path / "there")
    assert not (tmp_path / "there/config.yaml").exists()


def test_a_missing_object_is_named_and_the_generation_before_still_works(place: Place, tmp_path: Path) -> None:
    run = make_run(tmp_path / "here", a="one", b="two")
    place.mirror().push(run)
    (run / "b").write_text("three")
    place.mirror().push(run)
    place.store.delete([f"objects/{hash_file(run / 'b')}"])
    remedy = "b is missing in .*: restore the store, or delete manifests/000000002.json there to go back"
    with pytest.raises(WorldloopError, match=remedy):
        place.mirror().fetch(tmp_path / "there")
    (run / "a").write_text("four")
    place.mirror().push(run)
    assert fetch(place, tmp_path / "there")["b"] == "three", "a push uploads what is missing"
    place.store.delete([f"objects/{hash_file(run / 'a')}", "manifests/000000003.json", "manifests/000000002.json"])
    place.replace("manifests/000000002.json", place_first(place, run))
    assert fetch(place, tmp_path / "back")["b"] == "two"


def place_first(place: Place, run: Path) -> bytes:
    """The manifest of a run with a "one" and b "two", as generation 2."""
    make_run(run, a="one", b="two")
    shutil.rmtree(run.parent / "other", ignore_errors=True)
    other = Mirror(f"file://{run.parent}/other", "first")
    (run / ".mirror.json").unlink()
    other.push(run)
    value = json.loads((run.parent / "other/first/manifests/000000001.json").read_bytes())
    for digest in (found[2] for found in value["files"].values()):
        place.replace(f"objects/{digest}", (run.parent / "other/first/objects" / digest).read_bytes())
    return to_json(value | {"generation": 2})


def test_an_upload_that_is_cut_is_made_good(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "MAX_RETRIES", 1)
    run = make_run(tmp_path / "here", a="one", z="two")
    (run / "a").write_bytes(bytes(PART))
    with cutting(s3.port) as proxy:
        place = Place(name_bucket("bucket", proxy.port), tmp_path / "none")
        mirror = place.mirror()
        mirror.push(run)
        (run / "a").write_bytes(b"1" * PART)
        (run / "b").write_bytes(b"2" * 3 * PART)
        proxy.budget = 2.5 * PART
        with pytest.raises(StoreError, match=r"^the store s3://bucket/runs/first cannot be used: [^\n]*$"):
            mirror.push(run)
        proxy.budget = float("inf")
        assert sorted(fetch(place, tmp_path / "between")) == ["a", "config.yaml", "z"]
        assert (tmp_path / "between/a").read_bytes() == bytes(PART)
        mirror.push(run)
        fetch(place, tmp_path / "after")
        assert (tmp_path / "after/a").read_bytes() == b"1" * PART
        assert (tmp_path / "after/b").read_bytes() == b"2" * 3 * PART


def read_generation(place: Place) -> int:
    return int(place.list("manifests")[-1].removesuffix(".json"))


def test_a_machine_that_dies_again_and_again_around_its_manifest_goes_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), place.mirror()
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
    assert fetch(place, tmp_path / "there")["a"] == "change 5"


def test_a_lost_answer_of_the_store_is_no_other_machine(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, create = make_run(tmp_path / "here", a="one"), ObjectStore.create

    def repeat(self: ObjectStore, path: str, data: bytes) -> bool:
        create(self, path, data)
        return create(self, path, data)

    monkeypatch.setattr(ObjectStore, "create", repeat)
    for text in ("one", "two"):
        (run / "a").write_text(text)
        place.mirror().push(run)
    assert fetch(place, tmp_path / "there")["a"] == "two"


def test_nothing_changed_is_nothing_written(place: Place, tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), place.mirror()
    mirror.push(run)
    mirror.push(run)
    assert read_generation(place) == 1


def test_a_copy_of_another_run_is_left_alone(place: Place, tmp_path: Path) -> None:
    one, other = (make_run(tmp_path / name, a=name) for name in ("one", "other"))
    place.mirror().push(one)
    elsewhere = Mirror(f"file://{tmp_path}/elsewhere", "first")
    for text in ("two", "three"):
        (other / "a").write_text(text)
        elsewhere.push(other)
    with pytest.raises(WorldloopError, match="is the copy of another run"):
        place.mirror().push(other)
    assert read_generation(place) == 1


def test_nothing_is_fetched_over_other_files_nor_out_of_the_folder(place: Place, tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), place.mirror()
    mirror.push(run)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/notes.txt").write_text("mine")
    with pytest.raises(WorldloopError, match="holds something that is no run: move it away"):
        mirror.fetch(tmp_path / "there")
    assert read(tmp_path / "there") == {"notes.txt": "mine"}
    whole = json.loads(place.store.read("manifests/000000001.json"))
    for name in ("../evil", "/evil"):
        changed = whole | {"files": {name: [0, 0, "0" * 64]}}
        place.replace("manifests/000000001.json", to_json(changed))
        with pytest.raises(WorldloopError, match=r"is not what worldloop wrote .*evil"):
            mirror.fetch(tmp_path / "elsewhere")


def test_a_fetch_that_was_cut_goes_on(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, there = make_run(tmp_path / "here", a="one", b="two", c="three"), tmp_path / "there"
    place.mirror().push(run)
    read_blocks, rename, names = ObjectStore.read_blocks, Path.rename, []

    def lose(self: ObjectStore, path: str) -> Iterable[bytes]:
        names.append(path)
        if len(names) == 3:
            raise StoreError("the line is cut")
        return read_blocks(self, path)

    def cut(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(ObjectStore, "read_blocks", lose)
    with pytest.raises(StoreError):
        place.mirror().fetch(there)
    (there / ".incoming/b").write_text("tw")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            place.mirror().fetch(there)
    assert len(names) == 3 + 3, "a was there"
    assert not (there / "config.yaml").exists()
    assert fetch(place, there) == {"config.yaml": "seed: 0", "a": "one", "b": "two", "c": "three"}


def test_what_is_damaged_is_one_clear_error(place: Place, tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), place.mirror()
    mirror.push(run)
    place.replace(f"objects/{hash_file(run / 'a')}", b"x")
    with pytest.raises(WorldloopError, match=r"a in .* is damaged: restore the store"):
        mirror.fetch(tmp_path / "there")
    assert not (tmp_path / "there/config.yaml").exists()
    place.replace("manifests/000000001.json", b"{")
    with pytest.raises(WorldloopError, match=r"the manifest of .* is not what worldloop wrote"):
        mirror.fetch(tmp_path / "there")


def test_no_credentials_are_stored(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    run = make_run(tmp_path / "here", a="one")
    place.mirror().push(run)
    stored = [place.store.read(path) for path in place.store.entries()]
    assert not any(SECRET.encode() in data or b"AKID" in data for data in stored)
    assert SECRET not in (run / ".mirror.json").read_text()


def test_a_copy_of_an_earlier_worldloop_goes_on_and_is_closed_to_that(place: Place, tmp_path: Path) -> None:
    here, there = make_run(tmp_path / "here", a="one", b="two"), tmp_path / "there"
    digests = {name: hash_file(here / name) for name in ("config.yaml", "a", "b")}
    for name, digest in digests.items():
        place.replace(f"objects/{digest}", (here / name).read_bytes())
    old = {"schema_version": 1, "copy": "c", "generation": 7, "token": "t", "files": digests}
    place.replace("manifest.json", to_json(old))
    files = {name: [3, 0, digest] for name, digest in digests.items()}
    (here / ".mirror.json").write_bytes(to_json(old | {"token": "", "files": files}))
    assert fetch(place, there) == {"config.yaml": "seed: 0", "a": "one", "b": "two"}
    (there / "a").write_text("three")
    place.mirror().push(there)
    assert place.list("manifests") == ["000000008.json"]
    assert fetch(place, tmp_path / "third") == {"config.yaml": "seed: 0", "a": "three", "b": "two"}
    with pytest.raises(WorldloopError, match="is behind its copy"):
        place.mirror().push(here)
    assert json.loads(place.store.read("manifest.json"))["schema_version"] == 2, "the earlier worldloop reads up to 1"


def test_a_checkpoint_within_a_stage_goes_along_as_a_whole(place: Place, tmp_path: Path) -> None:
    run = make_run(tmp_path / "here", partial__episodes__k="block")
    write_checkpoint(run, 100)
    write_text(run / "partial/fit/shared_200.safetensors", "a checkpoint that is being written")
    write_text(run / "partial/fit/.partial-x", "temporary")
    write_text(run / "partial/damaged/partial.json", json.dumps({"sha256": {"gone": "0" * 64}}))
    place.mirror().push(run)
    assert sorted(name for name in fetch(place, tmp_path / "there") if name.startswith("partial/")) == [
        "partial/episodes/k",
        "partial/fit/part_0_100.safetensors",
        "partial/fit/partial.json",
        "partial/fit/shared_100.safetensors",
    ]


def test_a_checkpoint_whose_files_do_not_fit_it_is_left_out(place: Place, tmp_path: Path) -> None:
    run = make_run(tmp_path / "here")
    write_checkpoint(run, 100)
    (run / "partial/fit/shared_100.safetensors").write_text("damaged")
    place.mirror().push(run)
    assert fetch(place, tmp_path / "there") == {"config.yaml": "seed: 0"}


def test_a_checkpoint_that_is_replaced_while_it_is_copied_stays_whole(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mirror = make_run(tmp_path / "here"), place.mirror()
    write_checkpoint(run, 100, size=PART // 10)
    base, write = mirror.snapshot(run), ObjectStore.write

    def replace(self: ObjectStore, path: str, size: int, blocks: Iterable[bytes]) -> None:
        def slow() -> Iterable[bytes]:
            for block in blocks:
                write_checkpoint(run, 200)
                yield block

        write(self, path, size, slow())

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "write", replace)
        mirror.push(run, base)
    found = fetch(place, tmp_path / "there")
    record = json.loads(found["partial/fit/partial.json"])
    assert record["num_steps"] == 100
    for name, digest in record["sha256"].items():
        assert hash_file(tmp_path / "there/partial/fit" / name) == digest
    mirror.push(run, base)
    assert json.loads(fetch(place, tmp_path / "later")["partial/fit/partial.json"])["num_steps"] == 200


def test_a_copy_within_a_stage_is_what_was_there_before_it_and_what_it_keeps(place: Place, tmp_path: Path) -> None:
    run, mirror = make_run(tmp_path / "here", {"state.json": "stage 1"}, logs__a="begin"), place.mirror()
    base = mirror.snapshot(run)
    make_run(run, sans__shards__new="half a version", logs__a="begin, step", partial__episodes__k="block")
    write_checkpoint(run, 100)
    mirror.push(run, base)
    found = fetch(place, tmp_path / "there")
    assert found["logs/a"] == "begin, step"
    assert found["partial/episodes/k"] == "block"
    assert "sans/shards/new" not in found, "its stage has not ended, so its version may be incomplete"
    assert found["state.json"] == "stage 1"
    write_text(run / "state.json", "stage 2")
    with pytest.raises(FileChangedError, match=r"state\.json has changed while it was copied"):
        Mirror(f"file://{tmp_path}/elsewhere", "first").push(run, base)
    mirror.push(run, base)
    assert fetch(place, tmp_path / "again") == found, "what the store has, stays as it was"
    shutil.rmtree(run / "partial")
    mirror.push(run)
    found = fetch(place, tmp_path / "after")
    assert not [name for name in found if name.startswith("partial/")]
    assert found["state.json"] == "stage 2"
    assert found["sans/shards/new"] == "half a version"


def test_a_file_that_grows_while_it_is_copied_goes_as_far_as_it_was(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write = make_run(tmp_path / "here", logs__a="begin"), ObjectStore.write

    def grow(self: ObjectStore, path: str, size: int, blocks: Iterable[bytes]) -> None:
        (run / "logs/a").write_text("begin, step")
        write(self, path, size, blocks)

    monkeypatch.setattr(ObjectStore, "write", grow)
    place.mirror().push(run)
    assert fetch(place, tmp_path / "there")["logs/a"] == "begin"


def test_a_push_that_is_given_up_changes_nothing(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, mirror = make_run(tmp_path / "here", a="one"), place.mirror()
    mirror.push(run)
    (run / "a").write_bytes(bytes(2 * PART))
    asked: list[bool] = []

    def is_cancelled() -> bool:
        asked.append(True)
        return len(asked) > limit

    for limit in (0, 1, 5, 12):  # noqa: B007
        asked.clear()
        with pytest.raises(CancelledError):
            mirror.push(run, mirror.snapshot(run), is_cancelled)
        assert read_generation(place) == 1
    assert fetch(place, tmp_path / "there")["a"] == "one"
