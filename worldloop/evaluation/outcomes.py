"""Success of a policy on evaluation states, compared with the clone and with imagination on the same states."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldloop.core.interfaces import Actor, WorldModel
from worldloop.core.randomness import make_row_keys
from worldloop.core.statistics import PairedGain, Rate, paired_gain
from worldloop.core.success import Calibrations
from worldloop.core.types import Episode, Observation
from worldloop.evaluation.by_task import ByTask, Outcomes, group_outcomes, measure_by_task, pool_outcomes
from worldloop.rollout.imagination import ImaginedSimulator
from worldloop.rollout.jobs import EpisodeSummary
from worldloop.rollout.rollout import run_rollout

EPISODES_AT_ONCE = 100  # rows of one imagined rollout; a change changes the noise


@dataclass(frozen=True)
class PolicySuccess:
    """Success in the simulator, and its ``gain`` over the clone's success on the same states."""

    simulated: Rate
    gain: PairedGain

    def to_dict(self) -> dict[str, Any]:
        return {"simulated_success": self.simulated.to_dict(), "paired_gain": self.gain.to_dict()}


@dataclass(frozen=True)
class OutcomeComparison:
    """Imagined and simulated success on the same n states.

    ``precision``: the share of states solved in imagination that are also solved in the simulator; ``recall``: the
    share of states solved in the simulator that are also solved in imagination. ``None`` if no such state is solved.
    """

    imagined: Rate
    imagined_minus_simulated: PairedGain
    precision: Rate | None
    recall: Rate | None

    def to_dict(self) -> dict[str, Any]:
        """The record of an iteration; a missing figure has a reason beside it."""
        agreement = {"imagined_success_precision": self.precision, "imagined_success_recall": self.recall}
        return {
            "imagined_success": self.imagined.to_dict(),
            "imagined_minus_simulated": self.imagined_minus_simulated.to_dict(),
            **{name: rate and rate.to_dict() for name, rate in agreement.items()},
            **{f"{name}_reason": "no such success" for name, rate in agreement.items() if rate is None},
        }


@dataclass(frozen=True)
class SwappedSuccess:
    """Success at a task under the instruction of another one, and its ``loss``: the change from the right instruction.

    Both are on the same states. A policy that follows instructions has a ``swapped`` rate near that of doing nothing. A
    policy that ignores them has a ``loss`` near 0.
    """

    swapped: Rate
    loss: PairedGain

    def to_dict(self) -> dict[str, Any]:
        return {"swapped_success": self.swapped.to_dict(), "swapped_minus_told": self.loss.to_dict()}


def measure_swapped(told: Outcomes, swapped: Outcomes) -> ByTask[SwappedSuccess]:
    """Compare ``swapped``, on the first states of each task, with ``told`` on the same states."""

    def measure(tasks: Collection[str]) -> SwappedSuccess:
        same = {task: told[task][: len(swapped[task])] for task in tasks}
        before, now = (pool_outcomes(outcomes, tasks) for outcomes in (same, swapped))
        return SwappedSuccess(Rate.of(now), paired_gain(before, now))

    return measure_by_task(measure, swapped)


@dataclass(frozen=True)
class LoggedSuccess:
    """How often a robot succeeded with the policy. Its states are others in every iteration: nothing is paired."""

    logged: Rate

    def to_dict(self) -> dict[str, Any]:
        return {"logged_success": self.logged.to_dict()}


def measure_logged(outcomes: Outcomes) -> ByTask[LoggedSuccess]:
    """Success by task and over all tasks, of ``outcomes`` that a robot's episodes had."""
    return measure_by_task(lambda tasks: LoggedSuccess(Rate.of(pool_outcomes(outcomes, tasks))), outcomes)


def measure_success(clone: Outcomes, policy: Outcomes) -> ByTask[PolicySuccess]:
    """Success of ``policy`` by task and over all tasks; ``clone`` is the policy of iteration 0 on the same states."""

    def measure(tasks: Collection[str]) -> PolicySuccess:
        before, now = (pool_outcomes(outcomes, tasks) for outcomes in (clone, policy))
        return PolicySuccess(Rate.of(now), paired_gain(before, now))

    return measure_by_task(measure, policy)


def compare_outcomes(imagined: Outcomes, simulated: Outcomes) -> ByTask[OutcomeComparison]:
    """Compare by task and over all tasks; both arguments are on the same states in the same order."""

    def measure(tasks: Collection[str]) -> OutcomeComparison:
        in_imagination, in_simulator = (pool_outcomes(outcomes, tasks) for outcomes in (imagined, simulated))
        return OutcomeComparison(
            imagined=Rate.of(in_imagination),
            imagined_minus_simulated=paired_gain(in_simulator, in_imagination),
            precision=Rate.of(in_simulator[in_imagination]) if in_imagination.any() else None,
            recall=Rate.of(in_imagination[in_simulator]) if in_simulator.any() else None,
        )

    return measure_by_task(measure, simulated)


def imagine_outcomes(
    policy: Actor,
    world_model: WorldModel,
    calibrations: Calibrations,
    episodes: Sequence[Episode | EpisodeSummary],
    *,
    key: tuple[int | str, ...],
    max_batch: int = 0,
) -> dict[str, tuple[bool, ...]]:
    """Task -> success of the greedy ``policy`` in imagination, from the first observations of ``episodes``.

    ``key`` seeds the world model's noise; for ``max_batch`` see `ImaginedSimulator`.
    """
    success: list[bool] = []
    for first in range(0, len(episodes), EPISODES_AT_ONCE):
        block = episodes[first : first + EPISODES_AT_ONCE]
        start = observe_start(block, world_model.spec.robot.camera_names)
        keys = make_row_keys(len(block), *key, first)
        simulator = ImaginedSimulator(world_model, calibrations, len(block), max_batch=max_batch)

        def reset(s: ImaginedSimulator = simulator, o: Observation = start, k: torch.Tensor = keys) -> Observation:
            return s.start(o, k)

        rollout = run_rollout(
            policy,
            simulator,
            start,
            None,
            initial_state_id=tuple(e.meta.initial_state_id for e in block),
            origin="imagined",
            reset=reset,
        )
        success.extend(rollout.success.tolist())
    return group_outcomes(success, [episode.meta.task for episode in episodes])


def observe_start(episodes: Sequence[Episode | EpisodeSummary], cameras: Sequence[str]) -> Observation:
    """The first observations of ``episodes``: rows with K = 3 equal frames of each of ``cameras``."""
    first = {camera: torch.from_numpy(np.stack([e.frames[camera][0] for e in episodes])) for camera in cameras}
    return Observation(
        frames={camera: frames[:, None].repeat(1, 3, 1, 1, 1) for camera, frames in first.items()},
        proprio=torch.from_numpy(np.stack([e.proprio[0] for e in episodes])),
        task=tuple(e.meta.task for e in episodes),
        instruction=tuple(e.meta.instruction for e in episodes),
        env_step=torch.zeros(len(episodes), dtype=torch.long),
    )
