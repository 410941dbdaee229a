"""Imagined rollouts by hand: every probability, and which actions count, is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worldloop.core.types import ActionChunk, ChunkStep, Observation, Rollout


def make_observation(num_rows: int, env_step: int = 0, task: Sequence[str] | None = None) -> Observation:
    """Rows of one camera, all of task ``t`` unless ``task`` says otherwise."""
    return Observation(
        frames={"cam": torch.zeros(num_rows, 1, 2, 2, 3, dtype=torch.uint8)},
        proprio=None,
        task=tuple(task or ["t"] * num_rows),
        instruction=tuple(f"row {row}" for row in range(num_rows)),
        env_step=torch.full((num_rows,), env_step),
    )


def make_step(probability: list[list[float]], valid: list[list[bool]], *succeeded: int) -> ChunkStep:
    """M frames of H actions, of which the rows ``succeeded`` are done."""
    B, H = len(valid), len(valid[0])
    terminated = torch.tensor([row in succeeded for row in range(B)])
    return ChunkStep(
        observation=make_observation(B),
        frames={"cam": torch.zeros(B, len(probability[0]), 2, 2, 3, dtype=torch.uint8)},
        proprio=None,
        rewards=torch.zeros(B, H),
        success_prob=torch.tensor(probability),
        valid=torch.tensor(valid),
        success=terminated[:, None].repeat(1, H),
        terminated=terminated,
        truncated=torch.zeros(B, dtype=torch.bool),
    )


def make_rollout(
    *steps: ChunkStep,
    chunks: list[ActionChunk] | None = None,
    group_id: list[int] | None = None,
    task: Sequence[str] | None = None,
) -> Rollout:
    """All rows are one group, and of task ``t``, unless ``group_id`` and ``task`` say otherwise."""
    B, H = steps[0].valid.shape
    return Rollout(
        origin="imagined",
        group_id=torch.tensor(group_id or [0] * B),
        initial_state_id=tuple("abcdefgh"[:B]),
        observations=tuple(make_observation(B, H * c, task) for c in range(len(steps))),
        chunks=tuple(chunks or [ActionChunk(torch.zeros(B, H, 1))] * len(steps)),
        steps=steps,
        policy_version="p",
        simulator_version="w",
    )


def make_chunk(number: int) -> ActionChunk:
    """Four rows of two actions, 100 c + 10 b + h in chunk c and row b; the log-probability is the negative of that."""
    actions = 100.0 * number + 10 * torch.arange(4.0)[:, None] + torch.arange(2.0)
    return ActionChunk(actions[..., None], -actions, {"tokens": actions.long()[..., None]}, "p")
