import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_disk import disk_of

from worldloop.__main__ import main
from worldloop.core.errors import WorldloopError
from worldloop.core.types import Normalisation
from worldloop.sans import lerobot_format
from worldloop.sans import shard as shard_module
from worldloop.sans.normalisation import MIN_STD, compute_normalisation
from worldloop.sans.store import SansStore


def visible(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir()) if path.exists() else []


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


@pytest.mark.parametrize("s", [1, 2])
def test_round_trip_is_bit_equal(store, make_episode, assert_same, s) -> None:
    episodes = [
        make_episode(1, num_steps=2, s=s, num_actions=1, cameras=("base", "wrist")),
        make_episode(
            2, num_steps=5, s=s, num_actions=1, cameras=("base", "wrist"), outcome="failure", split="validation"
        ),
    ]
    version = store.snapshot("v1", [store.append(episodes, "seed")])
    read = list(store.episodes(version))
    assert len(read) == 2
    cache = store.open_cache(version)
    for i, expected in enumerate(episodes):
        assert_same(read[i], expected)
        assert_same(cache.episode(i), expected)


def test_what_was_imagined_of_a_replay_stays_beside_its_outcome(store, make_episode, assert_same) -> None:
    replay, other = make_episode(1, source="policy"), make_episode(2)
    replay = replace(replay, meta=replace(replay.meta, variant="replay", imagined_success=0.25))
    version = store.snapshot("v1", [store.append([replay, other], "seed")])
    shutil.rmtree(store.cache_root)
    cache = store.open_cache(version)
    for i, expected in enumerate((replay, other)):
        assert_same(cache.episode(i), expected)
    assert [meta.imagined_success for meta in cache.metas] == [0.25, None]


def test_a_shard_of_schema_1_has_nothing_imagined(store, make_episode) -> None:
    store.append([make_episode(1)], "seed")
    path = store.shard_path("seed") / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    first = pa.array([1], table.schema.field("worldloop/schema_version").type)
    column = table.schema.get_field_index("worldloop/schema_version")
    table = table.set_column(column, "worldloop/schema_version", first).drop_columns(["worldloop/imagined_success"])
    pq.write_table(table, path)
    ((meta, *_),) = shard_module.read_metas(store.shard_path("seed"))
    assert meta == replace(make_episode(1).meta, schema_version=1)


def test_cameras_of_different_sizes_and_two_tasks(store, make_episode, assert_same, tmp_path) -> None:
    sizes = {"base": (8, 12), "hand": (6, 4)}
    episodes = [
        make_episode(number, num_steps=2 + number, task=task, instruction=task, cameras=tuple(sizes), sizes=sizes)
        for number, task in enumerate(("PushCube-v1", "PullCube-v1", "PushCube-v1"))
    ]
    version = store.snapshot("v1", [store.append(episodes[:2], "a"), store.append(episodes[2:], "b")])
    store.verify(version)
    shutil.rmtree(store.cache_root)  # the cache is built from the shards
    cache = store.open_cache(version)
    for i, (read, expected) in enumerate(zip(store.episodes(version), episodes, strict=True)):
        assert_same(read, expected)
        assert_same(cache.episode(i), expected)
    assert cache.cameras == ("base", "hand")
    images = cache.images(("hand", "base"), np.array([2, 0]), np.array([1, 0]))
    assert {name: tuple(value.shape) for name, value in images.items()} == {"hand": (2, 6, 4, 3), "base": (2, 8, 12, 3)}
    assert np.array_equal(images["hand"][0], episodes[2].frames["hand"][1])
    with pytest.raises(WorldloopError, match="shard 'c' has the layout"):
        store.snapshot("v2", [store.append([make_episode(9, cameras=("base", "hand"))], "c")], parent=version)


def test_cache_rebuilt_from_shards_equals_cache_from_memory(store, make_episode) -> None:
    ref = store.append([make_episode(1), make_episode(2, num_steps=1)], "seed")
    part = next(p for p in (store.root / "cache").iterdir() if p.is_dir())
    first = {p.name: p.read_bytes() for p in part.iterdir()}
    shutil.rmtree(part)
    store.open_cache(store.snapshot("v1", [ref]))
    assert {p.name: p.read_bytes() for p in part.iterdir()} == first


