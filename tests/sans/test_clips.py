from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_specs import CAMERAS, make_spec

from worldloop.core.errors import WorldloopError
from worldloop.sans import clips, imitation
from worldloop.sans.clips import BalancedClipSampler, ClipDataset, ClipSamplingConfig
from worldloop.sans.imitation import EVERY_SUCCESS, EpisodeSelection, ImitationDataset


@pytest.fixture
def cache(store, make_episode):
    """Two shards; episodes 0..4 carry the numbers 1..5."""
    first = [
        make_episode(1, num_steps=4),
        make_episode(2, num_steps=3, source="perturbed", outcome="failure", instruction="pull the cube"),
    ]
    second = [
        make_episode(3, num_steps=2, source="policy", outcome="near_success"),
        make_episode(4, num_steps=2, split="validation"),
        make_episode(5, num_steps=5, source="policy"),
    ]
    version = store.snapshot("v1", [store.append(first, "a"), store.append(second, "b")])
    return store.open_cache(version)


@pytest.fixture
def dataset(cache) -> ClipDataset:
    return ClipDataset(cache, "train", ["base"])


def stamps(frames: torch.Tensor) -> list:
    """(episode number, frame) that the pixels encode."""
    assert torch.equal(frames[..., :2].amin((-3, -2)), frames[..., :2].amax((-3, -2)))
    return frames[..., 0, 0, :2].tolist()


def test_candidates_are_the_steps_of_the_split(dataset) -> None:
    assert dataset.candidates.tolist() == (
        [[0, f] for f in range(4)] + [[1, f] for f in range(3)] + [[2, 0], [2, 1]] + [[4, f] for f in range(5)]
    )


def test_proprio_range_is_that_of_all_frames_of_the_split(dataset, cache, monkeypatch) -> None:
    monkeypatch.setattr(clips, "RANGE_ROWS", 3)
    low, high = dataset.proprio_range()
    assert (float(low[0]), float(high[0])) == (100, 505)
    low, high = ClipDataset(cache, "validation", ["base"]).proprio_range()
    assert (float(low[0]), float(high[0])) == (400, 402)


def test_clip_is_aligned_in_time(dataset) -> None:
    clip = dataset.load(torch.tensor([[4, 2], [0, 0], [1, 1]]), num_frames=2)
    assert stamps(clip.context["base"]) == [
        [[5, 0], [5, 1], [5, 2]],
        [[1, 0], [1, 0], [1, 0]],
        [[2, 0], [2, 0], [2, 1]],
    ]
    longer = dataset.load(clip.index, num_frames=2, num_context_frames=5).context["base"]
    assert stamps(longer)[0] == [[5, 0], [5, 0], [5, 0], [5, 1], [5, 2]]
    assert stamps(longer)[2] == [[2, 0], [2, 0], [2, 0], [2, 0], [2, 1]]
    assert stamps(clip.frames["base"]) == [[[5, 3], [5, 4]], [[1, 1], [1, 2]], [[2, 2], [2, 3]]]
    assert clip.context_proprio[:, 0].tolist() == [502, 100, 201]
    assert clip.proprio[..., 0].tolist() == [[503, 504], [101, 102], [202, 203]]
    # s = 2: frame step f holds the environment steps 2f and 2f + 1, which lead to frame f + 1.
    assert clip.actions[..., 0].tolist() == [
        [[5004, 5005], [5006, 5007]],
        [[1000, 1001], [1002, 1003]],
        [[2002, 2003], [2004, 2005]],
    ]
    assert clip.valid.all()
    assert clip.instruction == ("push the cube", "push the cube", "pull the cube")
    assert clip.is_on_policy.tolist() == [True, False, False]
    assert clip.success.tolist() == [[0, 0], [0, 0], [0, 0]]
    assert clip.success.dtype == torch.float32


def test_padding_repeats_the_last_frame(dataset) -> None:
    clip = dataset.load(torch.tensor([[0, 2]]), num_frames=4)
    assert stamps(clip.frames["base"]) == [[[1, 3], [1, 4], [1, 4], [1, 4]]]
    assert torch.equal(clip.frames["base"][0, 1], clip.frames["base"][0, 3])
    assert clip.proprio[0, :, 0].tolist() == [103, 104, 104, 104]
    assert clip.valid.tolist() == [[True, True, False, False]]
    assert clip.success.tolist() == [[0, 1, 1, 1]]
    assert clip.actions[0, 1, 0, 0] == 1006
    assert torch.equal(clip.actions[0, 2:], clip.actions[0, [1, 1]]), "under absolute control zero is a motion"


