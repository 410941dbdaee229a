import itertools

import torch

from worldloop.core.randomness import make_generator
from worldloop.networks.augment import augment_frames


def test_augmentation_shifts_and_repeats() -> None:
    frames = torch.zeros(40, 2, 8, 8, 3, dtype=torch.uint8)
    frames[:, :, 4, 4] = 200
    shifted = augment_frames(frames, 1, 0.0, make_generator(0, "augment"))
    assert shifted.shape == frames.shape
    place = (shifted[:, :, :, :, 0] > 0).nonzero()  # row, frame, y, x: one bright pixel a frame
    assert len(place) == 80
    assert set(map(tuple, place[:, 2:].tolist())) == set(itertools.product((3, 4, 5), repeat=2))
    assert torch.equal(shifted[:, 0], shifted[:, 1])  # all frames of a row move together
    assert torch.equal(augment_frames(frames, 1, 0.0, make_generator(0, "augment")), shifted)
    assert torch.equal(augment_frames(frames, 0, 0.0, make_generator(0, "augment")), frames)
    bright = augment_frames(frames, 0, 0.2, make_generator(0, "augment"))
    assert 160 <= int(bright[:, :, 4, 4].min()) < 200 < int(bright[:, :, 4, 4].max()) <= 240
