"""Hand-computed values and edge cases of every reported figure."""

import numpy as np
import pytest

from worldloop.core.statistics import (
    Estimate,
    Rate,
    ReliabilityBin,
    auc,
    average_estimates,
    balanced_accuracy,
    best_threshold,
    bootstrap_interval,
    bootstrap_mean,
    compute_reliability,
    count_ordered_pairs,
    estimate,
    estimate_by_label,
    estimate_mean,
    estimate_over_seeds,
    estimate_within_group_auc,
    expected_calibration_error,
    fit_temperature,
    paired_gain,
    rank_correlation,
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
    assert np.isnan(auc(np.array([0.1, np.nan]), np.array([1, 0])))
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, 40), rng.random(40) < 0.4
    gaps = scores[labels][:, None] - scores[~labels][None, :]
    assert auc(scores, labels) == ((gaps > 0).sum() + (gaps == 0).sum() / 2) / gaps.size


def test_balanced_accuracy_by_hand() -> None:
    # 2 of 3 successes are found and 3 of 5 failures, where 5 of 8 are right and 2 of 4 predicted successes
    predicted, label = np.array([1, 1, 0, 1, 1, 0, 0, 0], bool), np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    assert balanced_accuracy(predicted, label) == pytest.approx((2 / 3 + 3 / 5) / 2)
    # always "failure" on 9 failures and 1 success is right 90 % of the time and worth one half
    assert balanced_accuracy(np.zeros(10, bool), np.arange(10) == 0) == pytest.approx(0.5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [np.ones(2), np.zeros(2)])
def test_what_needs_both_outcomes_is_nan_without_a_warning(label: np.ndarray) -> None:
    assert np.isnan(balanced_accuracy(np.array([1, 0]), label))
    assert np.isnan(auc(np.array([0.1, 0.2]), label))


def test_calibration_error_by_hand() -> None:
    probability, label = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0, 1, 1, 1])
    assert expected_calibration_error(probability, label) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)


def test_a_probability_of_one_belongs_to_the_last_bin() -> None:
    probability, label = np.array([0.0, 0.92, 1.0, 1.0]), np.array([1, 1, 0, 1])
    low, high = compute_reliability(probability, label)
    assert low == ReliabilityBin(1, probability=0.0, rate=1.0)
    assert (high.n, high.probability, high.rate) == (3, pytest.approx(2.92 / 3), pytest.approx(2 / 3))
    assert high.to_dict() == {"n": 3, "probability": round(2.92 / 3, 6), "rate": 0.666667}
    assert expected_calibration_error(probability, label) == pytest.approx(1 / 4 * 1.0 + 3 / 4 * (2.92 - 2) / 3)


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


def test_best_threshold_is_not_that_of_plain_accuracy() -> None:
    # One success at .45 among failures at 0, .1, ..., .8. From .425 on: (1 + 5 / 9) / 2 balanced, 6 / 10 right; from
    # .75 on, which misses it, (0 + 8 / 9) / 2 and 8 / 10.
    scores = np.append(np.arange(9) / 10, 0.45)
    assert best_threshold(scores, np.arange(10) == 9) == pytest.approx(0.425)


def test_bootstrap_over_clusters_is_wider_than_over_rows() -> None:
    values = np.repeat(np.arange(10) % 2, 20).astype(float)
    rows = bootstrap_interval(lambda v: float(v.mean()), values, num_resamples=400)
    clusters = bootstrap_interval(
        lambda v: float(v.mean()), values, num_resamples=400, clusters=np.repeat(np.arange(10), 20)
    )
    assert clusters[1] - clusters[0] > 2 * (rows[1] - rows[0])
    assert rows == bootstrap_interval(lambda v: float(v.mean()), values, num_resamples=400)


def test_bootstrap_interval_is_that_of_95_percent() -> None:
    # The mean of 0 .. 99 has a standard error of sqrt((100^2 - 1) / 12) / 10 = 2.887: a width of 2 * 1.96 * 2.887 =
    # 11.3, where 90 % would be 2 * 1.645 * 2.887 = 9.5 and 98 % 2 * 2.326 * 2.887 = 13.4.
    values = np.arange(100.0)
    for low, high in (bootstrap_interval(lambda v: float(v.mean()), values), bootstrap_mean(values)):
        assert high - low == pytest.approx(11.3, abs=0.6)
        assert (low + high) / 2 == pytest.approx(49.5, abs=0.6)


def test_resamples_without_a_statistic_are_left_out_up_to_half() -> None:
    def interval(num_defined: int) -> tuple[float, float]:
        values = iter([3.0] * num_defined + [float("nan")] * (10 - num_defined))
        return bootstrap_interval(lambda _: next(values), np.zeros(4), num_resamples=10)

    assert interval(10) == interval(6) == interval(5) == (3.0, 3.0)
    assert np.isnan(interval(4)).all()
    assert np.isnan(interval(0)).all()


def test_rank_correlation_by_hand() -> None:
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 (1 + 1 + 1 + 1) / (4 * 15) = .6
    assert rank_correlation(np.array([0.1, 0.2, 5.0, 9.0]), np.array([2.0, 1.0, 40.0, 3.0])) == pytest.approx(0.6)
    assert np.isnan(rank_correlation(np.zeros(3), np.arange(3)))
    assert np.isnan(rank_correlation(np.arange(3), np.zeros(3)))


