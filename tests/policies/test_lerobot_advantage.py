"""A tiny SmolVLA that is told in words which actions are good, and learns the difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_lerobot import ACT, NORMALISATION, Episodes, make_batch, make_smolvla_config
from tiny_vla import make_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import AdvantageConditionedPolicy
from worldloop.core.randomness import make_generator
from worldloop.factory.build import make_policy
from worldloop.factory.checkpoints import load_policy, save_policy
from worldloop.factory.config import PolicyConfig
from worldloop.policies.lerobot.advantage import LeRobotAdvantagePolicy
from worldloop.policies.lerobot.config import LeRobotConfig
from worldloop.policies.lerobot.policy import LeRobotPolicy

pytest.importorskip("num2words", reason="SmolVLA's processor needs it")


def test_it_acts_as_the_good_actions_show_and_guidance_goes_beyond(tmp_path: Path) -> None:
    """Good actions are .5, the others -.5; told nothing it acts between, and guidance extrapolates linearly."""
    sizes = make_smolvla_config(tmp_path / "vlm") | {"train_expert_only": False, "freeze_vision_encoder": False}
    config = LeRobotConfig("smolvla", config=sizes | {"num_steps": 2}, tells_advantage=True)
    policy = make_policy(LeRobotPolicy, config, make_spec(), NORMALISATION, 3, seed=0)
    assert isinstance(policy, LeRobotAdvantagePolicy)
    assert isinstance(policy, AdvantageConditionedPolicy)
    batch, is_good = make_batch(1).rows([0] * 16), torch.arange(16) % 2  # only the instruction tells them apart
    actions = (is_good.float() - 0.5)[:, None, None].expand(-1, 3, 2).contiguous()
    batch = replace(batch, actions=actions, valid=torch.ones_like(batch.valid))
    policy.prepare(Episodes(batch))
    optimizer = torch.optim.Adam([w for w in policy.parameters() if w.requires_grad], lr=3e-3)
    policy.train()
    for step in range(120):
        dropped = torch.rand(16, generator=make_generator(step, "drop")) < 0.3
        loss, _ = policy.compute_conditioned_loss(batch, is_good.masked_fill(dropped, -1), make_generator(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    reached = {}
    for guidance in (0.0, 1.0, 1.5):
        policy.guidance = guidance
        reached[guidance] = policy.act(batch.observation, None).actions
    assert reached[1.0].mean() > 0.3 > reached[0.0].mean()
    expected = reached[0.0] + 1.5 * (reached[1.0] - reached[0.0])
    assert torch.allclose(reached[1.5], expected.clamp(-1, 1), atol=1e-6)
    policy.guidance = 1.0
    save_policy(policy, tmp_path / "policy", PolicyConfig("lerobot", lerobot=config), version="")
    loaded = load_policy(tmp_path / "policy")
    assert torch.equal(loaded.act(batch.observation, None).actions, reached[1.0])


def test_a_policy_without_instruction_is_refused() -> None:
    config = LeRobotConfig("act", config=ACT, tells_advantage=True)
    with pytest.raises(WorldloopError, match=r"needs a policy that reads an instruction, and LeRobot's act reads none"):
        make_policy(LeRobotPolicy, config, make_spec(), NORMALISATION, 3, seed=0)
    with pytest.raises(ValueError, match="set one of them"):
        LeRobotConfig("smolvla", tells_advantage=True, sde_level=0.5)
