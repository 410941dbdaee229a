"""Imagined rollouts of a policy, and what the simulator says when it replays their actions.

Rollouts do not end at a declared success here, so that a threshold can be chosen on them. Those of GRPO end there and
are the same up to that frame. `evaluation.closed_loop` judges them.

Shapes: n rollouts (N starts x G members), C chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from worldloop.core.interfaces import Actor, Policy, WorldModel
from worldloop.core.randomness import make_row_keys
from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import Calibrations
from worldloop.core.types import Episode, InitialStates, Rollout
from worldloop.evaluation.outcomes import observe_start
from worldloop.rl.reward_context import RewardContext
from worldloop.rl.rewards import score_success
from worldloop.rollout.imagination import imagine_rollout
from worldloop.rollout.jobs import EpisodeSummary
from worldloop.rollout.replay import Replay
from worldloop.rollout.rollout import count_chunks
from worldloop.rollout.simulation import Acting, Simulation
from worldloop.rollout.swap import PROPRIO, Swap

STARTS_AT_ONCE = 50  # starts imagined together; a change changes the noise


@dataclass(frozen=True)
class ReplayedRollouts:
    """n imagined rollouts of a policy and their replays; cumulative over chunks, so the last column is the whole.

    - ``task``: n task ids; ``start`` int [n]: the number of the start, from which ``own`` is indexed
    - ``score`` f [n, C]: the highest confirmed success probability within so many chunks; from its threshold on a
      success is declared
    - ``replayed`` bool [n, C]: the replay succeeded within so many chunks
    - ``own`` bool [N]: success of the policy itself in the simulator, from each start
    - ``swapped``: part -> bool [N]: the same, with this part imagined; {} without the swap test
    - ``episodes``: the n replays; ``own_episodes``: the N episodes of the policy itself
    """

    task: tuple[str, ...]
    start: np.ndarray
    score: np.ndarray
    replayed: np.ndarray
    own: np.ndarray
    episodes: tuple[Episode, ...] = ()
    own_episodes: tuple[Episode, ...] = ()
    swapped: dict[str, np.ndarray] = field(default_factory=dict)

    def of_task(self, task: str) -> ReplayedRollouts:
        """The rollouts of one task, without their episodes."""
        rows = np.array([other == task for other in self.task], dtype=bool)
        starts, start = np.unique(self.start[rows], return_inverse=True)
        return ReplayedRollouts(
            (task,) * int(rows.sum()),
            start,
            self.score[rows],
            self.replayed[rows],
            self.own[starts],
            swapped={part: success[starts] for part, success in self.swapped.items()},
        )

    @classmethod
    def cat(cls, parts: Sequence[ReplayedRollouts]) -> ReplayedRollouts:
        """All rollouts of ``parts``, which have different starts."""
        offsets = np.cumsum([0, *(len(part.own) for part in parts[:-1])])

        def join(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts])

        return cls(
            task=tuple(task for part in parts for task in part.task),
            start=np.concatenate([part.start + offset for part, offset in zip(parts, offsets, strict=True)]),
            score=join("score"),
            replayed=join("replayed"),
            own=join("own"),
            swapped={name: np.concatenate([part.swapped[name] for part in parts]) for name in parts[0].swapped},
            episodes=tuple(episode for part in parts for episode in part.episodes),
            own_episodes=tuple(episode for part in parts for episode in part.own_episodes),
        )


def replay_imagination(
    policy: Actor,
    checkpoint: str,
    world_model: WorldModel,
    calibrations: Calibrations,
    simulation: Simulation,
    states: InitialStates,
    *,
    group_size: int,
    num_chunks: int,
    temperature: float,
    block_size: int,
    iteration: int,
    key: tuple[int | str, ...],
    max_batch: int = 0,
    swap_with: str = "",
) -> ReplayedRollouts:
    """Imagine ``group_size`` rollouts of ``policy`` from each of N ``states`` and replay them in the simulator.

    ``policy`` is the one in ``checkpoint``, at ``temperature``. It also acts once from each state in the simulator,
    which gives the real first frames. Everything ends after ``num_chunks`` chunks. ``key`` seeds all draws. For
    ``max_batch`` see `ImaginedSimulator`. ``swap_with`` is the checkpoint of ``world_model`` for the swap test; "": no
    swap test.
    """
    parts = []
    for first in range(0, len(states), STARTS_AT_ONCE):
        rows = list(range(first, min(first + STARTS_AT_ONCE, len(states))))
        block, group = states.select(rows), torch.arange(len(rows)).repeat_interleave(group_size)
        purpose = "/".join(str(part) for part in (*key, first))
        acting = Acting(policy=checkpoint, temperature=temperature, row_chunks=torch.full((len(block),), num_chunks))
        own_purpose = f"{purpose}/own"  # also in the swap test, so that the policy draws the same noise
        own = simulation.run(block, block_size=block_size, purpose=own_purpose, iteration=iteration, **acting)
        swapped = {}
        if swap_with:
            for part in list_parts(policy, world_model):
                acting["swap"] = Swap(swap_with, (part,))
                swapped[part] = rate_success(
                    simulation.judge(block, block_size=block_size, purpose=own_purpose, iteration=iteration, **acting)
                )
        rollout = imagine_rollout(
            policy,
            world_model,
            calibrations,
            observe_start(own, world_model.spec.robot.camera_names),
            noise_key=make_row_keys(len(group), *key, first, "policy"),
            world_key=make_row_keys(len(block), *key, first, "world_model"),
            initial_state_id=tuple(block.ids[i] for i in group.tolist()),
            group_id=group,
            max_chunks=num_chunks,
            ends_at_success=False,
            max_batch=max_batch,
        )
        replays = simulation.run(
            block.select(group),
            block_size=block_size,
            purpose=f"{purpose}/replay",
            iteration=iteration,
            replay=Replay.of(rollout),
            row_chunks=count_chunks(rollout),
        )
        parts.append(replace(pair_outcomes(rollout, replays, own, num_chunks, world_model.spec), swapped=swapped))
    return ReplayedRollouts.cat(parts)


def list_parts(policy: Actor, world_model: WorldModel) -> tuple[str, ...]:
    """The parts of the swap test: the cameras that ``policy`` reads and ``world_model`` imagines, and proprio."""
    imagined = world_model.spec.robot.camera_names
    read = policy.spec.robot.camera_names if isinstance(policy, Policy) else imagined
    return (*(camera for camera in read if camera in imagined), PROPRIO)


def rate_success(episodes: Sequence[Episode | EpisodeSummary]) -> np.ndarray:
    """bool [n]: which episodes succeeded."""
    return np.array([episode.is_success for episode in episodes], dtype=bool)


def pair_outcomes(
    rollout: Rollout, replays: Sequence[Episode], own: Sequence[Episode], num_chunks: int, spec: SimulatorSpec
) -> ReplayedRollouts:
    """What ``rollout`` declares beside its ``replays``, one per row, over ``num_chunks`` chunks.

    ``own``: the policy's own episode from each start, in the order of the rollout's groups.
    """
    chunk_length = rollout.steps[0].valid.shape[1]
    score = score_by_chunk(rollout, spec)
    replays = [
        replace(episode, meta=replace(episode.meta, imagined_success=float(imagined)))
        for episode, imagined in zip(replays, score[:, -1], strict=True)
    ]
    return ReplayedRollouts(
        task=rollout.observations[0].task,
        start=rollout.group_id.numpy(),
        score=np.pad(score, ((0, 0), (0, num_chunks - score.shape[1])), mode="edge"),
        replayed=np.stack([_succeed_by_chunk(episode, num_chunks, chunk_length) for episode in replays]),
        own=rate_success(own),
        episodes=tuple(replays),
        own_episodes=tuple(own),
    )


def score_by_chunk(rollout: Rollout, spec: SimulatorSpec) -> np.ndarray:
    """f [n, C]: what GRPO is paid for a rollout that ends after so many chunks."""
    context = RewardContext(spec, Calibrations())
    score = []
    for end in range(1, len(rollout.steps) + 1):
        begun = replace(
            rollout,
            observations=rollout.observations[:end],
            chunks=rollout.chunks[:end],
            steps=rollout.steps[:end],
        )
        score.append(score_success(begun, context))
    return torch.stack(score, 1).double().numpy()


def _succeed_by_chunk(episode: Episode, num_chunks: int, chunk_length: int) -> np.ndarray:
    """bool [C]: ``episode`` succeeded within so many chunks."""
    steps = (episode.success & episode.valid).reshape(-1)
    first = int(steps.argmax()) if steps.any() else num_chunks * chunk_length
    return np.arange(1, num_chunks + 1) * chunk_length > first
