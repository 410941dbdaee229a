"""Critics and policies as checkpoints: each comes back whole, and what cannot is one clear error."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planner_toy import HARMOWAM, make_planner, make_start
from tiny_pipeline import make_pipeline
from world_model_toy import TWO_CAMERAS, ToyEpisodes, make_model, tiny_config, toy_normalisation, toy_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.types import Observation
from worldloop.factory.build import build_critic, build_policy
from worldloop.factory.checkpoints import (
    load_critic,
    load_policy,
    load_world_model,
    save_critic,
    save_policy,
    save_world_model,
)
from worldloop.factory.config import PolicyConfig
from worldloop.policies.harmowam.policy import HarmoWAM
from worldloop.value.config import KINDS, ValueConfig
from worldloop.value.critic import Critic
from worldloop.value.viva import VivaCritic
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.cosmos import CosmosConfig
from worldloop.world_model.model import VideoWorldModel

TASKS = ("Dot", "LeftDot")
AVERAGE = replace(HARMOWAM, acts_by="average")
COSMOS = CosmosConfig(patch=4, num_layers=1, num_heads=2, head_dim=16, adaln_lora_dim=8, condition_dim=16)


def observe() -> Observation:
    return ToyEpisodes(5, seed=4, cameras=TWO_CAMERAS, tasks=TASKS).first_observation(5)


def build(config: ValueConfig, world_model: WorldModelConfig | None = None, seed: int = 3) -> Critic:
    """A critic of two cameras and two tasks, whose values of the rows differ."""

    def make_world_model() -> VideoWorldModel:
        return make_model(world_model, TWO_CAMERAS, TASKS)

    critic = build_critic(config, toy_spec(TWO_CAMERAS, TASKS), toy_normalisation(), make_world_model, seed).eval()
    if isinstance(critic, VivaCritic):
        with torch.no_grad():
            critic.value_out.weight.mul_(0.1)
    assert len(set(critic.value(observe()).tolist())) == 5
    return critic


@pytest.fixture
def viva(tmp_path: Path) -> Path:
    """The checkpoint of a viva critic."""
    config = ValueConfig(kind="viva")
    save_critic(build(config), config, tmp_path / "critic")
    return tmp_path / "critic"


def edit(directory: Path, **changes: Any) -> None:
    """Change entries of ``checkpoint.json``."""
    path = directory / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "denoiser"),
    [
        (ValueConfig("categorical"), ""),
        (ValueConfig("success", target="outcome"), ""),
        (ValueConfig("viva", copies="64", learning_rate=1e-4), "hybrid"),
        (ValueConfig("viva", copies="all", from_world_model=False), "cosmos"),
    ],
)
def test_a_critic_comes_back_whole(config: ValueConfig, denoiser: str, tmp_path: Path) -> None:
    if denoiser == "cosmos":
        pytest.importorskip("diffusers")
    world_model = replace(tiny_config(), denoiser=denoiser or "hybrid", cosmos=COSMOS, head_cameras=("above.camera",))
    critic = build(config, world_model)
    save_critic(critic, config, tmp_path / "critic")
    state = torch.get_rng_state()
    loaded = load_critic(tmp_path / "critic")
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers"
    assert type(loaded) is type(critic)
    assert not any(module.training for module in loaded.modules())
    assert loaded.spec == critic.spec
    assert torch.equal(loaded.normalisation.proprio_mean, toy_normalisation().proprio_mean)
    assert torch.equal(loaded.normalisation.proprio_std, toy_normalisation().proprio_std)
    assert torch.equal(loaded.value(observe()), critic.value(observe()))
    assert loaded.learning_rate == critic.learning_rate
    if isinstance(loaded, VivaCritic):
        assert isinstance(loaded.world_model, VideoWorldModel)
        assert (loaded.config, loaded.world_model.config) == (config, world_model)
    save_critic(loaded, config, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "critic/model.safetensors").read_bytes()


def test_the_world_model_of_a_critic_is_its_own(tmp_path: Path) -> None:
    """What the critic has learned stays in its checkpoint; that of the world model is not touched."""
    world_model = make_model(cameras=TWO_CAMERAS, tasks=TASKS)
    save_world_model(world_model, tmp_path / "world_model")
    config = ValueConfig("viva")
    critic = build_critic(
        config, world_model.spec, toy_normalisation(), lambda: load_world_model(tmp_path / "world_model"), seed=0
    )
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(0.01)
    save_critic(critic, config, tmp_path / "critic")
    again = load_critic(tmp_path / "critic").state_dict()
    stored = load_world_model(tmp_path / "world_model").state_dict()
    assert all(torch.equal(stored[name], value) for name, value in world_model.state_dict().items())
    assert all(torch.equal(again[name], value) for name, value in critic.state_dict().items())
    assert not torch.equal(again["world_model.denoiser.reward_token"], stored["denoiser.reward_token"])


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    return make_pipeline(tmp_path / "tiny-video2world")


def build_on(pipeline: Path, config: ValueConfig) -> VivaCritic:
    """A critic whose world model is fine-tuned from ``pipeline``."""
    world_model = replace(
        tiny_config(), denoiser="cosmos", codec="wan", pretrained=str(pipeline), text_tokens=12, lora_rank=4,
        cosmos=CosmosConfig(condition_dim=16),
    )  # fmt: skip
    critic = build(config, world_model)
    assert isinstance(critic, VivaCritic)
    return critic


def test_published_weights_are_not_stored_and_load_with_the_pipeline(pipeline: Path, tmp_path: Path) -> None:
    config = ValueConfig("viva", copies="all")
    critic = build_on(pipeline, config)
    assert critic.num_copies == 4 * (8 * 8 + 4 * 6), "latents of the codec, not pixels"
    assert any(".base_layer." in name for name in critic.frozen)
    save_critic(critic, config, tmp_path / "critic")
    loaded = load_critic(tmp_path / "critic")
    assert torch.equal(loaded.value(observe()), critic.value(observe()))
    stored = (tmp_path / "critic/model.safetensors").stat().st_size
    assert stored < sum(p.numel() * 4 for name, p in critic.named_parameters() if name not in critic.frozen) * 1.1 + 1e5


def test_a_pipeline_is_found_from_every_folder(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config named it relative to the folder in which the run was started."""
    config = ValueConfig("viva")
    monkeypatch.chdir(tmp_path)
    save_critic(build_on(Path(pipeline.name), config), config, tmp_path / "critic")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_critic(tmp_path / "critic").value(observe()).shape == (5,)


