"""Cards: what a checked world model carries besides its weights, for several cameras and tasks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldloop.core.errors import WorldloopError
from worldloop.core.success import Calibration, Calibrations
from worldloop.core.types import Observation
from worldloop.storage.card import WorldModelCard, read_card, write_card


def _starts() -> Observation:
    generator = torch.Generator().manual_seed(0)
    shapes = {"wrist": (2, 3, 6, 10, 3), "base": (2, 3, 8, 8, 3)}  # the robot's order, not the alphabet's
    return Observation(
        frames={
            camera: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            for camera, shape in shapes.items()
        },
        proprio=torch.randn(2, 4, generator=generator),
        task=("PushCube-v1", "PullCube-v1"),
        instruction=("push", "pull"),
        env_step=torch.zeros(2, dtype=torch.long),
    )


@pytest.fixture
def card() -> WorldModelCard:
    calibrations = Calibrations({"PushCube-v1": Calibration(2.0, 0.5, 0.4), "PullCube-v1": Calibration(floor_db=18.0)})
    closed_loop = {"checkpoint": "policy", "n": 8, "auc": {"value": 0.6, "low": None, "high": None}}
    return WorldModelCard(calibrations, {"on_policy": {"n": 3, "auc": None}}, _starts(), closed_loop)


@pytest.fixture
def written(card: WorldModelCard, tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_card(tmp_path, card)
    return tmp_path


def test_a_card_survives_the_round_trip(card: WorldModelCard, written: Path) -> None:
    read = read_card(written)
    assert read.calibrations == card.calibrations
    assert (read.figures, read.closed_loop) == (card.figures, card.closed_loop)
    assert list(read.starts.frames) == ["wrist", "base"]
    for camera, images in card.starts.frames.items():
        assert torch.equal(read.starts.frames[camera], images[:, -1:])
    assert read.starts.proprio is not None
    assert torch.equal(read.starts.proprio, _starts().proprio)
    assert (read.starts.task, read.starts.instruction) == (card.starts.task, card.starts.instruction)
    assert read.starts.env_step.tolist() == [0, 0]


def test_the_first_actions_are_kept_where_there_are_any(card: WorldModelCard, written: Path) -> None:
    assert read_card(written).start_actions is None  # as in cards of earlier versions
    actions = torch.tensor([[0.5, -1.0], [0.25, 2.0]])
    write_card(written, replace(card, start_actions=actions))
    kept = read_card(written)
    assert kept.start_actions is not None
    assert torch.equal(kept.start_actions, actions)
    assert kept.starts.task == card.starts.task


def test_a_card_without_a_check_in_the_closed_loop_is_read(written: Path) -> None:
    value = json.loads((written / "card.json").read_text())
    del value["closed_loop"]
    (written / "card.json").write_text(json.dumps(value))
    assert read_card(written).closed_loop == {}


@pytest.mark.parametrize("file", ["model", "starts"])
def test_a_card_of_other_weights_is_refused(written: Path, file: str) -> None:
    (written / f"{file}.safetensors").write_bytes(b"others")
    with pytest.raises(WorldloopError, match=f"does not belong to {file}"):
        read_card(written)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tasks", "PushCube-v1"),
        ("tasks", ["PushCube-v1"]),
        ("instructions", [1, 2]),
        ("cameras", ["top"]),
        ("calibrations", {"PushCube-v1": {"scale": 0.0}}),
        ("calibrations", [1]),
    ],
)
def test_a_damaged_card_is_one_clear_error(written: Path, key: str, value: object) -> None:
    path = written / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(WorldloopError, match=r"the card of checkpoint .* is unreadable .*check the world model again"):
        read_card(written)


def test_a_card_of_an_earlier_worldloop_is_refused(written: Path) -> None:
    path = written / "card.json"
    old = {"schema_version": 1, "calibration": {}, "figures": {}, "instruction": ["push"]}
    path.write_text(json.dumps(old))
    with pytest.raises(WorldloopError, match="made by an earlier worldloop: make it"):
        read_card(written)
