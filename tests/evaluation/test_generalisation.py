"""Where interaction begins, and whether the hand came: on tracks made by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_episodes import build_episode
from hand_specs import make_spec

from worldloop.core.specs import Landmark
from worldloop.core.types import Episode, InitialStates
from worldloop.evaluation.generalisation import find_starts_of_interaction, reaches, score_condition

_MADE = make_spec()
LANDMARKS = (Landmark("object", "sim_state", (4, 5, 6)), Landmark("effector", "proprio", (0, 1, 2)))
SPEC = replace(_MADE, tasks=tuple(replace(task, landmarks=LANDMARKS) for task in _MADE.tasks))


def make_episode(number: int, comes_at: int, outcome: str = "success", gap: float = 0.0) -> Episode:
    """Five frame steps; the hand is 20 cm from the object until frame ``comes_at``, and then ``gap`` metres."""
    episode = build_episode(number, num_steps=5, outcome=outcome, split="evaluation", task=SPEC.tasks[0].id)
    state = np.zeros_like(episode.sim_state)
    state[:, 0] = np.arange(6)
    proprio = np.zeros_like(episode.proprio)
    proprio[:, 1] = np.where(np.arange(6) < comes_at, 0.2, gap)
    return replace(episode, sim_state=state, proprio=proprio)


def make_states(episodes: list[Episode]) -> InitialStates:
    ids = tuple(e.meta.initial_state_id for e in episodes)
    states = torch.stack([torch.from_numpy(e.sim_state[0]) for e in episodes])
    return InitialStates("evaluation", ids, tuple(e.meta.task for e in episodes), states)


def test_interaction_starts_a_frame_before_the_hand_comes_where_the_expert_succeeds() -> None:
    expert = [make_episode(1, 3), make_episode(2, 2, "failure"), make_episode(3, 9), make_episode(4, 1)]
    states = make_states(expert)
    near, context = find_starts_of_interaction(states, expert, SPEC)
    assert near.ids == (states.ids[0], states.ids[3]), "one failed, one never came"
    assert near.states[:, 0].tolist() == [2.0, 0.0]
    assert near.split == "evaluation"
    for camera, frames in context.items():
        for row, (episode, rows) in enumerate(((expert[0], [0, 1, 2]), (expert[3], [0, 0, 0]))):
            assert np.array_equal(frames[row].numpy(), episode.frames[camera][rows])
    never, nothing = find_starts_of_interaction(states, [make_episode(1, 9)] * 4, SPEC)
    assert (len(never), nothing) == (0, {})


def test_the_hand_comes_or_not() -> None:
    assert reaches(make_episode(1, 3), SPEC)
    assert reaches(make_episode(1, 3, gap=0.2), SPEC) is False
    assert reaches(make_episode(1, 3), make_spec()) is None, "nobody says where they are"


def test_a_condition_counts_each_part_on_its_own_states() -> None:
    own = [
        make_episode(n, 3, outcome, gap)
        for n, outcome, gap in ((1, "success", 0), (2, "failure", 0.2), (3, "failure", 0))
    ]
    expert = [make_episode(n, 3, outcome) for n, outcome in ((1, "success"), (2, "success"), (3, "failure"))]
    asked: list[dict[str, Any]] = []

    def run(states: InitialStates, **settings: Any) -> list[Episode]:
        asked.append(settings | {"ids": states.ids, "step": states.states[:, 0].tolist()})
        if "variants" in settings:
            return expert
        return own if len(asked) == 1 else [own[0], own[0]]

    simulation: Any = SimpleNamespace(run=run, judge=run)
    score = score_condition(simulation, make_states(own), "checkpoint", SPEC, block_size=2, name="fog")
    assert (score.success.k, score.success.n) == (1, 3)
    assert (score.expert.k, score.expert.n) == (2, 3)
    assert score.transit is not None
    assert (score.transit.k, score.transit.n) == (2, 3)
    assert score.succeeded == dict(zip(make_states(own).ids, [True, False, False], strict=True))
    assert {task: rate.k for task, rate in score.by_task.items()} == {SPEC.tasks[0].id: 1}
    assert set(score.to_dict()) == {"success", "expert", "transit", "interaction", "by_task", "succeeded"}
    assert score.interaction is not None
    assert (score.interaction.k, score.interaction.n) == (2, 2)
    assert [a.get("policy") for a in asked] == ["checkpoint", None, "checkpoint"]
    assert asked[1]["variants"] == ("expert",) * 3
    assert asked[2]["step"] == [2.0, 2.0]
    assert asked[2]["context"]["base"].shape[:2] == (2, 3)
    asked.clear()
    quick = score_condition(
        simulation, make_states(own), "checkpoint", SPEC, block_size=2, name="fog", asks_expert=False
    )
    assert (quick.success, quick.transit, quick.expert, quick.interaction) == (score.success, score.transit, None, None)
    assert len(asked) == 1
    with pytest.raises(ValueError, match="no initial state"):
        score_condition(simulation, make_states(own).select([]), "c", SPEC, block_size=2, name="fog")
