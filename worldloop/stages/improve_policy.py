"""Improve the policy: by GRPO or imitation inside the world model, by RECAP, or by imitating every success in SANS.

RECAP and the last, which is a control, run once in an iteration. The first two run in rounds, see `improvement.rounds`.
After every round `check_closed_loop` may find that the world model is not trusted any more for the newest policy; then
no round follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from worldloop.core.interfaces import AdvantageConditionedPolicy, LikelihoodPolicy, Policy
from worldloop.stages.context import Schedule, StageContext
from worldloop.stages.improvement.config import ImprovementConfig as Config
from worldloop.stages.improvement.grpo import improve_by_grpo
from worldloop.stages.improvement.imagined import imitate_imagined
from worldloop.stages.improvement.imitation import imitate_successes
from worldloop.stages.improvement.recap import run_recap
from worldloop.stages.improvement.rounds import run_round
from worldloop.storage.run_state import LoopState


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.has_policy


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Make ``state.start``, or add a candidate to ``state.candidates``, by ``config.method``."""
    return METHODS[config.method].run(state, config, context)


@dataclass(frozen=True)
class Method:
    """A way to improve a policy: what it does, what it needs, and the interface a policy must have.

    - ``uses_world_model``: it imagines; ``in_rounds``: it does so in rounds, with a check in the closed loop after each
    - ``uses_advantages``: it learns from the labels of `label_advantages`
    """

    run: Callable[[LoopState, Config, StageContext], LoopState]
    interface: type[Policy]
    uses_world_model: bool = False
    in_rounds: bool = False
    uses_advantages: bool = False


METHODS = {
    "grpo": Method(
        partial(run_round, improve=improve_by_grpo),
        LikelihoodPolicy,  # type: ignore[type-abstract]
        uses_world_model=True,
        in_rounds=True,
    ),
    "imitate_imagined": Method(
        partial(run_round, improve=imitate_imagined),
        Policy,  # type: ignore[type-abstract]
        uses_world_model=True,
        in_rounds=True,
    ),
    "recap": Method(run_recap, AdvantageConditionedPolicy, uses_advantages=True),  # type: ignore[type-abstract]
    "recap_imagined": Method(
        run_recap,
        AdvantageConditionedPolicy,  # type: ignore[type-abstract]
        uses_world_model=True,
        uses_advantages=True,
    ),
    "imitate_successes": Method(imitate_successes, Policy),  # type: ignore[type-abstract]
}
