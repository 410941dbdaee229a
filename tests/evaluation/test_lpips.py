import math
import socket

import pytest
import torch

from worldloop.core.randomness import make_generator
from worldloop.evaluation import lpips
from worldloop.evaluation.lpips import BACKBONE_FILE, compute_lpips


def noise_frames(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=make_generator(seed), dtype=torch.uint8)


def test_lpips_says_why_it_is_unavailable(tmp_path, monkeypatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("LPIPS must not open a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    a = noise_frames(0, 1, 2, 64, 64)
    value, reason = compute_lpips(a, a)
    assert value is None
    assert BACKBONE_FILE in reason
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / BACKBONE_FILE).write_bytes(b"not weights")
    value, reason = compute_lpips(a, a)
    assert value is None
    assert "could not load" in reason
    value, reason = compute_lpips(a[:, :, :16, :16], a[:, :, :16, :16])
    assert value is None
    assert "32 px" in reason


def test_lpips_of_a_row_is_the_mean_over_its_valid_frames(tmp_path, monkeypatch) -> None:
    """With a network that gives the mean absolute difference of images in [-1, 1]."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / BACKBONE_FILE).touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lpips, "_load_network", lambda path: lambda p, t: (p - t).abs().mean(dim=(1, 2, 3)))
    monkeypatch.setattr(lpips, "BATCH_SIZE", 4)  # 6 frames: two passes
    target = torch.zeros(3, 2, 32, 32, 3, dtype=torch.uint8)
    levels = torch.tensor([[0, 51], [51, 102], [204, 255]], dtype=torch.uint8)  # 51 of 127.5 is .4
    predicted = target + levels[:, :, None, None, None]
    value, reason = compute_lpips(predicted, target)
    assert reason is None
    assert value.tolist() == pytest.approx([0.2, 0.6, 1.8])
    valid = torch.tensor([[True, True], [False, True], [False, False]])
    value, _ = compute_lpips(predicted, target, valid)
    assert value.tolist() == pytest.approx([0.2, 0.8, math.nan], nan_ok=True)


def test_lpips_reads_a_backbone_from_the_local_cache(tmp_path, monkeypatch) -> None:
    """A file of the right format (random AlexNet weights, written here) is loaded and used."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.alexnet(weights=None)
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / BACKBONE_FILE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    a, b = noise_frames(0, 2, 2, 64, 64), noise_frames(1, 2, 2, 64, 64)
    same, reason = compute_lpips(a, a)
    assert reason is None
    assert same.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    different, _ = compute_lpips(a, b)
    assert different.shape == (2,)
    assert (different > 1e-4).all()
    from worldloop.evaluation.lpips import _load_network

    loaded = _load_network(str(tmp_path / "checkpoints" / BACKBONE_FILE))
    assert torch.equal(loaded.net.slice1[0].weight, network.features[0].weight)
