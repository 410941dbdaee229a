"""A gate between experts on stored episodes: does it tell interaction from transit, and how often does it switch?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldloop.core.interfaces import GatedPolicy
from worldloop.core.specs import SimulatorSpec
from worldloop.core.statistics import Estimate, auc, estimate, estimate_by_label, mean
from worldloop.evaluation.open_loop import SOURCES
from worldloop.sans.cache import VersionCache
from worldloop.sans.clips import make_observation
from worldloop.sans.interaction import find_interaction

FRAMES_AT_ONCE = 256


@dataclass(frozen=True)
class GateJudgement:
    """Intervals resample episodes; frames are those before an episode's success or end.

    - ``accuracy``: share of frames on which gate and label agree; ``floor``: that of always saying the more frequent
    - ``auc``: of the gate's probability for the label, ``None`` if all labels are equal
    - ``interaction``: share of frames that the gate calls an interaction; ``labelled``: that of the labels
    - ``switches``: changes of what it calls them between the chunks of an episode
    """

    accuracy: Estimate
    floor: float
    auc: Estimate | None
    interaction: Estimate
    labelled: Estimate
    switches: Estimate
    num_episodes: int

    def to_dict(self) -> dict[str, Any]:
        estimates = {name: value.to_dict() for name, value in vars(self).items() if isinstance(value, Estimate)}
        return {"auc": None, "floor": self.floor, "num_episodes": self.num_episodes} | estimates


@dataclass(frozen=True)
class GatedEpisodes:
    """What a gate says in ``episodes``: of each, the probability of an interaction f [F], and its label bool [F]."""

    episodes: list[int]
    probability: list[np.ndarray]
    label: list[np.ndarray]


def run_gate(policy: GatedPolicy, cache: VersionCache, spec: SimulatorSpec, episodes: Sequence[int]) -> GatedEpisodes:
    """Ask the gate at every frame from which an action was taken; the policy's own rule gives the labels."""
    labels = find_interaction(cache, spec, policy.interaction)
    assert labels is not None
    probabilities, chosen = [], []
    for episode in episodes:
        steps = np.arange(cache.num_steps[episode])
        is_open = cache.steps("valid", np.full(len(steps), episode), steps).any(axis=1)
        index = np.stack([np.full(len(steps), episode), steps], axis=1)[is_open]
        said = [
            policy.tell_interaction(make_observation(cache, policy.spec.robot.camera_names, part))
            for part in np.split(index, range(FRAMES_AT_ONCE, len(index), FRAMES_AT_ONCE))
        ]
        probabilities.append(torch.cat(said).cpu().double().numpy())
        chosen.append(labels[cache.first_step[episode] + steps[is_open]])
    return GatedEpisodes(list(episodes), probabilities, chosen)


def judge_gate(gated: GatedEpisodes, frames_per_chunk: int) -> GateJudgement:
    """``gated`` has one episode or more; a policy decides once in ``frames_per_chunk`` frames."""
    probability, label = np.concatenate(gated.probability), np.concatenate(gated.label)
    episode = np.repeat(np.arange(len(gated.label)), [len(part) for part in gated.label])
    said = probability >= 0.5

    def average(values: np.ndarray) -> Estimate:
        return estimate(mean, values.astype(np.float64), clusters=episode)

    decided = [part[::frames_per_chunk] >= 0.5 for part in gated.probability]
    changes = np.array([np.count_nonzero(np.diff(part)) for part in decided], dtype=np.float64)
    return GateJudgement(
        accuracy=average(said == label),
        floor=float(max(label.mean(), 1 - label.mean())),
        auc=estimate_by_label(auc, probability, label, clusters=episode),
        interaction=average(said),
        labelled=average(label),
        switches=estimate(mean, changes),
        num_episodes=len(gated.episodes),
    )


def choose_held_out(cache: VersionCache, max_episodes: int) -> Mapping[str, list[int]]:
    """Source -> its latest held-out episodes, in the version's order; a source without any is left out."""
    chosen = {name: cache.select(split="validation", source=kinds) for name, kinds in SOURCES.items()}
    return {name: episodes[-max_episodes:].tolist() for name, episodes in chosen.items() if len(episodes)}
