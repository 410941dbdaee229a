"""The chunk rules every simulator of ours shares, shown on the toy, and the toy itself."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from worldloop.core.interfaces import InitialStateSource, Simulator
from worldloop.core.randomness import make_row_keys
from worldloop.core.types import ChunkStep, InitialStates, Split
from worldloop.simulators.base import choose_instruction
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

PUSH, REACH = "ToyPush-v1", "ToyReach-v1"
BASE, HAND = "base_camera", "hand_camera"


def play(sim: ToySimulator, states: InitialStates, variants: tuple[str, ...], keys: torch.Tensor, chunk: int = 4):
    policy, observation, steps = sim.make_scripted_policy(states.tasks, variants, keys, chunk), sim.reset(states), []
    for _ in range(-(-sim.spec.max_episode_steps // chunk)):
        steps.append(sim.step_chunk(policy.act(observation, None).actions))
        observation = steps[-1].observation
    return steps


def draw(sim: ToySimulator, num_states: int, split: Split = "train", seed: int = 0, first: int = 0, task: str = PUSH):
    return sim.draw_initial_states(task, split, num_states, seed, first)


def one_step_from_success() -> InitialStates:
    """A state whose block needs exactly two steps of +0.5 (0.1 units each) to enter the goal region."""
    state = torch.zeros(1, 11)
    state[0, 0] = -0.34  # agent touches the block at x = 0
    state[0, 6] = 0.3 + 0.15  # goal region begins at 0.15
    return InitialStates("train", ("one step",), (PUSH,), state)


def test_protocols() -> None:
    sim = ToySimulator(ToyConfig())
    assert isinstance(sim, Simulator)
    assert isinstance(sim, InitialStateSource)


@pytest.mark.parametrize(
    ("key", "value"), [("image_size", 4), ("num_envs", 0), ("actions_per_frame", 0), ("success_hold_frames", -1)]
)
def test_config_names_the_bad_key(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=key):
        ToyConfig(**{key: value})


def test_initial_states_do_not_depend_on_how_many_are_drawn() -> None:
    sim = ToySimulator(ToyConfig())
    few, many = draw(sim, 3, seed=1), draw(sim, 9, seed=1)
    assert torch.equal(few.states, many.states[:3])
    assert few.ids == many.ids[:3]
    assert len(set(many.ids)) == 9
    assert not torch.equal(few.states, draw(sim, 3, "evaluation", 1).states)
    rest = draw(sim, 6, seed=1, first=3)
    assert InitialStates.cat([few, rest]).ids == many.ids
    assert torch.equal(InitialStates.cat([few, rest]).states, many.states)


def test_success_inside_a_chunk() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2))
    sim.reset(one_step_from_success())
    step = sim.step_chunk(torch.tensor([[[0.5, 0.0]] * 4]))
    assert step.success.tolist() == [[False, True, True, True]]
    assert step.valid.tolist() == [[True, True, False, False]]
    assert step.rewards.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert step.success_prob.tolist() == [[1.0, 1.0]]
    assert step.distances_m is not None
    assert step.distances_m[0, 0].item() == pytest.approx(0.005, abs=1e-6)  # 0.05 units
    assert step.distances_m[0, 1:].tolist() == [0.0, 0.0, 0.0]
    assert step.terminated.tolist() == [True]
    assert step.truncated.tolist() == [False]
    # the steps after the success were executed: four moves of 0.1 units
    assert step.observation.proprio is not None
    assert step.observation.proprio[0, 0].item() == pytest.approx(0.06, abs=1e-6)
    assert step.observation.env_step.tolist() == [4]


def test_a_row_goes_on_after_its_success() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2, success_hold_frames=2))
    sim.reset(one_step_from_success())
    push, hold = torch.tensor([[[0.5, 0.0]] * 2]), torch.zeros(1, 2, 2)
    steps = [sim.step_chunk(push), sim.step_chunk(push), sim.step_chunk(hold), sim.step_chunk(push)]
    assert [s.terminated.item() for s in steps] == [False, False, True, True]
    assert [s.valid[0].tolist() for s in steps] == [[True, True], [False, False], [False, False], [False, False]]
    assert [s.rewards.sum().item() for s in steps] == [1.0, 0.0, 0.0, 0.0]
    assert not torch.equal(steps[1].frames[BASE][:, -1], steps[0].frames[BASE][:, -1]), "still pushing"
    assert torch.equal(steps[3].frames[BASE][:, -1], steps[2].frames[BASE][:, -1]), "ended"
    assert [s.observation.env_step.item() for s in steps] == [2, 4, 6, 6]


def test_the_time_limit_ends_a_row_that_has_succeeded() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2, success_hold_frames=5, max_episode_steps=4))
    sim.reset(one_step_from_success())
    steps = [sim.step_chunk(torch.tensor([[[0.5, 0.0]] * 2])) for _ in range(2)]
    assert [s.terminated.item() for s in steps] == [False, True]
    assert not steps[1].truncated.item()


def test_an_ended_row_stays_as_it_is() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2))
    sim.reset(one_step_from_success())
    first = sim.step_chunk(torch.tensor([[[0.5, 0.0]] * 4]))
    second = sim.step_chunk(torch.tensor([[[-1.0, 0.3]] * 4]))
    assert not second.valid.any()
    assert second.rewards.sum() == 0
    assert second.terminated.all()
    assert torch.equal(second.observation.frames[BASE], first.observation.frames[BASE])
    assert torch.equal(second.observation.sim_state, first.observation.sim_state)
    assert torch.equal(second.frames[BASE][:, 0], first.frames[BASE][:, -1])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_time_limit_not_divisible_by_the_chunk(stride: int) -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=stride, max_episode_steps=6))
    sim.reset(draw(sim, 1))
    action = torch.tensor([[[0.0, 0.1]] * 4])
    first, second = sim.step_chunk(action), sim.step_chunk(action)
    assert first.valid.all()
    assert not first.done.any()
    assert second.valid.tolist() == [[True, True, False, False]]
    assert second.truncated.tolist() == [True]
    assert second.terminated.tolist() == [False]
    assert second.observation.env_step.tolist() == [6]
    moved = second.observation.proprio[0, 1] - first.observation.proprio[0, 1]
    assert moved.item() == pytest.approx(2 * 0.1 * 0.2, abs=1e-6)  # two of the four actions


def test_rows_that_stop_early_keep_their_own_image() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=4, max_episode_steps=6))
    late = draw(sim, 2)
    late.states[0, -1] = 4  # row 0 has two steps left, row 1 has six
    action = torch.tensor([[[0.3, 0.5]] * 4] * 2)
    sim.reset(late)
    together = sim.step_chunk(action)
    sim.reset(late.select([0]))
    alone = sim.step_chunk(action[:1])
    assert together.valid.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(together.frames[BASE][:1], alone.frames[BASE])
    assert torch.equal(together.observation.sim_state[:1], alone.observation.sim_state)


def test_context_frames() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2))
    start = sim.reset(draw(sim, 2)).frames[BASE]
    assert start.shape == (2, 3, 16, 16, 3)
    assert torch.equal(start[:, 0], start[:, 2])
    assert torch.equal(start[:, 1], start[:, 2])
    step = sim.step_chunk(torch.full((2, 4, 2), 0.5))
    context = step.observation.frames[BASE]
    assert torch.equal(context[:, 0], start[:, 0])
    assert torch.equal(context[:, 1], step.frames[BASE][:, 0])
    assert torch.equal(context[:, 2], step.frames[BASE][:, 1])
    assert not torch.equal(step.frames[BASE][:, 0], step.frames[BASE][:, 1])


def test_restart_from_an_observation_keeps_its_context() -> None:
    sim = ToySimulator(ToyConfig())
    sim.reset(draw(sim, 2))
    middle = sim.step_chunk(torch.full((2, 4, 2), 0.5)).observation
    expected = sim.step_chunk(torch.full((2, 4, 2), -0.2))
    again = sim.reset(middle)
    assert torch.equal(again.frames[BASE], middle.frames[BASE])
    assert again.env_step.tolist() == [4, 4]
    actual = sim.step_chunk(torch.full((2, 4, 2), -0.2))
    assert torch.equal(actual.frames[BASE], expected.frames[BASE])
    assert torch.equal(actual.observation.frames[BASE], expected.observation.frames[BASE])


def test_reset_of_some_rows() -> None:
    sim = ToySimulator(ToyConfig())
    states = draw(sim, 3)
    sim.reset(states)
    before = sim.step_chunk(torch.full((3, 4, 2), 0.5)).observation
    after = sim.reset(states.select([0]), rows=torch.tensor([1]))
    assert after.env_step.tolist() == [4, 0, 4]
    assert torch.equal(after.frames[BASE][[0, 2]], before.frames[BASE][[0, 2]])
    assert torch.equal(after.frames[BASE][1], sim.reset(states.select([0])).frames[BASE][0])


def assert_equal_rows(together: list[ChunkStep], alone: list[ChunkStep], row: int) -> None:
    for a, b in zip(together, alone, strict=True):
        for camera in b.frames:
            assert torch.equal(a.frames[camera][row : row + 1], b.frames[camera]), (row, camera)
        for name in ("proprio", "rewards", "valid", "success", "distances_m", "sim_states"):
            assert torch.equal(getattr(a, name)[row : row + 1], getattr(b, name)), (row, name)


def test_a_row_does_not_depend_on_its_batch() -> None:
    sim = ToySimulator(ToyConfig())
    states, keys, variants = draw(sim, 8), make_row_keys(8, "keys"), SCRIPTED_VARIANTS
    together = play(sim, states, variants, keys)
    for row in (0, 3, 5):
        assert_equal_rows(together, play(sim, states.select([row]), variants[row : row + 1], keys[row : row + 1]), row)


def _margins(steps: list[ChunkStep]) -> torch.Tensor:
    return torch.cat([s.distances_m for s in steps if s.distances_m is not None], dim=1).min(dim=1).values


def test_variants_give_success_near_success_and_failure() -> None:
    sim = ToySimulator(ToyConfig())
    states, keys = draw(sim, 64), make_row_keys(64, 0)
    success = {}
    for variant in SCRIPTED_VARIANTS:
        steps = play(sim, states, (variant,) * 64, keys)
        success[variant] = int(steps[-1].terminated.sum())
        if variant == "stops_short":
            margins = _margins(steps)
            assert (margins > 0).all()
            assert (margins < 0.045).all()
        if variant == "far":
            assert (_margins(steps) > 0.045).all()
    assert success["expert"] >= 63
    assert success["stops_short"] == success["far"] == 0
    assert 0 < success["late"] < 64


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match="sideways"):
        ToySimulator(ToyConfig()).make_scripted_policy((PUSH,), ("sideways",), make_row_keys(1), 4)


# --- tasks --------------------------------------------------------------------------------------------------------


def make_reach_state(agent_x: float, block_x: float) -> InitialStates:
    """Goal at the origin, region to -0.3; the block began at -0.8, so 0.5 from the region."""
    state = torch.zeros(1, 11)
    state[0, [0, 4, 8]] = torch.tensor([agent_x, block_x, -0.8])
    state[0, [5, 9]] = 0.5  # out of the agent's way
    return InitialStates("train", ("reach",), (REACH,), state)


@pytest.mark.parametrize(
    ("agent_x", "block_x", "distance"),
    [(-0.5, -0.8, 0.2), (-0.25, -0.8, 0.0), (-0.25, -0.4, 0.0), (-0.25, -0.2, 0.1), (-0.5, -0.2, 0.2)],
)
def test_reaching_counts_where_the_block_was_not_pushed_there_first(
    agent_x: float, block_x: float, distance: float
) -> None:
    sim = ToySimulator(ToyConfig(tasks=(REACH,), actions_per_frame=1))
    sim.reset(make_reach_state(agent_x, block_x))
    step = sim.step_chunk(torch.zeros(1, 1, 2))
    assert step.distances_m is not None
    assert step.distances_m.item() == pytest.approx(distance * 0.1, abs=1e-6)
    assert step.success.item() is (distance == 0)


def test_pushing_the_block_to_the_goal_does_not_reach_it() -> None:
    sim = ToySimulator(ToyConfig(tasks=(PUSH, REACH)))
    states = draw(sim, 4, task=REACH)
    push = sim.make_scripted_policy((PUSH,) * 4, ("expert",) * 4, make_row_keys(4), 20)
    relabelled = InitialStates("train", states.ids, (PUSH,) * 4, states.states)
    for start, is_success in ((relabelled, True), (states, False)):
        step = sim.step_chunk(push.act(sim.reset(start), None).actions)
        assert step.terminated.tolist() == [is_success] * 4


def test_reach_variants_give_success_near_success_and_failure() -> None:
    sim = ToySimulator(ToyConfig(tasks=(REACH,)))
    states, keys = draw(sim, 50, task=REACH), make_row_keys(50, 0)
    success = {}
    for variant in SCRIPTED_VARIANTS:
        steps = play(sim, states, (variant,) * 50, keys)
        success[variant], margins = int(steps[-1].terminated.sum()), _margins(steps)
        if variant == "stops_short":
            assert ((margins > 0) & (margins < 0.055)).all()
            assert 10 < (margins < 0.03).sum() < 40  # near-successes and failures
        if variant == "far":
            assert (margins > 0.045).all()
    assert success["expert"] >= 49
    assert success["stops_short"] == success["far"] == success["too_high"] == 0
    assert 0 < success["lateral_offset"] < 50
    assert 0 < success["late"] < 50


def test_rows_of_one_batch_do_their_own_tasks() -> None:
    sim = ToySimulator(ToyConfig(tasks=(PUSH, REACH)))
    states = InitialStates.cat([draw(sim, 2, task=task) for task in sim.spec.task_ids]).select([0, 2, 1, 3])
    keys, variants = make_row_keys(4, "keys"), ("expert",) * 4
    together = play(sim, states, variants, keys)
    assert together[0].observation.task == (PUSH, REACH, PUSH, REACH)
    assert together[-1].terminated.all()
    for row in range(4):
        assert_equal_rows(together, play(sim, states.select([row]), variants[:1], keys[row : row + 1]), row)
    other = draw(sim, 1, seed=1, task=PUSH)
    assert sim.reset(states).task[3] == REACH
    after = sim.reset(other, rows=torch.tensor([3]))
    assert after.task == (PUSH, REACH, PUSH, PUSH)
    assert after.instruction[3] == choose_instruction(sim.spec.task(PUSH), other.ids[0])


def test_states_of_a_task_do_not_depend_on_the_others() -> None:
    alone, both = ToySimulator(ToyConfig()), ToySimulator(ToyConfig(tasks=(REACH, PUSH)))
    assert torch.equal(draw(alone, 3).states, draw(both, 3).states)
    assert draw(both, 1, task=REACH).ids == ("ToyReach-v1/train/0-000000",)
    for sim, call in (
        (alone, lambda sim: draw(sim, 1, task=REACH)),
        (alone, lambda sim: sim.reset(draw(both, 1, task=REACH))),
    ):
        with pytest.raises(ValueError, match=f"task '{REACH}' is not one of {PUSH}"):
            call(sim)


def test_the_instruction_follows_the_state_and_stays_with_the_episode() -> None:
    sim = ToySimulator(ToyConfig(tasks=(PUSH, REACH)))
    states = InitialStates.cat([draw(sim, 30, task=task) for task in sim.spec.task_ids])
    start = sim.reset(states)
    for task in sim.spec.tasks:
        said = [words for words, name in zip(start.instruction, start.task, strict=True) if name == task.id]
        assert set(said) == set(task.instructions), "every paraphrase is used"
        assert len(task.instructions) == 3
    assert sim.reset(states.select([5, 40])).instruction == (start.instruction[5], start.instruction[40])
    reworded = replace(start.rows([0, 1]), instruction=("do it", "go on"))
    assert sim.reset(reworded).instruction == ("do it", "go on")
    assert sim.step_chunk(torch.zeros(2, 2, 2)).observation.instruction == ("do it", "go on")


class TwoLimits(ToySimulator):
    """ToyReach-v1 may take twice as long."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        push, reach = self.spec.tasks
        tasks = (replace(push, max_episode_steps=4), replace(reach, max_episode_steps=8))
        self.spec = replace(self.spec, tasks=tasks)


