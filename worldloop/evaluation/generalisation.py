"""How well a policy does where it has not learned: elsewhere on the table, in another light, with another object.

Two parts of a task are scored apart, as in HarmoWAM (arXiv:2605.10942): transit, the way to the object, and
interaction, everything from contact on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.specs import SimulatorSpec
from worldloop.core.statistics import Rate
from worldloop.core.types import Episode, InitialStates
from worldloop.evaluation.events import find_events, follow
from worldloop.rollout.jobs import EpisodeSummary
from worldloop.rollout.simulation import Simulation


@dataclass(frozen=True)
class ConditionScore:
    """Of one condition, from the same states:

    - ``success``: of the policy; ``expert``: of the scripted expert, which says what is possible; ``None`` if not asked
    - ``transit``: the policy's hand comes to the object; ``None`` if the task does not tell where they are
    - ``interaction``: success from where the expert's hand is about to reach the object, if the expert succeeds;
      ``None`` if it never does
    - ``by_task``: task -> success; ``succeeded``: id of a state -> whether the policy succeeded from it
    """

    success: Rate
    expert: Rate | None
    transit: Rate | None
    interaction: Rate | None
    by_task: dict[str, Rate]
    succeeded: dict[str, bool]

    def to_dict(self) -> dict[str, Any]:
        rates = {name: getattr(self, name) for name in ("success", "expert", "transit", "interaction")}
        return {
            **{name: None if rate is None else rate.to_dict() for name, rate in rates.items()},
            "by_task": {task: rate.to_dict() for task, rate in self.by_task.items()},
            "succeeded": self.succeeded,
        }


def score_condition(
    simulation: Simulation,
    states: InitialStates,
    policy: str,
    spec: SimulatorSpec,
    *,
    block_size: int,
    name: str,
    asks_expert: bool = True,
) -> ConditionScore:
    """Greedy episodes of the checkpoint ``policy`` from ``states``, and of the expert, in ``simulation``.

    ``name`` seeds the expert's draws. Without ``asks_expert`` there is neither its success nor an interaction. Raises
    ``ValueError`` without a state.
    """
    if len(states) == 0:
        raise ValueError(f"no initial state for the condition {name!r}")
    purpose = f"benchmark_ood/{name}"

    own = simulation.run(states, block_size=block_size, purpose=purpose, iteration=0, policy=policy)
    expert: list[Episode] = []
    close: list[EpisodeSummary] = []
    if asks_expert:
        expert = simulation.run(
            states, block_size=block_size, purpose=f"{purpose}/expert", iteration=0, variants=("expert",) * len(states)
        )
        near, context = find_starts_of_interaction(states, expert, spec)
        if len(near):
            close = simulation.judge(
                near, block_size=block_size, purpose=purpose, iteration=0, policy=policy, context=context
            )
    reached = [reaches(episode, spec) for episode in own]
    known = [outcome for outcome in reached if outcome is not None]
    return ConditionScore(
        success=rate_success(own),
        expert=rate_success(expert) if expert else None,
        transit=Rate.of(np.array(known)) if known else None,
        interaction=rate_success(close) if close else None,
        by_task={task: rate_success([e for e in own if e.meta.task == task]) for task in sorted(set(states.tasks))},
        succeeded={state: episode.is_success for state, episode in zip(states.ids, own, strict=True)},
    )


def rate_success(episodes: Sequence[Episode | EpisodeSummary]) -> Rate:
    return Rate.of(np.array([episode.is_success for episode in episodes]))


def reaches(episode: Episode, spec: SimulatorSpec) -> bool | None:
    """Whether the hand comes near the object; ``None`` if the task does not tell where they are."""
    tracks = follow(episode, spec)
    return None if tracks is None else "reach" in find_events(tracks)


def find_starts_of_interaction(
    states: InitialStates, expert: Sequence[Episode], spec: SimulatorSpec
) -> tuple[InitialStates, dict[str, Tensor]]:
    """The simulator states of the last frame before the hand reaches the object, of the expert's successes.

    There is at most one for each of ``states``. Also the frames that a policy sees there, camera -> u8 [n, 3, h, w, 3]:
    the episode's first, the one before and the one now.
    """
    rows, found = [], []
    seen: list[dict[str, np.ndarray]] = []
    for row, episode in enumerate(expert):
        tracks = follow(episode, spec)
        reached = None if tracks is None else find_events(tracks).get("reach")
        if episode.is_success and reached is not None:
            rows.append(row)
            now = max(reached - 1, 0)
            found.append(torch.from_numpy(episode.sim_state[now]))
            seen.append({camera: images[[0, max(now - 1, 0), now]] for camera, images in episode.frames.items()})
    chosen = states.select(rows)
    starts = torch.stack(found) if found else chosen.states
    context = {camera: torch.from_numpy(np.stack([own[camera] for own in seen])) for camera in (seen or [{}])[0]}
    return InitialStates(chosen.split, chosen.ids, chosen.tasks, starts), context
