"""LeRobot's own loader opens what we write without it."""

import numpy as np
import pytest
import torch
from hand_specs import CAMERAS, make_spec

pytestmark = pytest.mark.slow  # importing lerobot alone takes up to 20 s


@pytest.fixture
def open_dataset(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "huggingface")
    lerobot = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    return lambda root, **kwargs: lerobot.LeRobotDataset("worldloop/sans", root=root, **kwargs)


@pytest.fixture
def episodes(make_episode):
    """Of two cameras of different sizes, and of two tasks."""
    plural = {"cameras": tuple(CAMERAS), "sizes": CAMERAS}
    pull = {"task": "PullCube-v1", "instruction": "pull the cube"}
    return [make_episode(1, num_steps=2, **plural), make_episode(2, num_steps=3, outcome="failure", **pull, **plural)]


def test_shard_opens_with_equal_values(store, episodes, open_dataset) -> None:
    store.append(episodes, "seed")
    dataset = open_dataset(store.shard_path("seed"))
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 7, 10)
    assert dataset.features["action"]["names"] == [f"{n}_{i}" for i in range(2) for n in ("dx", "dy", "dz", "gripper")]
    row = 0
    for number, episode in enumerate(episodes):
        F = episode.num_frame_steps
        for f in range(F + 1):
            item = dataset[row]
            for camera in ("base", "wrist"):
                pixels = (item[f"observation.images.{camera}"] * 255).round().to(torch.uint8).movedim(0, -1)
                assert torch.equal(pixels, torch.from_numpy(episode.frames[camera][f]))
            assert torch.equal(item["observation.state"], torch.from_numpy(episode.proprio[f]))
            assert torch.equal(item["sim_state"], torch.from_numpy(episode.sim_state[f]))
            assert item["is_terminal_frame"].item() is (f == F)
            if f < F:
                assert torch.equal(item["action"], torch.from_numpy(episode.actions[f].reshape(-1)))
                for key in ("valid", "rewards", "success", "distances_m"):
                    assert torch.equal(item[key], torch.from_numpy(getattr(episode, key)[f]))
            else:
                assert not item["action"].any()
                assert not item["valid"].any()
            assert (item["episode_index"], item["frame_index"], item["index"]) == (number, f, row)
            assert item["timestamp"].item() == pytest.approx(f / 10)
            assert item["task"] == episode.meta.instruction
            row += 1
    meta = dataset.meta.episodes[1]
    assert (meta["worldloop/outcome"], meta["worldloop/margin_m"]) == ("failure", 0.1 / 3)
    assert meta["worldloop/task"] == "PullCube-v1"
    assert (meta["dataset_from_index"], meta["dataset_to_index"]) == (3, 7)


def test_statistics_are_lerobots_own(store, episodes, open_dataset) -> None:
    store.append(episodes, "seed")
    stats = open_dataset(store.shard_path("seed")).meta.stats
    images = np.concatenate([e.frames["base"] for e in episodes]) / 255.0
    image = stats["observation.images.base"]
    assert image["mean"].shape == (3, 1, 1)
    for key, want in (("mean", images.mean((0, 1, 2))), ("std", images.std((0, 1, 2))), ("max", images.max((0, 1, 2)))):
        np.testing.assert_allclose(image[key].reshape(3), want, rtol=1e-6)
    proprio = np.concatenate([e.proprio for e in episodes]).astype(np.float64)
    np.testing.assert_allclose(stats["observation.state"]["mean"], proprio.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["observation.state"]["q90"], np.quantile(proprio, 0.9, axis=0), rtol=1e-6)


def test_delta_timestamps_reach_neighbouring_frames(store, episodes, open_dataset) -> None:
    store.append(episodes, "seed")
    dataset = open_dataset(store.shard_path("seed"), delta_timestamps={"observation.state": [-0.1, 0.0, 0.1]})
    assert dataset[4]["observation.state"][:, 0].tolist() == [200, 201, 202]
    assert dataset[3]["observation.state_is_pad"].tolist() == [True, False, False]


def test_merged_version_opens_without_terminal_rows(store, make_episode, episodes, open_dataset, tmp_path) -> None:
    third = make_episode(3, num_steps=4, source="policy", cameras=tuple(CAMERAS), sizes=CAMERAS)
    version = store.snapshot("v1", [store.append(episodes, "seed", make_spec()), store.append([third], "policy-1")])
    store.merge(version, tmp_path / "merged")
    dataset = open_dataset(tmp_path / "merged")
    assert (dataset.num_episodes, dataset.num_frames, dataset.meta.total_tasks) == (3, 2 + 3 + 4, 2)
    assert dataset.features["observation.state"]["names"] == list("abcde")
    assert dataset.features["action"]["names"] == ["x_0", "y_0", "z_0", "grip_0", "x_1", "y_1", "z_1", "grip_1"]
    assert [dataset.features[f"observation.images.{name}"]["shape"] for name in CAMERAS] == [(8, 8, 3), (6, 10, 3)]
    items = [dataset[i] for i in range(len(dataset))]
    assert [item["task"] for item in items[1:6]] == ["push the cube", *["pull the cube"] * 3, "push the cube"]
    for camera in CAMERAS:
        pixels = (items[-1][f"observation.images.{camera}"] * 255).round().to(torch.uint8).movedim(0, -1)
        assert torch.equal(pixels, torch.from_numpy(third.frames[camera][3]))
    assert not any(item["is_terminal_frame"].item() for item in items)
    assert [item["episode_index"].item() for item in items] == [0] * 2 + [1] * 3 + [2] * 4
    assert [item["action"][0].item() for item in items[5:]] == [3000, 3002, 3004, 3006]
    assert [meta["worldloop/source"] for meta in dataset.meta.episodes] == ["expert", "expert", "policy"]


def test_scalar_features_open(store, make_episode, open_dataset) -> None:
    """s = 1 and one action: LeRobot stores vectors of length 1 as scalars."""
    episode = make_episode(1, s=1, num_actions=1)
    store.append([episode], "seed")
    item = open_dataset(store.shard_path("seed"))[1]
    assert item["action"].item() == 1001
    assert item["valid"].item() is True


def test_lerobots_own_tools_accept_a_shard(store, episodes, open_dataset, tmp_path) -> None:
    from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets

    store.append(episodes, "a")
    store.append(episodes[:1], "b")
    merged = merge_datasets(
        [open_dataset(store.shard_path(name)) for name in ("a", "b")], "worldloop/merged", tmp_path / "both"
    )
    assert (merged.num_episodes, merged.num_frames) == (3, 10)
    kept = delete_episodes(merged, [0], tmp_path / "kept", "worldloop/kept")
    assert (kept.num_episodes, kept.num_frames) == (2, 7)
    assert torch.equal(kept[0]["observation.state"], torch.from_numpy(episodes[1].proprio[0]))
