"""The judgement of inverse dynamics models, on motions made by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from worldloop.core.types import Normalisation
from worldloop.evaluation.inverse_dynamics import explain, judge_inverse_dynamics, make_replay
from worldloop.executability.inverse_dynamics import InverseDynamics, InverseDynamicsConfig, Motion
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator


@pytest.fixture
def model() -> InverseDynamics:
    unit = Normalisation(torch.zeros(4), torch.ones(4))
    return InverseDynamics(InverseDynamicsConfig(width=8), ToySimulator.make_spec(ToyConfig(image_size=32)), unit)


def copy_motion(episode: Any, shift: float = 0.0) -> Motion:
    """The true motion, with ``shift`` added to every action."""
    return Motion(torch.from_numpy(episode.proprio)[None], torch.from_numpy(episode.actions)[None] + shift)


def test_explained_variance_by_hand() -> None:
    """Errors of 1 at variance 4: 1 - 1/4; the mean explains nothing, a constant is no figure."""
    real = np.array([[0.0], [4.0]])
    assert explain(np.array([[1.0], [5.0]]), real) == pytest.approx(0.75)
    assert explain(np.full((2, 1), 2.0), real) == pytest.approx(0.0)
    assert np.isnan(explain(real, np.ones((2, 1))))


def test_the_true_motion_explains_everything_and_the_mean_nothing(model: InverseDynamics, toy_clips: Any) -> None:
    episodes = [toy_clips.cache.episode(number) for number in range(3)]
    judged = judge_inverse_dynamics(model, episodes, [copy_motion(episode) for episode in episodes])
    assert judged.num_episodes == 3
    assert {name: figure.value for name, figure in judged.explained.items()} == {
        "proprio": 1.0, "joints": 1.0, "actions": 1.0,
    }  # fmt: skip
    valid = np.concatenate([episode.actions[episode.valid] for episode in episodes])
    mean = torch.from_numpy(valid.mean(axis=0))
    blind = [Motion(copy_motion(e).proprio, mean.expand(1, *e.actions.shape)) for e in episodes]
    assert judge_inverse_dynamics(model, episodes, blind).explained["actions"].value == pytest.approx(0, abs=1e-6)


def test_a_replay_fills_the_last_chunk_and_keeps_bounds(model: InverseDynamics, toy_clips: Any) -> None:
    episodes = [toy_clips.cache.episode(number) for number in (0, 1)]
    motions = [copy_motion(episode, shift=shift) for episode, shift in zip(episodes, (0.0, 5.0), strict=True)]
    states, replay, num_chunks = make_replay(model, episodes, motions, 4)
    flat = [e.actions.reshape(-1, 2) for e in episodes]
    assert num_chunks.tolist() == [-(-len(actions) // 4) for actions in flat]
    assert replay.actions.shape == (2, 4 * max(num_chunks.tolist()), 2)
    first, length = replay.actions[0].numpy(), len(flat[0])
    np.testing.assert_array_equal(first[:length], flat[0])
    np.testing.assert_array_equal(first[length:], np.broadcast_to(flat[0][-1], first[length:].shape))
    assert bool((replay.actions[1] == 1).all())
    np.testing.assert_array_equal(states.states[0], episodes[0].sim_state[0])
    assert len(set(states.ids)) == 2
