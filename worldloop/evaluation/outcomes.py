"""Does a policy succeed in imagination where it succeeds in the simulator? The same states, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldloop.core.interfaces import Actor, WorldModel
from worldloop.core.randomness import make_row_keys
from worldloop.core.statistics import PairedGain, Rate, paired_gain
from worldloop.core.success import Calibration
from worldloop.core.types import Episode, Observation
from worldloop.rollout.imagination import ImaginedSimulator
from worldloop.rollout.rollout import run_rollout

EPISODES_AT_ONCE = 100  # rows of one imagined rollout; the noise depends on it


@dataclass(frozen=True)
class OutcomeComparison:
    """Success on n states, imagined against simulated.

    ``precision``: of the states solved in imagination, how many are solved in the simulator; ``recall``: the reverse.
    ``None`` where there is no such success.
    """

    imagined: Rate
    imagined_minus_simulated: PairedGain
    precision: Rate | None
    recall: Rate | None

    def to_dict(self) -> dict[str, Any]:
        """What an iteration records, with a reason beside what is missing."""
        agreement = {"imagined_success_precision": self.precision, "imagined_success_recall": self.recall}
        return {
            "imagined_success": self.imagined.to_dict(),
            "imagined_minus_simulated": self.imagined_minus_simulated.to_dict(),
            **{name: rate and rate.to_dict() for name, rate in agreement.items()},
            **{f"{name}_reason": "no such success" for name, rate in agreement.items() if rate is None},
        }


def compare_outcomes(imagined: np.ndarray, simulated: np.ndarray) -> OutcomeComparison:
    """From success bool [n] on the same n states in the same order."""
    return OutcomeComparison(
        imagined=Rate.of(imagined),
        imagined_minus_simulated=paired_gain(simulated, imagined),
        precision=Rate.of(simulated[imagined]) if imagined.any() else None,
        recall=Rate.of(imagined[simulated]) if simulated.any() else None,
    )


def imagine_outcomes(
    policy: Actor,
    world_model: WorldModel,
    calibration: Calibration,
    episodes: Sequence[Episode],
    *,
    key: tuple[int | str, ...],
    max_batch: int = 0,
) -> np.ndarray:
    """Success bool [n] of the greedy ``policy`` in imagination, from the first observations of n ``episodes``.

    ``key`` seeds the world model's noise; ``max_batch`` see `ImaginedSimulator`.
    """
    spec = world_model.spec
    success: list[bool] = []
    for first in range(0, len(episodes), EPISODES_AT_ONCE):
        block = episodes[first : first + EPISODES_AT_ONCE]
        start = observe_start(block, spec.camera)
        keys = make_row_keys(len(block), *key, first)
        simulator = ImaginedSimulator(world_model, spec, calibration, len(block), max_batch=max_batch)

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
    return np.array(success, dtype=bool)


def observe_start(episodes: Sequence[Episode], camera: str) -> Observation:
    """The observations that ``episodes`` began with, as rows of K = 3 equal frames."""
    frames = torch.from_numpy(np.stack([e.frames[camera][0] for e in episodes]))
    return Observation(
        frames=frames[:, None].repeat(1, 3, 1, 1, 1),
        proprio=torch.from_numpy(np.stack([e.proprio[0] for e in episodes])),
        instruction=tuple(e.meta.instruction for e in episodes),
        env_step=torch.zeros(len(episodes), dtype=torch.long),
    )
