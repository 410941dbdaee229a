"""The judgement of inverse dynamics models, on motions made by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from worldloop.core.types import Normalisation
from worldloop.evaluation.inverse_dynamics import cut_videos, explain, judge_inverse_dynamics
from worldloop.executability.inverse_dynamics import InverseDynamics, InverseDynamicsConfig, Motion
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator


@pytest.fixture
def model() -> InverseDynamics:
    unit = Normalisation(torch.zeros(4), torch.ones(4))
    return InverseDynamics(InverseDynamicsConfig(width=8), ToySimulator.make_spec(ToyConfig(image_size=32)), unit)


def copy_motion(episode: Any) -> Motion:
    """The true motion."""
    return Motion(torch.from_numpy(episode.proprio)[None], torch.from_numpy(episode.actions)[None])


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


def test_videos_are_padded_with_their_last_frame(toy_clips: Any) -> None:
    """The expert's episode, and that of another variant, of which one is shorter."""
    episodes = sorted((toy_clips.cache.episode(number) for number in range(3)), key=lambda e: e.num_frame_steps)
    short, long = episodes[0], episodes[-1]
    assert short.num_frame_steps < long.num_frame_steps
    states, video, num_chunks = cut_videos(("base_camera",), "checkpoint", [short, long], 4)
    s = short.actions.shape[1]
    assert num_chunks.tolist() == [-(-e.num_frame_steps * s // 4) for e in (short, long)]
    frames, stop = video.frames["base_camera"], short.num_frame_steps + 1
    assert frames.shape[:2] == (2, long.num_frame_steps + 1)
    np.testing.assert_array_equal(frames[0, :stop], short.frames["base_camera"])
    np.testing.assert_array_equal(frames[1], long.frames["base_camera"])
    assert all(torch.equal(frame, frames[0, stop - 1]) for frame in frames[0, stop:])
    np.testing.assert_array_equal(states.states[0], short.sim_state[0])
    assert len(set(states.ids)) == 2
    assert video.inverse_dynamics == "checkpoint"
