"""What iteration 0 records, and what of it is held out."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.types import Episode
from worldloop.loop.run import make_context
from worldloop.reporting.progress import SilentDisplay
from worldloop.rollout.simulation import choose_split
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import seed_dataset
from worldloop.storage.run_state import LoopState

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"


def test_every_demonstration_is_trained_on(tmp_path: Path) -> None:
    """Of six and six, and one forked state; with a share of .9 nearly all that may be held out is."""
    recipe = seed_dataset.Config({"expert": 6, "far": 6}, validation_share=0.9, forked_states=1)
    runtime = InlineRuntime(0, 0, SilentDisplay())
    context = make_context("seed_dataset", load_config(DEBUG), tmp_path, runtime, SilentDisplay())
    stored: list[Episode] = []
    store: Any = SimpleNamespace(append=lambda e, *names: stored.extend(e), snapshot=lambda name, shards: None)
    state = seed_dataset.run(LoopState(), recipe, replace(context, store=store))
    metas = [episode.meta for episode in stored]
    seeded, forked = metas[:12], metas[12:]
    assert [m.split for m in seeded if m.variant == "expert"] == ["train"] * 6
    perturbed = [m for m in seeded if m.variant == "far"]
    assert [m.split for m in perturbed] == [choose_split(m.initial_state_id, 0.9) for m in perturbed]
    assert sum(m.split == "validation" for m in perturbed) >= 4
    # A state from which several variants start is nobody's demonstration.
    assert [(m.variant, m.split) for m in forked] == [("expert", "validation"), ("far", "validation")]
    assert len({m.initial_state_id for m in seeded}) == 12
    assert len({m.initial_state_id for m in metas}) == 13
    assert state.records[0]["demonstrations"] == 6


def test_demonstrations_are_moved_out_of_the_held_out_states() -> None:
    """The first two states are held out: their experts change places with variants of the last ones."""
    variants = ["expert", "far", "late", "expert", "noisy"]
    is_held_out = np.array([True, True, False, False, False])
    assert seed_dataset.move_experts(variants, is_held_out, "Push") == ["late", "far", "expert", "expert", "noisy"]
    with pytest.raises(WorldloopError, match="leaves 1 states of Push, and 2 demonstrations are to begin there"):
        seed_dataset.move_experts(["expert", "expert", "far"], np.array([True, True, False]), "Push")
    with pytest.raises(ValueError, match="held_out_side"):
        seed_dataset.Config(held_out_side="top")
