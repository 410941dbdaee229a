"""Rates, gains and scores with their n and 95 % interval. Every reported figure is computed here.

Rates have Wilson intervals (1927). Paired gains, AUC and balanced accuracy have percentile bootstrap intervals over
episodes (Efron 1979); the seed is fixed, so the same data give the same interval. SciPy is imported inside functions:
the import takes over a second, and most processes of a run compute no statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from worldloop.core import resampling

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Rate:
    """``k`` successes of ``n`` with the 95 % Wilson interval. Example: 8 of 10 -> .8 (.490-.943)."""

    k: int
    n: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, outcomes: np.ndarray) -> Rate:
        """The rate of ``outcomes`` bool [n]; raises ``ValueError`` if it is empty."""
        outcomes = np.asarray(outcomes, dtype=bool)
        return cls.from_counts(int(outcomes.sum()), int(outcomes.size))

    @classmethod
    def from_counts(cls, k: int, n: int) -> Rate:
        low, high = wilson_interval(k, n)
        return cls(k, n, round(k / n, 6), round(low, 6), round(high, 6))

    @classmethod
    def pool(cls, rates: Sequence[Rate]) -> Rate:
        """The rate over the trials of all ``rates`` together."""
        return cls.from_counts(sum(rate.k for rate in rates), sum(rate.n for rate in rates))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.rate:.3f} ({self.low:.3f}-{self.high:.3f}), {self.k}/{self.n}"


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of k successes in n trials; raises ``ValueError`` unless 0 <= k <= n, n > 0."""
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"no rate from k={k}, n={n}")
    from scipy import stats

    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class PairedGain:
    """Success after minus before on the same states, in [-1, 1], with a bootstrap interval over states.

    ``p_value``: exact McNemar test, a two-sided binomial test on the states whose outcome changed; 1 if none changed.
    """

    gain: float
    low: float
    high: float
    p_value: float
    n: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """A figure over ``n`` rows with its 95 % bootstrap interval; a value or bound that is not defined is NaN.

    Example: the AUC of 50 episodes -> .943 (.910-.972).
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)

    def to_dict(self, with_n: bool = False) -> dict[str, float | None]:
        """``value``, ``low`` and ``high``, with ``None`` for NaN; also ``n`` if ``with_n``."""
        figures = {"value": self.value, "low": self.low, "high": self.high}
        return {k: None if math.isnan(x) else x for k, x in figures.items()} | ({"n": self.n} if with_n else {})

    def __str__(self) -> str:
        return f"{self.value:.3f}" + (f" ({self.low:.3f}-{self.high:.3f})" if self.has_interval else "")


@dataclass(frozen=True)
class ReliabilityBin:
    """``n`` episodes of similar predicted probability: their mean ``probability`` and their success ``rate``."""

    n: int
    probability: float
    rate: float

    def to_dict(self) -> dict[str, float]:
        return {"n": self.n, "probability": round(self.probability, 6), "rate": round(self.rate, 6)}


def paired_gain(before: np.ndarray, after: np.ndarray) -> PairedGain:
    """The gain from ``before`` to ``after``, bool [n] each, on the same states in the same order.

    Raises ``ValueError`` unless both have one shape [n] with n > 0.
    """
    from scipy import stats

    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if before.shape != after.shape or before.ndim != 1 or before.size == 0:
        raise ValueError(f"paired outcomes need one shape [n], got {before.shape} and {after.shape}")
    difference = after - before
    low, high = bootstrap_interval(mean, difference)
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    p_value = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    gain = float(difference.mean())
    return PairedGain(round(gain, 6), round(low, 6), round(high, 6), round(p_value, 6), int(difference.size))


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    clusters: np.ndarray | None = None,
) -> tuple[float, float]:
    """95 % percentile interval of ``statistic(*arrays)``, resampling rows of all arrays together.

    With ``clusters`` [n], whole clusters (e.g. states) are resampled instead of rows. Resamples whose statistic is NaN
    are left out; if that is more than half of them, the interval is (nan, nan). A statistic of `_OF_COUNTS` is computed
    for all resamples at once. Raises ``ValueError`` unless all arrays have one length > 0.
    """
    arrays = tuple(np.asarray(a) for a in arrays)
    n = len(arrays[0])
    if n == 0 or any(len(a) != n for a in arrays):
        raise ValueError("bootstrap needs arrays of one length > 0")
    rng = np.random.default_rng(seed)
    values: list[float] = []
    if of_counts := _OF_COUNTS.get(statistic):
        for counts in resampling.draw_counts(n, clusters, num_resamples, rng):
            values.extend(of_counts(counts, *arrays))
    else:
        groups = [np.flatnonzero(clusters == c) for c in np.unique(clusters)] if clusters is not None else None
        for _ in range(num_resamples):
            if groups is None:
                index = rng.integers(0, n, n)
            else:
                index = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
            values.append(statistic(*(a[index] for a in arrays)))
    defined = np.asarray(values, dtype=float)
    defined = defined[~np.isnan(defined)]
    if len(defined) < num_resamples / 2:
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_mean(values: np.ndarray, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values`` [n]: `bootstrap_interval`, but all resamples in one call."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"bootstrap needs values [n] with n > 0, got {values.shape}")
    index = np.random.default_rng(seed).integers(0, len(values), (num_resamples, len(values)))
    low, high = np.percentile(values[index].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def estimate(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    digits: int = 4,
    num_resamples: int = NUM_RESAMPLES,
    clusters: np.ndarray | None = None,
) -> Estimate:
    """``statistic(*arrays)`` over n rows with the interval of `bootstrap_interval`, rounded to ``digits``."""
    low, high = bootstrap_interval(statistic, *arrays, num_resamples=num_resamples, clusters=clusters)
    return Estimate(round(statistic(*arrays), digits), round(low, digits), round(high, digits), len(arrays[0]))


def estimate_by_label(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    values: np.ndarray,
    labels: np.ndarray,
    *,
    digits: int = 4,
    num_resamples: int = NUM_RESAMPLES,
    clusters: np.ndarray | None = None,
) -> Estimate | None:
    """`estimate` of ``statistic(values, labels)`` for bool labels [n]; ``None`` where one class is missing."""
    if labels.all() or not labels.any():
        return None
    return estimate(statistic, values, labels, digits=digits, num_resamples=num_resamples, clusters=clusters)


def estimate_mean(values: np.ndarray, digits: int = 4, num_resamples: int = NUM_RESAMPLES) -> Estimate | None:
    """Mean of the values in ``values`` [n] that are not NaN; ``None`` if all are NaN."""
    values = np.asarray(values, dtype=float)
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = bootstrap_mean(defined, num_resamples=num_resamples)
    return Estimate(round(float(defined.mean()), digits), round(low, digits), round(high, digits), len(defined))


def average_estimates(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The mean of the defined ``estimates``, with independent errors; ``None`` if all are ``None``.

    Each half-width of the interval is the root of the sum of squared half-widths, divided by their number (MOVER, Zou
    and Donner 2008, Statistics in Medicine 27, 1693-1702). If an estimate has no interval, the mean has none. ``n`` is
    the sum. If every estimate is NaN, the first is returned.
    """
    given = [estimate for estimate in estimates if estimate is not None]
    defined = [estimate for estimate in given if not math.isnan(estimate.value)]
    if len(defined) < 2:
        return defined[0] if defined else given[0] if given else None
    number = len(defined)
    value = sum(estimate.value for estimate in defined) / number
    below = math.sqrt(sum((estimate.value - estimate.low) ** 2 for estimate in defined)) / number
    above = math.sqrt(sum((estimate.high - estimate.value) ** 2 for estimate in defined)) / number
    n = sum(estimate.n for estimate in defined)
    return Estimate(round(value, 6), round(value - below, 6), round(value + above, 6), n)


