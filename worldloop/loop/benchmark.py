"""`worldloop benchmark-ood`: a policy of a run, in conditions that it has not learned from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.files import disk_errors, hash_file, to_json, write_file
from worldloop.core.types import InitialStates
from worldloop.evaluation.generalisation import score_condition
from worldloop.factory.build import list_variations, vary_simulator
from worldloop.factory.checkpoints import PLANNER
from worldloop.factory.classes import require_known
from worldloop.loop.run import make_context
from worldloop.policies import POLICIES
from worldloop.reporting.progress import Display
from worldloop.rollout.sides import SIDES, begins_on, find_side
from worldloop.runtime.inline import InlineRuntime
from worldloop.simulators import SIMULATORS
from worldloop.stages import evaluate_policy, seed_dataset
from worldloop.stages.context import StageContext
from worldloop.storage.checkpoint import read_description
from worldloop.storage.run_directory import RunDirectory

IN_DISTRIBUTION, POSITION = "in distribution", "position"
DRAWN_PER_STATE = 3  # states that are drawn for each one wanted on one side; half of them lie there


def run_benchmark(
    run_dir: Path,
    policy: str,
    num_states: int,
    variations: Sequence[str] | None,
    display: Display,
    own_code: bool = False,
) -> dict[str, Any]:
    """Score the checkpoint ``policy`` of the run ("": the current one) in every condition; returns what is stored.

    Conditions: evaluation states as in training; those on the other side of the table, if `seed_dataset.held_out_side`
    names one; and each of ``variations`` of the simulator (``None``: all it has). The result is a file of
    ``benchmark_ood/`` in the run, written after each condition, so that a benchmark that was interrupted goes on.
    Raises `WorldloopError` for a run or policy that is not there, for an unknown variation, and unless ``own_code`` for
    a simulator or policy that is not part of worldloop.
    """
    directory = RunDirectory(run_dir)
    if not directory.exists:
        raise WorldloopError(f"{run_dir} is no run directory")
    config = load_config(run_dir / "config.yaml")
    if config.source != "simulator":
        raise WorldloopError(f"{run_dir} is of a recording: a policy can only be tested in a simulator")
    if not own_code:
        require_known(config.simulator.kind, SIMULATORS, f"the run {run_dir}")
        require_known(config.policy.kind, POLICIES, f"the run {run_dir}")
    known = tuple(name for name in list_variations(config.simulator) if can_vary(config, name))
    chosen = known if variations is None else tuple(variations)
    if unknown := [name for name in chosen if name not in known]:
        raise WorldloopError(f"unknown variation {unknown[0]!r}; this simulator has: {', '.join(known) or 'none'}")
    state = directory.read_state()
    policy = (policy or state.policy).rstrip("/")
    weights = run_dir / policy / "model.safetensors"
    if not policy or not weights.is_file():
        raise WorldloopError(f"{run_dir} has no policy {policy!r}" if policy else f"{run_dir} has no policy yet")
    require_known(
        read_description(run_dir / policy)["name"], (*POLICIES, PLANNER, config.policy.kind), f"the policy {policy}"
    )
    out = run_dir / "benchmark_ood" / f"{policy.removeprefix('checkpoints/').replace('/', '_')}_{num_states}.json"
    about = {"policy": policy, "num_states": num_states, "weights_sha256": hash_file(weights)}
    stored: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if {name: stored.get(name) for name in about} != about:
        stored = about | {"conditions": {}}
    with disk_errors(str(out.parent)):  # before a condition takes minutes
        out.parent.mkdir(exist_ok=True)
    side = config.section(seed_dataset.Config).held_out_side
    resources = config.resources
    runtime = InlineRuntime(resources.num_simulators, resources.max_retries, display, resources.block_timeout_s)
    plain = make_context("evaluate_policy", config, run_dir, runtime, display)
    try:
        held_out = count_held_out_successes(plain, side)
        for name in (IN_DISTRIBUTION, *((POSITION,) if side else ()), *chosen):
            if name in stored["conditions"]:
                continue
            display.log(f"{name}")
            varied = replace(config, simulator=vary_simulator(config.simulator, name if name in chosen else ""))
            context = make_context("evaluate_policy", varied, run_dir, runtime, display)
            wanted = "" if not side else side if name == POSITION else SIDES[1 - SIDES.index(side)]
            states = choose_states(plain, num_states, wanted)
            block_size = config.section(evaluate_policy.Config).block_size
            score = score_condition(context.simulation, states, policy, context.spec, block_size=block_size, name=name)
            stored["conditions"][name] = score.to_dict()
            stored |= {"held_out_side": side, "held_out_successes": held_out}
            write_file(out, to_json(stored), out.name)
    finally:
        runtime.close()
    return stored | {"path": str(out)}


def can_vary(config: LoopConfig, variation: str) -> bool:
    """Whether the variation changes anything in a simulator of this config."""
    try:
        vary_simulator(config.simulator, variation)
    except ValueError:
        return False
    return True


def choose_states(context: StageContext, num_states: int, side: str) -> InitialStates:
    """Of each task the first evaluation states; with ``side`` those whose object begins there."""
    if not side:
        return context.simulation.initial_states("evaluation", num_states)
    drawn = context.simulation.initial_states("evaluation", DRAWN_PER_STATE * num_states)
    rows: list[int] = []
    is_there = find_side(drawn, context.spec, side)
    for task in context.spec.task_ids:
        own = [row for row, name in enumerate(drawn.tasks) if name == task and is_there[row]][:num_states]
        if len(own) < num_states:
            raise WorldloopError(f"only {len(own)} of {DRAWN_PER_STATE * num_states} states of {task} begin {side}")
        rows += own
    return drawn.select(rows)


def count_held_out_successes(context: StageContext, side: str) -> int:
    """Successes in the training episodes that begin on the held-out side; such a run has one dataset version."""
    if not side:
        return 0
    cache = context.open_cache("v000")
    episodes = cache.select(split="train", outcome="success")
    states = cache.frames("sim_state", episodes, np.zeros_like(episodes))
    tasks = [cache.metas[e].task for e in episodes.tolist()]
    return sum(begins_on(state, task, context.spec, side) for state, task in zip(states, tasks, strict=True))
