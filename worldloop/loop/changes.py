"""Go on with a run under changed settings, where that is sound.

A run may get more iterations, also one that has ended. A stage that still comes may get other settings of its own, e.g.
a lower learning rate after a loss became nan; an interrupted stage then begins anew. Anything else would make a run of
two halves that nobody could compare: it is refused.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from worldloop.config.loading import build_config, describe_changes, find_changes, list_old_keys, to_yaml
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.loop.schedule import list_remaining_stages, list_stages
from worldloop.stages import STAGES
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

NUM_SHOWN = 5
COMPARED = ("evaluate_policy",)  # all iterations are evaluated alike


def take_over_changes(config: LoopConfig, directory: RunDirectory, place: str) -> None:
    """Let the run in ``directory`` go on under ``config``, and record which settings changed before which stage.

    Raises `WorldloopError`, and changes nothing, if the run cannot go on under them; ``place`` is what to delete then.
    """
    stored = directory.read_config()
    if renamed := list_old_keys(stored):
        raise WorldloopError(_refuse(directory, "by an earlier version", renamed, place))
    changes = find_changes(stored, to_yaml(config))
    if not changes:
        return
    before = build_config([OmegaConf.create(stored)], str(directory.path / "config.yaml"))
    state = directory.read_state()
    if fixed := [key for key in changes if not _may_change(key, before, config, state)]:
        shown = describe_changes({key: changes[key] for key in fixed})
        may = "; num_iterations may grow, and the settings of stages that still come may change, except "
        may = may + ", ".join(COMPARED) if state.dataset else ""
        raise WorldloopError(_refuse(directory, "with another config", shown, place) + may)
    state = continue_ended(before, config, state)
    if state.next_stage in {key.split(".")[0] for key in changes}:
        shutil.rmtree(directory.path / "partial", ignore_errors=True)
    if own := {key: list(values) for key, values in changes.items() if key != "num_iterations"}:
        state = state.record(changed_settings=_merge(state.recorded("changed_settings", {}), state.next_stage, own))
    directory.write_state(state)
    directory.write_config(to_yaml(config))


def describe_taken_over(state: LoopState) -> str:
    """The settings that have changed before the next stage of ``state``, as one line of a log; "" if none have."""
    changes = state.recorded("changed_settings", {}).get(state.next_stage, {})
    shown = ", ".join(describe_changes({key: (old, new) for key, (old, new) in changes.items()}))
    return f"settings changed from {state.next_stage} on: {shown}" if shown else ""


def _merge(recorded: dict[str, Any], stage: str, own: dict[str, list[Any]]) -> dict[str, Any]:
    """``recorded``, stage -> key -> [old, new], with the further changes ``own`` before the same ``stage``.

    A setting that changes twice before a stage keeps its first value as the old one: the stages before ran under it.
    One that is changed back has not changed.
    """
    before = recorded.get(stage, {})
    merged = before | {key: [before.get(key, [old])[0], new] for key, (old, new) in own.items()}
    kept = {key: [old, new] for key, (old, new) in merged.items() if old != new}
    others = {name: changes for name, changes in recorded.items() if name != stage}
    return others | ({stage: kept} if kept else {})


def continue_ended(before: LoopConfig, config: LoopConfig, state: LoopState) -> LoopState:
    """``state``, or if the loop had ended, where it goes on when ``config`` has more iterations than ``before``.

    The last iteration has fewer stages than it would have had if another were to follow.
    """
    if state.next_stage or config.num_iterations <= state.iteration:
        return state
    done = list_stages(before, state.iteration)
    left = [name for name in list_stages(config, state.iteration) if name not in done]
    if left:
        return replace(state, next_stage=left[0])
    iteration = state.iteration + 1
    return replace(state, iteration=iteration, num_fits=0, next_stage=list_stages(config, iteration)[0])


def _may_change(key: str, before: LoopConfig, config: LoopConfig, state: LoopState) -> bool:
    """Whether ``key`` differs between ``before`` and ``config`` in what is still to come alone."""
    if not state.dataset:  # nothing but scripted episodes could have been made: begin anew
        return False
    if key == "num_iterations":
        return config.num_iterations > before.num_iterations
    here, there = list_stages(before, state.iteration), list_stages(config, state.iteration)
    if state.next_stage in here and _upto(here, state.next_stage) != _upto(there, state.next_stage):
        return False  # a stage that has been passed would have been another
    section = key.split(".")[0]
    if section not in STAGES or section in COMPARED:
        return False
    still = continue_ended(before, config, state)
    return section in (still.next_stage, *(list_remaining_stages(config, still) if still.next_stage else ()))


def _upto(stages: tuple[str, ...], name: str) -> tuple[str, ...] | None:
    """``stages`` up to the one called ``name``, ``None`` if it is none of them."""
    return stages[: stages.index(name) + 1] if name in stages else None


def _refuse(directory: RunDirectory, what: str, differences: list[str], place: str) -> str:
    shown = ", ".join(differences[:NUM_SHOWN]) + (" ..." if len(differences) > NUM_SHOWN else "")
    return f"{directory.path} was made {what}: {shown}; give another run_name, or delete {place}"
