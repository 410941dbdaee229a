"""A policy that executes a plan: what it hands to the planner and to inverse dynamics."""

from dataclasses import replace

import pytest
import torch
from hand_specs import make_spec
from torch import Tensor, nn

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import ImitationBatch, Normalisation, Observation
from worldloop.policies.planner.policy import PlannerPolicy

SPEC = replace(make_spec(), actions_per_frame=2)


class CountingPlanner(nn.Module):
    """Plans frames whose grey level counts up from the frame now; it keeps the keys that it was given."""

    spec: SimulatorSpec = SPEC
    normalisation = Normalisation(torch.zeros(5), torch.ones(5))
    keys: Tensor | None = None

    def plan(self, context: Observation, noise_key: Tensor | None, num_frames: int) -> dict[str, Tensor]:
        self.keys = noise_key
        up = torch.arange(1, num_frames + 1, dtype=torch.uint8)[None, :, None, None, None]
        return {camera: frames[:, -1:] + up for camera, frames in context.frames.items()}


class LevelReader(nn.Module):
    """Every action is the grey level of the frame that it leads to."""

    spec: SimulatorSpec = SPEC

    def read_plan(self, seen: dict[str, Tensor], plan: dict[str, Tensor]) -> Tensor:
        assert list(seen) == list(plan)
        level = plan["base"][:, :, 0, 0, 0].float().repeat_interleave(2, dim=1)
        return level[..., None].expand(-1, -1, 4)


def make_policy() -> PlannerPolicy:
    policy = PlannerPolicy(CountingPlanner(), LevelReader(), chunk_length=4)
    policy.version = "planner/1"
    return policy


def make_observation(**changes: object) -> Observation:
    sizes = {"wrist": (6, 10), "base": (8, 8), "unread": (4, 4)}
    frames = {name: torch.full((2, 3, *size, 3), 7, dtype=torch.uint8) for name, size in sizes.items()}
    observation = Observation(frames, torch.zeros(2, 5), ("push",) * 2, ("push it",) * 2, torch.tensor([0, 4]))
    return replace(observation, **changes)  # type: ignore[arg-type]


def test_a_chunk_leads_through_as_many_planned_frames_as_it_lasts() -> None:
    policy = make_policy()
    chunk = policy.act(make_observation(), None)
    assert chunk.actions.shape == (2, 4, 4)
    assert chunk.actions[0, :, 0].tolist() == [8.0, 8.0, 9.0, 9.0]
    assert chunk.policy_version == "planner/1"
    assert chunk.log_probs is None
    assert policy.planner.keys is None, "greedy plans share their noise"


def test_each_plan_of_an_episode_has_noise_of_its_own() -> None:
    policy = make_policy()
    policy.act(make_observation(), torch.tensor([10, 20]))
    assert policy.planner.keys.tolist() == [10, 24]
    policy.act(make_observation(env_step=torch.tensor([4, 4])), torch.tensor([10, 20]))
    assert policy.planner.keys.tolist() == [14, 24]


def test_it_cannot_be_cloned() -> None:
    batch = ImitationBatch(make_observation(), torch.zeros(2, 4, 4), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(WorldloopError, match="fit_planner makes it from video"):
        make_policy().compute_imitation_loss(batch, torch.Generator())