def test_an_estimate_is_stored_with_what_is_not_defined_as_null() -> None:
    figure = Estimate(0.25, float("nan"), float("nan"), n=3)
    assert figure.to_dict() == {"value": 0.25, "low": None, "high": None}
    assert figure.to_dict(with_n=True)["n"] == 3
    assert str(figure) == "0.250"
    assert str(Estimate(0.943, 0.91, 0.9721, n=50)) == "0.943 (0.910-0.972)"


def test_an_estimate_is_rounded_and_has_the_interval_of_the_bootstrap() -> None:
    values = np.arange(9.0) / 7

    def mean(v: np.ndarray) -> float:
        return float(v.mean())

    figure = estimate(mean, values, digits=3)
    low, high = bootstrap_interval(mean, values)
    assert figure == Estimate(0.571, round(low, 3), round(high, 3), n=9)


def test_an_estimate_by_label_needs_both_classes() -> None:
    scores, labels = np.array([0.1, 0.9]), np.array([False, True])
    figure = estimate_by_label(auc, scores, labels)
    assert figure is not None
    assert (figure.value, figure.n) == (1.0, 2)
    assert estimate_by_label(auc, scores, np.array([True, True])) is None
    assert estimate_by_label(auc, scores, np.array([False, False])) is None


def test_bounds_that_are_not_defined_are_none() -> None:
    """A statistic that only the episodes themselves have, and hardly any resample of them."""
    scores, labels = np.array([0.9, 0.8, 0.3, 0.7, 0.1, 0.2]), np.arange(6) < 3

    def only_here(values: np.ndarray, labels: np.ndarray) -> float:
        return 0.25 if np.array_equal(values, scores) else float("nan")

    figure = estimate_by_label(only_here, scores, labels)
    assert figure is not None
    assert not figure.has_interval
    assert figure.to_dict() == {"value": 0.25, "low": None, "high": None}


def test_the_mean_has_an_interval_and_leaves_out_what_is_not_defined() -> None:
    figure = estimate_mean(np.append(np.arange(100.0), np.nan))
    assert figure is not None
    assert (figure.value, figure.n) == (49.5, 100)
    # standard error of the mean: 28.87 / 10, of which the interval spans about 2 x 1.96
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * 2.887, rel=0.1)
    assert estimate_mean(np.full(3, np.nan)) is None


def test_rates_are_pooled_by_their_counts() -> None:
    assert Rate.pool([Rate.from_counts(1, 4), Rate.from_counts(5, 6)]) == Rate.from_counts(6, 10)


def test_the_mean_of_estimates_has_the_interval_of_independent_errors() -> None:
    """Half-widths 0.03 and 0.04 below, 0.06 and 0.08 above: 0.05 / 2 and 0.1 / 2 of the mean."""
    first, second = Estimate(0.8, 0.77, 0.86, n=10), Estimate(0.6, 0.56, 0.68, n=30)
    assert average_estimates([first, None, second]) == Estimate(0.7, 0.675, 0.75, n=40)
    assert average_estimates([None, first]) is first
    assert average_estimates([None, None]) is None
    assert average_estimates([]) is None
    unknown = average_estimates([first, Estimate(0.6, np.nan, np.nan, n=2)])
    assert unknown.value == pytest.approx(0.7)
    assert not unknown.has_interval


def test_pairs_are_counted_within_groups_alone() -> None:
    scores = np.array([0.9, 0.1, 0.5, 0.2, 0.8, 0.8, 0.3])
    labels = np.array([1, 0, 0, 1, 0, 1, 1], dtype=bool)
    groups = np.array([0, 0, 0, 1, 1, 1, 2])
    ordered, pairs = count_ordered_pairs(scores, labels, groups)
    # group 0: .9 over .1 and .5; group 1: .2 under .8, .8 equal to .8; group 2: no failure
    assert ordered.tolist() == [2, 0.5, 0]
    assert pairs.tolist() == [2, 2, 0]
    found = estimate_within_group_auc(scores, labels, groups)
    assert found is not None
    assert (found.value, found.n) == (2.5 / 4, 2)
    assert (found.low, found.high) == (0.25, 1.0), "of two groups one may be drawn twice"


def test_with_one_group_the_auc_within_it_is_the_auc() -> None:
    generator = np.random.default_rng(1)
    scores, labels = generator.random(40).round(1), generator.random(40) < 0.4
    found = estimate_within_group_auc(scores, labels, np.zeros(40))
    assert found is not None
    assert found.value == pytest.approx(auc(scores, labels), abs=1e-4)


def test_groups_that_all_end_alike_have_no_auc_within_them() -> None:
    assert estimate_within_group_auc(np.array([0.1, 0.9]), np.array([True, False]), np.array([0, 1])) is None
    assert estimate_within_group_auc(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0)) is None


def test_the_interval_over_seeds_is_students() -> None:
    """Mean .155 and standard deviation .0261 of three: t = 4.303 with two degrees of freedom."""
    mean = estimate_over_seeds([0.134, 0.146, 0.184])
    assert (mean.value, mean.n) == (0.1547, 3)
    assert mean.low == pytest.approx(0.1547 - 4.3027 * 0.026102 / 3**0.5, abs=2e-4)
    assert mean.high == pytest.approx(0.1547 + 4.3027 * 0.026102 / 3**0.5, abs=2e-4)
    assert not estimate_over_seeds([0.3]).has_interval
    equal = estimate_over_seeds([0.3] * 5)
    assert (equal.low, equal.high) == (0.3, 0.3)
