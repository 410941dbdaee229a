"""The rollout loop in the toy simulator, and rollouts as stored episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldloop.core.randomness import make_row_keys
from worldloop.core.types import Episode, InitialStates
from worldloop.rollout.rollout import rollout_to_episodes, run_rollout
from worldloop.simulators.base import choose_instruction
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator


def _episodes(
    variants: tuple[str, ...], chunk_length: int, actions_per_frame: int
) -> tuple[list[Episode], InitialStates]:
    config = ToyConfig(actions_per_frame=actions_per_frame, max_episode_steps=21)
    simulator = ToySimulator(config)
    states = simulator.draw_initial_states("ToyPush-v1", "train", len(variants), seed=3)
    policy = simulator.make_scripted_policy(states.tasks, variants, make_row_keys(len(variants), "test"), chunk_length)
    rollout = run_rollout(policy, simulator, states, None, initial_state_id=states.ids)
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
    meta = episode.meta
    start = InitialStates(meta.split, (meta.initial_state_id,), (meta.task,), torch.from_numpy(episode.sim_state[:1]))
    observation = simulator.reset(start)
    (camera,) = episode.frames
    assert observation.instruction == (meta.instruction,)
    assert np.array_equal(observation.frames[camera][0, -1].numpy(), episode.frames[camera][0])
    for f in range(episode.num_frame_steps):
        step = simulator.step_chunk(torch.from_numpy(episode.actions[None, f]))
        assert np.array_equal(step.frames[camera][0, 0].numpy(), episode.frames[camera][f + 1])


def test_every_camera_and_the_rows_own_task_and_words_are_stored() -> None:
    names = ("ToyReach-v1", "ToyPush-v1")
    config = ToyConfig(tasks=names, cameras=("base_camera", "hand_camera"), image_sizes={"hand_camera": 12})
    simulator = ToySimulator(config)
    states = InitialStates.cat([simulator.draw_initial_states(task, "train", 2, seed=3) for task in names])
    policy = simulator.make_scripted_policy(states.tasks, ("expert",) * 4, make_row_keys(4, "test"), 4)
    rollout = run_rollout(policy, simulator, states, None, initial_state_id=states.ids)
    episodes = rollout_to_episodes(
        rollout, simulator.spec, sources=("expert",) * 4, variants=("expert",) * 4, splits=("train",) * 4, iteration=0
    )
    assert [e.meta.task for e in episodes] == [names[0], names[0], names[1], names[1]]
    for row, episode in enumerate(episodes):
        task = simulator.spec.task(episode.meta.task)
        assert episode.meta.instruction == choose_instruction(task, episode.meta.initial_state_id)
        assert {c: f.shape for c, f in episode.frames.items()} == {
            "base_camera": (episode.num_frame_steps + 1, 16, 16, 3),
            "hand_camera": (episode.num_frame_steps + 1, 12, 12, 3),
        }
        for camera, frames in episode.frames.items():
            assert np.array_equal(frames[0], rollout.observations[0].frames[camera][row, -1].numpy())
            assert np.array_equal(frames[2], rollout.steps[0].frames[camera][row, 1].numpy())
    # what a row is judged by is its task's own rule: here the discs' distances to one goal
    reached, pushed = episodes[0], episodes[2]
    for episode, columns in ((reached, [0, 1]), (pushed, [4, 5])):
        last = episode.sim_state[-1]
        assert np.hypot(*(last[columns] - last[6:8])) <= 0.3
    assert np.hypot(*(reached.sim_state[-1, 4:6] - reached.sim_state[-1, 6:8])) > 0.3


def test_the_time_limit_is_the_tasks() -> None:
    simulator = ToySimulator(ToyConfig(tasks=("ToyPush-v1", "ToyReach-v1"), max_episode_steps=8))
    push, reach = simulator.spec.tasks
    simulator.spec = replace(simulator.spec, tasks=(replace(push, max_episode_steps=5), reach))
    states = InitialStates.cat([simulator.draw_initial_states(t, "train", 1, seed=3) for t in simulator.spec.task_ids])
    policy = simulator.make_scripted_policy(states.tasks, ("far", "far"), make_row_keys(2, "test"), 4)
    rollout = run_rollout(policy, simulator, states, None, initial_state_id=states.ids)
    episodes = rollout_to_episodes(
        rollout, simulator.spec, sources=("perturbed",) * 2, variants=("far",) * 2, splits=("train",) * 2, iteration=0
    )
    assert [e.num_env_steps for e in episodes] == [5, 8]
    assert [e.num_frame_steps for e in episodes] == [3, 4]
    assert (episodes[0].actions[-1, 1] == 0).all()


def test_max_chunks_stops_early() -> None:
    simulator = ToySimulator(ToyConfig())
    states = simulator.draw_initial_states("ToyPush-v1", "train", 2, seed=0)
    policy = simulator.make_scripted_policy(states.tasks, ("far", "far"), make_row_keys(2, "test"), 2)
    rollout = run_rollout(policy, simulator, states, None, initial_state_id=states.ids, max_chunks=3)
    assert len(rollout.steps) == 3
    assert rollout.valid.shape == (2, 6)


def test_an_imagined_rollout_cannot_be_stored() -> None:
    simulator = ToySimulator(ToyConfig())
    states = simulator.draw_initial_states("ToyPush-v1", "train", 1, seed=0)
    policy = simulator.make_scripted_policy(states.tasks, ("far",), make_row_keys(1, "test"), 2)
    rollout = run_rollout(policy, simulator, states, None, initial_state_id=states.ids, max_chunks=1)
    blind = replace(rollout, steps=tuple(replace(s, sim_states=None) for s in rollout.steps))
    with pytest.raises(ValueError, match="only a simulated rollout"):
        rollout_to_episodes(
            blind, simulator.spec, sources=("expert",), variants=("far",), splits=("train",), iteration=0
        )