def test_each_row_has_the_time_limit_of_its_task() -> None:
    sim = TwoLimits(ToyConfig(tasks=(PUSH, REACH)))
    sim.reset(InitialStates.cat([draw(sim, 1), draw(sim, 1, task=REACH)]))
    steps = [sim.step_chunk(torch.zeros(2, 4, 2)) for _ in range(2)]
    assert [step.truncated.tolist() for step in steps] == [[True, False], [True, True]]
    assert steps[1].valid.tolist() == [[False] * 4, [True] * 4]
    assert steps[1].observation.env_step.tolist() == [4, 8]


# --- cameras ------------------------------------------------------------------------------------------------------


def test_cameras_of_two_sizes_are_seen_at_every_frame() -> None:
    sim = ToySimulator(ToyConfig(cameras=(BASE, HAND), image_sizes={HAND: 12}))
    assert [(c.name, c.height, c.width) for c in sim.spec.robot.cameras] == [(BASE, 16, 16), (HAND, 12, 12)]
    states, alone = draw(sim, 2), ToySimulator(ToyConfig())
    start, single = sim.reset(states), alone.reset(states)
    assert list(start.frames) == [BASE, HAND]
    assert torch.equal(start.frames[BASE], single.frames[BASE])
    actions = torch.full((2, 4, 2), 0.5)
    step, single_step = sim.step_chunk(actions), alone.step_chunk(actions)
    assert torch.equal(step.frames[BASE], single_step.frames[BASE])
    assert step.frames[HAND].shape == (2, 2, 12, 12, 3)
    context = step.observation.frames[HAND]
    assert torch.equal(context[:, 0], start.frames[HAND][:, 2])
    assert torch.equal(context[:, 1:], step.frames[HAND])
    again = sim.reset(step.observation)
    assert torch.equal(again.frames[HAND], context)
    with pytest.raises(ValueError, match="has no camera 'hand_camera'"):
        sim.reset(single_step.observation)


