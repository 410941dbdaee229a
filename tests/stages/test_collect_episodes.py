"""Whose episodes come back into SANS."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reporters import RecordingReporter

from worldloop.config.loading import load_config
from worldloop.loop.run import make_context
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import collect_episodes
from worldloop.stages.context import StageContext
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
REJECTED = "checkpoints/iteration_001/policy_after_004"


@pytest.fixture
def run(debug_run: Path, tmp_path: Path) -> Any:
    """``run(*overrides, rejected=...)`` after iteration 1 of a copy of the debug run: (state, context)."""
    copy = tmp_path / "debug"
    shutil.copytree(debug_run, copy, ignore=shutil.ignore_patterns(".lock"))

    def run(*overrides: str, rejected: str) -> tuple[LoopState, StageContext]:
        config = load_config(DEBUG, overrides)
        context = make_context("collect_episodes", config, copy, InlineRuntime(0, 0, SilentDisplay()), SilentDisplay())
        context = replace(context, reporter=RecordingReporter())
        state = replace(RunDirectory(copy).read_state(), iteration=1, rejected=rejected)
        return collect_episodes.run(state, config.section(collect_episodes.Config), context), context

    return run


def list_new(state: LoopState, context: StageContext) -> list[Any]:
    return context.store.metas(context.store.version(state.dataset))[-40:]


def test_a_quarter_of_the_episodes_are_the_rejected_candidates(run: Any) -> None:
    state, context = run(rejected=REJECTED)
    new = list_new(state, context)
    assert Counter(meta.variant for meta in new) == {"policy": 30, "rejected": 10}
    assert {meta.source for meta in new} == {"policy"}
    rejected = [meta for meta in new if meta.variant == "rejected"]
    assert {meta.split for meta in rejected} == {"train"}, "they say nothing about the present policy"
    assert len({meta.policy_version for meta in new}) == 2
    fresh = [meta.initial_state_id for meta in new[:20] + new[30:]]  # those between are of uncertain known states
    before = {meta.initial_state_id for meta in context.store.metas(context.store.version(state.dataset))[:-40]}
    assert len(set(fresh)) == 30
    assert not set(fresh) & before
    assert state.records[1]["num_rejected_episodes"] == 10
    assert sum(state.records[1]["collected_episodes"].values()) == 40
    assert [line.split(":")[0] for line in context.reporter.lines] == [
        "30 policy episodes", "10 rejected candidate's episodes",
    ]  # fmt: skip


@pytest.mark.parametrize(("overrides", "rejected"), [((), ""), (("collect_episodes.rejected_share=0",), REJECTED)])
def test_without_one_or_without_a_share_all_are_the_policys(
    run: Any, overrides: tuple[str, ...], rejected: str
) -> None:
    state, context = run(*overrides, rejected=rejected)
    assert {meta.variant for meta in list_new(state, context)} == {"policy"}
    assert state.records[1]["num_rejected_episodes"] == 0


def test_noisy_replays_start_where_training_episodes_of_the_policy_start(run: Any) -> None:
    state, context = run("collect_episodes.num_noisy_replays=24", rejected=REJECTED)
    metas = context.store.metas(context.store.version(state.dataset))
    own, noisy = metas[-64:-24], metas[-24:]
    assert {(meta.source, meta.variant, meta.split) for meta in noisy} == {("perturbed", "noisy_replay", "train")}
    trained = {m.initial_state_id for m in own if (m.variant, m.split) == ("policy", "train")}
    assert {meta.initial_state_id for meta in noisy} <= trained
    assert len({meta.initial_state_id for meta in noisy}) == min(24, len(trained))
    assert state.records[1]["num_noisy_replays"] == 24
    assert sum(state.records[1]["collected_episodes"].values()) == 40, "those of the policy alone"
    assert context.reporter.lines[-1].startswith("24 noisy replays: ")
    cache = context.open_cache(state.dataset)
    new = [cache.episode(i) for i in range(len(cache) - 64, len(cache))]
    before = RunDirectory(context.models.run_dir).read_state().env_steps
    assert state.env_steps - before == sum(episode.num_env_steps for episode in new)


def test_the_shares_must_leave_room_for_the_policy() -> None:
    with pytest.raises(ValueError, match=r"rejected_share must be in \[0, 1\) and at most 1 - uncertain_share"):
        collect_episodes.Config(rejected_share=0.6, uncertain_share=0.5)
