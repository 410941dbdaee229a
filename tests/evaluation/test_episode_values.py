"""Returns, out-of-fold values and advantages of the episodes of a debug run, and how values are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reporters import RecordingReporter

from worldloop.config.loading import load_config
from worldloop.core.types import Observation
from worldloop.evaluation.episode_values import EpisodeFrames, choose_fold, judge_critic
from worldloop.factory.build import build_spec
from worldloop.sans.store import SansStore


@pytest.fixture
def frames(debug_run: Path) -> EpisodeFrames:
    config = load_config(debug_run / "config.yaml")
    store = SansStore(debug_run / "sans")
    cache = store.open_cache(store.version("v001"))
    spec = build_spec(config.source, config.simulator, config.recording)
    return EpisodeFrames(cache, spec, cache.select(split="train"), target="recap", num_folds=3, future_steps=5)


class Says:
    """A critic whose value is always the same."""

    def __init__(self, value: float) -> None:
        self.constant = value

    def value(self, observation: Observation) -> torch.Tensor:
        return torch.full((len(observation),), self.constant)


def test_frames_are_those_before_the_end_with_returns_of_their_episode(frames: EpisodeFrames) -> None:
    """The toy has two actions a frame and a limit of 20 steps: a return is minus the steps left over 40."""
    cache = frames.cache
    assert len(frames) == frames.num_frames.sum() == len(frames.returns)
    for outcome, end in (("success", 0.0), ("failure", -0.5)):
        number = next(i for i, e in enumerate(frames.episodes) if cache.metas[e].outcome == outcome)
        episode = cache.episode(int(frames.episodes[number]))
        own = slice(frames.first[number], frames.first[number + 1])
        num_open = int(episode.valid.any(axis=1).sum())
        assert num_open == episode.num_frame_steps - (outcome == "success"), "a success is shown for a frame more"
        assert frames.index[own].tolist() == [[frames.episodes[number], f] for f in range(num_open)]
        left = episode.num_env_steps - 2 * np.arange(num_open)
        np.testing.assert_allclose(frames.returns[own], end - left / 40, atol=1e-6)
    rows = frames.load(torch.tensor([1, 0]))
    assert rows.returns.tolist() == frames.returns[[1, 0]].tolist()
    observation = frames.observe(torch.tensor([1, 0]))
    for seen in (rows.observation, observation):
        assert seen.env_step.tolist() == [2, 0]
        assert seen.task == ("ToyPush-v1",) * 2
        episode = cache.episode(int(frames.episodes[0]))
        assert seen.proprio is not None
        np.testing.assert_array_equal(seen.proprio.numpy(), episode.proprio[[1, 0]])
        for camera, images in seen.frames.items():
            np.testing.assert_array_equal(images[:, -1].numpy(), episode.frames[camera][[1, 0]])


def test_the_future_is_some_steps_away_or_the_end(frames: EpisodeFrames) -> None:
    """Five steps are three frames of two; the end is the frame of the success, or the last one of a failure."""
    assert frames.future_frames == 3
    ends = set()
    for outcome in ("success", "failure"):
        number = next(i for i, meta in enumerate(frames.metas) if meta.outcome == outcome and frames.num_frames[i] > 3)
        episode, last = frames.cache.episode(int(frames.episodes[number])), int(frames.num_frames[number])
        ends.add(last == episode.num_frame_steps)
        assert bool(episode.success[:last].any()) == (outcome == "success")
        assert not episode.success[: last - 1].any()
        rows = frames.load(torch.arange(last) + int(frames.first[number]))
        expected = np.stack([episode.proprio[min(f + 3, last)] for f in range(last)])
        np.testing.assert_array_equal(rows.future_proprio.numpy(), expected)
        assert rows.future_proprio[-3:].unique(dim=0).shape[0] == 1, "capped"
        assert not torch.equal(rows.future_proprio[0], rows.future_proprio[-1])
    assert ends == {True, False}, "a success is shown for a frame more, and that is no future"


@pytest.mark.parametrize(("future_steps", "num_frames"), [(1, 1), (2, 1), (3, 2), (20, 10), (500, 250)])
def test_the_future_is_a_whole_number_of_frames(frames: EpisodeFrames, future_steps: int, num_frames: int) -> None:
    other = EpisodeFrames(
        frames.cache, frames.spec, frames.episodes, target="outcome", num_folds=2, future_steps=future_steps
    )
    assert other.future_frames == num_frames
    number = int(frames.num_frames.argmax())
    episode, last = frames.cache.episode(int(frames.episodes[number])), int(frames.num_frames[number])
    rows = other.load(torch.tensor([int(other.first[number])]))
    np.testing.assert_array_equal(rows.future_proprio[0].numpy(), episode.proprio[min(num_frames, last)])


def test_returns_are_those_of_the_target(frames: EpisodeFrames) -> None:
    other = EpisodeFrames(frames.cache, frames.spec, frames.episodes, target="outcome", num_folds=3, future_steps=5)
    success = np.repeat([meta.outcome == "success" for meta in frames.metas], frames.num_frames)
    np.testing.assert_array_equal(other.returns, np.where(success, 0.0, -1.0))
    assert torch.equal(other.load(torch.arange(7)).future_proprio, frames.load(torch.arange(7)).future_proprio)


def test_an_episode_is_valued_by_the_critic_of_its_fold_and_so_are_all_from_its_state(frames: EpisodeFrames) -> None:
    values = frames.compute_values([Says(0.0), Says(-0.1), Says(-0.2)], 64, RecordingReporter())  # type: ignore[list-item]
    np.testing.assert_allclose(values, -0.1 * frames.fold)
    assert set(frames.fold.tolist()) == {0, 1, 2}
    by_state: dict[str, set[int]] = {}
    for (episode, _), fold in zip(frames.index.tolist(), frames.fold.tolist(), strict=True):
        by_state.setdefault(frames.cache.metas[episode].initial_state_id, set()).add(fold)
    assert all(len(folds) == 1 for folds in by_state.values())
    state = next(iter(by_state))
    assert by_state[state] == {choose_fold(state, 3)}


def test_values_that_are_the_returns_leave_no_advantage(frames: EpisodeFrames) -> None:
    assert np.abs(frames.compute_advantages(frames.returns, 4)).max() < 1e-6
    # The return minus a constant: the outcome is better than expected wherever it is seen within four frames.
    advantages = frames.compute_advantages(frames.returns - 0.1, 4)
    left = np.concatenate([np.arange(n, 0, -1) for n in frames.num_frames])
    np.testing.assert_allclose(advantages, np.where(left <= 4, 0.1, 0.0), atol=1e-6)


def test_values_are_judged_by_source_at_one_time(frames: EpisodeFrames) -> None:
    """The returns know the outcome at all times, and their opposite never; the clock knows nothing at one time."""
    for values, expected in ((frames.returns, 1.0), (-frames.returns, 0.0)):
        judged = judge_critic(frames, values)
        assert set(judged) == {"scripted", "on_policy"}
        for judgement in judged.values():
            known = [figure.value for figure in judgement.auc.values() if figure is not None]
            assert known == [expected] * len(known)
            assert judgement.auc[0.25] is not None
    clock = judge_critic(frames, -frames.index[:, 1].astype(np.float32))
    assert {figure.value for judgement in clock.values() for figure in judgement.auc.values() if figure} == {0.5}
    stored: dict[str, Any] = judged["on_policy"].to_dict()
    assert list(stored["auc"]) == ["0.25", "0.50", "0.75"]
    own = [i for i, e in enumerate(frames.episodes.tolist()) if frames.cache.metas[e].source == "policy"]
    assert stored["num_episodes"] == len(own)
    # A quarter of 20 steps is in the third frame, of two steps each.
    assert stored["auc"]["0.25"]["n"] == sum(frames.num_frames[i] > 2 for i in own)


def test_the_clock_of_one_task_tells_nothing_beside_another(frames: EpisodeFrames) -> None:
    """A longer task that fails: judged together, an early frame would look like a success."""
    for number in range(0, len(frames.metas), 2):
        meta = frames.metas[number]
        frames.metas[number] = replace(meta, task="ToyLong", outcome="failure" if number % 4 else meta.outcome)
    (task,) = frames.spec.tasks
    longer = replace(task, id="ToyLong", max_episode_steps=10)
    frames.spec = replace(frames.spec, tasks=(task, longer))
    clock = judge_critic(frames, -frames.index[:, 1].astype(np.float32))
    assert {figure.value for judgement in clock.values() for figure in judgement.auc.values() if figure} == {0.5}
