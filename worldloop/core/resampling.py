"""Statistics of all bootstrap resamples at once: what `core/statistics` computes one resample after the other.

A resample of n rows is told by how often it has each row: counts int [R, n] of R resamples. A statistic of counts takes
them and the rows' arrays [n] and returns f64 [R], NaN where the statistic is not defined.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MAX_NUMBERS = 2**20  # of counts that are held at once: 8 MiB


def draw_counts(
    num_rows: int, clusters: np.ndarray | None, num_resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Counts int [r, ``num_rows``] of some resamples at a time; with ``clusters`` [n] a cluster comes as a whole."""
    cluster_of_row = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
    num_units = num_rows if cluster_of_row is None else int(cluster_of_row.max()) + 1
    at_once = max(1, MAX_NUMBERS // num_rows)
    for first in range(0, num_resamples, at_once):
        num = min(at_once, num_resamples - first)
        drawn = rng.integers(0, num_units, (num, num_units)) + num_units * np.arange(num)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num * num_units).reshape(num, num_units)
        yield counts if cluster_of_row is None else counts[:, cluster_of_row]


def mean(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.asarray(counts @ values / counts.sum(axis=1))


def divide_sums(counts: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((counts @ above) / (counts @ below))


def auc(counts: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    positive, negative = (_count_levels(counts * of_class, scores)[0] for of_class in (labels, ~labels))
    below = negative.cumsum(axis=1) - negative
    with np.errstate(invalid="ignore"):
        areas = (positive * (2 * below + negative)).sum(axis=1) / 2 / (positive.sum(axis=1) * negative.sum(axis=1))
    areas[counts[:, np.isnan(scores)].any(axis=1)] = np.nan
    return np.asarray(areas)


def balanced_accuracy(counts: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    predicted, labels = np.asarray(predicted, dtype=bool), np.asarray(labels, dtype=bool)
    with np.errstate(invalid="ignore"):
        found, refused = (
            counts[:, of_class & (predicted == labels)].sum(axis=1) / counts[:, of_class].sum(axis=1)
            for of_class in (labels, ~labels)
        )
    return np.asarray((found + refused) / 2)


def expected_calibration_error(
    counts: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 10
) -> np.ndarray:
    """A bin of n_b rows adds n_b / n |mean label - mean probability|, so 1 / n times the sum of their differences."""
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels, dtype=float)
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    differences = np.where(bins[:, None] == np.arange(num_bins), (labels - probabilities)[:, None], 0.0)
    return np.asarray(np.abs(counts @ differences).sum(axis=1) / counts.sum(axis=1))


def rank_correlation(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=1, keepdims=True)
    deviations = []
    for values in (x, y):
        held, level_of_row = _count_levels(counts, values)
        ranks = (held.cumsum(axis=1) - (held - 1) / 2)[:, level_of_row]  # equal values share their mean rank
        deviations.append(ranks - (counts * ranks).sum(axis=1, keepdims=True) / total)
    of_x, of_y = deviations
    with np.errstate(invalid="ignore"):
        scale = np.sqrt((counts * of_x**2).sum(axis=1) * (counts * of_y**2).sum(axis=1))
        correlation = np.where(scale > 0, (counts * of_x * of_y).sum(axis=1) / scale, np.nan)
    correlation[counts[:, np.isnan(x) | np.isnan(y)].any(axis=1)] = np.nan
    return correlation


def _count_levels(counts: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(counts int [R, L] of the L different ``values``, lowest first; the level [n] of each row)."""
    order = np.argsort(values, kind="stable")
    is_next = np.diff(values[order]) != 0
    level_of_row = np.empty(len(values), dtype=int)
    level_of_row[order] = np.concatenate([[0], is_next.cumsum()])
    starts = np.concatenate([[0], np.flatnonzero(is_next) + 1])
    return np.add.reduceat(counts[:, order], starts, axis=1), level_of_row
