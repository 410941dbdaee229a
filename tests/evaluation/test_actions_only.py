from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from worldloop.core.randomness import make_generator
from worldloop.core.statistics import auc
from worldloop.evaluation.actions_only import score_actions
from worldloop.sans.clips import ClipDataset

F, S, A = 4, 2, 3  # frame steps, steps per frame, action


class Recorded:
    """80 episodes of which every other is a success: what `score_actions` reads of a dataset and its cache."""

    def __init__(self, actions: np.ndarray) -> None:
        self.arrays = {"actions": actions.astype(np.float32), "valid": np.ones((len(actions), F, S), dtype=bool)}
        self.num_open_steps = torch.full((len(actions),), F)
        self.is_success = np.arange(len(actions)) % 2 == 0
        self.metas = [SimpleNamespace(outcome="success" if success else "failure") for success in self.is_success]
        self.cache = self

    def steps(self, name: str, episode: np.ndarray, row: np.ndarray) -> np.ndarray:
        return self.arrays[name][episode, row]


def score(recorded: Recorded, chosen: torch.Tensor) -> np.ndarray | None:
    """Learn on the episodes ``chosen``; score the last 20."""
    dataset: ClipDataset = recorded  # type: ignore[assignment]
    return score_actions(dataset, chosen, dataset, torch.arange(60, 80), make_generator("test"))


def draw(push: float) -> Recorded:
    """Actions are noise plus ``push`` in a success and minus ``push`` in a failure."""
    sign = np.where(np.arange(80) % 2 == 0, push, -push)[:, None, None, None]
    return Recorded(sign + np.random.default_rng(0).normal(size=(80, F, S, A)))


def test_actions_that_carry_the_outcome_tell_it() -> None:
    recorded = draw(1.0)
    scores = score(recorded, torch.arange(60))
    assert scores is not None
    assert auc(scores, recorded.is_success[60:]) > 0.95
    np.testing.assert_array_equal(scores, score(recorded, torch.arange(60)))


def test_actions_that_do_not_carry_it_tell_nothing() -> None:
    recorded = draw(0.0)
    scores = score(recorded, torch.arange(60))
    assert scores is not None
    assert 0.2 < auc(scores, recorded.is_success[60:]) < 0.8


def test_the_length_of_an_episode_does_not_count() -> None:
    """Successes end after 3 of 4 frame steps, so nothing after the third is read."""
    recorded = draw(0.0)
    recorded.num_open_steps = torch.where(torch.from_numpy(recorded.is_success), F - 1, F)
    recorded.arrays["actions"][:, F - 1] = np.where(recorded.is_success, 1, -1)[:, None, None]
    scores = score(recorded, torch.arange(60))
    assert scores is not None
    assert 0.2 < auc(scores, recorded.is_success[60:]) < 0.8


def test_the_shortest_episodes_are_left_out() -> None:
    recorded = draw(1.0)
    recorded.num_open_steps[[3, 61, 62]] = 1
    scores = score(recorded, torch.arange(60))
    assert scores is not None
    assert np.flatnonzero(np.isnan(scores)).tolist() == [1, 2]
    known = ~np.isnan(scores)
    assert auc(scores[known], recorded.is_success[60:][known]) > 0.95


def test_episodes_that_all_end_alike_teach_nothing() -> None:
    recorded = draw(1.0)
    assert score(recorded, torch.arange(0, 60, 2)) is None
    assert score(recorded, torch.zeros(0, dtype=torch.long)) is None
