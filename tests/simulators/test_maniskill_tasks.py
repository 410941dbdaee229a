"""What holds for every ManiSkill task: its scene, an exact restart, an expert that succeeds, and who shares a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from black_frames import draw_black

from worldloop.core.randomness import make_row_keys
from worldloop.core.types import ChunkStep, InitialStates
from worldloop.simulators.maniskill import TASKS
from worldloop.simulators.maniskill.family import POSE_DIM
from worldloop.simulators.maniskill.simulator import ManiSkillConfig, ManiSkillSimulator
from worldloop.simulators.perturbations import draw_variant_parameters

pytest.importorskip("mani_skill")
pytestmark = pytest.mark.filterwarnings("ignore")

# What ManiSkill's environments call the landmarks of the tasks that no other test looks at.
SCENES = {
    "PlaceSphere-v1": {"object": "obj", "goal": "bin"},
    "PokeCube-v1": {"object": "cube", "tool": "peg", "goal": "goal_region"},
    "StackPyramid-v1": {"object": "cubeC", "support": "cubeA", "goal": "cubeB"},
    "RollBall-v1": {"object": "ball", "goal": "goal_region"},
}


@pytest.fixture(scope="module", params=SCENES)
def sim(request: pytest.FixtureRequest) -> Iterator[ManiSkillSimulator]:
    """One simulator a task; it draws nothing."""
    simulator = ManiSkillSimulator(ManiSkillConfig(tasks=(request.param,), backend="cpu"))
    simulator._render = lambda: draw_black(simulator)  # type: ignore[method-assign]
    yield simulator
    simulator.close()


def play(
    sim: ManiSkillSimulator, start: InitialStates, variant: str, progress: float = 1.4, num_chunks: int = 99
) -> tuple[list[ChunkStep], list[torch.Tensor]]:
    parameters = draw_variant_parameters((variant,), make_row_keys(1, 2))
    parameters.progress[:] = progress
    policy = TASKS[start.tasks[0]].make_scripted_policy(sim.config.robot, parameters, 5)
    observation, steps, actions = sim.reset(start), [], []
    while len(steps) < num_chunks and not (steps and steps[-1].done.all()):
        actions.append(policy.act(observation, None).actions)
        steps.append(sim.step_chunk(actions[-1]))
        observation = steps[-1].observation
    return steps, actions


def test_expert_succeeds_and_a_restart_is_bit_equal(sim: ManiSkillSimulator) -> None:
    task = TASKS[sim.spec.task_ids[0]]
    start = sim.draw_initial_states(task.id, "validation", 2, seed=0)
    other = start.select([1])
    start = start.select([0])
    first = sim.reset(start)
    for name, attribute in SCENES[task.id].items():
        assert torch.equal(first.sim_state[:, task.find_xyz(name)], getattr(sim._env, attribute).pose.p), name
    base = sim._env.agent.robot.pose.p
    assert torch.equal(first.sim_state[:, task.find_xyz("robot")], base)

    steps, actions = play(sim, start, "expert")
    assert steps[-1].terminated.all()
    assert torch.cat(actions, 1)[..., :3].abs().max() <= 0.6 + 1e-6
    distances = torch.cat([step.distances_m for step in steps], 1)[0]
    success = torch.cat([step.success for step in steps], 1)[0]
    assert distances[0] > task.goal_radius_m / 2
    assert distances[success].max() < 1e-3, "at a success nothing is left of the way"

    play(sim, other, "expert", num_chunks=5)
    sim.reset(start)
    for action, step in zip(actions, steps, strict=True):
        assert torch.equal(sim.step_chunk(action).sim_states, step.sim_states), "after an episode of another start"


@pytest.mark.slow
def test_one_that_stops_short_comes_close_and_fails(sim: ManiSkillSimulator) -> None:
    task = TASKS[sim.spec.task_ids[0]]
    start = sim.draw_initial_states(task.id, "validation", 1, seed=0)
    began = task.measure_distance_m(start.states).item()
    # the slower push of a ball would still arrive at 0.6
    steps, _ = play(sim, start, "expert", progress=0.3 if task.id == "RollBall-v1" else 0.6)
    least = torch.cat([step.distances_m for step in steps], 1).min().item()
    assert steps[-1].truncated.all()
    assert 0 < least < began - 0.01


def test_tasks_of_one_scene_share_a_run() -> None:
    alike = ("PushCube-v1", "PullCube-v1", "PickCube-v1", "StackCube-v1", "PlaceSphere-v1")
    spec = ManiSkillSimulator.make_spec(ManiSkillConfig(tasks=alike, view="table"))
    assert spec.task_ids == alike
    for name in set(TASKS) - set(alike):
        with pytest.raises(ValueError, match=rf"{name} cannot share a run with PushCube-v1.*StackCube-v1.* can share"):
            ManiSkillConfig(tasks=("PushCube-v1", name), view="table")


def test_a_ball_has_no_edges_to_change() -> None:
    with pytest.raises(ValueError, match="variation size needs tasks with a cube"):
        ManiSkillConfig(tasks=("PlaceSphere-v1",), variation="size")


def test_a_pyramid_lacks_what_each_of_its_cubes_lacks() -> None:
    task = TASKS["StackPyramid-v1"]
    state = torch.zeros(3, POSE_DIM * len(task.actors))
    state[:, task.find_xyz("support")] = torch.tensor([0.05, 0.0, 0.02])
    state[1, task.find_xyz("support")] = torch.tensor([0.0616 + 0.03, 0.0, 0.02])
    state[:, task.goal_xyz] = torch.tensor([0.0, 0.0, 0.02])
    state[:, task.object_xyz] = torch.tensor([0.03, 0.0, 0.06])
    state[2, task.object_xyz] = torch.tensor([0.025, 0.0, 0.16])
    assert task.measure_distance_m(state).tolist() == pytest.approx([0.0, 0.03, 0.08], abs=1e-6)


def test_actions_turn_with_the_arm() -> None:
    """Forward for the arm of RollBall-v1 is -y of the table, and to its left is +x."""
    task = TASKS["RollBall-v1"]
    motion = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.allclose(task.turn_to_arm(motion), expected, atol=1e-6)