def test_the_hand_camera_looks_at_the_agent_from_near() -> None:
    sim = ToySimulator(ToyConfig(cameras=(HAND,), image_size=32))
    image = sim.reset(draw(sim, 1)).frames[HAND][0, -1]
    is_white = image.amin(-1) > 146  # more than half covered
    rows, columns = is_white.nonzero(as_tuple=True)
    assert rows.float().mean().item() == pytest.approx(15.5, abs=0.01)
    assert columns.float().mean().item() == pytest.approx(15.5, abs=0.01)
    # a disc of radius 0.16 in a view of 1 x 1 units
    assert is_white.sum().item() == pytest.approx(torch.pi * (0.16 * 32) ** 2, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ()}, "tasks must name one or more"),
        ({"tasks": (PUSH, PUSH)}, "each once"),
        ({"tasks": ("ToyPull-v1",)}, "tasks 'ToyPull-v1' is not one of ToyPush-v1, ToyReach-v1"),
        ({"cameras": ("eye",)}, "cameras 'eye' is not one of base_camera, hand_camera"),
        ({"image_sizes": {HAND: 12}}, "image_sizes.hand_camera: only base_camera is in simulator.toy.cameras"),
        ({"image_sizes": {BASE: 4}}, "image_sizes.base_camera must be at least 8"),
    ],
)
def test_tasks_and_cameras_of_the_config_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToyConfig(**settings)
