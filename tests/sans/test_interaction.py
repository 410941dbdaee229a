"""Which frame steps are an interaction: by the gripper, by distance, by either."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hand_specs import make_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.interaction import InteractionRule
from worldloop.core.specs import Landmark
from worldloop.core.types import OUTCOMES, SOURCES
from worldloop.sans.imitation import EpisodeSelection, ImitationDataset
from worldloop.sans.interaction import find_interaction, require_signs

GRIPPER, DISTANCE = InteractionRule(("gripper",), 1, 0.1), InteractionRule(("distance",), 1, 0.1)
EITHER = InteractionRule(("gripper", "distance"), 0, 0.1)
LANDMARKS = (
    Landmark("object", "sim_state", (4, 5, 6)),
    Landmark("effector", "proprio", (2, 3, 4), metres_per_unit=0.5),
)


def spec(landmarks=LANDMARKS, action_names=("dx", "dy", "dz", "gripper")):
    made = make_spec()
    tasks = tuple(replace(task, landmarks=landmarks) for task in made.tasks)
    return replace(made, tasks=tasks, robot=replace(made.robot, action_names=action_names))


@pytest.fixture
def cache(store, make_episode):
    """Episodes of six and three frame steps of two actions; the gripper closes at step 7 of the first."""
    made = []
    for number, num_steps in ((1, 6), (2, 3)):
        episode = make_episode(number, num_steps=num_steps, outcome="failure")
        actions = episode.actions.copy()
        actions[..., 3] = 1.0
        if number == 1:
            actions.reshape(-1, 4)[7:, 3] = -1.0
        proprio, state = np.zeros_like(episode.proprio), np.zeros_like(episode.sim_state)
        proprio[:, 2] = 2.0  # units of half a metre
        state[:, 4] = 1.0 + np.array([0.3, 0.09, 0.2, 0.11, 0.0, 0.5, 0.5])[: num_steps + 1]
        made.append(replace(episode, actions=actions, proprio=proprio, sim_state=state))
    return store.open_cache(store.snapshot("v1", [store.append(made, "a")]))


def test_the_gripper_and_a_step_around(cache) -> None:
    """Actions 6 and 7 are of frame step 3; the second episode has no change, and neither has the border of the two."""
    assert find_interaction(cache, spec(), GRIPPER).tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0]
    alone = replace(GRIPPER, num_frames=0)
    assert find_interaction(cache, spec(), alone).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_a_hand_that_holds_the_object_is_not_at_it(cache) -> None:
    """Near at steps 1 and 4 of the first episode; before step 4 the gripper has closed."""
    assert find_interaction(cache, spec(), DISTANCE).tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0]
    without = spec(action_names=("dx", "dy", "dz", "roll"))
    assert find_interaction(cache, without, DISTANCE).tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]


def test_where_positions_are_unknown_the_gripper_decides(store, make_episode) -> None:
    """The state of a recorded demonstration is NaN; without a gripper nobody could label it."""
    episode = make_episode(1, num_steps=3, outcome="failure")
    actions = episode.actions.copy()
    actions[..., 3] = 1.0
    actions[2, :, 3] = -1.0
    demonstration = replace(episode, actions=actions, sim_state=np.full_like(episode.sim_state, np.nan))
    cache = store.open_cache(store.snapshot("v1", [store.append([demonstration], "a")]))
    assert find_interaction(cache, spec(), EITHER).tolist() == [0, 0, 1]
    without = spec(action_names=("dx", "dy", "dz", "roll"))
    with pytest.raises(WorldloopError, match="recorded demonstrations do not tell positions"):
        find_interaction(cache, without, EITHER)
    require_signs(spec(), EITHER, knows_positions=False)
    with pytest.raises(WorldloopError, match="recorded demonstrations do not tell positions"):
        require_signs(without, EITHER, knows_positions=False)


def test_one_sign_is_enough_and_one_that_cannot_be_seen_is_left_out(cache) -> None:
    assert find_interaction(cache, spec(), EITHER).tolist() == [0, 1, 0, 1, 0, 0, 0, 1, 0]
    assert find_interaction(cache, spec(landmarks=()), EITHER).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    without = spec(action_names=("dx", "dy", "dz", "roll"))
    assert find_interaction(cache, without, EITHER).tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]
    far = (Landmark("object", "sim_state", (4, 5, 9)), LANDMARKS[1])  # this state was not stored
    with pytest.raises(WorldloopError, match="none of the signs of interaction distance"):
        find_interaction(cache, spec(landmarks=far), DISTANCE)


def test_a_rule_that_no_episode_can_follow_is_refused_beforehand() -> None:
    require_signs(spec(), GRIPPER)
    require_signs(spec(), DISTANCE)
    require_signs(spec(landmarks=()), EITHER)
    with pytest.raises(WorldloopError, match="none of the signs of interaction distance"):
        require_signs(spec(landmarks=()), DISTANCE)
    with pytest.raises(WorldloopError, match="needs `interaction`"):
        require_signs(spec(), None)


def test_without_a_rule_nothing_is_labelled(cache) -> None:
    assert find_interaction(cache, spec(), None) is None
    everything = EpisodeSelection(SOURCES, OUTCOMES)
    assert ImitationDataset(cache, everything, ["base"]).load(np.array([[0, 0]]), 4).is_interaction is None


def test_batches_have_the_label_of_their_first_step(cache) -> None:
    labels = find_interaction(cache, spec(), GRIPPER)
    dataset = ImitationDataset(cache, EpisodeSelection(SOURCES, OUTCOMES), ["base"], interaction=labels)
    batch = dataset.load(np.array([[0, 1], [0, 2], [0, 4], [1, 2]]), 4)
    assert batch.is_interaction.tolist() == [0, 1, 1, 0]
