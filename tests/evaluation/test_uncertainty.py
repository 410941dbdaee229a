from dataclasses import replace

import pytest
import torch
from imagined import make_episodes

from worldloop.evaluation.fidelity import FrameMetric
from worldloop.evaluation.uncertainty import judge_uncertainty


def test_uncertainty_is_judged_by_what_came_true(truth) -> None:
    valid = truth.truth.valid
    actual = torch.rand(valid.shape, generator=torch.Generator().manual_seed(0)) * 10 + 20
    psnr_db, error_cm = (FrameMetric.summarise(values, valid) for values in (actual, 50 - actual))
    assert judge_uncertainty(truth, psnr_db, {"object": error_cm}) is None  # the model says nothing
    judged = judge_uncertainty(replace(truth, expected_psnr_db=2 * actual - 22), psnr_db, {"object": error_cm})
    assert judged is not None
    assert judged.num_frames == int(valid.sum())
    assert judged.rank_correlation.value == pytest.approx(1.0)
    assert judged.state_error_correlation["object"].value == pytest.approx(-1.0)
    assert judged.bias_db.value == pytest.approx(float((actual - 22)[valid].mean()), abs=1e-3)
    figures = judged.to_dict()
    assert figures["n"] == judged.num_frames
    assert figures["rank_correlation_object_error_cm"]["value"] == pytest.approx(-1.0)
    # Successes score 3 and the rest -3, except that the uncertain half has it the other way round.
    lowest = actual.masked_fill(~valid, torch.inf).amin(1)
    wrong = torch.where((lowest <= lowest.median())[:, None], -truth.logit, truth.logit)
    judged = judge_uncertainty(replace(truth, logit=wrong, expected_psnr_db=actual), psnr_db, {})
    assert judged is not None
    assert judged.auc_certain.value > judged.auc_uncertain.value


def test_a_half_of_one_outcome_has_no_auc() -> None:
    """Both certain episodes fail; of the uncertain ones the likelier succeeds. Expected PSNR is 3 dB too high."""
    branches = make_episodes([-1.0, -2.0, 1.0, 0.0], [0, 0, 1, 0]).branches
    psnr_db = FrameMetric.summarise(torch.tensor([[30.0], [31.0], [20.0], [21.0]]), branches.truth.valid)
    judged = judge_uncertainty(replace(branches, expected_psnr_db=psnr_db.values + 3.0), psnr_db, {})
    assert judged is not None
    assert (judged.bias_db.value, judged.bias_db.low, judged.bias_db.high) == (3.0, 3.0, 3.0)
    assert judged.auc_certain is None
    assert judged.auc_uncertain.value == 1.0
    by_certainty = judged.to_dict()["auc_by_certainty"]
    assert (by_certainty["certain"], by_certainty["uncertain"]["value"]) == (None, 1.0)
