"""What stages ask of the real simulator: lists of initial states, and episodes in fixed blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reporters import RecordingReporter

from worldloop.core.randomness import make_row_keys
from worldloop.core.types import Episode, InitialStates, Split
from worldloop.factory.config import SimulatorConfig
from worldloop.rollout import simulation as module
from worldloop.rollout.jobs import RolloutJob
from worldloop.rollout.simulation import Simulation, choose_split, success_of
from worldloop.simulators.toy.simulator import ToyConfig

CONFIG = SimulatorConfig("toy", toy=ToyConfig(image_size=16, actions_per_frame=2, max_episode_steps=20))


class Here:
    """An `Executor` that works in this process, and takes down its jobs."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def map(self, function: Any, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.jobs.append(item)
            yield function(item)


def make_simulation(run_dir: Path, seed: int = 0, executor: Here | None = None) -> Simulation:
    return Simulation(CONFIG, 4, seed, run_dir, executor or Here(), RecordingReporter())


def are_equal(a: InitialStates, b: InitialStates) -> bool:
    return (a.split, a.ids) == (b.split, b.ids) and torch.equal(a.states, b.states)


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
    assert success_of(episodes) == tuple(e.meta.outcome == "success" for e in episodes)
    assert True in success_of(episodes)
    assert False in success_of(episodes)
    assert isinstance(simulation.reporter, RecordingReporter)
    (bar,) = simulation.reporter.bars
    assert (bar.total, bar.unit, bar.count) == (5, "episode", 5)
    assert bar.figures[-1]["success"] == pytest.approx(np.mean(success_of(episodes)))


def test_rows_have_keys_of_their_own_whatever_the_block(tmp_path: Path) -> None:
    _, jobs, _ = run_scripted(tmp_path, block_size=2)
    keys = torch.cat([job.noise_key for job in jobs])
    assert torch.equal(keys, make_row_keys(5, 0, 3, "test"))
    _, (whole,), _ = run_scripted(tmp_path, block_size=9)
    assert torch.equal(whole.noise_key, keys)


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
    assert success_of(episodes) == (True, False, True)
    first, second = executor.jobs
    assert are_equal(InitialStates.cat([first.states, second.states]), states)
    assert first.policy == str(tmp_path / "checkpoints/policy")
    assert (first.temperature, first.variants, first.iteration) == (None, None, 7)
    assert first.splits == ("evaluation", "evaluation")
    assert torch.equal(torch.cat([first.noise_key, second.noise_key]), make_row_keys(3, 4, 7, "evaluate/evaluation"))


class _Ended:
    """All that is asked of an episode here."""

    def __init__(self, is_success: bool) -> None:
        self.is_success = is_success
