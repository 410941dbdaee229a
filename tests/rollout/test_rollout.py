"""The rollout loop in the toy simulator, and rollouts as stored episodes."""

import numpy as np
import pytest
import torch

from worldloop.core.randomness import make_row_keys
from worldloop.core.types import Episode, InitialStates
from worldloop.rollout.rollout import rollout_to_episodes, run_rollout
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator


def _episodes(
    variants: tuple[str, ...], chunk_length: int, actions_per_frame: int
) -> tuple[list[Episode], InitialStates]:
    config = ToyConfig(actions_per_frame=actions_per_frame, max_episode_steps=21)
    simulator = ToySimulator(config)
    states = simulator.draw_initial_states("train", len(variants), seed=3)
    policy = simulator.make_scripted_policy(variants, make_row_keys(len(variants), "test"), chunk_length)
    rollout = run_rollout(policy, simulator, states.states, None, initial_state_id=states.ids)
    episodes = rollout_to_episodes(
        rollout, simulator.spec, sources=("expert",) * len(variants), variants=variants,
        splits=("train",) * len(variants), iteration=0,
    )  # fmt: skip
    return episodes, states


def test_outcomes_and_lengths_follow_the_simulator() -> None:
    episodes, _ = _episodes(("expert", "far", "expert"), chunk_length=4, actions_per_frame=2)
    assert [e.meta.outcome for e in episodes] == ["success", "failure", "success"]
    success, failure = episodes[0], episodes[1]
    assert success.terminated
    assert not success.truncated
    assert failure.truncated
    assert failure.num_env_steps == 21
    assert failure.num_frame_steps == 11  # ceil(21 / 2): the last frame step holds one executed action
    assert failure.valid[-1].tolist() == [True, False]
    assert (failure.actions[-1, 1] == 0).all()


def test_valid_ends_with_the_first_success() -> None:
    (episode,), _ = _episodes(("expert",), chunk_length=4, actions_per_frame=2)
    first = int(np.flatnonzero(episode.success.reshape(-1))[0])
    assert episode.num_env_steps == first + 1
    assert episode.rewards.reshape(-1)[first] == 1
    assert episode.rewards.sum() == 1
    assert episode.meta.margin_m == 0


def test_a_stored_episode_can_be_played_again_bit_by_bit() -> None:
    (episode,), _ = _episodes(("expert",), chunk_length=4, actions_per_frame=2)
    simulator = ToySimulator(ToyConfig(actions_per_frame=2, max_episode_steps=21))
    observation = simulator.reset(torch.from_numpy(episode.sim_state[:1]))
    (camera,) = episode.frames
    assert np.array_equal(observation.frames[0, -1].numpy(), episode.frames[camera][0])
    for f in range(episode.num_frame_steps):
        step = simulator.step_chunk(torch.from_numpy(episode.actions[None, f]))
        assert np.array_equal(step.frames[0, 0].numpy(), episode.frames[camera][f + 1])


def test_max_chunks_stops_early() -> None:
    simulator = ToySimulator(ToyConfig())
    states = simulator.draw_initial_states("train", 2, seed=0)
    policy = simulator.make_scripted_policy(("far", "far"), make_row_keys(2, "test"), 2)
    rollout = run_rollout(policy, simulator, states.states, None, initial_state_id=states.ids, max_chunks=3)
    assert len(rollout.steps) == 3
    assert rollout.valid.shape == (2, 6)


def test_an_imagined_rollout_cannot_be_stored() -> None:
    simulator = ToySimulator(ToyConfig())
    states = simulator.draw_initial_states("train", 1, seed=0)
    policy = simulator.make_scripted_policy(("far",), make_row_keys(1, "test"), 2)
    rollout = run_rollout(policy, simulator, states.states, None, initial_state_id=states.ids, max_chunks=1)
    from dataclasses import replace

    blind = replace(rollout, steps=tuple(replace(s, sim_states=None) for s in rollout.steps))
    with pytest.raises(ValueError, match="only a simulated rollout"):
        rollout_to_episodes(
            blind, simulator.spec, sources=("expert",), variants=("far",), splits=("train",), iteration=0
        )
