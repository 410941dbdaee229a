"""The headline figure: greedy success of the current policy on evaluation states, in the real simulator.

Read-only: nothing it measures enters the dataset or any decision. Where a world model exists, the same policy is
also run inside it from the same first frames, so that imagined and simulated success can be compared pair by pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from worldloop.core.randomness import make_row_keys
from worldloop.core.statistics import Rate, paired_gain
from worldloop.core.success import Calibration
from worldloop.core.types import Episode, Observation
from worldloop.rollout.imagination import ImaginedSimulator
from worldloop.rollout.rollout import run_rollout
from worldloop.rollout.simulation import success_of
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


@dataclass(frozen=True)
class Config:
    num_states: int = 200  # evaluation states, the same for every run and seed
    block_size: int = 10  # initial states per simulator call

    def __post_init__(self) -> None:
        if self.num_states < 1 or self.block_size < 1:
            raise ValueError("evaluate_policy.num_states and evaluate_policy.block_size must be at least 1")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return schedule.has_simulator


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Append this iteration's outcomes to ``evaluation_success`` and record the rates."""
    episodes = context.simulation.evaluate(
        "evaluation", config.num_states, config.block_size, state.policy, state.iteration
    )
    success = success_of(episodes)
    state = replace(state, evaluation_success=(*state.evaluation_success[: state.iteration], success))
    gain = paired_gain(np.array(state.evaluation_success[0]), np.array(success))
    simulated = Rate.of(np.array(success))
    context.reporter.log(f"simulated success {simulated}")
    state = state.record(simulated_success=simulated.to_dict(), paired_gain=gain.to_dict())
    if not state.world_model:
        return state.record(imagined_success=None, imagined_success_reason="no world model yet")
    imagined = imagine_success(state, context, episodes)
    context.reporter.log(f"imagined success  {Rate.of(np.array(imagined))}")
    return state.record(**compare_outcomes(np.array(imagined), np.array(success)))


def compare_outcomes(imagined: np.ndarray, simulated: np.ndarray) -> dict[str, Any]:
    """What an iteration records of success bool [n] on the same n states, imagined and simulated.

    Precision: of the states solved in imagination, how many are solved in the simulator; recall: the reverse.
    """
    agreement = {
        "imagined_success_precision": Rate.of(simulated[imagined]).to_dict() if imagined.any() else None,
        "imagined_success_recall": Rate.of(imagined[simulated]).to_dict() if simulated.any() else None,
    }
    reasons = {f"{name}_reason": "no such success" for name, rate in agreement.items() if rate is None}
    return {
        "imagined_success": Rate.of(imagined).to_dict(),
        "imagined_minus_simulated": paired_gain(simulated, imagined).to_dict(),
        **agreement,
        **reasons,
    }


def first_observation(episodes: list[Episode], camera: str) -> Observation:
    """The observations that ``episodes`` began with, as rows of K = 3 equal frames."""
    frames = torch.from_numpy(np.stack([e.frames[camera][0] for e in episodes]))
    return Observation(
        frames=frames[:, None].repeat(1, 3, 1, 1, 1),
        proprio=torch.from_numpy(np.stack([e.proprio[0] for e in episodes])),
        instruction=tuple(e.meta.instruction for e in episodes),
        env_step=torch.zeros(len(episodes), dtype=torch.long),
    )


def imagine_success(state: LoopState, context: StageContext, episodes: list[Episode]) -> tuple[bool, ...]:
    """Greedy imagined success of ``state.policy`` from the first observations of ``episodes``."""
    policy = context.models.load_policy(state.policy).to(context.device)
    world_model = context.models.load_world_model(state.world_model).to(context.device).for_imagination()
    calibration = Calibration(**(state.calibration or {}))
    success: list[bool] = []
    for first in range(0, len(episodes), 100):
        block = episodes[first : first + 100]
        start = first_observation(block, context.spec.camera)
        keys = make_row_keys(len(block), context.seed, state.iteration, "evaluate_policy/imagined", first)
        simulator = ImaginedSimulator(
            world_model, context.spec, calibration, len(block), max_batch=context.max_imagination_batch
        )

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
    return tuple(success)
