"""RECAP in the loop: fit_value, check_value, label_advantages and improve_policy.method=recap on a debug run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reporters import RecordingReporter

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import AdvantageConditionedPolicy
from worldloop.evaluation import episode_values
from worldloop.factory.checkpoints import load_critic
from worldloop.loop.run import make_context
from worldloop.loop.schedule import list_stages
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.sans.advantages import read_labels
from worldloop.sans.store import SansStore
from worldloop.stages import STAGES, label_advantages
from worldloop.stages.context import StageContext
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
RECAP = ["improve_policy.method=recap", "fit_value.num_steps=10", "improve_policy.num_recap_steps=20"]
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


@pytest.fixture(scope="module")
def recap(debug_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Recap:
    """The debug run after `fit_value`, `check_value` and `label_advantages`, which labels 30 % of the steps as good."""
    copy = tmp_path_factory.mktemp("recap") / "debug"
    shutil.copytree(debug_run, copy, ignore=shutil.ignore_patterns(".lock"))
    recap = Recap(copy)
    for name in VALUE_STAGES:
        recap.run(name, "label_advantages.positive_share=0.3")
    return recap


@pytest.fixture
def fork(recap: Recap) -> Iterator[Recap]:
    """``recap``, whose state a test may change."""
    state = recap.state
    yield recap
    recap.state = state


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


def test_each_critic_learns_from_other_episodes_and_is_judged_by_source(recap: Recap) -> None:
    assert recap.state.critics == ("checkpoints/iteration_001/critic_0", "checkpoints/iteration_001/critic_1")
    first, second = (load_critic(recap.run_dir / path).state_dict() for path in recap.state.critics)
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    judged = recap.state.records[1]["value_check"]
    assert set(judged) == {"scripted", "on_policy"}
    assert 0 <= judged["scripted"]["auc"]["0.50"]["value"] <= 1


def test_all_training_steps_before_a_success_are_labelled(recap: Recap) -> None:
    store = SansStore(recap.run_dir / "sans")
    version = store.version("v001")
    labels, cache = read_labels(recap.run_dir / recap.state.labels, version.fingerprint), store.open_cache(version)
    split = np.repeat([meta.split for meta in cache.metas], cache.num_steps)
    is_open = cache.all_steps("valid").any(axis=1)
    assert np.array_equal(np.isnan(labels.advantage), (split == "validation") | ~is_open)
    own = (split == "train") & is_open & np.repeat([meta.source == "policy" for meta in cache.metas], cache.num_steps)
    assert labels.is_good[own].mean() == pytest.approx(0.3, abs=0.05)
    (threshold,) = labels.thresholds.values()
    assert np.array_equal(labels.is_good[own], labels.advantage[own] > threshold)
    assert labels.settings["num_frames"] == 10, "20 environment steps, two a frame"


def test_the_policy_acts_with_the_guidance_of_the_config(fork: Recap) -> None:
    state, context = fork.run("improve_policy", "improve_policy.guidance=1.5")
    assert state.candidates == (state.newest,) == ("checkpoints/iteration_001/policy",)
    policy = context.models.load_policy(state.newest)
    assert isinstance(policy, AdvantageConditionedPolicy)
    assert policy.guidance == 1.5


def test_labels_of_another_version_are_refused(fork: Recap) -> None:
    fork.state = replace(fork.state, dataset="v000", iteration=7)
    with pytest.raises(WorldloopError, match=r"iteration_001.*version"):
        fork.run("improve_policy")


def test_labels_of_other_critics_are_refused(fork: Recap) -> None:
    fork.state = replace(fork.state, critics=fork.state.critics[::-1], iteration=7)
    with pytest.raises(WorldloopError, match=r"labels/iteration_001 are of other critics"):
        fork.run("improve_policy")


def test_thresholds_are_by_task_and_the_policys_own(recap: Recap) -> None:
    """Two tasks: of one the policy has frames, of the other it has none, and all frames count."""
    task, source = np.array(["a", "a", "a", "a", "b", "b"]), np.array(["policy", "policy", "expert", "expert"] * 2)[:6]
    source[4:] = "expert"
    frames: Any = SimpleNamespace(task=task, source=source)
    advantages = np.array([1.0, 2.0, 8.0, 9.0, 5.0, 7.0], dtype=np.float32)
    assert label_advantages.choose_thresholds(frames, advantages, 0.5) == {"a": 1.0, "b": 5.0}


def test_too_few_states_for_the_folds_is_one_clear_error(fork: Recap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_values, "choose_fold", lambda *_: 0)
    with pytest.raises(WorldloopError, match=r"fold 0 has all of the \d+ training episodes.*more initial states"):
        fork.run("fit_value")


def test_a_missing_critic_is_one_clear_error(fork: Recap) -> None:
    fork.state = replace(fork.state, critics=("checkpoints/iteration_001/critic_9",))
    with pytest.raises(WorldloopError, match="critic_9 does not exist"):
        fork.run("check_value")


def test_a_wrong_target_is_named() -> None:
    with pytest.raises(WorldloopError, match=r"fit_value\.target.*'returns'.*recap, progress"):
        load_config(DEBUG, [*RECAP, "fit_value.target=returns"])
