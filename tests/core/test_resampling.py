"""Statistics of all resamples at once are those of one resample after the other."""

from collections.abc import Callable

import numpy as np
import pytest

from worldloop.core import resampling, statistics

N = 60


def make_rows(seed: int) -> dict[str, np.ndarray]:
    """Scores with ties, labels of both classes, and what the statistics make of them."""
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=N).round(1), rng.random(N) < 0.2
    probabilities = 1 / (1 + np.exp(-scores))
    other = scores + rng.normal(size=N).round(1)
    return {"scores": scores, "labels": labels, "probabilities": probabilities, "said": scores > 0, "other": other}


ARGUMENTS = {
    "mean": ("scores",),
    "divide_sums": ("labels", "probabilities"),
    "auc": ("scores", "labels"),
    "balanced_accuracy": ("said", "labels"),
    "expected_calibration_error": ("probabilities", "labels"),
    "rank_correlation": ("scores", "other"),
}


def count(drawn: np.ndarray, num_rows: int = N) -> np.ndarray:
    return np.stack([np.bincount(index, minlength=num_rows) for index in drawn])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("num_drawn", [3, N], ids=["few, of one class at times", "as many"])
def test_all_resamples_at_once_are_each_by_itself(name: str, num_drawn: int) -> None:
    rows = make_rows(1)
    arrays = [rows[argument] for argument in ARGUMENTS[name]]
    drawn = np.random.default_rng(2).integers(0, N, (50, num_drawn))
    one_by_one = [getattr(statistics, name)(*(array[index] for array in arrays)) for index in drawn]
    at_once = getattr(resampling, name)(count(drawn), *arrays)
    assert at_once == pytest.approx(one_by_one, abs=1e-12, nan_ok=True)
    assert not np.isnan(at_once).all()


@pytest.mark.parametrize("name", ["auc", "rank_correlation"])
def test_a_resample_with_a_score_that_is_nan_is_not_defined(name: str) -> None:
    scores, labels = np.array([0.3, np.nan, 0.1, 0.2]), np.array([True, True, False, False])
    counts = np.array([[1, 1, 1, 1], [2, 0, 1, 1]])
    without, defined = getattr(resampling, name)(counts, scores, labels)
    assert np.isnan(without)
    index = [0, 0, 2, 3]
    assert defined == pytest.approx(getattr(statistics, name)(scores[index], labels[index]))


@pytest.mark.parametrize("clusters", [None, np.arange(N) // 7], ids=["rows", "clusters"])
@pytest.mark.parametrize("statistic", [statistics.auc, statistics.mean])
def test_an_interval_does_not_tell_how_it_was_computed(
    statistic: Callable[..., float], clusters: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(3)
    arrays = (rows["scores"], rows["labels"])[: 2 if statistic is statistics.auc else 1]
    monkeypatch.setattr(resampling, "MAX_NUMBERS", 7 * N)  # so that there are several parts, the last one smaller

    def one_by_one(*resampled: np.ndarray) -> float:
        return statistic(*resampled)

    slow, fast = (
        statistics.bootstrap_interval(function, *arrays, num_resamples=100, clusters=clusters)
        for function in (one_by_one, statistic)
    )
    assert fast == pytest.approx(slow, abs=1e-12)