def test_missing_package_names_the_extra(store, make_episode, monkeypatch) -> None:
    monkeypatch.setattr(lerobot_format, "find_spec", lambda name: None)
    with pytest.raises(WorldloopError, match=r"pip install -e '\.\[data\]' in the clone"):
        store.append([make_episode(1)], "seed")
    assert visible(store.root / "shards") == []


def test_cut_cache_is_rebuilt(store, make_episode, assert_same) -> None:
    episode = make_episode(1)
    version = store.snapshot("v1", [store.append([episode], "seed")])
    file = next((store.root / "cache").rglob("proprio.npy"))
    file.write_bytes(file.read_bytes()[:-4])
    assert_same(store.open_cache(version).episode(0), episode)


@pytest.mark.parametrize(
    ("file", "place"),
    [("proprio.npy", -3), ("proprio.npy", 70), ("cache.json", -40)],
    ids=["a value", "a header", "the index"],
)
def test_a_cache_with_a_flipped_bit_is_rebuilt(store, make_episode, assert_same, file, place) -> None:
    episode = make_episode(1, 4)
    version = store.snapshot("v1", [store.append([episode], "a")])
    path = next((store.root / "cache").rglob(file))
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[place] ^= 1
    path.write_bytes(bytes(damaged))
    assert_same(store.open_cache(version).episode(0), episode)
    assert path.read_bytes() == intact


def test_unreadable_episode_table_is_one_clear_error(store, make_episode) -> None:
    version = store.snapshot("v1", [store.append([make_episode(1, 4)], "bad")])
    table = store.root / "shards/bad/meta/episodes/chunk-000/file-000.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(WorldloopError, match=r"shard 'bad' is unreadable .*delete its directory"):
        store.summary(version)


def test_same_episodes_give_same_bytes_and_are_reused(store, make_episode, tmp_path) -> None:
    episodes = [make_episode(1), make_episode(2)]
    ref = store.append(episodes, "seed")
    inode = store.shard_path("seed").stat().st_ino
    assert store.append(episodes, "seed") == ref
    assert store.shard_path("seed").stat().st_ino == inode
    assert SansStore(tmp_path / "other").append(episodes, "seed") == ref


def test_a_shard_that_no_version_has_taken_in_may_be_written_anew(store, make_episode, assert_same) -> None:
    store.append([make_episode(1)], "seed")
    version = store.snapshot("v0", [store.append([make_episode(2)], "seed")])
    (episode,) = store.episodes(version)
    assert_same(episode, make_episode(2))


def test_other_episodes_under_the_same_name_are_refused(store, make_episode) -> None:
    store.snapshot("v0", [store.append([make_episode(1)], "seed")])
    with pytest.raises(WorldloopError, match="'seed' already exists with other episodes"):
        store.append([make_episode(2)], "seed")


def test_append_mends_a_damaged_shard_of_the_same_episodes(store, make_episode) -> None:
    ref = store.append([make_episode(1)], "seed")
    flip_byte(store.shard_path("seed") / "data/chunk-000/file-000.parquet")
    assert store.append([make_episode(1)], "seed") == ref
    store.verify(store.snapshot("v1", [ref]))
    assert visible(store.root / "shards") == ["seed"]


def test_evaluation_split_is_refused(store, make_episode) -> None:
    with pytest.raises(WorldloopError, match=r"PushCube-v1/evaluation/000002.*never enters"):
        store.append([make_episode(1), make_episode(2, split="evaluation")], "seed")
    assert not store.root.exists()


def test_wrong_dtype_and_layout_are_named(store, make_episode) -> None:
    episode = make_episode(1)
    object.__setattr__(episode, "rewards", episode.rewards.astype(np.float64))
    with pytest.raises(ValueError, match=r"Episode\.rewards has dtype float64"):
        store.append([episode], "seed")
    with pytest.raises(ValueError, match="share one layout"):
        store.append([make_episode(1), make_episode(2, size=16)], "seed")
    assert visible(store.root / "shards") == []


@pytest.mark.parametrize(
    "file",
    ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/info.json", "worldloop.json"],
)
def test_corrupt_shard_is_refused_by_name(store, make_episode, tmp_path, file) -> None:
    good, bad = store.append([make_episode(1)], "good"), store.append([make_episode(2)], "bad")
    version = store.snapshot("v1", [good, bad])
    flip_byte(store.shard_path("bad") / file)
    for read in (store.verify, store.open_cache, lambda v: store.merge(v, tmp_path / "merged")):
        with pytest.raises(WorldloopError, match=r"shard 'bad' is corrupt .*delete its directory"):
            read(version)
    assert not (tmp_path / "merged").exists()


