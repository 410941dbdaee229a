"""A store as the mirror uses it: the same on a folder and on a real server, and errors of one line."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from object_servers import SECRET, S3Server, cutting, name_bucket

from worldloop.core.errors import WorldloopError
from worldloop.storage import object_store as module
from worldloop.storage.object_store import PART, ObjectStore, StoreError, describe

pytest.importorskip("obstore")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return ObjectStore(f"file://{tmp_path}/store", "first")
    server: S3Server = request.getfixturevalue("s3")
    return ObjectStore(name_bucket("bucket", server.port), "first")


def test_files_come_back_whole(store: ObjectStore) -> None:
    assert store.entries() == {}
    large = bytes(range(256)) * (PART // 128)
    store.write("objects/small", 3, [b"a", b"bc"])
    store.write("objects/large", len(large), (large[i : i + 2**20] for i in range(0, len(large), 2**20)))
    store.write("objects/empty", 0, [])
    assert store.read("objects/small") == b"abc"
    assert b"".join(store.read_blocks("objects/large")) == large
    assert b"".join(store.read_blocks("objects/empty")) == b""
    entries = store.entries("objects")
    assert {path: entry.size for path, entry in entries.items()} == {
        "objects/small": 3,
        "objects/large": len(large),
        "objects/empty": 0,
    }
    assert abs(datetime.now(UTC) - entries["objects/small"].modified) < timedelta(minutes=5)
    store.delete(["objects/small", "objects/large"])
    store.delete(["objects/small"])
    assert list(store.entries()) == ["objects/empty"]
    for read in (lambda: store.read("objects/small"), lambda: list(store.read_blocks("objects/small"))):
        with pytest.raises(FileNotFoundError):
            read()


def test_only_one_of_many_writers_creates_a_file(store: ObjectStore) -> None:
    created: list[bytes] = []
    gate = threading.Barrier(8)

    def create(data: bytes) -> None:
        gate.wait()
        if store.create("manifests/1", data):
            created.append(data)

    threads = [threading.Thread(target=create, args=(str(number).encode(),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert created == [store.read("manifests/1")]


@pytest.mark.parametrize("size", [10, 2 * PART])
def test_a_source_that_fails_leaves_nothing(store: ObjectStore, size: int) -> None:
    def blocks() -> Iterator[bytes]:
        yield bytes(size // 2)
        raise WorldloopError("it has changed")

    with pytest.raises(WorldloopError, match="it has changed"):
        store.write("objects/a", size, blocks())
    assert store.entries() == {}


def test_a_line_that_is_cut_leaves_nothing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RETRIES", 1)
    with cutting(s3.port) as proxy:
        store = ObjectStore(name_bucket("bucket", proxy.port), "first")
        proxy.budget = PART * 1.5
        with pytest.raises(StoreError, match=r"^the store s3://bucket/runs/first cannot be used: [^\n]*see `mirror`$"):
            store.write("objects/a", 3 * PART, [bytes(PART)] * 3)
        proxy.budget = float("inf")
        assert store.entries() == {}
        store.write("objects/a", 3 * PART, [bytes(PART)] * 3)
        assert store.entries()["objects/a"].size == 3 * PART


def test_what_a_store_says_is_one_line_without_credentials(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RETRIES", 1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    missing, away = (ObjectStore(name_bucket(*place), "first") for place in (("nowhere", s3.port), ("bucket", port)))
    (tmp_path / "file").touch()
    for store, said in (
        (missing, r"404 Not Found: NoSuchBucket: .*; make the bucket first, or correct `mirror`$"),
        (away, r"Connection refused; see `mirror`$"),
        (ObjectStore(f"file://{tmp_path}/file", "first"), r"Not a directory.*; see `mirror`$"),
    ):
        with pytest.raises(StoreError, match=r"^the store \S+/first cannot be used: " + said) as caught:
            store.write("a", 1, [b"a"])
        assert "\n" not in str(caught.value)
    s3.require_known_keys()
    store = ObjectStore(name_bucket("bucket", s3.port), "first")
    for call in (
        store.entries,
        lambda: store.read("a"),
        lambda: store.create("a", b""),
        lambda: store.write("a", 0, []),
    ):
        with pytest.raises(
            StoreError, match=r"403 Forbidden: InvalidAccessKeyId: .*; check the credentials in the environment"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert not any(word in str(caught.value) for word in (SECRET, "AKIDTEST", "127.0.0.1"))


def test_errors_of_other_stores_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    signed = "Error performing GET https://a.blob.core.windows.net/c/x?sig=abc%3D in 3s - Server returned non-2xx "
    azure = "status code: 403 Forbidden: <Error><Code>AuthenticationFailed</Code><Message>No.\nId: 1</Message></Error>"
    assert describe(signed + azure) == (
        "403 Forbidden: AuthenticationFailed: No.; check the credentials in the environment, and what they may do"
    )
    google = 'status code: 404 Not Found: {"error": {"code": 404, "message": "The specified bucket does not exist."}}'
    assert describe(signed + google) == (
        "404 Not Found: The specified bucket does not exist.; make the bucket first, or correct `mirror`"
    )
    moved = "status code: 301 Moved Permanently: <Error><Code>PermanentRedirect</Code></Error>"
    assert describe(signed + moved).endswith("add the bucket's ?region=... to `mirror`")
    assert "no credentials in the environment" in describe(
        "Error performing PUT http://169.254.169.254/latest/api in 1s"
    )
    assert describe("Generic error: cannot reach https://x/?sig=abc") == "Generic error: cannot reach ...; see `mirror`"
    monkeypatch.setenv("SOME_TOKEN", "abcdefgh")
    assert "abcdefgh" not in describe("status code: 400 Bad: <Error><Message>bad abcdefgh</Message></Error>")


@pytest.mark.parametrize("address", ["gopher://x", "hdfs://host/runs", "memory:///x", "https://x/y"])
def test_other_stores_are_refused(address: str) -> None:
    with pytest.raises(StoreError, match=rf"store {address}/first cannot be used: it must be one of s3://, gs://"):
        ObjectStore(address, "first")
    with pytest.raises(StoreError, match="write file:/// and an absolute path"):
        ObjectStore("file://backup/runs", "first")


def test_a_signal_ends_the_wait_for_a_store(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = ObjectStore(name_bucket("bucket", silent.getsockname()[1]), "first")

        def interrupt() -> None:
            silent.accept()
            signal.raise_signal(signal.SIGINT)

        def end(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, end)
        threading.Thread(target=interrupt, daemon=True).start()
        began = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                store.read("a")
        finally:
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - began < 60, "the store itself waits for two minutes"
