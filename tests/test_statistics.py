"""Hand-computed values and edge cases of every reported figure."""

import numpy as np
import pytest

from worldloop.statistics import (
    Rate,
    auc,
    balanced_accuracy,
    best_threshold,
    bootstrap_interval,
    expected_calibration_error,
    fit_temperature,
    paired_gain,
    wilson_interval,
)


def test_wilson_interval_matches_the_textbook_formula() -> None:
    k, n, z = 8, 10, 1.959964
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    low, high = wilson_interval(k, n)
    assert low == pytest.approx(centre - half, abs=1e-6)
    assert high == pytest.approx(centre + half, abs=1e-6)


def test_rate_of_all_successes_keeps_an_interval() -> None:
    rate = Rate.of(np.ones(20, bool))
    assert (rate.k, rate.n, rate.rate) == (20, 20, 1.0)
    assert 0.8 < rate.low < rate.high == pytest.approx(1.0)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_rates_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}"):
        wilson_interval(k, n)


def test_paired_gain_counts_only_states_that_changed() -> None:
    before = np.array([1, 1, 0, 0, 0, 0, 0, 0], bool)
    after = np.array([1, 0, 1, 1, 1, 1, 1, 0], bool)
    gain = paired_gain(before, after)
    assert gain.gain == pytest.approx(4 / 8)
    assert gain.low < 0.5 < gain.high
    # 5 won, 1 lost: two-sided exact binomial p = 2 * (C(6,0) + C(6,1)) / 2^6
    assert gain.p_value == pytest.approx(2 * (1 + 6) / 64)


def test_paired_gain_without_change_is_zero_and_certain() -> None:
    gain = paired_gain(np.ones(5, bool), np.ones(5, bool))
    assert (gain.gain, gain.low, gain.high, gain.p_value) == (0, 0, 0, 1)


def test_paired_gain_refuses_different_states() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_gain(np.ones(5, bool), np.ones(4, bool))


def test_auc_by_hand_with_a_tie() -> None:
    # pairs (positive, negative): .9>.5, .9>.1, .5=.5 (half), .5>.1 -> 3.5 of 4
    assert auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0])) == pytest.approx(3.5 / 4)
    assert np.isnan(auc(np.array([0.1, 0.2]), np.array([1, 1])))


def test_balanced_accuracy_by_hand() -> None:
    predicted, label = np.array([1, 1, 0, 1, 0, 0], bool), np.array([1, 1, 1, 0, 0, 0], bool)
    assert balanced_accuracy(predicted, label) == pytest.approx((2 / 3 + 2 / 3) / 2)
    # always "failure" on 9 failures and 1 success is right 90 % of the time and worth one half
    assert balanced_accuracy(np.zeros(10, bool), np.arange(10) == 0) == pytest.approx(0.5)


def test_calibration_error_by_hand() -> None:
    probability, label = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0, 1, 1, 1])
    assert expected_calibration_error(probability, label) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(size=4000) * 2
    label = rng.random(4000) < 1 / (1 + np.exp(-(logit - 0.5)))
    scale, bias = fit_temperature(logit * 4, label)
    assert scale == pytest.approx(0.25, rel=0.1)
    assert bias == pytest.approx(-0.5, abs=0.12)


def test_temperature_needs_both_outcomes() -> None:
    with pytest.raises(ValueError, match="both outcomes"):
        fit_temperature(np.zeros(3), np.ones(3))


def test_best_threshold_separates() -> None:
    scores, label = np.array([0.1, 0.2, 0.3, 0.7, 0.8]), np.array([0, 0, 0, 1, 1], bool)
    assert 0.3 < best_threshold(scores, label) < 0.7


def test_bootstrap_over_clusters_is_wider_than_over_rows() -> None:
    values = np.repeat(np.arange(10) % 2, 20).astype(float)
    rows = bootstrap_interval(lambda v: float(v.mean()), values, num_resamples=400)
    clusters = bootstrap_interval(
        lambda v: float(v.mean()), values, num_resamples=400, clusters=np.repeat(np.arange(10), 20)
    )
    assert clusters[1] - clusters[0] > 2 * (rows[1] - rows[0])
    assert rows == bootstrap_interval(lambda v: float(v.mean()), values, num_resamples=400)
