"""What is replayed between the rounds of an improvement, and what follows from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reporters import RecordingReporter

from worldloop.config.loading import load_config
from worldloop.core.success import Calibration, Calibrations, Trust
from worldloop.evaluation.replayed_rollouts import ReplayedRollouts
from worldloop.loop.run import make_context
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import check_closed_loop
from worldloop.stages.context import StageContext
from worldloop.storage.card import read_card
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
TASK = "ToyPush-v1"
IMITATION = "checkpoints/iteration_001/policy_of_successes"
LONG = "improve_policy.imagination_horizon=10"  # long enough for successes


@pytest.fixture
def run(debug_run: Path, tmp_path: Path) -> Any:
    """``run(*overrides, **changes of the state)`` in a copy of the debug run: (state, context)."""
    copy = tmp_path / "debug"
    shutil.copytree(debug_run, copy, ignore=shutil.ignore_patterns(".lock"))
    for path in (*copy.glob("sans/shards/001-replay-*"), *copy.glob("sans/versions/v001-*")):  # of its own checks
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stored = RunDirectory(copy).read_state()
    calibrations = Calibrations({TASK: Calibration(threshold=0.5)})

    def run(*overrides: str, **changes: Any) -> tuple[LoopState, StageContext]:
        config = load_config(DEBUG, [LONG, *overrides])
        context = make_context("check_closed_loop", config, copy, InlineRuntime(0, 0, SilentDisplay()), SilentDisplay())
        context = replace(context, reporter=RecordingReporter())
        state = replace(
            stored, iteration=1, dataset="v001", newest=IMITATION, start=IMITATION, num_rounds=1,
            calibrations=calibrations, trust={TASK: Trust(True)}, records=stored.records[:1],
        )  # fmt: skip
        state = replace(state, **changes)
        return check_closed_loop.run(state, config.section(check_closed_loop.Config), context), context

    return run


def test_replays_from_training_states_enter_the_dataset_and_held_out_ones_do_not(run: Any) -> None:
    state, context = run("check_closed_loop.num_states=5", "check_closed_loop.num_training_states=3")
    before, after = (context.store.metas(context.store.version(name)) for name in ("v001", state.dataset))
    new = after[len(before) :]
    assert state.dataset == "v001-1"
    assert len(new) == 3 * (1 + 4)
    assert [meta.variant for meta in new] == ["policy"] * 3 + ["replay"] * 12
    assert {(meta.split, meta.source, meta.iteration) for meta in new} == {("train", "policy", 1)}
    assert len({meta.initial_state_id for meta in new}) == 3
    assert not {meta.initial_state_id for meta in new} & {meta.initial_state_id for meta in before}
    (checked,) = state.records[1]["closed_loop"]["checkpoints"]
    assert (checked["n"], checked["num_starts"], checked["checkpoint"]) == (20, 5, IMITATION)


def test_without_training_states_nothing_enters_the_dataset_and_no_threshold_moves(run: Any) -> None:
    state, _ = run("check_closed_loop.num_training_states=0")
    assert state.dataset == "v001"
    assert state.calibrations.of(TASK).threshold == 0.5


def test_each_round_has_states_of_its_own_and_the_same_ones_when_it_is_repeated(run: Any) -> None:
    drawn = []
    for num_rounds in (0, 1, 1):
        state, context = run("check_closed_loop.num_states=2", num_rounds=num_rounds)
        drawn.append([meta.initial_state_id for meta in context.store.metas(context.store.version(state.dataset))][-4:])
    assert drawn[1] == drawn[2]
    assert not set(drawn[0]) & set(drawn[1])


def test_what_the_check_finds_is_recorded_logged_and_drawn(run: Any) -> None:
    state, context = run()
    record = state.records[1]["closed_loop"]
    assert record["last_candidate"] == {k: v for k, v in record["checkpoints"][0].items() if k != "checkpoint"}
    json.dumps(record, allow_nan=False)
    lines = context.reporter.lines
    assert lines[0].startswith("closed loop, policy_of_successes: AUC within groups ")
    card = read_card(context.models.run_dir / state.world_model)
    assert card.closed_loop == record["checkpoints"][0]
    assert card.calibrations == state.calibrations, "an environment declares successes by the same threshold"
    assert lines[1].startswith("closed loop, policy_of_successes: success own ")
    (curve,) = [curves for name, curves in context.reporter.curves.items() if name == "check_closed_loop"]
    assert list(curve) == [2], "updates so far: half of the debug loop's four"
    assert curve[2]["check_closed_loop/declared"] == record["last_candidate"]["declared"]["value"]


def test_the_swap_test_takes_apart_what_imagined_pictures_cost(run: Any) -> None:
    state, context = run("check_closed_loop.num_states=3", "check_closed_loop.swap_test=true")
    (checked,) = state.records[1]["closed_loop"]["checkpoints"]
    assert list(checked["swapped_minus_own"]) == ["base_camera", "proprio"]
    for loss in checked["swapped_minus_own"].values():
        assert -1 <= loss["value"] <= 1
    assert "success with a part imagined, minus own: base_camera" in context.reporter.lines[2]
    plain, _ = run("check_closed_loop.num_states=3")
    (without,) = plain.records[1]["closed_loop"]["checkpoints"]
    assert "swapped_minus_own" not in without
    assert {name: checked[name] for name in without} == without, "nothing else changes"


def test_before_grpo_there_is_no_candidate_and_a_later_check_adds_one(run: Any) -> None:
    state, _ = run(num_rounds=0)
    assert state.records[1]["closed_loop"]["last_candidate"] is None
    assert state.records[1]["closed_loop"]["last_candidate_reason"] == "no round has made a candidate"
    later, _ = run(num_rounds=1, newest="checkpoints/iteration_001/policy_after_002", records=state.records)
    record = later.records[1]["closed_loop"]
    assert [entry["checkpoint"] for entry in record["checkpoints"]] == [
        IMITATION, "checkpoints/iteration_001/policy_after_002",
    ]  # fmt: skip
    assert record["last_candidate"]["n"] == 32


def test_a_model_whose_imagination_says_nothing_about_the_outcome_loses_its_trust(run: Any) -> None:
    state, context = run("check_closed_loop.required_auc=1.0")
    (reason,) = {trust.reason for trust in state.trust.values()}
    assert not state.trust[TASK].is_trusted
    assert "in the closed loop" in reason or "closed-loop AUC within groups" in reason
    assert state.records[1]["improvement_skipped"] == reason
    assert context.reporter.lines[-1] == f"no further round, the policy stays: {reason}"


def test_a_task_that_the_open_loop_refused_stays_refused(run: Any) -> None:
    refused = {TASK: Trust(False, "AUC too low")}
    state, _ = run(trust=refused)
    assert state.trust == refused


def test_thresholds_are_chosen_task_by_task() -> None:
    rollouts = ReplayedRollouts(
        task=("push",) * 4 + ("pull",) * 2 + ("lift",),
        start=np.arange(7),
        score=np.array([0.3, 0.6, 0.7, 0.9, 0.8, 0.4, 0.9])[:, None],
        replayed=np.array([0, 0, 1, 1, 0, 1, 1], dtype=bool)[:, None],
        own=np.zeros(7, dtype=bool),
    )
    before = Calibrations({"push": Calibration(scale=2.0, threshold=0.25), "lift": Calibration(threshold=0.3)})
    chosen = check_closed_loop.choose_thresholds(rollouts, before, 0.05)
    assert chosen.of("push").threshold == pytest.approx(0.6, abs=1e-6)
    assert chosen.of("push").scale == 2.0
    assert chosen.of("pull").threshold == pytest.approx(0.8, abs=1e-6)
    assert chosen.of("lift").threshold == 0.2, "no replay failed"
    matched = check_closed_loop.choose_thresholds(rollouts, before, 1.0)
    assert matched.of("push").threshold == pytest.approx(0.6, abs=1e-6), "two of four"
    assert matched.of("pull").threshold == pytest.approx(0.4, abs=1e-6), "one of two"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_states": -1}, "num_states and check_closed_loop.num_training_states must be >= 0"),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"required_auc": 1.5}, "required_auc is 1.5"),
        ({"max_false_positive_rate": -0.1}, "max_false_positive_rate is -0.1"),
    ],
)
def test_the_config_names_the_bad_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_closed_loop.Config(**changes)
