"""The token VLA with a frozen sentence encoder and a frozen vision backbone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import make_backbone, make_sentence_encoder
from tiny_vla import PULL, PUSH, TINY, Frames, make_observation, make_policy

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import make_generator, make_row_keys
from worldloop.core.types import ImitationBatch
from worldloop.factory.checkpoints import load_policy, save_policy
from worldloop.factory.config import PolicyConfig
from worldloop.policies.token_vla.policy import TokenVLA


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    text, image = make_sentence_encoder(root / "text"), make_backbone(root / "dinov2", "dinov2")
    return {"text_encoder": str(text), "image_encoder": str(image)}


def make_prepared(folders: dict[str, str], **changes: Any) -> TokenVLA:
    policy = make_policy(replace(TINY, **folders, **changes))
    policy.prepare(Frames({"base": make_observation(6, seed=3).frames["base"][:, 0]}))
    return policy


def test_it_reads_the_encoders_features_and_learns_only_what_follows_them(folders: dict[str, str]) -> None:
    policy = make_prepared(folders, num_frames=2)
    assert not [name for name in policy.state_dict() if "encoder" in name or "embeddings" in name]
    observation = make_observation(4)
    logits = policy(observation)
    told_otherwise = replace(observation, instruction=(PULL,) * 4)
    assert not torch.allclose(logits, policy(told_otherwise), atol=1e-4)
    seen_otherwise = make_observation(4, seed=1)
    seen_otherwise = replace(seen_otherwise, proprio=observation.proprio)
    assert not torch.allclose(logits, policy(seen_otherwise), atol=1e-4)

    batch = ImitationBatch(observation, torch.zeros(4, 2, 2), torch.ones(4, 2, dtype=torch.bool))
    loss, _ = policy.compute_imitation_loss(batch, make_generator(0))
    loss.backward()
    assert all(p.grad is not None for p in policy.parameters())  # nothing frozen is among them
    chunk = policy.act(observation, make_row_keys(4, 0, "test"))
    assert torch.allclose(policy.log_prob(observation, chunk), chunk.log_probs, atol=1e-5)


def test_the_mean_over_demonstrations_is_subtracted_from_the_features(folders: dict[str, str]) -> None:
    policy = make_prepared(folders)
    frames = make_observation(6, seed=3).frames["base"][:, 0]
    stem = dict(policy.stems.items())["base"]
    features = policy._see(frames)
    assert torch.allclose(stem.background, features.mean(dim=0), atol=1e-5)
    assert torch.allclose(stem.contrast, (features - stem.background).square().mean().sqrt(), atol=1e-5)


def test_a_checkpoint_remembers_its_encoders_and_refuses_others(folders: dict[str, str], tmp_path: Path) -> None:
    text = make_sentence_encoder(tmp_path / "own")
    policy = make_prepared({**folders, "text_encoder": str(text)})
    config = PolicyConfig(token_vla=policy.config)  # type: ignore[call-arg]
    save_policy(policy, tmp_path / "policy", config, "v1")
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, TokenVLA)
    assert loaded.sources == policy.sources
    assert torch.equal(loaded(make_observation(2)), policy(make_observation(2)))
    save_policy(loaded, tmp_path / "again", config, "v2")  # a stage saves what it has loaded
    assert (tmp_path / "again/checkpoint.json").read_text().count(policy.sources["text_encoder"].version) == 1

    make_sentence_encoder(text, seed=1)
    with pytest.raises(WorldloopError, match="is not what the policy has learned with"):
        load_policy(tmp_path / "policy")
    text.rename(tmp_path / "elsewhere")
    with pytest.raises(WorldloopError, match=r"policy\.token_vla\.text_encoder .*own is no folder"):
        load_policy(tmp_path / "policy")


def test_without_encoders_nothing_of_transformers_models_is_opened() -> None:
    policy = make_policy()
    assert policy.sources == {}
    assert policy.describe_settings(TINY) == TINY
    assert not torch.allclose(policy(make_observation(1, PUSH)), policy(make_observation(1, PULL)), atol=1e-4)
