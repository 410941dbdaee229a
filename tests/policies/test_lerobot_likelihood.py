"""Random denoising steps of a tiny SmolVLA: their densities, their limit, and GRPO with them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lerobot import ACT, NORMALISATION, Episodes, make_batch, make_smolvla_config
from tiny_vla import make_observation, make_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import LikelihoodPolicy
from worldloop.core.randomness import make_row_generators, make_row_keys
from worldloop.factory.build import make_policy
from worldloop.factory.checkpoints import load_policy, save_policy
from worldloop.factory.config import PolicyConfig
from worldloop.policies.lerobot.config import LeRobotConfig
from worldloop.policies.lerobot.likelihood import LeRobotFlowPolicy
from worldloop.policies.lerobot.policy import LeRobotPolicy

pytest.importorskip("num2words", reason="SmolVLA's processor needs it")


@pytest.fixture
def config(tmp_path: Path) -> LeRobotConfig:
    return LeRobotConfig("smolvla", config=make_smolvla_config(tmp_path / "vlm"), sde_level=0.5)


def make(config: LeRobotConfig, **changes: Any) -> LeRobotFlowPolicy:
    policy = make_policy(LeRobotPolicy, config, make_spec(), NORMALISATION, 3, seed=0)
    assert isinstance(policy, LeRobotFlowPolicy)
    assert isinstance(policy, LikelihoodPolicy)
    policy.prepare(Episodes(make_batch(8)))
    return policy.eval()


def test_log_probs_are_those_of_the_normal_steps(config: LeRobotConfig) -> None:
    """Against the velocities of LeRobot's own `denoise_step` along the path, and normal densities written out."""
    policy, observation, keys = make(config), make_observation(4), make_row_keys(4, 0, "act")
    policy.temperature = 1.3
    chunk = policy.act(observation, keys)
    path = chunk.trace["path"]
    assert path.shape == (4, 3, 3, 5)
    drawn = [torch.randn(3, 3, 5, generator=g) for g in make_row_generators(keys, observation.env_step)]
    noise = 1.3 * torch.stack(drawn)
    prefix, expected = policy._see(observation), torch.zeros(4, 3)
    points = [noise[:, 0], *path.unbind(1)]
    for step in range(3):
        time = torch.full((4,), 1 - step / 3)
        with torch.no_grad():
            velocity = policy.policy.model.denoise_step(prefix.mask, prefix.cache, points[step], time)[..., :2]
        now, after = points[step][..., :2], points[step + 1][..., :2]
        if step == 0:
            assert torch.allclose(after, now - velocity / 3, atol=1e-6)
            continue
        t = step / 3
        std = 0.5 * math.sqrt((1 - t) / t / 3)
        predicted_noise = now + t * velocity  # LeRobot's velocity is noise - actions
        mean = now - velocity / 3 - 0.5**2 / (2 * t) * predicted_noise / 3
        assert torch.allclose(after, mean + std * noise[:, step, :, :2], atol=1e-5)
        expected += torch.distributions.Normal(mean, 1.3 * std).log_prob(after).sum(-1)
    assert torch.allclose(chunk.log_probs, expected, atol=1e-4)
    assert torch.allclose(policy.log_prob(observation, chunk), chunk.log_probs, atol=1e-5)
    order = [3, 1]
    alone = policy.act(observation.rows(order), keys[order])
    assert torch.allclose(alone.actions, chunk.actions[order], atol=1e-5)


def test_without_noise_it_is_lerobots_own_sample(config: LeRobotConfig) -> None:
    policy, observation = make(config), make_observation(3)
    plain = make_policy(LeRobotPolicy, replace(config, sde_level=0.0), make_spec(), NORMALISATION, 3, seed=0).eval()
    plain.prepare(Episodes(make_batch(8)))
    assert type(plain) is LeRobotPolicy
    greedy = policy.act(observation, None)
    assert torch.equal(greedy.actions, plain.act(observation, None).actions)
    assert greedy.log_probs is None
    # Little noise in the steps, all of it in the first point; and no padding, which LeRobot's own sample denoises too.
    bare = config.config | {"max_action_dim": 2}
    policy, keys = make(replace(config, config=bare, sde_level=1e-5)), make_row_keys(3, 0, "act")
    first = [torch.randn(3, 3, 2, generator=g)[0] for g in make_row_generators(keys, observation.env_step)]
    theirs = policy.policy.predict_action_chunk(policy.preprocess(observation), noise=torch.stack(first))
    assert torch.allclose(
        policy.act(observation, keys).actions, policy._clip(policy._parts.postprocessor(theirs)), atol=1e-3
    )


def test_log_probs_teach_the_expert_alone(config: LeRobotConfig, tmp_path: Path) -> None:
    """Raising the log-probability of some actions makes them likelier; the frozen language model gets no gradient."""
    policy, observation = make(config), make_observation(6)
    chunk = policy.act(observation, make_row_keys(6, 0, "act"))
    policy.train()
    optimizer = torch.optim.SGD([w for w in policy.parameters() if w.requires_grad], lr=1e-4)
    before = policy.log_prob(observation, chunk)
    assert chunk.log_probs is not None
    assert torch.allclose(before, chunk.log_probs, atol=1e-5)
    (-before.mean()).backward()
    trained = {name for name, weight in policy.named_parameters() if weight.grad is not None}
    assert any("lm_expert" in name for name in trained)
    assert not any("vlm_with_expert.vlm." in name for name in trained)
    optimizer.step()
    assert policy.log_prob(observation, chunk).mean() > before.mean()
    save_policy(policy, tmp_path / "policy", PolicyConfig("lerobot", lerobot=config), version="v")
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, LeRobotFlowPolicy)
    keys = make_row_keys(6, 1, "act")
    assert torch.equal(loaded.act(observation, keys).log_probs, policy.eval().act(observation, keys).log_probs)


def test_what_has_no_such_steps_is_refused(config: LeRobotConfig) -> None:
    with pytest.raises(WorldloopError, match=r"sde_level needs a smolvla .* this is LeRobot's act"):
        make(LeRobotConfig("act", config=ACT, sde_level=0.5))
    longer = LeRobotConfig("smolvla", config=config.config | {"chunk_size": 6}, sde_level=0.5)
    with pytest.raises(WorldloopError, match=r"set policy.lerobot.config.chunk_size=3, chunk_length, in place of 6"):
        make(longer)
    with pytest.raises(ValueError, match=r"policy.lerobot.sde_level is -1"):
        LeRobotConfig("smolvla", sde_level=-1)