# --- what cannot be loaded ----------------------------------------------------------------------------------------


def check_refused(directory: Path, message: str) -> None:
    with pytest.raises(WorldloopError, match=message) as error:
        load_critic(directory)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_critic_is_named(tmp_path: Path) -> None:
    check_refused(tmp_path / "critic_9", "critic_9 does not exist")


@pytest.mark.parametrize("what", ["changed", "cut", "missing"])
def test_damaged_weights_are_named(viva: Path, what: str) -> None:
    weights = viva / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    if what == "missing":
        weights.unlink()
    else:
        weights.write_bytes(data if what == "changed" else data[:100])
    reason = "is missing" if what == "missing" else "does not match its hash"
    check_refused(viva, rf"is damaged: model\.safetensors {reason}; restore it")


def test_a_damaged_description_is_named(viva: Path) -> None:
    (viva / "checkpoint.json").write_text("{")
    check_refused(viva, "checkpoint")


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"kind": "viva", "tempo": 3}},
        {"config": {"kind": "oracle"}},
        {"config": {"kind": "viva", "copies": "3"}},
        {"extra": {}},
        {"extra": {"world_model": {"denoiser": "magic"}}},
    ],
)
def test_settings_of_another_version_are_named(viva: Path, changes: dict[str, Any]) -> None:
    edit(viva, **changes)
    check_refused(viva, "another version of worldloop; fit the critics again")


@pytest.mark.parametrize("config", [{"kind": "viva", "copies": "64"}, {"kind": "categorical"}])
def test_weights_of_another_architecture_are_refused(viva: Path, config: dict[str, str]) -> None:
    edit(viva, config=config)
    check_refused(viva, "does not fit its architecture")


def test_a_world_model_is_no_critic(tmp_path: Path) -> None:
    save_world_model(make_model(), tmp_path / "world_model")
    check_refused(tmp_path / "world_model", "holds a world_model, not a critic")


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_says_of_which_kind_it_is(kind: str, tmp_path: Path) -> None:
    config = ValueConfig(kind)
    save_critic(build(config), config, tmp_path / "critic")
    description = json.loads((tmp_path / "critic/checkpoint.json").read_text())
    assert (description["kind"], description["name"]) == ("critic", kind)
    assert set(description["extra"]) == ({"world_model"} if kind == "viva" else set())


def test_a_policy_that_builds_on_a_planner_comes_back_with_it(tmp_path: Path) -> None:
    config = PolicyConfig("harmowam", harmowam=AVERAGE)
    spec = toy_spec(TWO_CAMERAS, TASKS)
    policy = build_policy(config, spec, toy_normalisation(), 4, seed=1, make_planner=make_planner)
    assert isinstance(policy, HarmoWAM)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    policy.guidance = 1.5
    save_policy(policy, tmp_path / "policy", config, version="checkpoints/x")
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, HarmoWAM)
    assert (loaded.config, loaded.chunk_length, loaded.version) == (AVERAGE, 4, "checkpoints/x")
    assert loaded.guidance == 1.5
    start, keys = make_start(), torch.tensor([3, 4, 5])
    for key in (None, keys):
        assert torch.equal(loaded.act(start, key).actions, policy.eval().act(start, key).actions)
    with pytest.raises(WorldloopError, match="HarmoWAM builds on a planner; there is none"):
        build_policy(config, spec, toy_normalisation(), 4, seed=1)
