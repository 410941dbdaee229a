import json
import math
from dataclasses import replace

import pytest
import torch
from imagined import make_episodes, repeat_start

from worldloop.core.randomness import make_generator
from worldloop.evaluation.fidelity import (
    MAX_PSNR_DB,
    FrameMetric,
    compute_mean_psnr,
    compute_moving_psnr,
    compute_psnr,
    compute_ssim,
    measure_fidelity,
    repeat_first_frame,
)


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


def test_the_truth_is_perfect_and_a_still_picture_equals_its_baseline(truth) -> None:
    fidelity = measure_fidelity(truth)
    valid = truth.truth.valid
    assert (fidelity.psnr_db.values[valid] == MAX_PSNR_DB).all()
    assert fidelity.psnr_db.values[~valid].isnan().all()
    still = replace(truth, frames=repeat_start(truth))
    fidelity = measure_fidelity(still)
    for name in ("psnr_db", "ssim", "moving_psnr_db"):
        values, baseline = (fidelity.metrics[key].values for key in (name, f"{name}_first_frame"))
        assert torch.equal(values.nan_to_num(), baseline.nan_to_num())
        assert fidelity.metrics[name] == fidelity.metrics[f"{name}_first_frame"]
    assert fidelity.psnr_db.values[valid].max() < MAX_PSNR_DB


def test_a_summary_leaves_out_what_is_not_defined() -> None:
    values = torch.tensor([[1.0, 3.0, 99.0], [torch.nan, 5.0, 7.0], [99.0, 99.0, 99.0]])
    valid = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    metric = FrameMetric.summarise(values, valid)
    assert (metric.mean.value, metric.mean.n) == ((2.0 + 6.0) / 2, 2)
    assert metric.end.value == (3.0 + 7.0) / 2
    assert {frame: (p.n, p.value) for frame, p in metric.by_frame.items()} == {1: (1, 1.0), 2: (2, 4.0), 3: (1, 7.0)}
    figures = metric.to_dict()
    assert figures["by_frame"][0] == {"frame": 1, "value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    assert figures["mean"] == {"value": 4.0, "low": 2.0, "high": 6.0, "n": 2}
    json.dumps(figures, allow_nan=False)


def test_a_metric_that_is_nowhere_defined_is_null() -> None:
    nowhere = FrameMetric.summarise(torch.full((2, 2), torch.nan), torch.ones(2, 2, dtype=torch.bool))
    assert nowhere.to_dict() == {"mean": None, "end": None, "by_frame": []}


CAMERAS = {"base": (16, 16), "hand": (12, 20)}


def test_cameras_of_different_sizes_are_averaged_and_each_has_its_own() -> None:
    """1 and 2 grey levels off are 48.1308 and 42.1102 dB."""
    branches = make_episodes([0.0, 0.0], [0, 0], error=1, cameras=CAMERAS).branches
    fidelity = measure_fidelity(branches)
    assert fidelity.by_camera["base"].psnr_db.mean.value == pytest.approx(48.1308, abs=1e-4)
    assert fidelity.by_camera["hand"].psnr_db.mean.value == pytest.approx(42.1102, abs=1e-4)
    assert fidelity.psnr_db.mean.value == pytest.approx((48.1308 + 42.1102) / 2, abs=1e-4)
    assert compute_mean_psnr(branches)[0, 0].item() == pytest.approx((48.1308 + 42.1102) / 2, abs=1e-3)
    ssim = [fidelity.by_camera[camera].ssim.mean.value for camera in CAMERAS]
    assert fidelity.ssim.mean.value == pytest.approx(sum(ssim) / 2, abs=1e-4)
    names = set(fidelity.metrics)
    assert {"psnr_db", "psnr_db/base", "psnr_db/hand", "ssim_first_frame/hand", "moving_psnr_db/base"} < names
    assert len(names) == 18
    assert not measure_fidelity(make_episodes([0.0], [0], cameras={"base": (16, 16)}).branches).by_camera


def test_a_camera_in_which_nothing_moves_has_no_say_in_the_moving_psnr() -> None:
    branches = make_episodes([0.0], [0], error=0, cameras=CAMERAS).branches
    moved = {"base": branches.truth.frames["base"].clone(), "hand": branches.truth.frames["hand"]}
    moved["base"][0, 0, 2, 3] = 100
    seen = {"base": moved["base"].clone(), "hand": branches.frames["hand"]}
    seen["base"][0, 0, 2, 3] = 80  # error 20: 22.1102 dB
    fidelity = measure_fidelity(replace(branches, frames=seen, truth=replace(branches.truth, frames=moved)))
    assert fidelity.moving_psnr_db.mean.value == pytest.approx(22.1102, abs=1e-3)
    assert fidelity.by_camera["hand"].moving_psnr_db.mean is None