def test_missing_file_and_foreign_data_are_corruption(store, make_episode) -> None:
    version = store.snapshot("v1", [store.append([make_episode(1)], "seed")])
    data = store.shard_path("seed") / "data/chunk-000"
    (data / "file-001.parquet").write_bytes(b"more")
    with pytest.raises(WorldloopError, match=r"file-001\.parquet"):
        store.verify(version)
    (data / "file-001.parquet").unlink()
    store.verify(version)
    (data / "file-000.parquet").unlink()
    with pytest.raises(WorldloopError, match=r"file-000\.parquet"):
        store.verify(version)


def test_newer_schemas_are_refused_by_name(store, make_episode) -> None:
    ref = store.append([make_episode(1)], "seed")
    store.snapshot("v1", [ref])
    path = store.root / "versions/v1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(WorldloopError, match=r"version 'v1' has schema_version 99.*newer worldloop"):
        store.version("v1")
    manifest = store.shard_path("seed") / "worldloop.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 99}))
    with pytest.raises(WorldloopError, match="shard 'seed' has schema_version 99"):
        store.snapshot("v2", [ref])


def test_unknown_version_lists_the_known_ones(store, make_episode) -> None:
    store.snapshot("v1", [store.append([make_episode(1)], "seed")])
    with pytest.raises(WorldloopError, match=r"no version 'v9' .*v1"):
        store.version("v9")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x"])
def test_bad_names_are_refused(store, make_episode, name) -> None:
    with pytest.raises(WorldloopError, match="shard name"):
        store.append([make_episode(1)], name)


def test_exception_between_temp_and_rename_leaves_nothing(store, make_episode, monkeypatch) -> None:
    def stop(*args: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_module, "hash_episodes", stop)
        with pytest.raises(KeyboardInterrupt):
            store.append([make_episode(1)], "seed")
    assert visible(store.root / "shards") == []


def test_killed_append_is_invisible_and_cleaned_up(store, make_episode) -> None:
    # A process of its own that dies like kill -9: no exception, no cleaning up. It reads its episode from a cache.
    source = SansStore(store.root / "source")
    source.snapshot("v1", [source.append([make_episode(1)], "seed")])
    script = """
import os, sys
from worldloop.sans import shard
from worldloop.sans.store import SansStore
source, target = SansStore(sys.argv[1]), SansStore(sys.argv[2])
episode = source.open_cache(source.version("v1")).episode(0)
shard.hash_episodes = lambda episodes: os._exit(9)
target.append([episode], "seed")
"""
    command = [sys.executable, "-c", script, str(source.root), str(store.root)]
    assert subprocess.run(command, check=False).returncode == 9
    (leftover,) = visible(store.root / "shards")
    assert leftover.startswith(".partial-seed-")
    assert not store.shard_path("seed").exists()
    ref = store.append([make_episode(1)], "seed")
    store.verify(store.snapshot("v1", [ref]))
    assert visible(store.root / "shards") == ["seed"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_full_disk_is_one_clear_error(store, make_episode, monkeypatch, call) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "rename", full)))
        with pytest.raises(WorldloopError, match="disk full while writing shard 'seed'") as error:
            store.append([make_episode(1)], "seed")
    assert error.value.exit_code == 1
    assert visible(store.root / "shards") == []
    ref = store.append([make_episode(1)], "seed")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WorldloopError, match="disk full while writing version 'v1'"):
            store.snapshot("v1", [ref])
    assert visible(store.root / "versions") == []


def test_disk_that_fills_inside_the_parquet_file(store, make_episode, monkeypatch) -> None:
    big = [make_episode(1, num_steps=40, size=64)]
    with disk_of(50_000), pytest.raises(WorldloopError, match="cannot write shard 'seed': File too large"):
        store.append(big, "seed")
    assert visible(store.root / "shards") == []


