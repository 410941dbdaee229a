"""The stages of the loop: one file each, with `Config`, `takes_part` and `run`; `STAGES` has them in order.

A new stage is one file and one line here; its config section and its place in the loop follow from both.
"""

from __future__ import annotations

from typing import Any, Protocol

from worldloop.stages import (
    check_world_model,
    clone_policy,
    collect_episodes,
    distil_world_model,
    evaluate_policy,
    fit_world_model,
    import_dataset,
    improve_policy,
    promote_policy,
    seed_dataset,
)
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState


class Stage(Protocol):
    """What the module of a stage holds.

    - ``Config``: its frozen dataclass, the config section of its name; `ClassVar`s beside it say ``TRAINS`` (it runs on
      every rank) and ``MICROBATCHED`` (the names of the settings that fall into ``num_microbatches`` equal parts)
    - ``takes_part``: whether it runs in an iteration
    - ``run``: the new state; a stage that is cut begins again, a training stage from its checkpoint
    """

    @property
    def Config(self) -> type[Any]: ...  # noqa: N802

    def takes_part(self, config: Any, schedule: Schedule) -> bool: ...

    def run(self, state: LoopState, config: Any, context: StageContext) -> LoopState: ...


STAGES: dict[str, Stage] = {
    "import_dataset": import_dataset,
    "seed_dataset": seed_dataset,
    "clone_policy": clone_policy,
    "fit_world_model": fit_world_model,
    "distil_world_model": distil_world_model,
    "check_world_model": check_world_model,
    "improve_policy": improve_policy,
    "promote_policy": promote_policy,
    "evaluate_policy": evaluate_policy,
    "collect_episodes": collect_episodes,
}


def trains(name: str) -> bool:
    """Whether the stage called ``name`` runs on every rank."""
    return bool(getattr(STAGES[name].Config, "TRAINS", False))
