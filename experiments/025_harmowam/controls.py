"""HarmoWAM with another gate: inverted, by the clock, by chance, or by what only the simulator knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldloop.core.randomness import derive_seed
from worldloop.core.types import Observation
from worldloop.policies.harmowam.config import HarmoWAMConfig
from worldloop.policies.harmowam.policy import HarmoWAM
from worldloop.simulators.maniskill import TASKS
from worldloop.simulators.maniskill.robots import ROBOTS

NEAR_M = 0.06  # from hand to cube, or from a held cube to its place: the oracle calls it an interaction
HELD_M = 0.035  # from hand to cube, at most, while the fingers hold it


@dataclass(frozen=True)
class ControlConfig(HarmoWAMConfig):
    """``gate``: learned | inverted | clock | random | oracle."""

    gate: str = "learned"
    duty: float = 0.5  # random: how often the predictive expert decides
    interaction_by_frame: tuple[bool, ...] = ()  # clock: for each frame of an episode


class ControlledHarmoWAM(HarmoWAM):
    """Every gate decides between the same two experts; the oracle needs ``observation.sim_state``."""

    Config = ControlConfig

    def choose(self, observation: Observation, interaction: Tensor) -> Tensor:
        config = self.config
        assert isinstance(config, ControlConfig)
        match config.gate:
            case "inverted":
                return 1 - super().choose(observation, interaction)
            case "clock":
                last = len(config.interaction_by_frame) - 1
                frames = (observation.env_step // self.spec.actions_per_frame).clamp_max(last)
                return torch.tensor([float(config.interaction_by_frame[f]) for f in frames.tolist()])
            case "random":
                assert observation.proprio is not None
                seeds = [derive_seed("gate", row.numpy().tobytes().hex()) for row in observation.proprio]
                return torch.tensor([float(seed % 10_000 < 10_000 * config.duty) for seed in seeds])
            case "oracle":
                return ask_simulator(observation)
        return super().choose(observation, interaction)


def ask_simulator(observation: Observation) -> Tensor:
    """1 near the cube before it is held, and near its place while it is held; else 0."""
    assert observation.sim_state is not None
    assert observation.proprio is not None
    task = TASKS[observation.task[0]]
    cube = observation.sim_state[:, task.object_xyz]
    hand = observation.proprio[:, ROBOTS["panda"].tcp_in_proprio]
    gap = (hand - cube).norm(dim=1)
    fingers = observation.sim_state[:, ROBOTS["panda"].qpos][:, -2:].sum(1)
    is_held = (gap < HELD_M) & (fingers < 0.06)
    return torch.where(is_held, task.measure_distance_m(observation.sim_state) < NEAR_M, gap < NEAR_M).float()
