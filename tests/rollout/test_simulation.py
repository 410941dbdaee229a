"""What stages ask of the real simulator: lists of initial states, and episodes in fixed blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executors import Here
from reporters import RecordingReporter

from worldloop.core.randomness import make_row_keys
from worldloop.core.types import Episode, InitialStates, Split
from worldloop.factory.config import SimulatorConfig
from worldloop.rollout import simulation as module
from worldloop.rollout.jobs import RolloutJob
from worldloop.rollout.simulation import Simulation, choose_split
from worldloop.simulators.toy.simulator import ToyConfig
from worldloop.storage.run_directory import RunDirectory

CONFIG = SimulatorConfig("toy", toy=ToyConfig(image_size=16, actions_per_frame=2, max_episode_steps=20))
PUSH, REACH = "ToyPush-v1", "ToyReach-v1"
BOTH = replace(CONFIG, toy=replace(CONFIG.toy, tasks=(PUSH, REACH)))


def make_simulation(
    run_dir: Path, seed: int = 0, executor: Here | None = None, config: SimulatorConfig = CONFIG
) -> Simulation:
    return Simulation(config, 4, seed, run_dir, executor or Here(), RecordingReporter())


def are_equal(a: InitialStates, b: InitialStates) -> bool:
    return (a.split, a.ids, a.tasks) == (b.split, b.ids, b.tasks) and torch.equal(a.states, b.states)


# --- initial states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["validation", "evaluation"])
def test_validation_and_evaluation_states_are_the_same_for_every_run_and_seed(tmp_path: Path, split: Split) -> None:
    one, other = (make_simulation(tmp_path / str(seed), seed).initial_states(split, 6) for seed in (0, 1))
    assert one.split == split
    assert len(set(one.ids)) == 6
    assert are_equal(one, other)


def test_training_states_follow_the_seed(tmp_path: Path) -> None:
    one, other, again = (
        make_simulation(tmp_path / name, seed).initial_states("train", 6)
        for name, seed in (("a", 0), ("b", 1), ("c", 0))
    )
    assert not set(one.ids) & set(other.ids)
    assert not (one.states[:, None] == other.states).all(2).any()
    assert are_equal(one, again)


def test_no_state_is_in_two_splits(tmp_path: Path) -> None:
    simulation = make_simulation(tmp_path)
    drawn = [simulation.initial_states(split, 6) for split in ("train", "validation", "evaluation")]
    assert len({state_id for states in drawn for state_id in states.ids}) == 18
    assert len(torch.cat([states.states for states in drawn]).unique(dim=0)) == 18


def test_a_list_that_has_grown_is_the_one_drawn_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_simulation(tmp_path / "whole").initial_states("train", 8)
    monkeypatch.setattr(module, "STATES_PER_JOB", 3)  # 3 + 2, then 3 more
    executor = Here()
    grown = make_simulation(tmp_path / "grown", executor=executor)
    assert are_equal(grown.initial_states("train", 5), whole.select(range(5)))
    assert are_equal(grown.initial_states("train", 8), whole)
    assert [(job.first, job.num_states) for job in executor.jobs] == [(0, 3), (3, 2), (5, 3)]
    assert are_equal(grown.initial_states("train", 2), whole.select(range(2)))
    assert are_equal(grown.initial_states("train", 3, first=4), whole.select(range(4, 7)))
    assert len(executor.jobs) == 3, "what is stored is not drawn again"
    again = make_simulation(tmp_path / "grown", seed=1)
    assert are_equal(again.initial_states("train", 8), whole), "it is read, not drawn"


def test_every_task_has_as_many_states_and_a_list_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STATES_PER_JOB", 3)
    executor = Here()
    simulation = make_simulation(tmp_path / "both", executor=executor, config=BOTH)
    states = simulation.initial_states("train", 4)
    assert states.tasks == (PUSH,) * 4 + (REACH,) * 4
    assert are_equal(states.select(range(4)), make_simulation(tmp_path / "push").initial_states("train", 4))
    assert len(states.states.unique(dim=0)) == 8
    assert [(job.task, job.first, job.num_states) for job in executor.jobs] == [
        (PUSH, 0, 3), (PUSH, 3, 1), (REACH, 0, 3), (REACH, 3, 1),
    ]  # fmt: skip
    rest = simulation.initial_states("train", 2, first=3)
    assert are_equal(rest.select([0, 2]), states.select([3, 7]))
    assert [(job.task, job.first) for job in executor.jobs[4:]] == [(PUSH, 4), (REACH, 4)]
    again = make_simulation(tmp_path / "both", seed=1, config=BOTH)
    assert are_equal(again.initial_states("train", 2, first=3), rest), "they are read, not drawn"
    stored = sorted(
        path.relative_to(tmp_path / "both/initial_states") for path in tmp_path.glob("both/initial_states/**/*.*")
    )
    assert [str(path) for path in stored] == [f"train/{PUSH}.safetensors", f"train/{REACH}.safetensors"]


def test_the_one_list_of_an_earlier_worldloop_is_read(tmp_path: Path) -> None:
    states = make_simulation(tmp_path).initial_states("evaluation", 3)
    folder = tmp_path / "initial_states"
    (folder / "evaluation" / f"{PUSH}.safetensors").rename(folder / "evaluation.safetensors")
    read = RunDirectory(tmp_path).read_initial_states("evaluation", PUSH)
    assert read is not None
    assert are_equal(read, states)


def test_splits_follow_the_id_and_the_share() -> None:
    ids = [f"task/train/0-{i:06d}" for i in range(4000)]
    held = [choose_split(i, 0.25) == "validation" for i in ids]
    assert np.mean(held) == pytest.approx(0.25, abs=0.03)
    # a larger share holds out more and never less of the same states
    assert all(choose_split(i, 0.5) == "validation" for i, h in zip(ids, held, strict=True) if h)
    assert choose_split(ids[0], 0.0) == "train"


# --- episodes -----------------------------------------------------------------------------------------------------


def run_scripted(run_dir: Path, block_size: int) -> tuple[list[Episode], list[RolloutJob], Simulation]:
    executor = Here()
    simulation = make_simulation(run_dir, executor=executor)
    states = simulation.initial_states("train", 5)
    executor.jobs.clear()
    episodes = simulation.run(
        states, block_size=block_size, purpose="test", iteration=3,
        splits=("train", "validation", "train", "train", "validation"),
        variants=("expert", "far", "expert", "far", "expert"),
    )  # fmt: skip
    return episodes, executor.jobs, simulation


def test_episodes_come_in_the_order_of_their_states(tmp_path: Path) -> None:
    episodes, jobs, simulation = run_scripted(tmp_path, block_size=2)
    states = simulation.initial_states("train", 5)
    assert [len(job.states) for job in jobs] == [2, 2, 1]
    assert [e.meta.initial_state_id for e in episodes] == list(states.ids)
    assert [e.meta.variant for e in episodes] == ["expert", "far", "expert", "far", "expert"]
    assert [e.meta.source for e in episodes] == ["expert", "perturbed", "expert", "perturbed", "expert"]
    assert [e.meta.split for e in episodes] == ["train", "validation", "train", "train", "validation"]
    assert {e.meta.iteration for e in episodes} == {3}
    success = [e.is_success for e in episodes]
    assert success == [e.meta.outcome == "success" for e in episodes]
    assert set(success) == {True, False}
    assert isinstance(simulation.reporter, RecordingReporter)
    (bar,) = simulation.reporter.bars
    assert (bar.total, bar.unit, bar.count) == (5, "episode", 5)
    assert bar.figures[-1]["success"] == pytest.approx(np.mean(success))


def test_rows_have_keys_of_their_own_whatever_the_block(tmp_path: Path) -> None:
    _, jobs, _ = run_scripted(tmp_path, block_size=2)
    keys = torch.cat([job.noise_key for job in jobs])
    assert torch.equal(keys, make_row_keys(5, 0, 3, "test"))
    _, (whole,), _ = run_scripted(tmp_path, block_size=9)
    assert torch.equal(whole.noise_key, keys)


def run_both(run_dir: Path, block_size: int, order: list[int]) -> tuple[list[Episode], list[RolloutJob], InitialStates]:
    """Three states of each task, at ``order``; even ones with the expert."""
    executor = Here()
    simulation = make_simulation(run_dir, executor=executor, config=BOTH)
    states = simulation.initial_states("train", 3).select(order)
    executor.jobs.clear()
    variants = tuple(("expert", "far")[i % 2] for i in order)
    episodes = simulation.run(states, block_size=block_size, purpose="test", iteration=3, variants=variants)
    return episodes, executor.jobs, states


def test_blocks_hold_one_task_each(tmp_path: Path) -> None:
    episodes, jobs, states = run_both(tmp_path, block_size=2, order=[0, 1, 2, 3, 4, 5])
    assert [job.states.tasks for job in jobs] == [(PUSH, PUSH), (PUSH,), (REACH, REACH), (REACH,)]
    assert [e.meta.initial_state_id for e in episodes] == list(states.ids)
    assert [e.meta.variant for e in episodes] == ["expert", "far"] * 3
    assert [e.is_success for e in episodes] == [True, False, True, False, True, False]


def test_mixed_states_come_back_in_their_order(tmp_path: Path) -> None:
    """Row keys are a function of the task and of the place within it: so the push rows play the same."""
    ordered, _, _ = run_both(tmp_path, block_size=2, order=[0, 1, 2, 3, 4, 5])
    mixed, jobs, states = run_both(tmp_path, block_size=2, order=[3, 0, 4, 1, 5, 2])
    assert [job.states.tasks for job in jobs] == [(REACH, REACH), (REACH,), (PUSH, PUSH), (PUSH,)]
    assert [e.meta.initial_state_id for e in mixed] == list(states.ids)
    for episode, other in zip((mixed[i] for i in (1, 3, 5, 0, 2, 4)), ordered, strict=True):
        assert episode.meta == other.meta
        assert np.array_equal(episode.actions, other.actions)


def test_tasks_draw_apart(tmp_path: Path) -> None:
    _, jobs, _ = run_both(tmp_path, block_size=9, order=[0, 1, 2, 3, 4, 5])
    push, reach = (job.noise_key for job in jobs)
    assert torch.equal(push, make_row_keys(3, 0, 3, "test", PUSH))
    assert torch.equal(reach, make_row_keys(3, 0, 3, "test", REACH))


def test_a_policy_is_evaluated_greedily_on_the_first_states_of_a_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(job: RolloutJob) -> list[Any]:
        return [_Ended(is_success) for is_success in (True, False)[: len(job.states)]]

    monkeypatch.setattr(module, "execute_rollout_job", play)
    executor = Here()
    simulation = make_simulation(tmp_path, seed=4, executor=executor)
    states = simulation.initial_states("evaluation", 3)
    executor.jobs.clear()
    episodes = simulation.evaluate("evaluation", 3, 2, "checkpoints/policy", iteration=7)
    assert [e.is_success for e in episodes] == [True, False, True]
    first, second = executor.jobs
    assert are_equal(InitialStates.cat([first.states, second.states]), states)
    assert first.policy == str(tmp_path / "checkpoints/policy")
    assert (first.temperature, first.variants, first.iteration) == (None, None, 7)
    assert first.splits == ("evaluation", "evaluation")
    assert torch.equal(torch.cat([first.noise_key, second.noise_key]), make_row_keys(3, 4, 7, "evaluate/evaluation"))
    assert simulation.num_env_steps == 0, "an evaluation only measures"
    simulation.run(states, block_size=2, purpose="gate", iteration=7, policy="checkpoints/policy")
    assert simulation.num_env_steps == 3 * 7


class _Ended:
    """All that is asked of an episode here."""

    num_env_steps = 7

    def __init__(self, is_success: bool) -> None:
        self.is_success = is_success
