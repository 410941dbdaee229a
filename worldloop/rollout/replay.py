"""Replay actions in the simulator, from the same initial states.

A replay of an imagined rollout shows what its actions really do. A recorded episode cannot show it: its actions were
chosen on true frames, so they carry the outcome with them. A replay with noise shows what actions nearby would do, from
the states that the policy reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.randomness import row_normal, row_uniform
from worldloop.core.specs import RobotSpec
from worldloop.core.types import ActionChunk, Episode, Observation, Rollout

STRENGTH = (0.3, 1.7)  # range of the noise of an episode, beside the noise that is asked for
DRIFT_SHARE = 0.4  # std of what is added to every action of an episode, beside that of each action's own noise
NUM_MORE_FRAMES = 2  # for which a replay with noise goes on after the last recorded action, which it repeats


@dataclass(frozen=True)
class Replay:
    """Actions to repeat: ``actions`` f32 [N, T, A], chosen by the policy of ``policy_version``."""

    actions: Tensor
    policy_version: str

    @classmethod
    def of(cls, rollout: Rollout) -> Replay:
        """All actions of ``rollout``, also those after a row's end; see `count_chunks`."""
        return cls(torch.cat([chunk.actions for chunk in rollout.chunks], dim=1).cpu(), rollout.policy_version)

    def rows(self, index: Sequence[int]) -> Replay:
        return Replay(self.actions[list(index)], self.policy_version)


def replay_with_noise(
    episodes: Sequence[Episode], std: float, robot: RobotSpec, chunk_length: int, keys: Tensor
) -> tuple[Replay, Tensor]:
    """What to repeat, and ``row_chunks`` int64 [N]: the actions of ``episodes`` with noise of about ``std``.

    Noise is in environment units: white, plus a constant of each episode. It is stronger in some episodes than in
    others. What opens and closes a gripper stays as it is. ``keys`` int64 [N] seed the noise of each episode.
    """
    s = episodes[0].actions.shape[1]
    flat = [torch.from_numpy(e.actions).float() for e in episodes]
    row_chunks = torch.tensor([-(-(len(actions) + NUM_MORE_FRAMES) * s // chunk_length) for actions in flat])
    num_frames = -(-int(row_chunks.max()) * chunk_length // s)
    longer = [torch.cat([a, a[-1:].expand(num_frames - len(a), -1, -1)]) for a in flat]
    actions = torch.stack(longer).flatten(1, 2)[:, : int(row_chunks.max()) * chunk_length]
    moves = torch.ones(len(robot.action_names))
    moves[robot.gripper_actions] = 0.0
    step = torch.zeros_like(keys)
    low, high = STRENGTH
    strength = std * (low + (high - low) * row_uniform(keys, step, (1, 1)))
    white = row_normal(keys, step + 1, tuple(actions.shape[1:]))
    drift = DRIFT_SHARE * row_normal(keys, step + 2, (1, actions.shape[2]))
    bounds = torch.tensor(robot.action_low), torch.tensor(robot.action_high)
    noisy = (actions + strength * (white + drift) * moves).clamp(*bounds)
    return Replay(noisy, episodes[0].meta.policy_version), row_chunks


class RecordedActions:
    """An `Actor` that acts as ``replay`` says, ``chunk_length`` actions at a time, whatever it observes."""

    def __init__(self, replay: Replay, chunk_length: int) -> None:
        self.version = replay.policy_version
        self._chunks = iter(replay.actions.split(chunk_length, dim=1))

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        return ActionChunk(next(self._chunks), policy_version=self.version)
