import pytest
import torch
from world_model_toy import NUM_FRAMES, ToyEpisodes

from worldloop.core.types import Clip
from worldloop.world_model.self_rollout import OwnPrediction, SelfRolloutPool

BATCH = 8


def predict(clip: Clip, is_prediction: torch.Tensor) -> OwnPrediction:
    """Predictions that can be recognised: pixel value and proprio tell (episode, frame) of what was predicted."""
    episode, frame = clip.index.T
    code = (episode * 10 + frame + 1).to(torch.uint8)
    frames = code[:, None, None, None].expand(-1, 16, 16, 3)
    return OwnPrediction(frames, code[:, None].float().expand(-1, 2), is_prediction)


def test_pool_continues_predictions_towards_real_targets() -> None:
    data, generator = ToyEpisodes(6), torch.Generator().manual_seed(0)
    pool = SelfRolloutPool(BATCH, 0.5, data.num_frame_steps)
    deepest = most = 0
    for _step in range(40):
        pooled = len(pool)
        clip = pool.compose(lambda n: data.sample(generator, n), data.load)
        assert len(clip.index) == BATCH
        assert (clip.index[:, 1] < NUM_FRAMES).all()
        real = data.load(clip.index, 1)
        assert torch.equal(clip.frames, real.frames)
        assert torch.equal(clip.actions, real.actions)
        assert torch.equal(clip.context[:, 0], real.context[:, 0])  # the anchor stays real
        assert torch.equal(clip.context[pooled:], real.context[pooled:])
        code = (clip.index[:pooled, 0] * 10 + clip.index[:pooled, 1]).to(torch.uint8)
        assert (clip.context[:pooled, -1] == code[:, None, None, None]).all()
        assert torch.equal(clip.context_proprio[:pooled, 0], code.float())
        assert torch.equal(clip.context_proprio[pooled:], real.context_proprio[pooled:])
        assert pooled <= BATCH // 2
        most = max(most, pooled)
        is_prediction = torch.rand(BATCH, generator=generator) < 0.8
        pool.update(clip, predict(clip, is_prediction))
        assert pool._pool is not None
        deepest = max(deepest, int(pool._pool.depth.max()))
        assert (pool._pool.depth <= pool._pool.index[:, 1]).all()
    assert most == BATCH // 2
    assert deepest == NUM_FRAMES - 1  # whole episodes


def test_previous_frame_of_a_deep_row_is_the_models_own() -> None:
    data = ToyEpisodes(3)
    pool = SelfRolloutPool(1, 1.0, data.num_frame_steps)
    for frame in range(NUM_FRAMES - 1):
        clip = pool.compose(lambda n: torch.zeros(n, 2, dtype=torch.long), data.load)
        assert clip.index.tolist() == [[0, frame]]
        if frame >= 2:
            assert (clip.context[0, 1] == frame - 1).all()
        pool.update(clip, predict(clip, torch.tensor([True])))
    clip = pool.compose(lambda n: torch.zeros(n, 2, dtype=torch.long), data.load)
    assert clip.index.tolist() == [[0, NUM_FRAMES - 1]]
    pool.update(clip, predict(clip, torch.tensor([True])))
    assert len(pool) == 0  # the episode has ended


def test_a_prediction_that_saw_the_target_is_not_fed_back() -> None:
    data = ToyEpisodes(4)
    pool = SelfRolloutPool(4, 1.0, data.num_frame_steps)
    fresh = torch.tensor([[0, 0], [1, 2], [2, 1], [3, 0]])
    clip = pool.compose(lambda n: fresh[:n], data.load)
    pool.update(clip, predict(clip, torch.tensor([False, True, True, False])))
    assert pool._pool is not None
    assert pool._pool.index.tolist() == [[2, 2], [1, 3]]  # earliest first
    before = pool._pool
    clip = pool.compose(lambda n: fresh[:n], data.load)
    pool.update(clip, predict(clip, torch.tensor([False, False, False, False])))
    assert pool._pool is not None
    assert torch.equal(pool._pool.index, before.index)
    assert torch.equal(pool._pool.context, before.context)


def test_pool_switched_off_gives_fresh_clips_only() -> None:
    data, generator = ToyEpisodes(4), torch.Generator().manual_seed(0)
    pool = SelfRolloutPool(4, 0.0, data.num_frame_steps)
    for _ in range(3):
        clip = pool.compose(lambda n: data.sample(generator, n), data.load)
        assert torch.equal(clip.context, data.load(clip.index, 1).context)
        pool.update(clip, predict(clip, torch.ones(4, dtype=torch.bool)))
    with pytest.raises(ValueError, match="share"):
        SelfRolloutPool(4, 1.5, data.num_frame_steps)


def test_a_pool_that_is_saved_goes_on_as_it_was() -> None:
    data = ToyEpisodes(4)
    pool, again = (SelfRolloutPool(4, 0.5, data.num_frame_steps) for _ in range(2))
    assert pool.state_dict() == {}
    again.load_state_dict({})
    assert len(again) == 0
    fresh = torch.tensor([[0, 0], [1, 2], [2, 1], [3, 0]])
    clip = pool.compose(lambda n: fresh[:n], data.load)
    pool.update(clip, predict(clip, torch.ones(4, dtype=torch.bool)))
    again.load_state_dict({name: value.clone() for name, value in pool.state_dict().items()})
    assert len(again) == len(pool) == 2
    one, other = (p.compose(lambda n: fresh[:n], data.load) for p in (pool, again))
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.context, other.context)
    assert torch.equal(one.context_proprio, other.context_proprio)
