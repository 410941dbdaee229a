"""Actions that are repeated in the simulator, and episodes that end after a given number of chunks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_rollouts import make_chunk, make_observation, make_rollout, make_step

from worldloop.core.randomness import make_row_keys
from worldloop.core.types import InitialStates, Rollout
from worldloop.factory.config import SimulatorConfig
from worldloop.rollout.jobs import RolloutJob, execute_rollout_job
from worldloop.rollout.replay import RecordedActions, Replay, replay_with_noise
from worldloop.rollout.rollout import count_chunks, rollout_to_episodes, run_rollout
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

CONFIG = ToyConfig(image_size=16, actions_per_frame=2, max_episode_steps=24, success_hold_frames=1)
CHUNK_LENGTH = 4
VARIANTS = ("expert", "far", "noisy", "stops_short")


def play() -> tuple[Rollout, InitialStates, ToySimulator]:
    simulator = ToySimulator(CONFIG)
    states = simulator.draw_initial_states("ToyPush-v1", "train", len(VARIANTS), seed=3)
    keys = make_row_keys(len(VARIANTS), "test")
    policy = simulator.make_scripted_policy(states.tasks, VARIANTS, keys, CHUNK_LENGTH)
    return run_rollout(policy, simulator, states, None, initial_state_id=states.ids), states, simulator


def make_job(rollout: Rollout, states: InitialStates, row_chunks: torch.Tensor, num_envs: int = 64) -> RolloutJob:
    return RolloutJob(
        states=states,
        simulator=SimulatorConfig("toy", toy=replace(CONFIG, num_envs=num_envs)),
        chunk_length=CHUNK_LENGTH,
        noise_key=torch.zeros(len(states), dtype=torch.long),
        iteration=2,
        splits=("train",) * len(states),
        replay=Replay.of(rollout),
        row_chunks=row_chunks,
    )


@pytest.mark.parametrize("num_envs", [64, 3, 1])
def test_a_replay_of_an_episode_is_that_episode(num_envs: int) -> None:
    rollout, states, simulator = play()
    episodes = rollout_to_episodes(
        rollout, simulator.spec, sources=("expert",) * 4, variants=VARIANTS, splits=("train",) * 4, iteration=2
    )
    replays = execute_rollout_job(make_job(rollout, states, count_chunks(rollout), num_envs))
    assert {e.is_success for e in episodes} == {True, False}
    for episode, replay in zip(episodes, replays, strict=True):
        for name in ("actions", "proprio", "sim_state", "success", "valid", "rewards", "distances_m"):
            assert np.array_equal(getattr(episode, name), getattr(replay, name)), name
        assert np.array_equal(episode.frames["base_camera"], replay.frames["base_camera"])
        assert (replay.meta.source, replay.meta.variant) == ("policy", "replay")
        assert replay.meta.policy_version == rollout.policy_version
        assert replay.meta.outcome == episode.meta.outcome


def test_a_row_ends_after_its_own_number_of_chunks() -> None:
    rollout, states, _ = play()
    whole = count_chunks(rollout)
    assert whole.min() > 1
    replays = execute_rollout_job(make_job(rollout, states, torch.tensor([1, 2, 3, 4])))
    for number, (episode, most) in enumerate(zip(replays, [1, 2, 3, 4], strict=True)):
        assert episode.num_frame_steps == min(most, int(whole[number])) * CHUNK_LENGTH // CONFIG.actions_per_frame
    assert not replays[0].is_success, "the expert needs more than one chunk"
    assert replays[0].truncated
    assert replays[0].meta.outcome != "success"


def test_a_chunk_counts_up_to_the_one_in_which_a_row_ended() -> None:
    steps = [make_step([[0.0]] * 4, [[True, True]] * 4, *ended) for ended in ((), (1,), (1, 2))]
    rollout = make_rollout(*steps, chunks=[make_chunk(c) for c in range(3)])
    assert count_chunks(rollout).tolist() == [3, 2, 3, 3]
    assert count_chunks(make_rollout(steps[1], chunks=[make_chunk(0)])).tolist() == [1] * 4


def test_recorded_actions_are_given_chunk_by_chunk_and_chosen_by_row() -> None:
    rollout = make_rollout(*[make_step([[0.0]] * 4, [[True, True]] * 4)] * 3, chunks=[make_chunk(c) for c in range(3)])
    replay = Replay.of(rollout).rows([2, 0])
    assert replay.actions.shape == (2, 6, 1)
    actor = RecordedActions(replay, chunk_length=2)
    assert actor.version == "p"
    given = [actor.act(make_observation(2), None).actions[..., 0].tolist() for _ in range(3)]
    assert given == [[[20, 21], [0, 1]], [[120, 121], [100, 101]], [[220, 221], [200, 201]]]


def test_noise_spares_the_gripper_and_goes_on_after_the_last_action() -> None:
    rollout, _states, simulator = play()
    episodes = rollout_to_episodes(
        rollout, simulator.spec, sources=("expert",) * 4, variants=VARIANTS, splits=("train",) * 4, iteration=2
    )
    robot = replace(simulator.spec.robot, action_names=("dx", "gripper_open"))
    keys = make_row_keys(4, "noise")
    replay, row_chunks = replay_with_noise(episodes, 0.1, robot, CHUNK_LENGTH, keys)
    frames = [len(e.actions) for e in episodes]
    assert row_chunks.tolist() == [-(-(n + 2) * 2 // CHUNK_LENGTH) for n in frames]
    assert replay.actions.shape == (4, int(row_chunks.max()) * CHUNK_LENGTH, 2)
    assert replay.policy_version == rollout.policy_version
    for row, episode in zip(replay.actions, episodes, strict=True):
        recorded = torch.from_numpy(episode.actions).flatten(0, 1)
        assert torch.equal(row[: len(recorded), 1], recorded[:, 1])
        last = torch.from_numpy(episode.actions[-1])[:, 1]
        assert torch.equal(row[len(recorded) : len(recorded) + 2, 1], last), "it repeats the last frame's actions"
        assert not torch.equal(row[: len(recorded), 0], recorded[:, 0])
    assert (replay.actions.abs() <= 1).all()
    again, _ = replay_with_noise(episodes[:2], 0.1, robot, CHUNK_LENGTH, keys[:2])
    count = again.actions.shape[1]
    assert torch.equal(again.actions, replay.actions[:2, :count]), "a row's noise is its own"


def test_the_noise_of_a_replay_is_as_strong_as_asked_for() -> None:
    """Of actions 0: over many episodes the std is that of white noise and drift, .1 (1 + .4 ^ 2) ^ .5 E[u ^ 2] ^ .5."""
    rollout, _states, simulator = play()
    (episode, *_) = rollout_to_episodes(
        rollout, simulator.spec, sources=("expert",) * 4, variants=VARIANTS, splits=("train",) * 4, iteration=2
    )
    still = replace(episode, actions=np.zeros_like(episode.actions))
    replay, _ = replay_with_noise([still] * 400, 0.1, simulator.spec.robot, CHUNK_LENGTH, make_row_keys(400, "std"))
    mean_square = (1.7**3 - 0.3**3) / 3 / 1.4  # of a strength between .3 and 1.7
    assert float(replay.actions.std()) == pytest.approx(0.1 * (1.16 * mean_square) ** 0.5, rel=0.05)
