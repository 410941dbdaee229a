"""Checkpoints: round trip, and refusal of everything damaged."""

import json
import os
from pathlib import Path

import pytest
import torch
from hand_specs import make_spec
from small_disk import disk_of

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.types import Normalisation, Observation
from worldloop.factory import build, checkpoints
from worldloop.factory.config import PolicyConfig
from worldloop.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """A checkpoint of no particular class, of a robot with two cameras that does two tasks."""
    normalisation = Normalisation(torch.arange(5.0), torch.ones(5) * 2)
    weights = {"layer.weight": torch.arange(6.0).reshape(2, 3)}
    checkpoint = Checkpoint("policy", "mine", {"width": 3}, make_spec(), normalisation, weights, {"version": "v1"})
    save_checkpoint(tmp_path / "policy", checkpoint)
    return tmp_path / "policy"


def test_the_spec_of_several_cameras_and_tasks_survives_the_round_trip(by_hand: Path) -> None:
    checkpoint = load_checkpoint(by_hand, "policy")
    assert checkpoint.spec == make_spec()
    assert hash(checkpoint.spec) == hash(make_spec())  # tuples all the way down
    assert (checkpoint.name, checkpoint.config, checkpoint.extra) == ("mine", {"width": 3}, {"version": "v1"})
    assert torch.equal(checkpoint.weights["layer.weight"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(checkpoint.normalisation.proprio_mean, torch.arange(5.0))


@pytest.mark.parametrize(
    "damage",
    [
        {"tasks": 3},
        {"tasks": [3]},
        {"tasks": []},
        {"tasks": [{"id": "push", "instructions": "push", "success_radius_m": 0.0, "max_episode_steps": 1}]},
        {"wheels": 4},
        {"robot": "arm"},
        {"robot": {"name": "arm"}},
    ],
)
def test_a_spec_that_is_none_is_refused(by_hand: Path, damage: dict[str, object]) -> None:
    path = by_hand / "checkpoint.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"spec": description["spec"] | damage}))
    with pytest.raises(WorldloopError, match="is not a worldloop checkpoint"):
        load_checkpoint(by_hand, "policy")
    path.write_text(json.dumps(description | {"spec": None}))
    with pytest.raises(WorldloopError, match="is not a worldloop checkpoint"):
        load_checkpoint(by_hand, "policy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema_version 99"),
        ({"schema_version": 2}, "made by an earlier worldloop: make it again in a new run"),
        ({"kind": "world_model"}, "holds a world_model, not a policy"),
        ({"spec": {"task": "x"}}, "is not a worldloop checkpoint"),
    ],
)
def test_other_descriptions_are_refused_by_name(by_hand: Path, change: dict[str, object], message: str) -> None:
    path = by_hand / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(WorldloopError, match=message):
        load_checkpoint(by_hand, "policy")


@pytest.fixture(scope="module")
def policy_config() -> PolicyConfig:
    return load_config(ROOT / "configs/debug.yaml").policy


@pytest.fixture
def saved(tmp_path: Path, policy_config: PolicyConfig) -> Path:
    config = load_config(ROOT / "configs/debug.yaml")
    normalisation = Normalisation(torch.arange(4.0), torch.ones(4) * 2)
    policy = build.build_policy(policy_config, build.build_simulator_spec(config.simulator), normalisation, 2, seed=3)
    checkpoints.save_policy(policy, tmp_path / "policy", policy_config, version="v1")
    return tmp_path / "policy"


def _observation() -> Observation:
    generator = torch.Generator().manual_seed(0)
    return Observation(
        frames={"base_camera": torch.randint(0, 256, (2, 3, 16, 16, 3), generator=generator, dtype=torch.uint8)},
        proprio=torch.randn(2, 4, generator=generator),
        task=("ToyPush-v1",) * 2,
        instruction=("push", "pull"),
        env_step=torch.zeros(2, dtype=torch.long),
    )


def test_a_policy_acts_the_same_after_the_round_trip(saved: Path, policy_config: PolicyConfig) -> None:
    first, second = checkpoints.load_policy(saved), checkpoints.load_policy(saved)
    assert first.version == "v1"
    assert first.config == policy_config.chosen_section()
    assert torch.equal(first.normalisation.proprio_mean, torch.arange(4.0))
    keys = torch.tensor([1, 2])
    assert torch.equal(first.act(_observation(), keys).actions, second.act(_observation(), keys).actions)


