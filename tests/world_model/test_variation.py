"""What training varies in its real frames."""

from __future__ import annotations

import torch

from worldloop.world_model.variation import JUDGEMENT_NOISE, vary_context, vary_judged


def test_training_meets_every_length_of_a_past() -> None:
    """As a rollout does that starts with two frames and fills up; where three are all there is, nothing changes."""
    numbers = torch.arange(6.0).reshape(1, 6, 1, 1, 1)
    context = {"base": numbers.expand(64, -1, 3, 16, 16), "hand": numbers.expand(64, -1, 3, 4, 8)}
    varied = vary_context(context, 0.0, torch.Generator().manual_seed(0))
    seen, by_hand = (varied[camera][:, :, 0, 0, 0] for camera in ("base", "hand"))
    assert torch.equal(seen, by_hand), "all cameras look back equally far"
    lengths = {(0, *(max(frame, oldest) for frame in range(1, 6))) for oldest in range(1, 5)}
    assert {tuple(row) for row in seen.int().tolist()} == lengths
    short = {camera: frames[:, :3] for camera, frames in context.items()}
    varied = vary_context(short, 0.0, torch.Generator())
    assert all(torch.equal(varied[camera], short[camera]) for camera in short)


def test_noise_spares_the_first_frame_and_stays_below_its_level() -> None:
    context = {"base": torch.zeros(256, 3, 3, 16, 16), "hand": torch.zeros(256, 3, 3, 16, 24)}
    varied = vary_context(context, 0.2, torch.Generator().manual_seed(0))
    assert not any(frames[:, 0].any() for frames in varied.values())
    levels, by_hand = (frames[:, 1:].flatten(1).std(1) for frames in varied.values())
    torch.testing.assert_close(levels, by_hand, rtol=0.15, atol=1e-4)
    assert not torch.equal(varied["base"], varied["hand"][..., :16])
    assert 0.18 < levels.max() < 0.21
    assert levels.min() < 0.02
    assert abs(levels.mean() - 0.1) < 0.01  # uniform from 0 to .2


def test_judged_frames_shift_together() -> None:
    generator = torch.Generator().manual_seed(1)
    frames = {
        "base": torch.rand(64, 3, 64, 64, generator=generator),
        "hand": torch.rand(64, 3, 32, 48, generator=generator),
    }
    proprio = torch.zeros(64, 400)
    first, target, moved = vary_judged(frames, frames, proprio, torch.Generator().manual_seed(0))
    levels = moved.std(1)
    assert 0.9 * JUDGEMENT_NOISE < levels.max() < 1.1 * JUDGEMENT_NOISE
    has_moved = {}
    for camera in frames:  # up to two pixels each way, and up to one
        torch.testing.assert_close((target[camera] - first[camera]).flatten(1).std(1), levels, rtol=0.15, atol=1e-4)
        has_moved[camera] = (first[camera] != frames[camera]).flatten(1).any(1)
        assert has_moved[camera].float().mean() > 0.75
    assert (has_moved["base"] != has_moved["hand"]).any(), "each camera is shifted apart"