def estimate_over_seeds(values: Sequence[float], digits: int = 4) -> Estimate:
    """The mean of a figure over training seeds with Student's 95 % t-interval; the interval is NaN for one seed.

    Seeds differ by more than states: a bootstrap over the states of the same seeds is too narrow.

    Example: .134, .146, .184 -> .155 (.090-.220).
    """
    from scipy import stats

    v = np.asarray(values, dtype=float)
    average, half = float(v.mean()), float("nan")
    if len(v) > 1:
        half = float(stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / math.sqrt(len(v)))
    return Estimate(round(average, digits), round(average - half, digits), round(average + half, digits), len(v))


def mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def divide_sums(above: np.ndarray, below: np.ndarray) -> float:
    """The sum of ``above`` over the sum of ``below``, [n] each."""
    return float(np.sum(above) / np.sum(below))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve (Mann-Whitney), ties counted half; NaN when one class is missing or a score is NaN."""
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    positive, negative = scores[labels], np.sort(scores[~labels])
    if len(positive) == 0 or len(negative) == 0 or np.isnan(scores).any():
        return float("nan")
    below, up_to = (np.searchsorted(negative, positive, side).sum() for side in ("left", "right"))
    return float((below + up_to) / 2 / (len(positive) * len(negative)))


def count_ordered_pairs(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ordered f [G], pairs int [G]) of the G groups: pairs of one positive and one negative row of the same group.

    A pair is ordered if the positive row has the higher score; ties count half. All arguments have shape [n].
    """
    scores, labels, groups = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool), np.asarray(groups)
    ordered, pairs = [], []
    for group in np.unique(groups):
        own = groups == group
        difference = scores[own & labels][:, None] - scores[own & ~labels][None, :]
        ordered.append(float((difference > 0).sum() + (difference == 0).sum() / 2))
        pairs.append(difference.size)
    return np.array(ordered), np.array(pairs)


