import itertools

import torch
from torch import Tensor

from worldloop.core.randomness import make_generator
from worldloop.networks.augment import augment_frames


def augment(images: Tensor, shift_px: int, brightness: float) -> Tensor:
    """Of a single camera."""
    return augment_frames({"cam": images}, shift_px, brightness, make_generator(0, "augment"))["cam"]


def test_augmentation_shifts_and_repeats() -> None:
    frames = torch.zeros(40, 2, 8, 8, 3, dtype=torch.uint8)
    frames[:, :, 4, 4] = 200
    shifted = augment(frames, 1, 0.0)
    assert shifted.shape == frames.shape
    place = (shifted[:, :, :, :, 0] > 0).nonzero()  # row, frame, y, x: one bright pixel a frame
    assert len(place) == 80
    assert set(map(tuple, place[:, 2:].tolist())) == set(itertools.product((3, 4, 5), repeat=2))
    assert torch.equal(shifted[:, 0], shifted[:, 1])  # all frames of a row move together
    assert torch.equal(augment(frames, 1, 0.0), shifted)
    assert torch.equal(augment(frames, 0, 0.0), frames)
    bright = augment(frames, 0, 0.2)
    assert 160 <= int(bright[:, :, 4, 4].min()) < 200 < int(bright[:, :, 4, 4].max()) <= 240


def test_every_camera_is_shifted_and_brightened_by_itself() -> None:
    """Two cameras of different sizes; the first draws what it would draw alone."""
    frames = {"wide": torch.zeros(40, 2, 8, 12, 3, dtype=torch.uint8), "hand": torch.zeros(40, 2, 6, 4, 3).byte()}
    for images, (y, x) in zip(frames.values(), ((4, 6), (3, 2)), strict=True):
        images[:, :, y, x] = 100
    augmented = augment_frames(frames, 1, 0.2, make_generator(0, "augment"))
    assert list(augmented) == ["wide", "hand"]
    assert torch.equal(augmented["wide"], augment(frames["wide"], 1, 0.2))
    place, bright = {}, {}
    for camera, images in augmented.items():
        assert images.shape == frames[camera].shape
        place[camera] = (images[:, 0, :, :, 0] > 0).nonzero()[:, 1:]
        bright[camera] = images[:, 0, :, :, 0].flatten(1).amax(1)
        assert len(bright[camera].unique()) > 10
    offset = {"wide": place["wide"] - torch.tensor([4, 6]), "hand": place["hand"] - torch.tensor([3, 2])}
    assert not torch.equal(offset["wide"], offset["hand"])
    assert not torch.equal(bright["wide"], bright["hand"])