def test_frames_after_the_first_success_are_targets_and_tell_what_holds_at_them(store, make_episode) -> None:
    episode = make_episode(1, num_steps=4, outcome="failure")
    # Two actions a frame step. The grasp slips in step 1, so its frame does not show it; it holds at the end of step 3.
    episode.success[1] = [True, False]
    episode.success[3] = [False, True]
    episode.valid[2:] = False
    cache = store.open_cache(store.snapshot("v1", [store.append([episode], "a")]))
    dataset = ClipDataset(cache, "train", ["base"])
    assert dataset.candidates.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert dataset.num_open_steps.tolist() == [2]
    clip = dataset.load(torch.tensor([[0, 0]]), num_frames=4)
    assert clip.valid.all()
    assert clip.success.tolist() == [[0, 1, 1, 1]]
    assert clip.holds.tolist() == [[0, 0, 0, 1]]
    index = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 4]])
    assert dataset.holds_at(index).tolist() == [False, False, False, True]


def test_whole_episode_and_observation(dataset, make_episode) -> None:
    clip = dataset.whole_episode(4)
    expected = make_episode(5, num_steps=5, source="policy")
    assert torch.equal(clip.frames["base"][0], torch.from_numpy(expected.frames["base"][1:]))
    assert torch.equal(clip.actions[0], torch.from_numpy(expected.actions))
    observation = dataset.observation(torch.tensor([[4, 3], [4, 5], [1, 0]]))
    assert stamps(observation.frames["base"]) == [[[5, 0], [5, 2], [5, 3]], [[5, 0], [5, 4], [5, 5]], [[2, 0]] * 3]
    assert observation.env_step.tolist() == [6, 10, 0]
    assert observation.proprio is not None
    assert observation.proprio[:, 0].tolist() == [503, 505, 200]
    assert observation.sim_state is not None
    assert torch.equal(observation.sim_state[0], torch.from_numpy(expected.sim_state[3]))


def test_episode_index_filters(dataset, cache) -> None:
    assert dataset.episode_index().tolist() == [0, 1, 2, 4]
    assert dataset.episode_index(source="policy").tolist() == [2, 4]
    assert dataset.episode_index(source=("expert", "perturbed"), outcome="failure").tolist() == [1]
    assert cache.select(split="validation").tolist() == [3]


def test_bad_requests_are_named(cache, dataset) -> None:
    with pytest.raises(ValueError, match=r"camera 'top'.*allowed: base"):
        ClipDataset(cache, "train", ["top"])
    with pytest.raises(ValueError, match=r"0\.\.F-1"):
        dataset.load(torch.tensor([[0, 4]]), num_frames=1)
    with pytest.raises(ValueError, match=r"on_policy_share is 1\.5"):
        ClipSamplingConfig(on_policy_share=1.5)
    with pytest.raises(ValueError, match="motion_weight is -1"):
        ClipSamplingConfig(motion_weight=-1)


def test_sampler_balances_sources_and_outcomes(dataset) -> None:
    sampler = BalancedClipSampler(dataset, ClipSamplingConfig(on_policy_share=0.25, motion_weight=0.0))
    probabilities = {e: sampler.probabilities[sampler.candidates[:, 0] == e].sum().item() for e in (0, 1, 2, 4)}
    # scripted .75 over success (episode 0) and failure (1); policy .25 over near-success (2) and success (4)
    assert probabilities == pytest.approx({0: 0.375, 1: 0.375, 2: 0.125, 4: 0.125})
    drawn = sampler.sample(torch.Generator().manual_seed(0), 20_000)
    counts = np.bincount(drawn[:, 0].numpy(), minlength=5) / len(drawn)
    assert counts[[0, 1, 2, 3, 4]] == pytest.approx([0.375, 0.375, 0.125, 0.0, 0.125], abs=0.012)
    within = drawn[drawn[:, 0] == 4][:, 1].bincount() / (drawn[:, 0] == 4).sum()
    assert within.tolist() == pytest.approx([0.2] * 5, abs=0.04)


