"""Files are whole or absent, also when two processes write: the one that was replaced is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from worldloop.core import files
from worldloop.core.errors import WorldloopError
from worldloop.core.files import claim_folder, join_claim, remove_leftovers, whole_directory, write_file


@pytest.fixture(autouse=True)
def _forget_claims() -> Iterator[None]:
    yield
    files._claims.clear()


def write_directory(path: Path, text: str) -> None:
    with whole_directory(path, "a shard") as partial:
        (partial / "data").write_text(text)


@pytest.fixture
def late(tmp_path: Path) -> Path:
    """A folder that this process had claimed before another one did."""
    claim_folder(tmp_path)
    write_file(tmp_path / "state/a.json", b"first", "a")
    write_directory(tmp_path / "shard", "first")
    own = dict(files._claims)
    claim_folder(tmp_path)
    files._claims.update(own)
    return tmp_path


def test_a_process_that_was_replaced_changes_nothing(late: Path) -> None:
    with pytest.raises(WorldloopError, match=r"another process has taken over .*: a.json of this one is dropped"):
        write_file(late / "state/a.json", b"late", "a")
    with pytest.raises(WorldloopError, match="shard of this one is dropped"):
        write_directory(late / "shard", "late")
    assert (late / "state/a.json").read_bytes() == b"first"
    assert (late / "shard/data").read_text() == "first"
    assert not list(late.rglob(".partial-*"))
    write_file(late.parent / "elsewhere.json", b"{}", "another folder is free")


def test_the_process_that_claimed_last_and_those_that_join_it_may_write(late: Path) -> None:
    join_claim(late)
    write_file(late / "state/a.json", b"joined", "a")
    claim_folder(late)
    write_directory(late / "shard", "second")
    assert (late / "state/a.json").read_bytes() == b"joined"
    assert (late / "shard/data").read_text() == "second"


def test_a_process_that_was_replaced_removes_nothing_of_the_new_one(late: Path) -> None:
    of_the_new_one = late / ".partial-shard-89abcdef"
    of_the_new_one.mkdir()
    with pytest.raises(WorldloopError, match="shard of this one is dropped"):
        write_directory(late / "shard", "late")
    assert of_the_new_one.is_dir()


def test_a_folder_that_was_deleted_may_be_begun_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim_folder(run)
    shutil.rmtree(run)
    write_file(run / "config.yaml", b"seed: 0", "config.yaml")
    assert (run / "config.yaml").read_bytes() == b"seed: 0"


def test_two_writers_never_share_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with whole_directory(tmp_path / "shard", "a shard") as one:
        (one / "data").write_text("one")
        monkeypatch.setattr(files, "_PROCESS", "0" * 8)
        other = files._temporary(".partial-", tmp_path / "shard")
        assert other != one
        monkeypatch.undo()
    assert (tmp_path / "shard/data").read_text() == "one"


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = [".partial-shard", ".partial-shard-0123abcd", ".old-shard-0123abcd"]
    kept = [".partial-shard-2-0123abcd", ".partial-shard-x", "shard"]
    for name in gone + kept:
        (tmp_path / name).mkdir()
    (tmp_path / ".partial-shard-89abcdef").write_text("a file")
    remove_leftovers(tmp_path / "shard")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