def estimate_within_group_auc(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, digits: int = 4
) -> Estimate | None:
    """The share of ordered pairs, see `count_ordered_pairs`, over all groups; ``None`` without a pair.

    It is the AUC of a score that is only compared within groups. Which groups are easy does not help it. The interval
    resamples groups with a pair; ``n`` is their number.

    Example: scores [.9, .1, .2, .8], labels [1, 0, 1, 0], groups [0, 0, 1, 1] -> .5, n 2.
    """
    ordered, pairs = count_ordered_pairs(scores, labels, groups)
    has_pair = pairs > 0
    if not has_pair.any():
        return None
    return estimate(divide_sums, ordered[has_pair], pairs[has_pair], digits=digits)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation in [-1, 1]; NaN if ``x`` or ``y`` is constant."""
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return float("nan")
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic)


def balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean of true-positive and true-negative rate; NaN when one class is missing."""
    predicted, labels = np.asarray(predicted, dtype=bool), np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        return float("nan")
    return float((predicted[labels].mean() + (~predicted[~labels]).mean()) / 2)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 10) -> float:
    """ECE over equal-width bins: sum_b n_b / n |mean label - mean probability| (Guo et al. 2017, eq. 3)."""
    bins = compute_reliability(probabilities, labels, num_bins)
    return float(sum(b.n / len(labels) * abs(b.rate - b.probability) for b in bins))


def compute_reliability(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """The non-empty ones of ``num_bins`` bins of equal width, in order of probability.

    A reliability diagram (Guo et al. 2017, figure 1) plots the rate of each bin against its probability.
    """
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels, dtype=float)
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    held = [bins == b for b in range(num_bins) if (bins == b).any()]
    return tuple(
        ReliabilityBin(int(inside.sum()), float(probabilities[inside].mean()), float(labels[inside].mean()))
        for inside in held
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Platt scaling: (scale a > 0, bias b) minimising the log loss of sigmoid(a * logit + b).

    A weak penalty on the distance from (1, 0) keeps the result finite on separable data. Raises ``ValueError`` unless
    both classes occur.
    """
    from scipy import optimize

    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    if labels.min() == labels.max():
        raise ValueError("calibration needs both outcomes")

    def loss(parameters: np.ndarray) -> float:
        log_scale, bias = parameters
        z = np.exp(log_scale) * logits + bias
        return float(np.mean(np.logaddexp(0, z) - labels * z) + 1e-3 * (log_scale**2 + bias**2))

    log_scale, bias = optimize.minimize(loss, np.zeros(2), method="Nelder-Mead").x
    return float(np.exp(log_scale)), float(bias)


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold of highest balanced accuracy, midway between two scores; score >= threshold is positive.

    Raises ``ValueError`` unless both classes occur.
    """
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        raise ValueError("a threshold needs both outcomes")
    levels = np.unique(scores)
    candidates = (levels[1:] + levels[:-1]) / 2 if len(levels) > 1 else levels
    return float(max(candidates, key=lambda c: balanced_accuracy(scores >= c, labels)))


_OF_COUNTS: dict[Callable[..., float], Callable[..., np.ndarray]] = {
    mean: resampling.mean,
    divide_sums: resampling.divide_sums,
    auc: resampling.auc,
    balanced_accuracy: resampling.balanced_accuracy,
    expected_calibration_error: resampling.expected_calibration_error,
    rank_correlation: resampling.rank_correlation,
}
