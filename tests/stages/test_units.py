"""The small parts of stages: splits, the optimizer recipe, the order of stages."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from worldloop.loop.session import Session
from worldloop.stages.simulate import choose_split

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.success import Trust
from worldloop.core.types import Episode
from worldloop.loop.run import advance, list_stages
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import seed_dataset
from worldloop.storage.run_state import LoopState
from worldloop.training.data_parallel import Workers
from worldloop.training.optimizer import Optimisation

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"


def test_splits_follow_the_id_and_the_share() -> None:
    ids = [f"task/train/0-{i:06d}" for i in range(4000)]
    held = [choose_split(i, 0.25) == "validation" for i in ids]
    assert np.mean(held) == pytest.approx(0.25, abs=0.03)
    # a larger share holds out more and never less of the same states
    assert all(choose_split(i, 0.5) == "validation" for i, h in zip(ids, held, strict=True) if h)
    assert choose_split(ids[0], 0.0) == "train"


def test_every_demonstration_is_trained_on(tmp_path: Path) -> None:
    """Of six and six, and one forked state; with a share of .9 nearly all that may be held out is."""
    config = load_config(DEBUG)
    recipe = seed_dataset.SeedDatasetConfig({"expert": 6, "far": 6}, validation_share=0.9, forked_states=1)
    context: Any = Session(config, tmp_path, "test", InlineRuntime(0, 0, SilentDisplay()), SilentDisplay())
    stored: list[Episode] = []
    context.store = SimpleNamespace(append=lambda e, *names: stored.extend(e), snapshot=lambda name, shards: None)
    state = seed_dataset.run(LoopState(), recipe, context)
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


def test_optimisation_goes_on_where_it_was_kept() -> None:
    def begin() -> tuple[nn.Linear, Optimisation]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return layer, Optimisation(layer.parameters(), learning_rate=0.1, num_steps=20, warmup_steps=4)

    def take(layer: nn.Linear, optimisation: Optimisation, steps: range) -> None:
        for step in steps:
            optimisation.backward(layer(torch.full((1, 3), float(step))).square().sum())
            optimisation.step()

    layer, whole = begin()
    take(layer, whole, range(7))
    kept, weights = whole.state_dict(), {k: v.clone() for k, v in layer.state_dict().items()}
    kept = {name: value.clone() for name, value in kept.items()}
    take(layer, whole, range(7, 12))
    other, resumed = begin()
    other.load_state_dict(weights)
    resumed.load_state_dict(kept)
    assert resumed.learning_rate == 0.1 * (0.1 + 0.45 * (1 + math.cos(math.pi * 7 / 20)))
    take(other, resumed, range(7, 12))
    assert torch.equal(other.weight, layer.weight)
    assert resumed.learning_rate == whole.learning_rate


def test_micro_batches_add_up_to_one_batch() -> None:
    weight, rows = nn.Parameter(torch.ones(3)), torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [1, 1, 1]])
    optimisation = Optimisation([weight], learning_rate=0.1, num_steps=4)
    for part, share in zip(rows.split([1, 3]), Workers().shares([torch.tensor(1), torch.tensor(3)]), strict=True):
        optimisation.backward((part @ weight).mean() * share)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, rows.mean(0))
    optimisation.step()
    assert weight.grad is None


def test_optimisation_warms_up_decays_and_clips() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimisation = Optimisation([weight], learning_rate=0.1, num_steps=100, warmup_steps=10, weight_decay=0.0)
    rates = []
    for _ in range(100):
        rates.append(optimisation.learning_rate)
        optimisation.backward((weight * 1e4).sum())
        norm = optimisation.step()
    assert norm == pytest.approx(2e4)
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates[-1] == pytest.approx(0.01, rel=0.05)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimisation = Optimisation([weight], learning_rate=0.1, num_steps=10, name="fit_world_model")
    with pytest.raises(WorldloopError, match="fit_world_model: the loss became nan"):
        optimisation.backward(weight.sum() * float("nan"))
    assert torch.equal(weight, torch.ones(2, 2))


def test_the_last_iteration_collects_nothing_and_the_loop_ends() -> None:
    config = load_config(DEBUG)
    state, seen = LoopState(), []
    while state.next_stage:
        seen.append((state.iteration, state.next_stage))
        state = advance(config, state)
    assert seen[:4] == [(0, name) for name in list_stages(config, 0)]
    assert seen[-1] == (2, "evaluate_policy")
    assert len(seen) == 4 + 6 + 5


def test_a_model_that_is_not_good_enough_is_fitted_on_and_then_passed_over() -> None:
    config = load_config(DEBUG, ["check_world_model.max_fits=3"])
    state, seen = LoopState(iteration=1, next_stage="fit_world_model"), []
    while state.iteration == 1:
        seen.append(state.next_stage)
        if state.next_stage == "fit_world_model":
            state = replace(state, num_fits=state.num_fits + 1, trust=None)
        if state.next_stage == "check_world_model":
            state = replace(state, trust=Trust(False, "too low"))
        state = advance(config, state)
    assert seen == [*["fit_world_model", "check_world_model"] * 3, *list_stages(config, 1)[2:]]
    assert state.num_fits == 0  # a new iteration has fits of its own
