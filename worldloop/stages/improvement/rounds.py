"""Rounds of improvement inside the world model, whatever a round does.

The first run makes the policy from which the rounds start: one that imitates every success in SANS (World-VLA-Loop
starts from the clone; ``restart_from`` chooses). Each further run is a round and leaves a candidate. A round goes on
from the newest candidate, the policy that was checked, with a fresh optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from worldloop.stages.context import StageContext
from worldloop.stages.improvement.config import ImprovementConfig
from worldloop.stages.improvement.imitation import imitate_into
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState

# (state, config, context, tasks, path): save the improved ``state.newest`` at ``path``, return the state with figures
ImproveInImagination = Callable[[LoopState, ImprovementConfig, StageContext, tuple[str, ...], str], LoopState]


def run_round(
    state: LoopState, config: ImprovementConfig, context: StageContext, improve: ImproveInImagination
) -> LoopState:
    """Choose where the rounds start, then one round of ``improve`` in the tasks in which the world model is trusted.

    With ``restart_from: successes`` the policy that imitates all successes is a candidate too, even without a round.
    """
    if not state.start:
        return choose_start(state, config, context)
    distrusted = {task: trust.reason for task, trust in state.trust.items() if not trust.is_trusted}
    tasks = tuple(task for task in context.spec.task_ids if task not in distrusted)
    if distrusted:
        context.reporter.log(f"improved without: {describe_distrust(distrusted, len(context.spec.tasks))}")
    path = name_checkpoint(state.iteration, f"policy_after_{divide_steps(config)[state.num_rounds + 1]:03d}")
    state = improve(state, config, context, tasks, path)
    return replace(state, candidates=(*state.candidates, path), newest=path, num_rounds=state.num_rounds + 1)


def choose_start(state: LoopState, config: ImprovementConfig, context: StageContext) -> LoopState:
    """Set ``state.start``; with ``restart_from: successes`` it is a new policy and the first candidate."""
    start = {"clone": state.clone, "policy": state.policy}.get(config.restart_from, "")
    candidates: tuple[str, ...] = ()
    if not start:
        start = name_checkpoint(state.iteration, "policy_of_successes")
        imitate_into(state, config, context, start)
        candidates = (start,)
    return note_distrust(replace(state, start=start, newest=start, candidates=candidates), context)


def note_distrust(state: LoopState, context: StageContext) -> LoopState:
    """Record and log why tasks are left out, or no round follows; nothing if every task is trusted."""
    distrusted = {task: trust.reason for task, trust in state.trust.items() if not trust.is_trusted}
    if not distrusted:
        return state
    reason = describe_distrust(distrusted, len(context.spec.tasks))
    if state.is_distrusted:
        what = "no further round" if state.num_rounds else "no round in the world model"
        context.reporter.log(f"{what}, {describe_candidates(state.candidates)}: {reason}")
    return state.record(improvement_skipped=reason)


def describe_distrust(reasons: dict[str, str], num_tasks: int) -> str:
    """Why tasks are left out, from task -> reason; with one task just the reason."""
    return "; ".join(reason if num_tasks == 1 else f"{task}: {reason}" for task, reason in reasons.items())


def describe_candidates(candidates: tuple[str, ...]) -> str:
    """What is left for promotion to choose from."""
    if not candidates:
        return "the policy stays"
    names = [candidate.rsplit("/", 1)[-1] for candidate in candidates]
    return f"the only candidate is {names[0]}" if len(names) == 1 else f"the candidates are {', '.join(names)}"


def divide_steps(config: ImprovementConfig) -> tuple[int, ...]:
    """The steps done after 0, 1, ... rounds: updates of GRPO, evenly divided, e.g. (0, 14, 28), or imitation steps."""
    if config.method != "grpo":
        return tuple(config.num_imitation_steps * number for number in range(config.num_candidates + 1))
    return tuple(np.linspace(0, config.num_updates, config.num_candidates + 1).round().astype(int).tolist())


def count_steps(state: LoopState, config: ImprovementConfig) -> int:
    """The steps of all rounds so far, over all iterations."""
    steps = divide_steps(config)
    return (state.iteration - 1) * steps[-1] + steps[state.num_rounds]
