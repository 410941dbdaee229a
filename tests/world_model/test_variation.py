"""What training varies in its real frames."""

from __future__ import annotations

import torch

from worldloop.world_model.variation import JUDGEMENT_NOISE, vary_context, vary_judged


def test_training_meets_every_length_of_a_past() -> None:
    """As a rollout does that starts with two frames and fills up; where three are all there is, nothing changes."""
    numbers = torch.arange(6.0).reshape(1, 6, 1, 1, 1).expand(64, -1, 3, 16, 16)
    seen = vary_context(numbers, 0.0, torch.Generator().manual_seed(0))[:, :, 0, 0, 0]
    lengths = {(0, *(max(frame, oldest) for frame in range(1, 6))) for oldest in range(1, 5)}
    assert {tuple(row) for row in seen.int().tolist()} == lengths
    short = numbers[:, :3]
    assert torch.equal(vary_context(short, 0.0, torch.Generator()), short)


def test_noise_spares_the_first_frame_and_stays_below_its_level() -> None:
    seen = vary_context(torch.zeros(256, 3, 3, 16, 16), 0.2, torch.Generator().manual_seed(0))
    assert not seen[:, 0].any()
    levels = seen[:, 1:].flatten(1).std(1)
    assert 0.18 < levels.max() < 0.21
    assert levels.min() < 0.02
    assert abs(levels.mean() - 0.1) < 0.01  # uniform from 0 to .2


def test_judged_frames_shift_together() -> None:
    frames = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    proprio = torch.zeros(64, 400)
    first, target, moved = vary_judged(frames, frames, proprio, torch.Generator().manual_seed(0))
    levels = moved.std(1)
    torch.testing.assert_close((target - first).flatten(1).std(1), levels, rtol=0.15, atol=1e-4)
    assert 0.9 * JUDGEMENT_NOISE < levels.max() < 1.1 * JUDGEMENT_NOISE
    assert (first != frames).flatten(1).any(1).float().mean() > 0.8  # up to two pixels each way
