"""What a simulator process does: a block of states with a policy or with scripted variants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldloop.core.randomness import make_row_keys
from worldloop.factory.config import SimulatorConfig
from worldloop.rollout import jobs
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


def test_an_episode_may_begin_in_the_middle_with_the_frames_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy sees them at its first decision; the next one sees the first frame still."""
    job = make_job()
    whole = execute_rollout_job(job)
    rows = [row for row, episode in enumerate(whole) if episode.num_frame_steps > 4][:2]
    states = replace(
        job.states.select(rows), states=torch.stack([torch.from_numpy(whole[r].sim_state[2]) for r in rows])
    )
    frames = {c: torch.from_numpy(np.stack([whole[r].frames[c][[0, 1, 2]] for r in rows])) for c in whole[0].frames}
    seen = []
    run = jobs.run_rollout

    def record(actor, simulator, start, *arguments, **named):
        rollout = run(actor, simulator, start, *arguments, **named)
        seen.extend(rollout.observations[:2])
        return rollout

    monkeypatch.setattr(jobs, "run_rollout", record)
    middle = replace(
        job,
        states=states,
        context=frames,
        noise_key=job.noise_key[rows],
        splits=("train",) * 2,
        variants=tuple(job.variants[r] for r in rows),  # type: ignore[index]
    )
    again = execute_rollout_job(middle)
    assert [e.meta.instruction for e in again] == [whole[r].meta.instruction for r in rows]
    for camera, images in frames.items():
        assert torch.equal(seen[0].frames[camera][:, :2], images[:, :2])
        assert torch.equal(seen[0].frames[camera][:, 2], images[:, 2])
        assert torch.equal(seen[1].frames[camera][:, 0], images[:, 0])
    assert seen[0].env_step.tolist() == [4, 4], "two frame steps of two actions have passed"
