"""Initial states of a run: which of them follow the seed, and that a list only grows."""

from pathlib import Path

import pytest
import torch
from worldloop.loop.session import Session

from worldloop.config.loading import load_config
from worldloop.core.types import InitialStates, Split
from worldloop.loop import session
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"


def _session(run_dir: Path, seed: int = 0) -> Session:
    runtime = InlineRuntime(0, 0, SilentDisplay())
    return Session(load_config(DEBUG, [f"seed={seed}"]), run_dir, "test", runtime, SilentDisplay())


def _are_equal(a: InitialStates, b: InitialStates) -> bool:
    return (a.split, a.ids) == (b.split, b.ids) and torch.equal(a.states, b.states)


@pytest.mark.parametrize("split", ["validation", "evaluation"])
def test_validation_and_evaluation_states_are_the_same_for_every_run_and_seed(tmp_path: Path, split: Split) -> None:
    one, other = (_session(tmp_path / str(seed), seed).initial_states(split, 6) for seed in (0, 1))
    assert one.split == split
    assert len(set(one.ids)) == 6
    assert _are_equal(one, other)


def test_training_states_follow_the_seed(tmp_path: Path) -> None:
    one, other, again = (
        _session(tmp_path / name, seed).initial_states("train", 6) for name, seed in (("a", 0), ("b", 1), ("c", 0))
    )
    assert not set(one.ids) & set(other.ids)
    assert not (one.states[:, None] == other.states).all(2).any()
    assert _are_equal(one, again)


def test_no_state_is_in_two_splits(tmp_path: Path) -> None:
    context = _session(tmp_path)
    drawn = [context.initial_states(split, 6) for split in ("train", "validation", "evaluation")]
    assert len({state_id for states in drawn for state_id in states.ids}) == 18
    assert len(torch.cat([states.states for states in drawn]).unique(dim=0)) == 18


def test_a_list_that_has_grown_is_the_one_drawn_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _session(tmp_path / "whole").initial_states("train", 8)
    monkeypatch.setattr(session, "_DRAWN_AT_ONCE", 3)  # 3 + 2, then 3 more
    grown = _session(tmp_path / "grown")
    assert _are_equal(grown.initial_states("train", 5), whole.select(range(5)))
    assert _are_equal(grown.initial_states("train", 8), whole)
    assert _are_equal(grown.initial_states("train", 2), whole.select(range(2)))
    assert _are_equal(_session(tmp_path / "grown", seed=1).initial_states("train", 8), whole), "it is read, not drawn"