def test_lineage_and_frozen_normalisation(store, make_episode) -> None:
    seed = store.append([make_episode(1), make_episode(2, split="validation")], "seed")
    first = store.snapshot("v1", [seed])
    train = make_episode(1).proprio.astype(np.float64)
    torch.testing.assert_close(
        first.normalisation.proprio_mean.double(), torch.from_numpy(train.mean(0)), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        first.normalisation.proprio_std.double(), torch.from_numpy(train.std(0)), rtol=1e-5, atol=1e-6
    )

    policy = store.append([make_episode(9, source="policy")], "policy-1")
    second = store.snapshot("v2", [policy], parent=first)
    assert store.snapshot("v2", [seed, policy], parent=first).fingerprint == second.fingerprint
    read = store.version("v2")
    assert read.parent == "v1"
    assert read.shards == (seed, policy)
    assert torch.equal(read.normalisation.proprio_mean, first.normalisation.proprio_mean)
    assert torch.equal(read.normalisation.proprio_std, first.normalisation.proprio_std)
    assert read.fingerprint == second.fingerprint != first.fingerprint
    assert store.list_versions() == ["v1", "v2"]
    with pytest.raises(ValueError, match="frozen"):
        store.snapshot("v3", [policy], parent=first, normalisation=first.normalisation)


def test_snapshot_is_repeatable_but_never_changes(store, make_episode) -> None:
    a, b = store.append([make_episode(1)], "a"), store.append([make_episode(2)], "b")
    first = store.snapshot("v1", [a])
    assert store.snapshot("v1", [a]).fingerprint == first.fingerprint
    with pytest.raises(WorldloopError, match="'v1' already exists with other contents"):
        store.snapshot("v1", [a, b])
    other = store.append([make_episode(3, s=1)], "c")
    with pytest.raises(WorldloopError, match="shard 'c' has the layout"):
        store.snapshot("v2", [a, other])


def test_normalisation_floor_and_given_statistics(store, make_episode) -> None:
    rows = np.array([[1.0, 0.02], [3.0, 0.02]], np.float32)
    value = compute_normalisation([rows])
    assert value.proprio_mean.tolist() == pytest.approx([2.0, 0.02])
    assert value.proprio_std.tolist() == pytest.approx([1.0, MIN_STD])
    given = Normalisation(torch.arange(5.0), torch.full((5,), 1 / 3))
    version = store.snapshot("v1", [store.append([make_episode(1)], "seed")], normalisation=given)
    assert torch.equal(store.version(version.name).normalisation.proprio_std, given.proprio_std)
    with pytest.raises(WorldloopError, match="no training episode"):
        store.snapshot("v2", [store.append([make_episode(2, split="validation")], "validation")])


def test_summary_counts(store, make_episode) -> None:
    episodes = [
        make_episode(1),
        make_episode(2, source="perturbed", outcome="near_success"),
        make_episode(3, source="policy", outcome="failure", split="validation"),
    ]
    summary = store.summary(store.snapshot("v1", [store.append(episodes, "seed")]))
    assert summary["num_episodes"] == 3
    assert summary["num_frames"] == 12
    assert summary["source"] == {"expert": 1, "perturbed": 1, "policy": 1}
    assert summary["outcome"] == {"failure": 1, "near_success": 1, "success": 1}
    assert summary["split"] == {"train": 2, "validation": 1}
    assert summary["iteration"] == {0: 2, 1: 1}
    assert summary["cameras"] == {"base": (8, 8)}
    assert list(summary["by_task"]) == ["PushCube-v1"]


def test_summary_counts_each_task(store, make_episode, capsys) -> None:
    sizes = {"base": (8, 12), "hand": (6, 4)}
    episodes = [
        make_episode(1, cameras=("base", "hand"), sizes=sizes),
        make_episode(2, cameras=("base", "hand"), sizes=sizes, task="PullCube-v1", outcome="failure"),
        make_episode(3, cameras=("base", "hand"), sizes=sizes, task="PullCube-v1", split="validation"),
    ]
    summary = store.summary(store.snapshot("v1", [store.append(episodes, "seed")]))
    assert summary["task"] == {"PullCube-v1": 2, "PushCube-v1": 1}
    assert summary["by_task"] == {
        "PullCube-v1": {
            "source": {"expert": 2},
            "outcome": {"failure": 1, "success": 1},
            "split": {"train": 1, "validation": 1},
        },
        "PushCube-v1": {"source": {"expert": 1}, "outcome": {"success": 1}, "split": {"train": 1}},
    }
    assert main(["sans", "show", str(store.root)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "  cameras    base 12 x 8 px, hand 4 x 6 px" in shown
    assert "  PullCube-v1 expert 2; failure 1, success 1; train 1, validation 1" in shown
    assert "  PushCube-v1 expert 1; success 1; train 1" in shown
    assert max(map(len, shown)) <= 80
