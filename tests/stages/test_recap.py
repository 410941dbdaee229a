"""RECAP in the loop: fit_value, check_value, label_advantages and improve_policy.method=recap on a debug run.

Critics of every kind, also those that GRPO asks for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reporters import Bar, RecordingReporter

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import AdvantageConditionedPolicy
from worldloop.core.success import Trust
from worldloop.evaluation import episode_values
from worldloop.factory.checkpoints import load_critic, load_world_model
from worldloop.loop.run import make_context
from worldloop.loop.schedule import list_stages
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.sans.advantages import AdvantageLabels, read_labels
from worldloop.sans.cache import VersionCache
from worldloop.sans.store import SansStore
from worldloop.stages import STAGES, improve_policy, label_advantages
from worldloop.stages.context import StageContext
from worldloop.stages.improvement.recap import imagine_chunks
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState
from worldloop.value.config import KINDS
from worldloop.value.critic import Critic
from worldloop.value.success_critic import SuccessCritic
from worldloop.value.viva import VivaCritic

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
RECAP = ["improve_policy.method=recap", "fit_value.num_steps=10", "improve_policy.num_recap_steps=20"]
VALUE_STAGES = ("fit_value", "check_value", "label_advantages")
POLICY_STAGES = ("improve_policy", "promote_policy", "evaluate_policy", "collect_episodes")
VIVA = ["value.kind=viva", "fit_value.num_steps=4", "fit_value.batch_size=8"]


class Recap:
    """A copy of the debug run in which the stages of RECAP run one by one."""

    def __init__(self, run: Path, *overrides: str) -> None:
        self.run_dir, self.overrides = run, overrides
        stored = RunDirectory(run).read_state()
        self.state = replace(stored, iteration=1, dataset="v001", critics=(), candidates=(), start="", newest="")
        self.reporter = RecordingReporter()

    def run(self, name: str, *overrides: str) -> tuple[LoopState, StageContext]:
        config = load_config(DEBUG, [*RECAP, *self.overrides, *overrides])
        runtime = InlineRuntime(0, 0, SilentDisplay())
        context = replace(make_context(name, config, self.run_dir, runtime, SilentDisplay()), reporter=self.reporter)
        stage: Any = STAGES[name]
        self.state = stage.run(self.state, config.section(stage.Config), context)
        return self.state, context


def copy_run(run: Path, to: Path) -> Path:
    """A copy of the debug ``run`` in the folder ``to``, without the critics that GRPO had."""
    return shutil.copytree(run, to / "debug", ignore=shutil.ignore_patterns(".lock", "critic_*"))


@pytest.fixture(scope="module")
def recap(debug_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Recap:
    """The debug run after `fit_value`, `check_value` and `label_advantages`, which labels 30 % of the steps as good."""
    recap = Recap(copy_run(debug_run, tmp_path_factory.mktemp("recap")))
    for name in VALUE_STAGES:
        recap.run(name, "label_advantages.positive_share=0.3")
    return recap


@pytest.fixture
def fork(recap: Recap) -> Iterator[Recap]:
    """``recap``, whose state a test may change."""
    state = recap.state
    yield recap
    recap.state = state


# --- which stages there are ---------------------------------------------------------------------------------------


def test_recap_has_stages_of_its_own_and_needs_no_world_model() -> None:
    assert list_stages(load_config(DEBUG, RECAP), 1) == (*VALUE_STAGES, *POLICY_STAGES)
    assert not set(VALUE_STAGES) & set(list_stages(load_config(DEBUG, ["improve_policy.bootstraps=false"]), 1))
    assert not set(VALUE_STAGES) & set(list_stages(load_config(DEBUG, RECAP), 0))


@pytest.mark.parametrize("refit", [[], ["refit_world_model.num_steps=5"]])
def test_a_world_model_is_fitted_for_viva_and_not_improved_in(refit: list[str]) -> None:
    """Hence it is checked, but not in the closed loop, and not refitted between rounds."""
    stages = list_stages(load_config(DEBUG, [*RECAP, *VIVA, *refit]), 1)
    assert stages == ("fit_world_model", "check_world_model", *VALUE_STAGES, *POLICY_STAGES)


def test_viva_from_random_weights_needs_no_world_model() -> None:
    config = load_config(DEBUG, [*RECAP, *VIVA, "value.from_world_model=false"])
    assert list_stages(config, 1) == (*VALUE_STAGES, *POLICY_STAGES)


@pytest.mark.parametrize("kind", KINDS)
def test_grpo_with_critics_labels_nothing(kind: str) -> None:
    config = load_config(DEBUG, [f"value.kind={kind}", "improve_policy.bootstraps=true"])
    assert list_stages(config, 1) == (
        "fit_world_model", "check_world_model", "fit_value", "check_value",
        "improve_policy", "check_closed_loop", *POLICY_STAGES[1:],
    )  # fmt: skip


def test_the_control_that_imitates_needs_no_critics_whatever_grpo_would_do() -> None:
    overrides = ["improve_policy.method=imitate_successes", "improve_policy.bootstraps=true", *VIVA]
    assert list_stages(load_config(DEBUG, overrides), 1) == POLICY_STAGES


# --- critics and labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        (["value.kind=success", "value.target=outcome", "fit_value.num_steps=4"], SuccessCritic),
        (VIVA, VivaCritic),
        ([*VIVA, "value.from_world_model=false", "value.copies=64", "value.target=progress"], VivaCritic),
    ],
)
def test_critics_of_every_kind_value_and_label(
    debug_run: Path, tmp_path: Path, overrides: list[str], kind: type[Critic]
) -> None:
    run = Recap(copy_run(debug_run, tmp_path), *overrides, "label_advantages.positive_share=0.3")
    target = next((o.partition("=")[2] for o in overrides if "target" in o), "recap")
    if "value.from_world_model=false" in overrides:
        run.state = replace(run.state, world_model="", teacher="")
    for name in VALUE_STAGES:
        run.run(name)
    assert [(bar.total, bar.unit) for bar in run.reporter.bars[:2]] == [(4, "critic step")] * 2
    assert run.reporter.lines[0].startswith(f"2 {'viva' if kind is VivaCritic else 'success'} critics of ")
    assert run.reporter.lines[0].endswith(f"target {target}")
    critics = [load_critic(run.run_dir / path) for path in run.state.critics]
    assert [type(critic) for critic in critics] == [kind, kind]
    first, second = (critic.state_dict() for critic in critics)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    if kind is VivaCritic:  # after four steps it is still near where it started
        fitted = load_world_model(debug_run / "checkpoints/iteration_001/world_model").state_dict()
        name = "denoiser.blocks.0.mlp.0.weight"
        for weights in (first, second):
            distance = float((weights[f"world_model.{name}"] - fitted[name]).abs().max())
            assert (distance < 0.01) == ("value.from_world_model=false" not in overrides)
    assert set(run.state.records[1]["value_check"]) == {"scripted", "on_policy"}
    labels, _, own = read_all(run)
    assert labels.settings["target"] == target
    assert np.isfinite(labels.advantage[own]).all()
    assert labels.advantage[own].std() > 0
    assert labels.is_good[own].mean() == pytest.approx(0.3, abs=0.1)


def test_critics_that_were_fitted_are_not_fitted_again(debug_run: Path, tmp_path: Path) -> None:
    """The second fit is cut, as by a kill: the first critic stays, and the second becomes what it would have been."""
    whole, cut = (Recap(copy_run(debug_run, tmp_path / name), *VIVA) for name in ("whole", "cut"))
    whole.run("fit_value")
    cut.reporter = CutInTheSecondBar()
    with pytest.raises(KeyboardInterrupt):
        cut.run("fit_value")
    paths = whole.state.critics
    assert (cut.run_dir / paths[0]).is_dir()
    assert not (cut.run_dir / paths[1]).exists()
    cut.reporter = RecordingReporter()
    cut.run("fit_value")
    assert [bar.count for bar in cut.reporter.bars] == [4], "the second alone"
    for path in paths:
        weights = [(run.run_dir / path / "model.safetensors").read_bytes() for run in (whole, cut)]
        assert weights[0] == weights[1]
    cut.run("fit_value")
    assert len(cut.reporter.bars) == 1
    assert cut.state.critics == paths


class CutInTheSecondBar(RecordingReporter):
    """Ctrl-C at the second step of the second bar."""

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Bar]:
        self.bars.append(Bar(total, unit, cut=2 if self.bars else 0))
        yield self.bars[-1]


def read_all(run: Recap) -> tuple[AdvantageLabels, VersionCache, np.ndarray]:
    """The labels of ``run``, the episodes that they are of, and which frame steps are the policy's own and open."""
    store = SansStore(run.run_dir / "sans")
    version = store.version("v001")
    labels, cache = read_labels(run.run_dir / run.state.labels, version.fingerprint), store.open_cache(version)
    is_own = [meta.split == "train" and meta.source == "policy" for meta in cache.metas]
    return labels, cache, np.repeat(is_own, cache.num_steps) & cache.all_steps("valid").any(axis=1)


