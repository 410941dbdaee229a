"""Plan a video of the task, and let inverse dynamics read the actions that lead there (EVA, arXiv:2603.17808).

In every call the policy plans anew, from what it sees, and executes one chunk of the plan: a receding horizon. It is
made by `fit_planner`, from a planner and an inverse dynamics model, and cannot be cloned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import ActionReader, Metrics, Planner, Policy
from worldloop.core.types import ActionChunk, ImitationBatch, Observation


class PlannerPolicy(Policy):
    """``planner`` and ``inverse_dynamics`` are `torch.nn.Module`s of the same robot, tasks and cameras."""

    def __init__(self, planner: Planner, inverse_dynamics: ActionReader, chunk_length: int) -> None:
        super().__init__()
        assert isinstance(planner, nn.Module)
        assert isinstance(inverse_dynamics, nn.Module)
        self.planner, self.inverse_dynamics = planner, inverse_dynamics
        self.spec, self.chunk_length = planner.spec, chunk_length
        self.normalisation = planner.normalisation
        self.temperature, self.version = 1.0, ""

    @torch.no_grad()
    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """See `Actor.act`. The actions are a function of the plan; all noise is the planner's."""
        seen = observation.with_cameras(self.spec.robot.camera_names)
        key = None if noise_key is None else noise_key + observation.env_step
        plan = self.planner.plan(seen, key, self.chunk_length // self.spec.actions_per_frame)
        return ActionChunk(self.inverse_dynamics.read_plan(seen.frames, plan), policy_version=self.version)

    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Raises `WorldloopError`: action chunks do not show the frames that a planner learns."""
        raise WorldloopError("a planner does not learn from action chunks: fit_planner makes it from video")