def test_a_world_model_imagines_the_same_after_the_round_trip(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/debug.yaml")
    normalisation = Normalisation(torch.zeros(4), torch.ones(4))
    model = build.build_world_model(
        config.world_model, build.build_simulator_spec(config.simulator), normalisation, 0
    ).eval()
    checkpoints.save_world_model(model, tmp_path / "wm")
    loaded = checkpoints.load_world_model(tmp_path / "wm")
    assert loaded.config == model.config
    keys, actions = torch.tensor([1, 2]), torch.zeros(2, 2, 2)
    before = model.imagine(model.start(_observation(), keys), actions)[1]
    after = loaded.imagine(loaded.start(_observation(), keys), actions)[1]
    assert (loaded.config, loaded.spec) == (model.config, model.spec)
    assert before.frames.keys() == after.frames.keys()
    assert all(torch.equal(before.frames[camera], after.frames[camera]) for camera in before.frames)
    assert torch.equal(before.success_logit, after.success_logit)


@pytest.mark.parametrize(
    ("where", "key", "value", "message"),
    [("hybrid", "num_gears", 3, "num_gears"), ("", "denoiser", "flux", "flux"), ("hybrid", "dim", 129, "129")],
)
def test_a_world_model_of_another_version_is_refused(
    tmp_path: Path, where: str, key: str, value: object, message: str
) -> None:
    config = load_config(ROOT / "configs/debug.yaml")
    normalisation = Normalisation(torch.zeros(4), torch.ones(4))
    model = build.build_world_model(config.world_model, build.build_simulator_spec(config.simulator), normalisation, 0)
    checkpoints.save_world_model(model, tmp_path / "wm")
    path = tmp_path / "wm" / "checkpoint.json"
    description = json.loads(path.read_text())
    config_of = description["config"][where] if where else description["config"]
    config_of[key] = value
    path.write_text(json.dumps(description))
    with pytest.raises(WorldloopError, match=f"{message}.*another version.*fit the world model again"):
        checkpoints.load_world_model(tmp_path / "wm")


def test_truncated_weights_are_refused(by_hand: Path) -> None:
    weights = by_hand / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WorldloopError, match=r"policy is damaged: model.safetensors does not match"):
        load_checkpoint(by_hand, "policy")


def test_a_flipped_bit_is_refused(by_hand: Path) -> None:
    weights = by_hand / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(WorldloopError, match="damaged"):
        load_checkpoint(by_hand, "policy")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("width", 64, "does not fit its architecture"),
        ("num_heads", 7, "another version.*clone the policy again"),
        ("num_gears", 3, "num_gears.*another version.*clone the policy again"),
    ],
)
def test_another_architecture_is_refused(saved: Path, key: str, value: int, message: str) -> None:
    path = saved / "checkpoint.json"
    description = json.loads(path.read_text())
    description["config"][key] = value
    path.write_text(json.dumps(description))
    with pytest.raises(WorldloopError, match=message):
        checkpoints.load_policy(saved)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read_weights(by_hand: Path, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path / "open", load_checkpoint(by_hand, "policy"))
    finally:
        os.umask(before)
    for name in ("model.safetensors", "checkpoint.json"):
        assert (tmp_path / "open" / name).stat().st_mode & 0o777 == mode


def test_a_disk_that_fills_while_weights_are_written_is_one_clear_error(by_hand: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(by_hand, "policy")
    checkpoint.weights["layer.weight"] = torch.zeros(100_000)
    with disk_of(10_000), pytest.raises(WorldloopError, match=r"cannot write checkpoint .*full: File too large"):
        save_checkpoint(tmp_path / "full", checkpoint)
    assert not (tmp_path / "full").exists()
    assert not list(tmp_path.glob(".partial-full*"))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldloopError, match="nowhere does not exist"):
        checkpoints.load_policy(tmp_path / "nowhere")
    with pytest.raises(WorldloopError, match=r"holds no checkpoint: give the folder of a run, or of a checkpoint$"):
        checkpoints.load_policy(tmp_path)
