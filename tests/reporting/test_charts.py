"""The charts of the HTML report, where a run lacks something."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from worldloop.core.statistics import Rate
from worldloop.reporting.charts import (
    draw,
    draw_auc,
    draw_auc_by_task,
    draw_calibration,
    draw_horizon,
    draw_precision_recall,
    draw_success,
    draw_success_by_task,
)
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


@pytest.mark.parametrize("auc", [0.0, 0.6, 1.0])
def test_every_auc_is_inside_its_chart(auc: float) -> None:
    axes = Figure().subplots()
    bounds = {"value": auc, "low": max(0.0, auc - 0.2), "high": auc}
    assert draw_auc(axes, [{"iteration": 1, "reward_alignment": {"on_policy": {"auc": bounds}}}])
    bottom, top = axes.get_ylim()
    assert bottom < min(0.5, bounds["low"])
    assert top > 1.0


@pytest.mark.parametrize("draw_chart", [draw_auc, draw_precision_recall, draw_calibration, draw_horizon])
def test_a_run_without_a_world_model_has_no_charts_of_one(draw_chart: Any, recwarn: pytest.WarningsRecorder) -> None:
    assert not draw_chart(Figure().subplots(), [{"iteration": 0}, {"iteration": 1}])
    assert not recwarn


def test_nothing_to_draw_is_no_picture() -> None:
    assert draw(draw_success, [{"iteration": 0}]) == ""


def _auc(value: float) -> dict[str, object]:
    return {"on_policy": {"n": 9, "auc": {"value": value, "low": value, "high": value}}, "scripted": {"auc": None}}


def test_each_of_several_tasks_has_a_line(recwarn: pytest.WarningsRecorder) -> None:
    """Pull was not judged in the first iteration."""
    push, pull = ({"simulated_success": Rate.from_counts(k, 4).to_dict()} for k in (1, 2))
    records = [
        {"iteration": 0, "tasks": {"push": push, "pull": pull}, "reward_alignment": _auc(0.7)},
        {
            "iteration": 1,
            "tasks": {
                "push": push | {"reward_alignment": _auc(0.9)},
                "pull": pull | {"reward_alignment": {"on_policy": None}},
            },
            "reward_alignment": _auc(0.9),
        },
    ]
    axes = Figure().subplots()
    assert draw_success_by_task(axes, records)
    assert [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2][:1] == [
        [[0, 0.25], [1, 0.25]]
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["push", "pull"]
    axes = Figure().subplots()
    assert draw_auc_by_task(axes, records)
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 0.9]]
    assert axes.get_ylabel() == "AUC of the success head, on_policy"
    alone = [{"iteration": 0, "simulated_success": push["simulated_success"], "reward_alignment": _auc(0.7)}]
    assert draw(draw_success_by_task, alone) == draw(draw_auc_by_task, alone) == ""
    assert not [warning for warning in recwarn if warning.category is UserWarning], "no legend without a line"
