"""Figures of each task, and over all of them."""

import json
from collections.abc import Collection

import numpy as np
import pytest

from worldloop.core.statistics import Rate
from worldloop.evaluation.by_task import ByTask, find_worst, group_outcomes, measure_by_task, pool_outcomes


def test_outcomes_are_grouped_and_pooled_in_the_order_of_ids() -> None:
    outcomes = group_outcomes(np.array([True, False, False, True]), ["push", "pull", "push", "pull"])
    assert outcomes == {"push": (True, False), "pull": (False, True)}
    pooled = pool_outcomes(outcomes, outcomes)
    assert pooled.tolist() == [False, True, True, False]
    stored = json.loads(json.dumps(outcomes, sort_keys=True))
    assert pool_outcomes(stored, stored).tolist() == pooled.tolist()
    assert pool_outcomes(outcomes, ["push"]).tolist() == [True, False]


def test_tasks_of_unequal_numbers_of_states_are_not_pooled() -> None:
    with pytest.raises(ValueError, match="'pull': 1, 'push': 2"):
        pool_outcomes({"push": (True, False), "pull": (True,)}, ["push", "pull"])


def test_with_one_task_the_record_has_its_figures_alone() -> None:
    outcomes = {"push": (True, False), "pull": (True, True)}

    def measure(tasks: Collection[str]) -> Rate:
        return Rate.of(pool_outcomes(outcomes, tasks))

    one = measure_by_task(measure, ["push"])
    assert one.to_record() == Rate.from_counts(1, 2).to_dict()
    both = measure_by_task(measure, outcomes)
    assert both == ByTask(Rate.from_counts(3, 4), {"push": Rate.from_counts(1, 2), "pull": Rate.from_counts(2, 2)})
    record = both.to_record()
    assert (record["k"], record["n"]) == (3, 4)
    assert {task: figures["k"] for task, figures in record["tasks"].items()} == {"push": 1, "pull": 2}


def test_the_worst_task_is_named_where_there_is_one() -> None:
    assert find_worst({"push": 0.9, "pull": 0.2, "lift": None}) == "pull"
    assert find_worst({"push": 0.9, "pull": 0.9}) is None
    assert find_worst({"push": 0.9, "pull": None}) is None
    assert find_worst({}) is None
