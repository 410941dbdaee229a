"""Advantage labels beside a dataset version, and the chunks that are sampled with them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_disk import disk_of

from worldloop.core.errors import WorldloopError
from worldloop.core.types import OUTCOMES, SOURCES
from worldloop.sans.advantages import AdvantageLabels, read_labels, write_labels
from worldloop.sans.imitation import EVERY_SUCCESS, EpisodeSelection, ImitationDataset, LabelledImitation

PUSH, PULL = "PushCube-v1", "PullCube-v1"
EVERYTHING = EpisodeSelection(sources=SOURCES, outcomes=OUTCOMES)
VERSION, OTHER_VERSION = "ab" * 32, "cd" * 32
NAN = float("nan")


def make_labels(advantage: list[float], **changes: Any) -> AdvantageLabels:
    """Every advantage above 0.25 is good."""
    values = np.array(advantage, dtype=np.float32)
    labels = AdvantageLabels(
        version=VERSION,
        critics=("01" * 32, "23" * 32),
        settings={"target": "n_step", "num_steps": 4, "positive_share": 0.4, "folds": [0, 1], "held_out": None},
        thresholds={PUSH: 0.25, PULL: 0.1 + 0.2},
        advantage=values,
        is_good=values > 0.25,
    )
    return replace(labels, **changes)


@pytest.fixture
def labels() -> AdvantageLabels:
    return make_labels([0.1, 0.3, NAN, -1.0, 1e-30, 0.25])


@pytest.fixture
def directory(tmp_path: Path, labels: AdvantageLabels) -> Path:
    write_labels(tmp_path / "labels" / "a", labels)
    return tmp_path / "labels" / "a"


def assert_equal(actual: AdvantageLabels, expected: AdvantageLabels) -> None:
    """Bit for bit, dtypes included."""
    for field in fields(AdvantageLabels):
        got, want = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(want, np.ndarray):
            assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())
        else:
            assert (type(got), got) == (type(want), want)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_labels_come_back_bit_equal(directory, labels) -> None:
    assert_equal(read_labels(directory, VERSION), labels)
    assert sorted(files(directory)) == ["labels.json", "labels.safetensors"]
    bare = make_labels([], critics=(), settings={}, thresholds={})
    write_labels(directory.parent / "bare", bare)
    assert_equal(read_labels(directory.parent / "bare", VERSION), bare)


def test_the_same_labels_are_the_same_bytes_and_others_replace_them(directory, labels) -> None:
    first = files(directory)
    write_labels(directory, labels)
    assert files(directory) == first
    (directory / "stray").write_bytes(b"of an earlier format")
    other = make_labels([1.0, NAN])
    write_labels(directory, other)
    assert_equal(read_labels(directory, VERSION), other)
    assert sorted(files(directory)) == sorted(first)
    assert [path.name for path in directory.parent.iterdir()] == ["a"]


def test_a_write_that_fails_leaves_the_labels_as_they_were(directory, labels) -> None:
    with (
        disk_of(64),
        pytest.raises(WorldloopError, match=rf"cannot write advantage labels {directory}: File too large"),
    ):
        write_labels(directory, make_labels([1.0, NAN]))
    assert [path.name for path in directory.parent.iterdir()] == ["a"]
    assert_equal(read_labels(directory, VERSION), labels)


def failure(directory: Path, version: str = VERSION) -> str:
    """The message of reading ``directory``: one line that names it."""
    with pytest.raises(WorldloopError) as error:
        read_labels(directory, version)
    message = str(error.value)
    assert str(directory) in message
    assert "\n" not in message
    return message


REMEDY = "run the label_advantages stage of this dataset version again"


def test_labels_of_another_version_are_refused(directory) -> None:
    message = failure(directory, OTHER_VERSION)
    assert f"were made for another dataset version ({VERSION[:12]}, not {OTHER_VERSION[:12]}): {REMEDY}" in message


def test_every_flipped_byte_of_the_arrays_is_found(directory) -> None:
    path = directory / "labels.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert f"are damaged: labels.safetensors does not match its hash; {REMEDY}" in failure(directory)
    path.write_bytes(whole[:-1])
    assert "does not match its hash" in failure(directory)
    path.write_bytes(whole)
    read_labels(directory, VERSION)


def test_missing_files_are_named(directory, tmp_path) -> None:
    assert failure(tmp_path / "none") == f"there are no advantage labels in {tmp_path / 'none'}: {REMEDY}"
    (directory / "labels.safetensors").unlink()
    assert failure(directory).endswith(f"lack a readable labels.safetensors (No such file or directory); {REMEDY}")
    (directory / "labels.json").unlink()
    assert failure(directory) == f"there are no advantage labels in {directory}: {REMEDY}"


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1', b"[]", b"\xff\xfe", b'{"schema_version": "one"}'])
def test_a_broken_description_is_one_clear_error(directory, content) -> None:
    (directory / "labels.json").write_bytes(content)
    message = failure(directory)
    assert "is unreadable (labels.json" in message
    assert message.endswith(REMEDY)


def rewrite(directory: Path, **changes: Any) -> None:
    stored = json.loads((directory / "labels.json").read_bytes()) | changes
    kept = {key: value for key, value in stored.items() if value is not ...}
    (directory / "labels.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": ...},
        {"version": ...},
        {"critics": ...},
        {"critics": [1]},
        {"settings": ...},
        {"settings": [0.4]},
        {"thresholds": {PUSH: NAN}},
    ],
)
def test_a_description_with_other_content_is_one_clear_error(directory, changes) -> None:
    rewrite(directory, **changes)
    message = failure(directory)
    assert message.endswith(REMEDY)


def test_a_newer_schema_asks_for_a_newer_worldloop(directory) -> None:
    rewrite(directory, schema_version=2)
    assert "has schema_version 2, this worldloop reads up to 1: install a newer worldloop" in failure(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": np.zeros((6, 1), np.float32)}, r"advantage has shape \(6, 1\), expected \(None,\)"),
        ({"advantage": np.zeros(6)}, "advantage has dtype float64"),
        ({"is_good": np.zeros(5, bool)}, r"is_good has shape \(5,\), expected \(6,\)"),
        ({"is_good": np.zeros(6, np.int64)}, "is_good has dtype int64"),
        ({"is_good": np.ones(6, bool)}, "is_good is true at 1 frame steps whose advantage is NaN"),
        ({"critics": ["01" * 32]}, "critics is .*expected a tuple of strings"),
        ({"settings": {"folds": (0, 1)}}, "settings is .*expected plain JSON"),
        ({"settings": {"share": np.float32(0.4)}}, "settings is .*expected plain JSON"),
        ({"thresholds": {PUSH: NAN}}, "thresholds is .*finite numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, changes, message) -> None:
    with pytest.raises(ValueError, match=rf"AdvantageLabels\.{message}"):
        replace(labels, **changes)


@pytest.fixture
def cache(store, make_episode):
    """Two shards; episodes 0..5 carry the numbers 1..6 and have 4, 2, 3, 2, 2 and 1 frame steps."""
    first = [
        make_episode(1, num_steps=4),
        make_episode(2, num_steps=2, source="recorded"),
        make_episode(3, num_steps=3, source="recorded", outcome="failure"),
    ]
    second = [
        make_episode(4, num_steps=2, source="policy", task=PULL),
        make_episode(5, num_steps=2, source="perturbed", task=PULL),
        make_episode(6, num_steps=1, split="validation", task=PULL),
    ]
    return store.open_cache(store.snapshot("v1", [store.append(first, "a"), store.append(second, "b")]))


LABELS = make_labels([*(0, 1, NAN, 1), *(NAN, 0), *(NAN, 0, 1), *(1, 0), *(NAN, 1), 0])  # by episode
# (100 * episode number + frame) -> indicator: successful demonstrations, scripted or recorded, are always good
IS_GOOD = {100: 1, 101: 1, 102: 1, 103: 1, 200: 1, 201: 1, 300: -1, 301: 0, 302: 1, 400: 1, 401: 0, 500: -1, 501: 1}


def test_every_start_has_the_label_of_its_frame_step(cache) -> None:
    labelled = LabelledImitation(ImitationDataset(cache, EVERYTHING, ["base"]), LABELS)
    starts = labelled.dataset.starts
    assert starts[:, 0].max() == 4, "the validation episode is not imitated"
    numbers = 100 * (starts[:, 0] + 1) + starts[:, 1]
    assert dict(zip(numbers.tolist(), labelled.is_good.tolist(), strict=True)) == IS_GOOD
    images = labelled.images()
    assert torch.equal(images["base"], labelled.dataset.images()["base"])
    assert images["base"][:, 0, 0, :2].tolist() == (starts + np.array([1, 0])).tolist()


@pytest.mark.parametrize("select", [EVERYTHING, EpisodeSelection(SOURCES, OUTCOMES, tasks=(PUSH,)), EVERY_SUCCESS])
def test_labelled_chunks_are_those_of_the_dataset(cache, select) -> None:
    dataset = ImitationDataset(cache, select, ["base"])
    own, plain = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    labelled = LabelledImitation(dataset, LABELS)
    for _ in range(2):
        batch, is_good = labelled.sample(own, 64, chunk_length=4)
        expected = dataset.sample(plain, 64, chunk_length=4)
        assert torch.equal(batch.actions, expected.actions)
        assert torch.equal(batch.valid, expected.valid)
        assert torch.equal(batch.observation.frames["base"], expected.observation.frames["base"])
        assert (is_good.dtype, is_good.shape) == (torch.int64, (64,))
        assert batch.observation.proprio is not None
        assert is_good.tolist() == [IS_GOOD[int(number)] for number in batch.observation.proprio[:, 0].tolist()]
    assert torch.equal(own.get_state(), plain.get_state())


def test_labels_of_another_size_are_refused(cache) -> None:
    with pytest.raises(ValueError, match="13 advantage labels for a dataset of 14 frame steps"):
        LabelledImitation(ImitationDataset(cache, EVERYTHING, ["base"]), make_labels([0.0] * 13))
