from __future__ import annotations

from typing import Any

import pytest
import torch

from worldloop.core.randomness import make_row_keys
from worldloop.simulators.maniskill.family import POSE_DIM
from worldloop.simulators.maniskill.simulator import ManiSkillConfig, ManiSkillSimulator
from worldloop.simulators.maniskill.stack import CUBE_M, REACH_XY_M, REACH_Z_M, STACK_CUBE, stop_short

pytestmark = pytest.mark.filterwarnings("ignore")
TASK = "StackCube-v1"


def test_distance_is_to_the_place_on_top_of_the_other_cube() -> None:
    state = torch.zeros(4, 3 * POSE_DIM)
    state[:, STACK_CUBE.goal_xyz] = torch.tensor([0.1, 0.2, 0.02])
    offsets = [[0.0, 0.0, CUBE_M], [REACH_XY_M + 0.03, 0.0, CUBE_M], [0.0, REACH_XY_M, 0.0], [0.0, 0.0, CUBE_M + 0.01]]
    state[:, STACK_CUBE.object_xyz] = torch.tensor([0.1, 0.2, 0.02]) + torch.tensor(offsets)
    expected = [0.0, 0.03, CUBE_M - REACH_Z_M, 0.01 - REACH_Z_M]
    assert STACK_CUBE.measure_distance_m(state).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_way_is_cut_at_its_share() -> None:
    up, right = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[3.0, 0.0, 1.0]])
    points = tuple(p.expand(4, 3) for p in (torch.zeros(1, 3), up, right))
    first, last = stop_short(points, torch.tensor([0.125, 0.5, 1.0, 1.4]))
    assert first[:, 2].tolist() == [0.5, 1.0, 1.0, 1.0]
    assert last[:, 0].tolist() == [0.0, 1.0, 3.0, 3.0]
    assert last[0, 2] == 0.5  # it goes no further


def test_the_cube_that_is_stacked_upon_is_the_goal() -> None:
    marks = {m.name: m for m in ManiSkillSimulator.make_spec(ManiSkillConfig(tasks=(TASK,))).tasks[0].landmarks}
    assert marks["goal"].columns == tuple(range(STACK_CUBE.goal_xyz.start, STACK_CUBE.goal_xyz.stop))


@pytest.fixture(scope="module")
def sim(push: ManiSkillSimulator) -> Any:
    simulator = ManiSkillSimulator(ManiSkillConfig(tasks=(TASK,), backend="cpu"))
    yield simulator
    simulator.close()


def play(sim: ManiSkillSimulator, variant: str, num_states: int = 1) -> list[Any]:
    """The last step of ``variant`` from each of so many validation states."""
    starts = sim.draw_initial_states(TASK, "validation", num_states, seed=0)
    ends = []
    for row in range(num_states):
        policy = sim.make_scripted_policy((TASK,), (variant,), make_row_keys(1, variant, row), chunk_length=5)
        observation = sim.reset(starts.select([row]))
        while True:
            step = sim.step_chunk(policy.act(observation, None).actions)
            observation = step.observation
            if (step.terminated | step.truncated).all():
                break
        ends.append(step)
    return ends


@pytest.mark.usefixtures("without_pictures")
def test_the_expert_stacks_and_lets_go(sim) -> None:
    for end in play(sim, "expert", 3):
        state = end.observation.sim_state
        assert end.terminated.all()
        assert STACK_CUBE.measure_distance_m(state).item() == 0.0
        fingers = state[:, sim.config.robot.qpos][:, -2:]
        assert fingers.min() > 0.025  # 0.02 holds the cube


@pytest.mark.usefixtures("without_pictures")
def test_one_that_passes_above_leaves_the_cube_where_it_lay(sim) -> None:
    (end,) = play(sim, "too_high")
    assert not end.terminated.any()
    start = sim.draw_initial_states(TASK, "validation", 1, seed=0).states
    cube = end.observation.sim_state[:, STACK_CUBE.object_xyz]
    assert torch.allclose(cube, start[:, STACK_CUBE.object_xyz], atol=2e-3)


def test_nothing_but_the_cubes_marks_the_goal(sim) -> None:
    """Hiding goals changes no picture here: there is no marker."""
    start = sim.draw_initial_states(TASK, "validation", 1, seed=0)
    seen = sim.reset(start).frames["base_camera"]
    hidden = ManiSkillSimulator(ManiSkillConfig(tasks=(TASK,), backend="cpu", show_goal=False))
    assert torch.equal(hidden.reset(start).frames["base_camera"], seen)
    hidden.close()
    image = seen[0, -1].float()
    red = (image[..., 0] > 120) & (image[..., 1] < 90) & (image[..., 2] < 90)
    green = (image[..., 1] > 120) & (image[..., 0] < 110) & (image[..., 2] < 110)
    assert red.sum() >= 8
    assert green.sum() >= 8
