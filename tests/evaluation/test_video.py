import math
import socket

import pytest
import torch

from worldloop.core.randomness import make_generator
from worldloop.evaluation import lpips
from worldloop.evaluation.fidelity import (
    MAX_PSNR_DB,
    compute_moving_psnr,
    compute_psnr,
    compute_ssim,
    repeat_first_frame,
)
from worldloop.evaluation.lpips import BACKBONE_FILE, compute_lpips


def noise_frames(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=make_generator(seed), dtype=torch.uint8)


def test_psnr_of_known_error() -> None:
    target = torch.full((2, 2, 16, 16, 3), 100, dtype=torch.uint8)
    predicted = target.clone()
    predicted[0] += 10  # MSE 100 -> 10 log10(255^2 / 100) = 28.1308 dB
    predicted[1, 0] -= 1  # MSE 1 -> 48.1308 dB; the second frame is identical -> capped
    psnr = compute_psnr(predicted, target)
    assert psnr[0].tolist() == pytest.approx([28.1308] * 2, abs=1e-3)
    assert psnr[1].tolist() == pytest.approx([48.1308, MAX_PSNR_DB], abs=1e-3)


def test_psnr_is_capped_on_identical_frames_and_symmetric() -> None:
    a, b = noise_frames(0, 2, 3, 16, 16), noise_frames(1, 2, 3, 16, 16)
    assert (compute_psnr(a, a) == MAX_PSNR_DB).all()
    assert torch.allclose(compute_psnr(a, b), compute_psnr(b, a))


def test_psnr_of_many_rows_is_that_of_each_row_alone() -> None:
    a, b = noise_frames(0, 20, 2, 8, 8), noise_frames(1, 20, 2, 8, 8)
    alone = torch.cat([compute_psnr(a[i : i + 1], b[i : i + 1]) for i in range(20)])
    assert len(alone.unique()) == 40
    assert torch.equal(compute_psnr(a, b), alone)


def test_ssim_identical_degraded_and_constant() -> None:
    target = noise_frames(0, 2, 2, 16, 16)
    assert torch.allclose(compute_ssim(target, target), torch.ones(2, 2))
    slight = (target.int() + 5).clamp_max(255).to(torch.uint8)
    assert (compute_ssim(noise_frames(1, 2, 2, 16, 16), target) < compute_ssim(slight, target)).all()
    # Constant frames: only the luminance term is left, (2ab + c1) / (a^2 + b^2 + c1), here with values in [-1, 1].
    dark, light = torch.full_like(target, 153), torch.full_like(target, 204)
    a, b, c1 = 0.2, 0.6, (0.01 * 2) ** 2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert compute_ssim(dark, light)[0, 0].item() == pytest.approx(expected, abs=1e-3)
    # 128 and 140 are 1 / 255 and 25 / 255, so near zero that c1 counts: .1166, and .0893 if the range were 1.
    grey, lighter = torch.full_like(target, 128), torch.full_like(target, 140)
    a, b = 1 / 255, 25 / 255
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert compute_ssim(grey, lighter)[0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_moving_psnr_looks_at_moved_pixels_of_each_frame_only() -> None:
    first = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    target = repeat_first_frame(first, 2).clone()
    target[0, 1, 2, 3] = 100  # one pixel of row 0 has moved in its second frame; nothing moves elsewhere
    predicted = target.clone()
    predicted[0, :, 5, 5] = 77  # errors elsewhere do not count
    predicted[0, 1, 2, 3] = 80  # error 20: MSE 400 -> 22.1102 dB
    psnr = compute_moving_psnr(predicted, target, first)
    assert psnr[0, 1].item() == pytest.approx(22.1102, abs=1e-3)
    assert psnr.isnan().tolist() == [[True, False], [True, True]]


def test_first_frame_baseline_is_the_worst_where_things_move() -> None:
    first = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    target = repeat_first_frame(first, 3).clone()
    target[:, :, 0, 0] = 255
    baseline = repeat_first_frame(first, 3)
    assert baseline.shape == target.shape
    assert compute_moving_psnr(baseline, target, first)[0].tolist() == pytest.approx([0.0] * 3)
    assert compute_psnr(baseline, target)[0].tolist() == pytest.approx([10 * math.log10(64)] * 3, abs=1e-3)


def test_shapes_and_dtypes_are_checked() -> None:
    a = noise_frames(0, 1, 2, 16, 16)
    with pytest.raises(ValueError, match="target"):
        compute_psnr(a, a[:, :1])
    with pytest.raises(ValueError, match="dtype"):
        compute_psnr(a.float(), a.float())


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
