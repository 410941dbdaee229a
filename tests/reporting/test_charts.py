"""The charts of the HTML report, where a run lacks something."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from worldloop.reporting.charts import draw, draw_auc, draw_calibration, draw_success
from worldloop.reporting.records import list_judged_sources


def test_a_run_of_before_the_reliability_has_no_such_chart(recwarn: pytest.WarningsRecorder) -> None:
    figures = {"auc": None, "precision_recall_curve": None}
    axes = Figure().subplots()
    assert not draw_calibration(axes, [{"iteration": 1, "reward_alignment": {"on_policy": figures}}])
    figures |= {"reliability": [{"n": 2, "probability": 0.25, "rate": 0.5}]}
    assert draw_calibration(axes, [{"iteration": 1, "reward_alignment": {"on_policy": figures}}])
    assert axes.lines[-1].get_xydata().tolist() == [[0.25, 0.5]]
    assert not recwarn


def test_the_policys_own_source_comes_last_and_reasons_are_no_source() -> None:
    alignment = {"on_policy": {"n": 3}, "recorded": None, "recorded_reason": "none", "scripted": {"n": 5}}
    assert list_judged_sources({"reward_alignment": alignment}) == [("scripted", {"n": 5}), ("on_policy", {"n": 3})]
    assert list_judged_sources({"reward_alignment": None}) == []


def test_a_bound_that_is_null_is_not_drawn() -> None:
    """Two iterations, of which the first has too few episodes for an interval."""
    records = [
        {"iteration": 1, "reward_alignment": {"on_policy": {"auc": {"value": 0.5, "low": None, "high": None}}}},
        {"iteration": 2, "reward_alignment": {"on_policy": {"auc": {"value": 0.8, "low": 0.7, "high": 0.9}}}},
    ]
    axes = Figure().subplots()
    assert draw_auc(axes, records)
    ((_, _, (bars,)),) = axes.containers
    assert np.isnan(bars.get_segments()[0]).any() or len(bars.get_segments()[0]) == 0
    assert bars.get_segments()[1].tolist() == [[2.0, pytest.approx(0.7)], [2.0, pytest.approx(0.9)]]


def test_nothing_to_draw_is_no_picture() -> None:
    assert draw(draw_success, [{"iteration": 0}]) == ""
