"""A gate's figures by hand, and which frames it is asked about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hand_episodes import build_episode
from hand_specs import make_spec

from worldloop.core.interaction import InteractionRule
from worldloop.core.types import Observation
from worldloop.evaluation.gate import GatedEpisodes, choose_held_out, judge_gate, run_gate
from worldloop.sans.cache import VersionCache
from worldloop.sans.store import SansStore


def gated(*episodes: tuple[list[float], list[int]]) -> GatedEpisodes:
    probability = [np.array(values) for values, _ in episodes]
    return GatedEpisodes(list(range(len(episodes))), probability, [np.array(label, bool) for _, label in episodes])


def test_figures_by_hand() -> None:
    judged = judge_gate(gated(([0.1, 0.6, 0.9, 0.2], [0, 1, 1, 1]), ([0.1, 0.7, 0.1, 0.7], [0, 0, 0, 1])), 1)
    assert judged.accuracy.value == pytest.approx(6 / 8)
    assert judged.floor == pytest.approx(0.5)
    assert judged.interaction.value == pytest.approx(4 / 8)
    assert judged.labelled.value == pytest.approx(4 / 8)
    assert judged.switches.value == pytest.approx((2 + 3) / 2)
    # of the 16 pairs of an interaction and a transit 13 are ordered, and one is a tie
    assert judged.auc is not None
    assert judged.auc.value == pytest.approx(13.5 / 16, abs=1e-4)
    assert judged.num_episodes == 2
    assert set(judged.to_dict()) >= {"accuracy", "floor", "auc", "switches", "num_episodes"}


def test_switches_are_between_chunks() -> None:
    assert judge_gate(gated(([0.1, 0.6, 0.2, 0.6, 0.9], [0, 1, 1, 1, 1])), 2).switches.value == 1.0


def test_one_kind_of_label_has_no_auc_and_a_floor_of_one() -> None:
    judged = judge_gate(gated(([0.1, 0.6], [0, 0]), ([0.3, 0.2], [0, 0])), 1)
    assert judged.auc is None
    assert judged.floor == 1.0
    assert judged.to_dict()["auc"] is None


_MADE = make_spec({"base": (8, 8)})
SPEC = replace(_MADE, robot=replace(_MADE.robot, action_names=("dx", "dy", "dz", "gripper")))


class Counting:
    """Says the number of each frame in hundredths."""

    spec = SPEC
    interaction = InteractionRule(("gripper",), 0, 0.1)

    def tell_interaction(self, observation: Observation) -> torch.Tensor:
        assert observation.proprio is not None
        return (observation.proprio[:, 0] % 100) / 100


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> VersionCache:
    kinds = [("expert", "train"), ("perturbed", "validation"), ("policy", "validation"), ("policy", "validation")]
    episodes = [build_episode(n, source=source, split=split) for n, (source, split) in enumerate(kinds, 1)]
    store = SansStore(tmp_path_factory.mktemp("sans"))
    return store.open_cache(store.snapshot("v1", [store.append(episodes, "a")]))


def test_held_out_episodes_by_source(cache: Any) -> None:
    assert choose_held_out(cache, 5) == {"scripted": [1], "on_policy": [2, 3]}
    assert choose_held_out(cache, 1) == {"scripted": [1], "on_policy": [3]}


def test_the_gate_is_asked_wherever_an_action_was_taken(cache: Any) -> None:
    said = run_gate(cast(Any, Counting()), cache, SPEC, [2, 3])
    assert [p.tolist() for p in said.probability] == [pytest.approx([0.0, 0.01, 0.02])] * 2
    assert [len(label) for label in said.label] == [3, 3]
    assert said.episodes == [2, 3]