def test_each_critic_learns_from_other_episodes_and_is_judged_by_source(recap: Recap) -> None:
    assert recap.state.critics == ("checkpoints/iteration_001/critic_0", "checkpoints/iteration_001/critic_1")
    first, second = (load_critic(recap.run_dir / path).state_dict() for path in recap.state.critics)
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    judged = recap.state.records[1]["value_check"]
    assert set(judged) == {"scripted", "on_policy"}
    assert 0 <= judged["scripted"]["auc"]["0.50"]["value"] <= 1


def test_all_training_steps_before_a_success_are_labelled(recap: Recap) -> None:
    labels, cache, own = read_all(recap)
    split = np.repeat([meta.split for meta in cache.metas], cache.num_steps)
    is_open = cache.all_steps("valid").any(axis=1)
    assert np.array_equal(np.isnan(labels.advantage), (split == "validation") | ~is_open)
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


def test_chunks_from_real_states_are_imagined_and_labelled_within_their_group(fork: Recap) -> None:
    """The same states, chunks and labels every time; their cameras are the policy's, and nothing is privileged."""
    overrides = ("improve_policy.method=recap_imagined", "improve_policy.num_imagined_groups=8")
    config = load_config(DEBUG, [*RECAP, *overrides])
    context = make_context(
        "improve_policy", config, fork.run_dir, InlineRuntime(0, 0, SilentDisplay()), SilentDisplay()
    )
    settings = config.section(improve_policy.Config)
    first, again = (imagine_chunks(fork.state, settings, context) for _ in range(2))
    assert first is not None
    assert again is not None
    assert 0 < len(first) <= 8 * settings.group_size
    assert torch.equal(first.is_good, again.is_good)
    assert torch.equal(first.chunks.actions, again.chunks.actions)
    assert 0.2 <= float(first.is_good.float().mean()) <= 0.6, "positive_share is .4"
    assert first.chunks.observation.sim_state is None
    distrusted = {task: Trust(False, "AUC .5") for task in context.spec.task_ids}
    assert imagine_chunks(replace(fork.state, trust=distrusted), settings, context) is None


def test_recap_learns_from_imagined_chunks_too(fork: Recap) -> None:
    fork.state = replace(fork.state, iteration=5)
    fork.state, _ = fork.run(
        "improve_policy", "improve_policy.method=recap_imagined", "improve_policy.num_imagined_groups=4"
    )
    assert fork.state.candidates == ("checkpoints/iteration_005/policy",)
    assert any("chunks to learn from" in line for line in fork.reporter.lines)


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


def test_a_wrong_target_and_a_key_of_earlier_are_named() -> None:
    with pytest.raises(WorldloopError, match=r"value\.target is 'returns', allowed: recap, progress, outcome"):
        load_config(DEBUG, [*RECAP, "value.target=returns"])
    with pytest.raises(WorldloopError, match=r"fit_value\.target"):
        load_config(DEBUG, [*RECAP, "fit_value.target=progress"])