def test_sampler_without_balance_and_with_a_missing_source(dataset) -> None:
    config = ClipSamplingConfig(on_policy_share=0.5, motion_weight=0.0, outcome_balance=False)
    sampler = BalancedClipSampler(dataset, config)
    mass = {e: sampler.probabilities[sampler.candidates[:, 0] == e].sum().item() for e in (0, 1, 2, 4)}
    assert mass == pytest.approx({0: 0.5 * 4 / 7, 1: 0.5 * 3 / 7, 2: 0.5 * 2 / 7, 4: 0.5 * 5 / 7})
    validation = ClipDataset(dataset.cache, "validation", ["base"])  # scripted only, although its share is 0
    drawn = BalancedClipSampler(validation, ClipSamplingConfig(on_policy_share=1.0)).sample(torch.Generator(), 50)
    assert set(drawn[:, 0].tolist()) == {3}
    only_policy = BalancedClipSampler(dataset, ClipSamplingConfig(on_policy_share=1.0))
    assert set(only_policy.sample(torch.Generator().manual_seed(1), 500)[:, 0].tolist()) == {2, 4}


def test_sampler_without_near_successes(dataset) -> None:
    config = ClipSamplingConfig(on_policy_share=0.5, motion_weight=0.0, near_success=False)
    sampler = BalancedClipSampler(dataset, config)
    mass = {e: sampler.probabilities[sampler.candidates[:, 0] == e].sum().item() for e in (0, 1, 2, 4)}
    assert mass == pytest.approx({0: 0.25, 1: 0.25, 2: 0.0, 4: 0.5})


def test_sampler_prefers_motion(store, make_episode) -> None:
    episode = make_episode(1, num_steps=2, outcome="failure")
    images = episode.frames["base"]
    images[:] = 0
    images[2] = 30  # step 0 stands still, step 1 moves by 30 grey levels: relative motion 0 and 2
    cache = store.open_cache(store.snapshot("v1", [store.append([episode], "a")]))
    sampler = BalancedClipSampler(ClipDataset(cache, "train", ["base"]), ClipSamplingConfig(motion_weight=1.5))
    assert sampler.probabilities.tolist() == pytest.approx([0.2, 0.8])  # weights 1 and 1 + 1.5 * 2


def test_sampler_is_a_function_of_the_generator(dataset) -> None:
    sampler = BalancedClipSampler(dataset, ClipSamplingConfig())
    first = sampler.sample(torch.Generator().manual_seed(7), 32)
    sampler.sample(torch.Generator().manual_seed(8), 32)
    assert torch.equal(sampler.sample(torch.Generator().manual_seed(7), 32), first)
    assert not torch.equal(sampler.sample(torch.Generator().manual_seed(8), 32), first)


def test_imitation_is_aligned(cache) -> None:
    dataset = ImitationDataset(cache, EpisodeSelection(), ["base"])
    assert dataset.episodes.tolist() == [0]
    batch = dataset.load(np.array([[0, 1], [0, 3]]), chunk_length=4)
    assert stamps(batch.observation.frames["base"]) == [[[1, 0], [1, 0], [1, 1]], [[1, 0], [1, 2], [1, 3]]]
    assert batch.actions.shape == (2, 4, 4)
    assert batch.actions[0, :, 0].tolist() == [1002, 1003, 1004, 1005]
    assert batch.actions[1, :, 0].tolist() == [1006, 0, 1006, 0], "the last actions repeat"
    assert batch.valid.tolist() == [[True] * 4, [True, False, False, False]]
    assert batch.observation.env_step.tolist() == [2, 6]
    now = ImitationDataset(cache, EpisodeSelection(), ["base"], num_context_frames=1).load(np.array([[0, 2]]), 2)
    assert stamps(now.observation.frames["base"]) == [[[1, 2]]]


