"""Finished blocks of an interrupted stage are not run again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executors import Here
from reporters import RecordingReporter

from worldloop.core.types import Episode
from worldloop.factory.config import SimulatorConfig
from worldloop.rollout import kept_blocks
from worldloop.rollout.kept_blocks import KeptBlocks, hash_job
from worldloop.rollout.simulation import Simulation
from worldloop.rollout.swap import Swap
from worldloop.sans.shard import hash_episodes
from worldloop.simulators.toy.simulator import ToyConfig

CONFIG = SimulatorConfig("toy", toy=ToyConfig(image_size=16, actions_per_frame=2, max_episode_steps=20))


class Interrupted(Here):
    """Is interrupted after ``left`` blocks."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def map(self, function: Any, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield from super().map(function, [item])


def run(
    run_dir: Path, executor: Here, kept: KeptBlocks | None, reporter: RecordingReporter | None = None
) -> tuple[list[Episode], Simulation]:
    simulation = Simulation(CONFIG, 4, 0, run_dir, executor, reporter or RecordingReporter(), kept)
    states = simulation.initial_states("train", 7)
    executor.jobs.clear()
    return simulation.run(
        states, block_size=2, purpose="test", iteration=1, variants=("expert", "far") * 3 + ("expert",)
    ), simulation


def test_only_what_was_not_finished_is_run_again(tmp_path: Path) -> None:
    whole, all_steps = run(tmp_path, Here(), None)
    kept, interrupted, reporter = KeptBlocks(tmp_path), Interrupted(3), RecordingReporter()  # the first draws states
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupted, kept)
    executor = Here()
    again, simulation = run(tmp_path, executor, kept, reporter)
    assert len(executor.jobs) == 1, "three of four blocks are there"
    assert reporter.lines == ["  6 episodes are there from before the interruption"]
    assert hash_episodes(again) == hash_episodes(whole)
    assert [list(episode.frames) for episode in again] == [list(episode.frames) for episode in whole]
    assert simulation.num_env_steps == all_steps.num_env_steps
    kept.drop()
    assert not kept.directory.exists()


class Backwards(Here):
    """Finishes the last block first, and dies before the first one."""

    def map(self, function: Any, items: Iterable[Any]) -> Iterator[Any]:
        for item in [*items][-1:]:  # none where the initial states are stored
            function(item)
            raise KeyboardInterrupt
        yield from ()


def test_a_block_is_kept_when_it_ends_and_not_when_those_before_it_have_ended(tmp_path: Path) -> None:
    kept = KeptBlocks(tmp_path)
    run(tmp_path, Here(), None)  # draws the initial states
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Backwards(), kept)
    executor = Here()
    run(tmp_path, executor, kept)
    assert len(executor.jobs) == 3


def test_a_block_that_the_disk_does_not_take_ends_nothing(tmp_path: Path) -> None:
    kept = KeptBlocks(tmp_path / "file")
    (tmp_path / "file").touch()
    episodes, _ = run(tmp_path, Here(), kept)
    assert len(episodes) == 7


def test_a_damaged_block_is_run_again(tmp_path: Path) -> None:
    kept = KeptBlocks(tmp_path)
    whole, _ = run(tmp_path, Here(), kept)
    damaged, *_ = sorted(kept.directory.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-100])
    executor = Here()
    again, _ = run(tmp_path, executor, kept)
    assert len(executor.jobs) == 1
    assert hash_episodes(again) == hash_episodes(whole)


def test_a_job_is_told_from_every_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Here()
    run(tmp_path, executor, None)
    job = executor.jobs[0]
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/weights").write_bytes(b"1")
    policy = replace(job, variants=None, policy=str(tmp_path / "policy"))
    others = [
        *executor.jobs,
        replace(job, noise_key=job.noise_key + 1),
        replace(job, iteration=2),
        replace(job, simulator=replace(CONFIG, toy=replace(CONFIG.toy, image_size=17))),
        replace(job, states=replace(job.states, states=job.states.states + 1)),
        replace(job, row_chunks=torch.tensor([1, 1])),
        policy,
        replace(policy, temperature=1.0),
        replace(policy, swap=Swap(str(tmp_path / "policy"), ("base",))),
    ]
    hashes = [hash_job(other) for other in others]
    (tmp_path / "policy/weights").write_bytes(b"22")
    hashes.append(hash_job(policy))
    monkeypatch.setattr(kept_blocks, "__version__", "another")
    hashes.append(hash_job(job))
    monkeypatch.undo()
    assert len(set(hashes)) == len(hashes)
    assert hash_job(replace(job)) == hashes[0]


def test_a_job_is_the_same_in_a_copy_of_the_run(tmp_path: Path) -> None:
    executor = Here()
    run(tmp_path, executor, None)
    (tmp_path / "one/debug/policy").mkdir(parents=True)
    (tmp_path / "one/debug/policy/weights").write_bytes(b"1")
    shutil.copytree(tmp_path / "one", tmp_path / "two/other")  # with the times of its files
    jobs = [
        replace(executor.jobs[0], variants=None, policy=path, swap=Swap(path, ("base",)))
        for path in (str(tmp_path / place / "debug/policy") for place in ("one", "two/other"))
    ]
    assert len({hash_job(job) for job in jobs}) == 1


def test_the_source_of_a_simulator_of_ones_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own_toy.py"
    own.write_text("from worldloop.simulators.toy.simulator import ToySimulator\nclass Own(ToySimulator):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    executor = Here()
    run(tmp_path, executor, None)
    job = replace(executor.jobs[0], simulator=SimulatorConfig("own_toy:Own"))
    before = hash_job(job)
    assert hash_job(job) == before
    own.write_text(own.read_text() + "# mended\n")
    assert hash_job(job) != before
    monkeypatch.delattr(sys.modules["own_toy"], "__file__")
    assert hash_job(job) not in (before, ""), "a class of a notebook has no file"


def test_a_judged_block_keeps_outcomes_and_not_pictures(tmp_path: Path) -> None:
    whole, counted = run(tmp_path, Here(), None)
    kept, reporter = KeptBlocks(tmp_path), RecordingReporter()
    for keeps_start in (False, True):
        judged = []
        for _ in range(2):  # the second time from what was kept
            executor = Here()
            simulation = Simulation(CONFIG, 4, 0, tmp_path, executor, reporter, kept)
            states = simulation.initial_states("train", 7)
            judged = simulation.judge(
                states,
                block_size=2,
                purpose="test",
                iteration=1,
                keeps_start=keeps_start,
                variants=("expert", "far") * 3 + ("expert",),
            )
            assert simulation.num_env_steps == counted.num_env_steps
            assert [summary.meta for summary in judged] == [episode.meta for episode in whole]
            assert [summary.is_success for summary in judged] == [episode.is_success for episode in whole]
            for summary, episode in zip(judged, whole, strict=True):
                first = {camera: images[:1] for camera, images in episode.frames.items()} if keeps_start else {}
                assert list(summary.frames) == list(first)
                assert all(np.array_equal(summary.frames[camera], images) for camera, images in first.items())
                assert np.array_equal(summary.proprio, episode.proprio[:1] if keeps_start else episode.proprio[:0])
        assert executor.jobs == []
