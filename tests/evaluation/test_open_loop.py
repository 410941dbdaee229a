"""Branches of recorded episodes, imagined by a world model that is the simulator itself."""

from dataclasses import replace

import torch
from reporters import RecordingReporter

from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.randomness import row_normal
from worldloop.evaluation.open_loop import cut_branches, imagine_branches, imagine_episodes, imagine_held_out
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

CAMERA = "base_camera"
ONE_CAMERA = ToyConfig(image_size=32)


class _Oracle:
    """Plays the toy's physics from the observation's state; its success head knows."""

    def __init__(self, config: ToyConfig = ONE_CAMERA) -> None:
        self.config = replace(config, success_hold_frames=3)  # the stored chunk went on, too
        self.spec = ToySimulator.make_spec(config)

    def start(self, context, noise_key):
        simulator = ToySimulator(self.config)
        simulator.reset(context)
        return simulator

    def imagine(self, state, actions):
        frames, proprio, success = [], [], []
        for part in actions.split(2, dim=1):  # the toy stores a frame every two actions
            step = state.step_chunk(part)
            frames.append(step.frames)
            proprio.append(step.proprio)
            success.append(step.success.any(1, keepdim=True))
        logit = torch.where(torch.cat(success, 1), 5.0, -5.0)
        seen = {camera: torch.cat([part[camera] for part in frames], 1) for camera in frames[0]}
        return state, ImaginedChunk(seen, torch.cat(proprio, 1), logit)


def test_branches_of_an_oracle_are_the_episodes(toy_clips) -> None:
    episodes = toy_clips.episode_index()
    index = torch.stack([episodes, torch.zeros_like(episodes)], dim=1)
    num_frames = int(toy_clips.cache.num_steps.max())
    counts: list[int] = []
    branches = imagine_branches(_Oracle(), toy_clips, index, num_frames, batch_size=4, seed=0, on_batch=counts.append)
    assert counts == [4, 4, 1]
    valid = branches.truth.valid
    assert torch.equal(branches.frames[CAMERA][valid], branches.truth.frames[CAMERA][:][valid])
    assert torch.equal(branches.proprio[valid], toy_clips.load(index, num_frames).proprio[valid])
    assert branches.succeeds.tolist() == [True, False, False] * 3
    assert (branches.best_logit > 0).tolist() == [True, False, False] * 3


def test_whole_episodes_come_with_what_the_simulator_said(toy_clips) -> None:
    counts: list[int] = []
    episodes = imagine_episodes(
        _Oracle(), toy_clips, toy_clips.episode_index()[3:], batch_size=4, seed=0, on_batch=counts.append
    )
    assert (len(episodes), counts) == (6, [4, 2])
    assert episodes.branches.episode.tolist() == [3, 4, 5, 6, 7, 8]
    assert episodes.branches.truth.index[:, 1].tolist() == [0] * 6
    assert episodes.is_success.tolist() == [True, False, False] * 2
    assert [outcome == "success" for outcome in episodes.outcomes] == episodes.is_success.tolist()
    assert ((episodes.logit > 0) == episodes.is_success).all()


class _Noisy(_Oracle):
    """Its frames are its noise."""

    def start(self, context, noise_key):
        return noise_key

    def imagine(self, state, actions):
        noise = row_normal(state, torch.zeros_like(state), (1, 32, 32, 3))
        frames = (255 * noise.sigmoid()).to(torch.uint8)
        return state, ImaginedChunk({CAMERA: frames}, torch.zeros(len(state), 1, 4), torch.zeros(len(state), 1))


def test_noise_does_not_depend_on_the_size_of_a_batch(toy_clips) -> None:
    index = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]])
    one, two = (imagine_branches(_Noisy(), toy_clips, index, 1, batch_size=n, seed=0).frames[CAMERA] for n in (1, 3))
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])


def test_short_branches_tile_their_episodes_and_start_from_real_frames(toy_clips) -> None:
    episodes = toy_clips.episode_index()[:2]
    lengths = [int(toy_clips.cache.episode(e).valid.any(1).sum()) for e in (0, 1)]  # up to the success
    assert lengths[0] < toy_clips.cache.num_steps[0]
    index = cut_branches(toy_clips, episodes, 3)
    assert index.tolist() == [[e, f] for e in (0, 1) for f in range(0, lengths[e], 3)]
    branches = imagine_branches(_Oracle(), toy_clips, index, 3, batch_size=64, seed=0)
    valid = branches.truth.valid
    assert valid.sum() == sum(min(3, toy_clips.cache.num_steps[e] - f) for e, f in index.tolist())
    assert torch.equal(branches.frames[CAMERA][valid], branches.truth.frames[CAMERA][:][valid])
    # the episode's first frame stays the anchor, while each branch starts from its own
    first = branches.first_frames[CAMERA][:]
    assert torch.equal(first[0], first[1])
    assert torch.equal(branches.start_frames[CAMERA][:][1], branches.frames[CAMERA][0, 2])


def test_each_task_is_imagined_by_every_camera_of_the_model(plural_clips, plural) -> None:
    """The oracle knows which task a row is of: in both a perfect expert succeeds, and who stops short does not."""
    for task in plural.tasks:
        episodes = imagine_episodes(
            _Oracle(plural), plural_clips, plural_clips.episode_index(task=task), batch_size=3, seed=0
        )
        branches = episodes.branches
        assert branches.truth.task == (task,) * 4
        assert ((episodes.logit > 0) == episodes.is_success).all()
        assert episodes.is_success.any()
        assert not episodes.is_success.all()
        assert list(branches.frames) == ["base_camera", "hand_camera"]
        assert branches.first_frames["hand_camera"].shape == (4, 24, 24, 3)
        for camera, frames in branches.frames.items():
            assert torch.equal(frames[branches.truth.valid], branches.truth.frames[camera][:][branches.truth.valid])


def test_a_model_of_one_camera_is_shown_that_one_alone(plural_clips, plural) -> None:
    hand = replace(plural, cameras=("hand_camera",))
    episodes = imagine_episodes(_Oracle(hand), plural_clips, plural_clips.episode_index(), batch_size=8, seed=0)
    assert list(episodes.branches.frames) == list(episodes.branches.start_frames) == ["hand_camera"]


def test_on_policy_are_the_held_out_episodes_of_the_present_policy_alone(toy_clips) -> None:
    """Neither those of an earlier policy, nor those of a candidate that was rejected, nor replays."""
    by_policies = [(0, "policy"), (0, "policy"), (1, "policy"), (1, "rejected"), (1, "policy"), (1, "replay")]
    metas = list(toy_clips.cache.metas)
    for episode, (iteration, variant) in enumerate(by_policies):
        metas[episode] = replace(metas[episode], source="policy", variant=variant, iteration=iteration)
    toy_clips.cache.metas = tuple(metas)
    imagined = imagine_held_out(
        _Oracle(), toy_clips, "ToyPush-v1", max_episodes=9, batch_size=9, seed=0, reporter=RecordingReporter()
    )
    assert imagined["on_policy"].branches.episode.tolist() == [2, 4]
    assert imagined["scripted"].branches.episode.tolist() == [6, 7, 8]
    latest = imagine_held_out(
        _Oracle(), toy_clips, "ToyPush-v1", max_episodes=1, batch_size=9, seed=0, reporter=RecordingReporter()
    )
    assert latest["on_policy"].branches.episode.tolist() == [4]
