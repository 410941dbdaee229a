from dataclasses import replace

import numpy as np
import pytest
import torch
from imagined import make_episodes
from scipy.special import expit

from worldloop.core.statistics import best_threshold, fit_temperature
from worldloop.core.success import Calibration
from worldloop.evaluation.calibration import (
    apply_calibration,
    calibrate,
    choose_sources,
    fit_calibration,
    judge_trust,
)
from worldloop.evaluation.fidelity import compute_mean_psnr

RIGHT = make_episodes([-4.0] * 10 + [4.0] * 10, [0] * 10 + [1] * 10)


def test_calibration_trusts_the_policys_own_episodes_when_there_are_enough() -> None:
    shifted = make_episodes([1.0] * 10 + [5.0] * 10, [0] * 10 + [1] * 10)  # flattered: failures reach 1
    few = make_episodes([1.0] * 10 + [5.0] * 3, [0] * 10 + [1] * 3)
    own = calibrate({"scripted": RIGHT, "on_policy": shifted})
    failure, success = own.probability(torch.tensor([1.0, 5.0])).tolist()
    assert failure < own.threshold <= success
    pooled = calibrate({"scripted": RIGHT, "on_policy": few})
    assert pooled != own
    assert calibrate({}) == Calibration()


def test_a_head_that_reads_states_is_taken_at_its_word() -> None:
    """Seven of ten failures that it calls solved change nothing; the expected PSNR is calibrated as ever."""
    wrong = make_episodes([4.0] * 7 + [-4.0] * 3 + [4.0] * 10, [0] * 10 + [1] * 10)
    expected = compute_mean_psnr(wrong.branches) + 3.0
    wrong = replace(wrong, branches=replace(wrong.branches, expected_psnr_db=expected))
    read = calibrate({"on_policy": wrong}, reads_states=True)
    assert (read.scale, read.bias, read.threshold) == (1.0, 0.0, 0.5)
    fitted = calibrate({"on_policy": wrong})
    assert fitted.threshold != 0.5
    assert read.psnr_bias_db == fitted.psnr_bias_db == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize(("num_failures", "num_successes", "is_enough"), [(8, 8, True), (7, 9, False), (9, 7, False)])
def test_eight_episodes_of_each_outcome_are_enough(num_failures: int, num_successes: int, is_enough: bool) -> None:
    wrong = make_episodes([4.0] * num_failures + [-4.0] * num_successes, [0] * num_failures + [1] * num_successes)
    by_source = {"scripted": RIGHT, "on_policy": wrong}
    assert choose_sources(by_source) == (("on_policy",) if is_enough else ("scripted", "on_policy"))
    assert judge_trust({"on_policy": wrong}, 0.7).can_improve == is_enough


def test_without_episodes_of_the_policy_all_sources_count() -> None:
    assert choose_sources({"scripted": RIGHT}) == ("scripted",)
    assert choose_sources({}) == ()


def test_a_threshold_stays_between_a_fifth_and_four_fifths() -> None:
    """Where 2 of 12 succeed and none of 90 others, it is half of 1 in 6; in the mirror as far below 1."""
    logit, label = np.repeat([0.0, 1.0], [90, 12]), np.arange(102) >= 100
    assert fit_calibration(logit, label).threshold == 0.2
    assert fit_calibration(-logit, ~label).threshold == 0.8
    scale, bias = fit_temperature(logit, label)
    assert best_threshold(expit(scale * logit + bias), label) < 0.15, "else this shows nothing"


def test_the_floor_is_a_quantile_of_the_unbiased_estimate() -> None:
    actual = compute_mean_psnr(RIGHT.branches)
    expected = actual + 3.0 + torch.linspace(-1, 1, 20)[:, None]
    episodes = replace(RIGHT, branches=replace(RIGHT.branches, expected_psnr_db=expected.float()))
    calibration = calibrate({"on_policy": episodes}, floor_quantile=0.5)
    assert calibration.psnr_bias_db == pytest.approx(3.0, abs=1e-3)
    assert calibration.floor_db == pytest.approx(float(actual[0]), abs=1e-3)
    assert calibrate({"on_policy": make_episodes([0.0, 1.0], [0, 1])}).floor_db == 0.0, "no estimate, no floor"


def test_a_calibration_that_was_fitted_elsewhere_is_used_as_it_is() -> None:
    success = apply_calibration(make_episodes([0.0, 1.0], [0, 1]), Calibration(2.0, 1.0, 0.7), cross_fit=False)
    assert success.probability.tolist() == pytest.approx([expit(1.0), expit(3.0)])
    assert success.threshold.tolist() == [0.7, 0.7]


def test_cross_fitting_reads_each_half_with_the_other() -> None:
    """Even rows part their outcomes at logit 2, odd rows at 12."""
    episodes = make_episodes([0.0, 10.0, 4.0, 14.0] * 10, [0, 0, 1, 1] * 10)
    success = apply_calibration(episodes, Calibration(), cross_fit=True)
    even, odd = (fit_calibration(episodes.logit[i::2], episodes.is_success[i::2]) for i in range(2))
    assert success.threshold.tolist() == [odd.threshold, even.threshold] * 20
    logit = torch.from_numpy(episodes.logit[:2])
    expected = [float(c.probability(x)) for c, x in zip((odd, even), logit, strict=True)]
    assert success.probability[:2].tolist() == pytest.approx(expected)


def test_distrust_names_the_figure_and_needs_enough_episodes() -> None:
    wrong = make_episodes([4.0] * 10 + [-4.0] * 10, [0] * 10 + [1] * 10)  # AUC 0
    refused = judge_trust({"on_policy": wrong}, 0.7)
    assert not refused.is_trusted
    assert refused.reason == "AUC 0.000 is below check_world_model.required_auc 0.7"
    assert judge_trust({"scripted": wrong, "on_policy": RIGHT}, 0.7).is_trusted, "the policy's own episodes decide"
    assert refused.can_improve
    assert judge_trust({"on_policy": RIGHT}, 1.0).is_trusted, "an AUC of exactly what is required will do"
    assert judge_trust({"on_policy": wrong}, 0.0).is_trusted, "nothing is required"


@pytest.mark.parametrize("required", [0.7, 0.0])
def test_where_too_few_episodes_of_the_policy_are_held_out_nothing_is_trusted(required: float) -> None:
    """However well the scripted ones are told apart: they are easier."""
    few = make_episodes([-4.0] * 9 + [4.0] * 7, [0] * 9 + [1] * 7)
    trust = judge_trust({"scripted": RIGHT, "on_policy": few}, required)
    if required:
        assert trust.reason == (
            "too few held-out episodes of the policy: 7 successes and 9 failures, at least 8 of each"
        )
    assert trust.is_trusted == (required == 0)
    assert not trust.can_improve, "a further fit does not help"
    assert judge_trust({"scripted": RIGHT}, required).is_trusted == (required == 0)
    assert judge_trust({"recorded": RIGHT}, required).is_trusted, "there is no policy"
    assert judge_trust({}, required).is_trusted == (required == 0)
