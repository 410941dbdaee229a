"""The stages of the loop. Each is one file with `Config`, `takes_part` and `run`; `STAGES` has them in order.

A new stage is one file and one line in `STAGES`. The line gives its place in the loop and the name of its config
section.
"""

from __future__ import annotations

from typing import Any, Protocol

from worldloop.stages import (
    align_world_model,
    check_closed_loop,
    check_gate,
    check_inverse_dynamics,
    check_planner,
    check_value,
    check_world_model,
    clone_policy,
    collect_episodes,
    distil_world_model,
    evaluate_policy,
    fit_inverse_dynamics,
    fit_planner,
    fit_value,
    fit_world_model,
    import_dataset,
    improve_policy,
    label_advantages,
    promote_policy,
    refit_world_model,
    seed_dataset,
)
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


class Stage(Protocol):
    """The interface of a stage's module.

    - ``Config``: a frozen dataclass, the config section of the stage's name. It may have two `ClassVar`s: ``TRAINS``
      (the stage runs on every rank) and ``MICROBATCHED`` (names of settings that are divided by ``num_microbatches``).
    - ``takes_part``: whether the stage runs in an iteration
    - ``run``: returns the new state. An interrupted stage starts again, a training stage from its checkpoint.
    """

    @property
    def Config(self) -> type[Any]: ...  # noqa: N802

    def takes_part(self, config: Any, schedule: Schedule) -> bool: ...

    def run(self, state: LoopState, config: Any, context: StageContext) -> LoopState: ...


STAGES: dict[str, Stage] = {
    "import_dataset": import_dataset,
    "seed_dataset": seed_dataset,
    "fit_inverse_dynamics": fit_inverse_dynamics,
    "check_inverse_dynamics": check_inverse_dynamics,
    "fit_world_model": fit_world_model,
    "distil_world_model": distil_world_model,
    "fit_planner": fit_planner,
    "align_world_model": align_world_model,
    "check_world_model": check_world_model,
    "check_planner": check_planner,
    "clone_policy": clone_policy,
    "fit_value": fit_value,
    "check_value": check_value,
    "label_advantages": label_advantages,
    "improve_policy": improve_policy,
    "check_closed_loop": check_closed_loop,
    "refit_world_model": refit_world_model,
    "promote_policy": promote_policy,
    "check_gate": check_gate,
    "evaluate_policy": evaluate_policy,
    "collect_episodes": collect_episodes,
}


def trains(name: str) -> bool:
    """Whether the stage called ``name`` runs on every rank."""
    return bool(getattr(STAGES[name].Config, "TRAINS", False))
