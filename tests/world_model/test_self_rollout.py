from dataclasses import replace

import pytest
import torch
from world_model_toy import BASE, NUM_FRAMES, ONE_CAMERA, TWO_CAMERAS, ToyEpisodes

from worldloop.core.specs import CameraSpec
from worldloop.core.types import Clip
from worldloop.world_model.self_rollout import OwnPrediction, SelfRolloutPool

BATCH = 8


def predict(clip: Clip, is_prediction: torch.Tensor) -> OwnPrediction:
    """Predictions that can be recognised: pixel value and proprio tell (episode, frame) of what was predicted."""
    episode, frame = clip.index.T
    code = (episode * 10 + frame + 1).to(torch.uint8)
    frames = {c: code[:, None, None, None].expand(-1, *f.shape[2:]) for c, f in clip.frames.items()}
    return OwnPrediction(
        frames, code[:, None].float().expand(-1, 2), code[:, None].float().expand(-1, 2) / 10, is_prediction
    )


@pytest.mark.parametrize("cameras", [ONE_CAMERA, TWO_CAMERAS])
def test_pool_continues_predictions_towards_real_targets(cameras: tuple[CameraSpec, ...]) -> None:
    data, generator = ToyEpisodes(6, cameras=cameras), torch.Generator().manual_seed(0)
    pool = SelfRolloutPool(BATCH, 0.5, data.num_frame_steps)
    deepest = most = 0
    for _step in range(40):
        pooled = len(pool)
        clip = pool.compose(lambda n: data.sample(generator, n), data.load)
        assert len(clip.index) == BATCH
        assert (clip.index[:, 1] < NUM_FRAMES).all()
        real = data.load(clip.index, 1)
        assert torch.equal(clip.actions, real.actions)
        code = (clip.index[:pooled, 0] * 10 + clip.index[:pooled, 1]).to(torch.uint8)
        assert list(clip.context) == [camera.name for camera in cameras]
        for camera, context in clip.context.items():
            assert torch.equal(clip.frames[camera], real.frames[camera])
            assert torch.equal(context[:, 0], real.context[camera][:, 0])  # the anchor stays real
            assert torch.equal(context[pooled:], real.context[camera][pooled:])
            assert (context[:pooled, -1] == code[:, None, None, None]).all()
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
            assert (clip.context["base_camera"][0, 1] == frame - 1).all()
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
    assert torch.equal(pool._pool.context["base_camera"], before.context["base_camera"])


def test_pool_switched_off_gives_fresh_clips_only() -> None:
    data, generator = ToyEpisodes(4), torch.Generator().manual_seed(0)
    pool = SelfRolloutPool(4, 0.0, data.num_frame_steps)
    for _ in range(3):
        clip = pool.compose(lambda n: data.sample(generator, n), data.load)
        assert torch.equal(clip.context["base_camera"], data.load(clip.index, 1).context["base_camera"])
        pool.update(clip, predict(clip, torch.ones(4, dtype=torch.bool)))
    with pytest.raises(ValueError, match="share"):
        SelfRolloutPool(4, 1.5, data.num_frame_steps)


def test_a_pool_that_is_saved_goes_on_as_it_was() -> None:
    data = ToyEpisodes(4, cameras=TWO_CAMERAS)
    pool, again = (SelfRolloutPool(4, 0.5, data.num_frame_steps) for _ in range(2))
    assert pool.state_dict() == {}
    again.load_state_dict({})
    assert len(again) == 0
    fresh = torch.tensor([[0, 0], [1, 2], [2, 1], [3, 0]])
    clip = pool.compose(lambda n: fresh[:n], data.load)
    pool.update(clip, predict(clip, torch.ones(4, dtype=torch.bool)))
    saved = pool.state_dict()
    assert set(saved) == {"index", "context.base_camera", "context.above.camera", "proprio", "landmarks", "depth"}
    again.load_state_dict({name: value.clone() for name, value in saved.items()})
    assert len(again) == len(pool) == 2
    one, other = (p.compose(lambda n: fresh[:n], data.load) for p in (pool, again))
    assert torch.equal(one.index, other.index)
    assert list(one.context) == list(other.context) == ["base_camera", "above.camera"]
    assert all(torch.equal(one.context[camera], other.context[camera]) for camera in one.context)
    assert torch.equal(one.context_proprio, other.context_proprio)


def test_a_model_of_fewer_cameras_than_the_clips_pools_its_own_alone() -> None:
    data = ToyEpisodes(4, cameras=TWO_CAMERAS)
    pool = SelfRolloutPool(4, 0.5, data.num_frame_steps)
    fresh = torch.tensor([[0, 0], [1, 2], [2, 1], [3, 0]])
    clip = pool.compose(lambda n: fresh[:n], data.load)
    prediction = predict(clip, torch.ones(4, dtype=torch.bool))
    pool.update(clip, replace(prediction, frames={BASE.name: prediction.frames[BASE.name]}))
    clip = pool.compose(lambda n: fresh[:n], data.load)
    assert list(clip.context) == [BASE.name]
    assert list(clip.frames) == [camera.name for camera in TWO_CAMERAS]
