"""What a simulator process does: a block of states with a policy or with scripted variants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldloop.core.randomness import make_row_keys
from worldloop.factory.config import SimulatorConfig
from worldloop.rollout.jobs import InitialStatesJob, RolloutJob, draw_initial_states, execute_rollout_job
from worldloop.simulators.toy.simulator import ToyConfig

CONFIG = SimulatorConfig("toy", toy=ToyConfig(image_size=16, actions_per_frame=2, max_episode_steps=12))


def make_job(num_envs: int = 64) -> RolloutJob:
    config = replace(CONFIG, toy=replace(CONFIG.toy, num_envs=num_envs))
    return RolloutJob(
        states=draw_initial_states(InitialStatesJob(CONFIG, "ToyPush-v1", "train", num_states=5, seed=0, first=0)),
        simulator=config,
        chunk_length=4,
        noise_key=make_row_keys(5, "test"),
        iteration=0,
        splits=("train",) * 5,
        variants=("noisy", "expert", "noisy", "far", "expert"),
    )


def test_a_list_of_states_can_be_drawn_in_parts() -> None:
    whole = draw_initial_states(InitialStatesJob(CONFIG, "ToyPush-v1", "validation", num_states=5, seed=3, first=0))
    rest = draw_initial_states(InitialStatesJob(CONFIG, "ToyPush-v1", "validation", num_states=3, seed=3, first=2))
    assert rest.ids == whole.ids[2:]
    assert torch.equal(rest.states, whole.states[2:])


def test_a_block_that_does_not_fit_the_simulator_goes_in_parts() -> None:
    whole, parts = execute_rollout_job(make_job()), execute_rollout_job(make_job(num_envs=2))
    assert [e.meta for e in whole] == [e.meta for e in parts]
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one.actions, other.actions)
        assert np.array_equal(one.sim_state, other.sim_state)


def test_a_job_draws_and_plays_the_task_that_it_names() -> None:
    config = replace(CONFIG, toy=replace(CONFIG.toy, tasks=("ToyPush-v1", "ToyReach-v1"), max_episode_steps=20))
    states = draw_initial_states(InitialStatesJob(config, "ToyReach-v1", "train", num_states=3, seed=0, first=0))
    assert set(states.tasks) == {"ToyReach-v1"}
    job = replace(make_job(), simulator=config, states=states, variants=("expert",) * 3, splits=("train",) * 3)
    episodes = execute_rollout_job(job)
    assert [(e.meta.task, e.meta.outcome) for e in episodes] == [("ToyReach-v1", "success")] * 3


def test_the_number_of_threads_is_the_jobs_and_then_what_it_was() -> None:
    before = torch.get_num_threads()
    execute_rollout_job(replace(make_job(), num_threads=before + 1))
    assert torch.get_num_threads() == before


def test_a_job_has_a_policy_or_variants_and_not_both(tmp_path: Path) -> None:
    for changes in ({"variants": None}, {"policy": str(tmp_path)}):
        with pytest.raises(ValueError, match="only one of them"):
            replace(make_job(), **changes)  # type: ignore[arg-type]