def test_imitation_selections(cache) -> None:
    every = ImitationDataset(cache, EVERY_SUCCESS, ["base"])
    assert every.episodes.tolist() == [0, 4]  # never the validation success
    assert len(every) == 4 + 5
    drawn = every.sample(torch.Generator().manual_seed(0), 200, 2).observation.proprio
    assert drawn is not None
    assert set((drawn[:, 0] // 100).int().tolist()) == {1, 5}
    assert ImitationDataset(cache, EpisodeSelection(("policy",), max_episodes=1), ["base"]).episodes.tolist() == [4]
    with pytest.raises(ValueError, match="chunk_length is 3, allowed: multiples of actions_per_frame = 2"):
        every.load(np.array([[0, 0]]), 3)
    with pytest.raises(WorldloopError, match="no episode to imitate"):
        ImitationDataset(cache, EpisodeSelection(("perturbed",)), ["base"])
    with pytest.raises(ValueError, match="sources is"):
        EpisodeSelection(sources=("human",))  # type: ignore[arg-type]


PUSH, PULL = "PushCube-v1", "PullCube-v1"


@pytest.fixture
def plural(store, make_episode):
    """Five episodes of two cameras of different sizes, by number: 1, 2, 3 push, 4 and 5 pull; 5 is a policy's."""

    def make(number: int, task: str, **changes):
        return make_episode(number, task=task, cameras=tuple(CAMERAS), sizes=CAMERAS, **changes)

    episodes = [
        make(1, PUSH, num_steps=2),
        make(2, PUSH, num_steps=3, source="perturbed", outcome="failure"),
        make(3, PUSH, num_steps=2, split="validation"),
        make(4, PULL, num_steps=4, instruction="pull the cube"),
        make(5, PULL, num_steps=1, source="policy", instruction="pull the cube"),
    ]
    version = store.snapshot("v1", [store.append(episodes[:3], "a"), store.append(episodes[3:], "b")])
    return store.open_cache(version)


def test_clips_of_several_cameras_and_tasks(plural) -> None:
    dataset = ClipDataset(plural, "train", ["wrist", "base"])
    clip = dataset.load(torch.tensor([[0, 1], [3, 2]]), num_frames=2)
    assert list(clip.context) == list(clip.frames) == ["wrist", "base"]
    assert clip.context["wrist"].shape == (2, 3, 6, 10, 3)
    assert clip.frames["base"].shape == (2, 2, 8, 8, 3)
    for camera in ("wrist", "base"):
        assert stamps(clip.context[camera]) == [[[1, 0], [1, 0], [1, 1]], [[4, 0], [4, 1], [4, 2]]]
        assert stamps(clip.frames[camera]) == [[[1, 2], [1, 2]], [[4, 3], [4, 4]]]
    assert not torch.equal(clip.frames["wrist"][:, :, 0, 0, 2], clip.frames["base"][:, :, 0, 0, 2])
    assert clip.task == (PUSH, PULL)
    assert clip.instruction == ("push the cube", "pull the cube")
    observation = dataset.observation(torch.tensor([[4, 1]]))
    assert (list(observation.frames), observation.task) == (["wrist", "base"], (PULL,))
    assert list(ClipDataset(plural, "train", ["base"]).load(clip.index, 1).frames) == ["base"]
    assert dataset.episode_index(task=PULL).tolist() == [3, 4]
    assert dataset.episode_index(task=PULL, source="policy").tolist() == [4]
    with pytest.raises(ValueError, match=r"no camera is given, allowed: base, wrist"):
        ClipDataset(plural, "train", [])


def test_landmarks_are_those_of_the_episodes_task(plural, make_episode) -> None:
    dataset = ClipDataset(plural, "train", ["base"])
    spec = make_spec()  # the object is in columns 0, 1 of sim_state for the first task and in 1, 2 for the second
    index = torch.tensor([[3, 2], [0, 1], [3, 0]])
    push = make_episode(1, num_steps=2, cameras=tuple(CAMERAS), sizes=CAMERAS).sim_state
    pull = make_episode(4, num_steps=4, cameras=tuple(CAMERAS), sizes=CAMERAS).sim_state
    expected = [
        [2 * pull[2, 1], 2 * pull[2, 2], 402],
        [2 * push[1, 0], 2 * push[1, 1], 101],
        [2 * pull[0, 1], 2 * pull[0, 2], 400],
    ]
    torch.testing.assert_close(dataset.landmark_positions(spec, index), torch.tensor(expected))
    with pytest.raises(ValueError, match=f"task '{PULL}' is not one of {PUSH}"):
        dataset.landmark_positions(make_spec(tasks=(PUSH,)), index)
    told = ClipDataset(plural, "train", ["base"], spec.tasks)  # clips tell the objects alone, not the effector
    clip = told.load(index[1:], 2)
    torch.testing.assert_close(clip.context_landmarks, torch.tensor(expected[1:])[:, :2])
    after = [[[2 * push[i, 0], 2 * push[i, 1]] for i in (2, 2)], [[2 * pull[i, 1], 2 * pull[i, 2]] for i in (1, 2)]]
    torch.testing.assert_close(clip.landmarks, torch.tensor(after))
    assert dataset.load(index, 2).landmarks.shape == (3, 2, 0)
    low, high = told.landmark_range()
    assert low.shape == high.shape == (2,)
    assert (low <= clip.landmarks.flatten(0, 1).amin(0)).all()
    assert (high >= clip.landmarks.flatten(0, 1).amax(0)).all()
    bare = replace(spec, tasks=tuple(replace(task, landmarks=()) for task in spec.tasks))
    assert dataset.landmark_positions(bare, index).shape == (3, 0)


def test_sampler_balances_tasks_first(plural) -> None:
    sampler = BalancedClipSampler(
        ClipDataset(plural, "train", ["base"]), ClipSamplingConfig(on_policy_share=0.25, motion_weight=0.0)
    )
    mass = {e: sampler.probabilities[sampler.candidates[:, 0] == e].sum().item() for e in (0, 1, 3, 4)}
    # Half for each task. Push has no episode of a policy: both its outcomes share the half.
    assert mass == pytest.approx({0: 0.25, 1: 0.25, 3: 0.5 * 0.75, 4: 0.5 * 0.25})
    validation = BalancedClipSampler(ClipDataset(plural, "validation", ["base"]), ClipSamplingConfig())
    assert validation.probabilities.sum().item() == pytest.approx(1.0)  # the task that is missing leaves its share


def test_motion_counts_in_every_camera(store, make_episode) -> None:
    episode = make_episode(1, num_steps=2, outcome="failure", cameras=tuple(CAMERAS), sizes=CAMERAS)
    base, wrist = episode.frames["base"], episode.frames["wrist"]
    base[:], wrist[:] = 0, 0
    base[2] = 30  # step 0 stands still, step 1 moves: 0 and 2 times the camera's average
    wrist[1], wrist[2] = 5, 20  # steps move by 5 and by 15: 0.5 and 1.5 times
    cache = store.open_cache(store.snapshot("v1", [store.append([episode], "a")]))
    assert ClipDataset(cache, "train", ["base", "wrist"]).candidate_motion.tolist() == pytest.approx([0.25, 1.75])
    assert ClipDataset(cache, "train", ["wrist"]).candidate_motion.tolist() == pytest.approx([0.5, 1.5])


def test_imitation_of_several_cameras_and_tasks(plural, monkeypatch) -> None:
    dataset = ImitationDataset(plural, EVERY_SUCCESS, ["base", "wrist"])
    assert dataset.episodes.tolist() == [0, 3, 4]
    images = dataset.images()
    assert {name: tuple(value.shape) for name, value in images.items()} == {
        "base": (7, 8, 8, 3),
        "wrist": (7, 6, 10, 3),
    }
    for bytes_, rows in ((7 * 8 * 8 * 3, range(7)), (3 * 8 * 8 * 3, (0, 2, 4)), (1, (0,))):
        monkeypatch.setattr(imitation, "IMAGE_BYTES", bytes_)  # evenly spaced where all of them do not fit
        assert torch.equal(dataset.images()["base"], images["base"][list(rows)])
    batch = dataset.sample(torch.Generator().manual_seed(0), 2000, 2)
    assert list(batch.observation.frames) == ["base", "wrist"]
    assert batch.observation.task.count(PULL) / 2000 == pytest.approx(0.5, abs=0.03)  # 2 starts of the 7 push
    assert batch.observation.proprio is not None
    numbers = (batch.observation.proprio[:, 0]).int().unique().tolist()
    assert numbers == [100, 101, 400, 401, 402, 403, 500]
    pull = ImitationDataset(plural, EpisodeSelection(tasks=(PULL,)), ["base"])
    assert pull.episodes.tolist() == [3]
    first = EpisodeSelection(sources=("expert", "policy"), max_episodes=1)
    assert ImitationDataset(plural, first, ["base"]).episodes.tolist() == [0, 3]  # one of each task
    with pytest.raises(WorldloopError, match="no episode to imitate"):
        ImitationDataset(plural, EpisodeSelection(tasks=("LiftCube-v1",)), ["base"])
