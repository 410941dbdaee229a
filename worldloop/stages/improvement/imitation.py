"""Imitate every success in SANS: the control, and the policy that GRPO starts from."""

from __future__ import annotations

from dataclasses import replace

from worldloop.sans.imitation import EVERY_SUCCESS
from worldloop.stages import clone_policy
from worldloop.stages.context import StageContext
from worldloop.stages.improvement.config import ImprovementConfig
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState


def imitate_successes(state: LoopState, config: ImprovementConfig, context: StageContext) -> LoopState:
    """The one candidate imitates every success in SANS."""
    candidate = name_checkpoint(state.iteration, "policy")
    imitate_into(state, config, context, candidate)
    return replace(state, start=candidate, newest=candidate, candidates=(candidate,))


def imitate_into(state: LoopState, config: ImprovementConfig, context: StageContext, path: str) -> None:
    """Clone every success in SANS into the checkpoint ``path``."""
    cloning = replace(context.config_of(clone_policy.Config), num_steps=config.num_imitation_steps)
    clone_policy.imitate(state, cloning, context, EVERY_SUCCESS, path)
