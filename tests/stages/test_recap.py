"""RECAP in the loop: fit_value, check_value, label_advantages and improve_policy.method=recap on a debug run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reporters import RecordingReporter

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import AdvantageConditionedPolicy
from worldloop.loop.run import make_context
from worldloop.loop.schedule import list_stages
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.sans.advantages import read_labels
from worldloop.stages import STAGES
from worldloop.stages.context import StageContext
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
RECAP = ["improve_policy.method=recap", "fit_value.num_steps=20", "improve_policy.num_imitation_steps=20"]
VALUE_STAGES = ("fit_value", "check_value", "label_advantages")


class Recap:
    """A copy of the debug run in which the stages of RECAP run one by one."""

    def __init__(self, run: Path) -> None:
        self.run_dir = run
        stored = RunDirectory(run).read_state()
        self.state = replace(stored, iteration=1, dataset="v001", candidates=(), start="", newest="")
        self.reporter = RecordingReporter()

    def run(self, name: str, *overrides: str) -> tuple[LoopState, StageContext]:
        config = load_config(DEBUG, [*RECAP, *overrides])
        runtime = InlineRuntime(0, 0, SilentDisplay())
        context = replace(make_context(name, config, self.run_dir, runtime, SilentDisplay()), reporter=self.reporter)
        stage: Any = STAGES[name]
        self.state = stage.run(self.state, config.section(stage.Config), context)
        return self.state, context


@pytest.fixture
def recap(debug_run: Path, tmp_path: Path) -> Recap:
    copy = tmp_path / "debug"
    shutil.copytree(debug_run, copy, ignore=shutil.ignore_patterns(".lock"))
    return Recap(copy)


def test_recap_has_stages_of_its_own_and_needs_no_world_model() -> None:
    assert list_stages(load_config(DEBUG, RECAP), 1) == (
        *VALUE_STAGES,
        "improve_policy",
        "promote_policy",
        "evaluate_policy",
        "collect_episodes",
    )
    assert not set(VALUE_STAGES) & set(list_stages(load_config(DEBUG), 1))
    assert not set(VALUE_STAGES) & set(list_stages(load_config(DEBUG, RECAP), 0))


def test_the_stages_fit_judge_label_and_train(recap: Recap) -> None:
    state, context = recap.run("fit_value")
    assert state.critics == ("checkpoints/iteration_001/critic_0", "checkpoints/iteration_001/critic_1")
    first, second = (context.models.load_critic(path).state_dict() for path in state.critics)
    assert any(not np.array_equal(first[name], second[name]) for name in first), "each learns from other episodes"

    state, _ = recap.run("check_value")
    judged = state.records[1]["value_check"]
    assert set(judged) == {"scripted", "on_policy"}
    assert 0 <= judged["scripted"]["auc"]["0.50"]["value"] <= 1

    state, context = recap.run("label_advantages", "label_advantages.positive_share=0.3")
    version = context.store.version("v001")
    labels = read_labels(recap.run_dir / state.labels, version.fingerprint)
    cache = context.store.open_cache(version)
    task = next(iter(labels.thresholds))
    split = np.repeat([meta.split for meta in cache.metas], cache.num_steps)
    is_open = cache.all_steps("valid").any(axis=1)
    assert np.array_equal(np.isnan(labels.advantage), (split == "validation") | ~is_open), "after a success nothing is"
    own = (split == "train") & is_open & np.repeat([meta.source == "policy" for meta in cache.metas], cache.num_steps)
    assert labels.is_good[own].mean() == pytest.approx(0.3, abs=0.05)
    assert np.array_equal(labels.is_good[own], labels.advantage[own] > labels.thresholds[task])
    assert labels.settings["num_frames"] == 10, "20 environment steps, two a frame"

    state, context = recap.run("improve_policy", "improve_policy.guidance=1.5")
    assert state.candidates == (state.newest,) == ("checkpoints/iteration_001/policy",)
    policy = context.models.load_policy(state.newest)
    assert isinstance(policy, AdvantageConditionedPolicy)
    assert policy.guidance == 1.5


def test_labels_of_another_version_are_refused(recap: Recap) -> None:
    for name in ("fit_value", "label_advantages"):
        recap.run(name)
    recap.state = replace(recap.state, dataset="v000")
    with pytest.raises(WorldloopError, match=r"iteration_001.*version"):
        recap.run("improve_policy")


def test_a_missing_critic_is_one_clear_error(recap: Recap) -> None:
    recap.state = replace(recap.state, critics=("checkpoints/iteration_001/critic_0",))
    with pytest.raises(WorldloopError, match="critic_0 does not exist"):
        recap.run("check_value")


def test_a_wrong_target_is_named() -> None:
    with pytest.raises(WorldloopError, match=r"fit_value\.target.*'returns'.*recap, progress"):
        load_config(DEBUG, [*RECAP, "fit_value.target=returns"])
