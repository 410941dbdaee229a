import os
import shutil

import pytest

from worldloop.core.errors import WorldloopError
from worldloop.sans import hashes as hashes_module
from worldloop.sans.store import SansStore


@pytest.fixture
def settled(monkeypatch) -> None:
    """Files count as settled at once, not after two seconds."""
    monkeypatch.setattr(hashes_module, "SETTLED_NS", -1)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The files that are hashed from now on."""
    names: list[str] = []
    hash_file = hashes_module.hash_file
    monkeypatch.setattr(hashes_module, "hash_file", lambda path: names.append(path.name) or hash_file(path))
    return names


@pytest.fixture
def version(store, make_episode):
    refs = [store.append([make_episode(1), make_episode(2)], "a"), store.append([make_episode(3)], "b")]
    return store.snapshot("v1", refs)


def test_a_dataset_is_hashed_once(settled, store, version, read) -> None:
    store.open_cache(version)
    assert "actions.npy" not in read  # hashed when it was written
    read.clear()
    store.open_cache(version)
    SansStore(store.root).open_cache(version)
    assert read == []


def test_a_file_that_has_just_been_written_is_hashed_again(store, version, read) -> None:
    store.open_cache(version)
    read.clear()
    store.open_cache(version)
    assert {"file-000.parquet", "actions.npy"} <= set(read)


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_that_changes_in_place_is_hashed_again(settled, store, version, read, keeps_time) -> None:
    store.open_cache(version)
    read.clear()
    path = store.shard_path("b") / "data/chunk-000/file-000.parquet"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    if keeps_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(WorldloopError, match=r"shard 'b' is corrupt"):
        store.open_cache(version)
    assert read == ["file-000.parquet"]


def test_a_copy_is_hashed_once(settled, store, version, read, tmp_path) -> None:
    store.open_cache(version)
    read.clear()
    shutil.copytree(store.root, tmp_path / "copy")  # keeps size and modification time
    copy = SansStore(tmp_path / "copy")
    copy.open_cache(version)
    assert (read.count("worldloop.json"), read.count("actions.npy")) == (2, 2)
    read.clear()
    copy.open_cache(version)
    assert read == []


def test_verify_reads_what_is_known_and_mends_the_cache(settled, store, version, read, assert_same) -> None:
    first = store.open_cache(version).episode(0)
    read.clear()
    assert store.verify(version) == []
    assert (read.count("worldloop.json"), read.count("actions.npy")) == (2, 2)
    path = next(p for p in store.cache_root.rglob("actions.npy") if p.parent.name.startswith("a-"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert store.verify(version) == ["a"]
    assert_same(store.open_cache(version).episode(0), first)


def test_a_broken_memory_is_no_memory(settled, store, version, read) -> None:
    store.open_cache(version)
    for path in store.cache_root.glob("*.hashes.json"):
        path.write_text("[")
    read.clear()
    store.open_cache(version)
    assert read.count("worldloop.json") == 2
