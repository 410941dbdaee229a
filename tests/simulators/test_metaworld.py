"""Meta-World behind the Simulator interface: exact restarts, chunks, cameras, experts and their variants."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from black_frames import draw_black
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import InitialStateSource, Simulator
from worldloop.core.randomness import make_row_keys
from worldloop.core.types import ChunkStep, InitialStates
from worldloop.factory.build import list_variations, vary_simulator
from worldloop.factory.config import SimulatorConfig
from worldloop.simulators.metaworld.cameras import UPSIDE_DOWN
from worldloop.simulators.metaworld.scene import MetaWorldScene
from worldloop.simulators.metaworld.simulator import JOINTS, MetaWorldConfig, MetaWorldSimulator
from worldloop.simulators.metaworld.tasks import MT10
from worldloop.simulators.mujoco_state import join_doubles
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS

pytest.importorskip("metaworld", reason="needs the extra metaworld")

NAMES = tuple(task.id for task in MT10)
PUSH, DRAWER, HAMMER = "push-v3", "drawer-close-v3", "hammer-v3"
CHUNK = 10
SHORT_KEY = 7  # of a row that stops after .76 of the time that the expert needs
FIRST_SOLVED = {"door-open-v3": 1}  # its expert does not solve state 0


@pytest.fixture(scope="module")
def sim() -> Iterator[MetaWorldSimulator]:
    """All tasks that the tests use, two rows, and one of them without distances."""
    config = MetaWorldConfig(
        tasks=(*NAMES, HAMMER), image_size=24, supersampling=1, num_envs=2, actions_per_frame=5, max_episode_steps=150
    )
    simulator = MetaWorldSimulator(config)
    yield simulator
    simulator.close()


def draw(sim: MetaWorldSimulator, task: str, num_states: int = 1, first: int = 0) -> InitialStates:
    return sim.draw_initial_states(task, "validation", num_states, 3, first)


def play(sim: MetaWorldSimulator, start: InitialStates, variant: str = "expert", key: int = 0, max_chunks: int = 50):
    """The steps and actions of one episode of one row."""
    policy = sim.make_scripted_policy(start.tasks, (variant,), make_row_keys(1, key), CHUNK)
    observation = sim.reset(start)
    steps: list[ChunkStep] = []
    actions: list[Tensor] = []
    while len(steps) < max_chunks and not (steps and bool(steps[-1].done)):
        actions.append(policy.act(observation).actions)
        steps.append(sim.step_chunk(actions[-1]))
        observation = steps[-1].observation
    return steps, actions


def test_spec_is_the_environments(sim) -> None:
    assert isinstance(sim, Simulator)
    assert isinstance(sim, InitialStateSource)
    observation = sim.reset(draw(sim, PUSH))
    env = sim._running[0]._env
    assert tuple(env.action_space.low) == sim.spec.robot.action_low
    assert tuple(env.action_space.high) == sim.spec.robot.action_high
    assert 1 / env.dt == sim.spec.robot.hz
    assert tuple(env.model.joint(i).name for i in range(9)) == JOINTS
    assert observation.proprio.shape == (1, sim.spec.robot.proprio_dim)
    assert observation.proprio[0, :3].tolist() == pytest.approx(env.get_endeff_pos(), abs=1e-6)
    assert observation.proprio[0, 4:].tolist() == pytest.approx([*env.data.qpos[:9], *env.data.qvel[:9]], abs=1e-6)
    marks = {mark.name: observation.sim_state[0, list(mark.columns)] for mark in sim.spec.tasks[0].landmarks[:2]}
    assert marks["object"].tolist() == pytest.approx(env.get_body_com("obj"), abs=1e-6)
    assert marks["goal"].tolist() == pytest.approx(env._target_pos, abs=1e-6)


@pytest.mark.parametrize("task", [PUSH, "button-press-topdown-v3"])
def test_an_initial_state_does_not_depend_on_what_was_drawn_before(sim, task) -> None:
    many, rest = draw(sim, task, 3), draw(sim, task, 2, first=1)
    assert torch.equal(many.states[1:], rest.states)
    assert many.ids[1:] == rest.ids
    assert many.ids[0] == f"{task}/validation/3-000000"
    assert not torch.equal(many.states[0], many.states[1])
    assert not torch.equal(many.states, sim.draw_initial_states(task, "train", 3, 3).states)


@pytest.mark.parametrize("task", NAMES)
def test_the_expert_succeeds_and_an_episode_goes_on_bit_for_bit_from_its_middle(sim, task) -> None:
    steps, actions = play(sim, draw(sim, task, first=FIRST_SOLVED.get(task, 0)))
    assert steps[-1].terminated.all()
    inside = torch.cat([step.distances_m for step in steps], 1) <= 0
    assert torch.equal(inside, torch.cat([step.success for step in steps], 1)), "the radius is Meta-World's"
    play(sim, draw(sim, task, first=1), "noisy", max_chunks=2)  # something else in the same scene
    middle = len(steps) // 2
    observation = sim.reset(steps[middle - 1].observation)
    assert torch.equal(observation.sim_state, steps[middle - 1].observation.sim_state)
    for step, chunk in zip(steps[middle:], actions[middle:], strict=True):
        again = sim.step_chunk(chunk)
        assert torch.equal(again.sim_states, step.sim_states)
        assert torch.equal(again.frames["close"], step.frames["close"])
        assert torch.equal(again.success, step.success)
        assert torch.equal(again.distances_m, step.distances_m)


def test_an_episode_is_wound_back_within_itself(sim) -> None:
    steps, actions = play(sim, draw(sim, PUSH))
    sim.reset(steps[0].observation)
    assert torch.equal(sim.step_chunk(actions[1]).sim_states, steps[1].sim_states)


@pytest.mark.usefixtures("without_pictures")
def test_planning_a_chunk_ahead_is_what_metaworlds_policy_does_at_each_step(sim) -> None:
    from metaworld.policies import ENV_POLICY_MAP

    start = draw(sim, PUSH)
    _, actions = play(sim, start)
    scene, policy = MetaWorldScene(PUSH), ENV_POLICY_MAP[PUSH]()
    scene.write(join_doubles(start.states[0, :-1]), 0)
    for action in torch.cat(actions, 1)[0]:
        expected = np.clip(policy.get_action(scene.observed), -1, 1).astype(np.float32)
        assert action.tolist() == expected.tolist()
        scene.step(expected)


@pytest.mark.usefixtures("without_pictures")
def test_variants_fail_in_ways_of_their_own(sim) -> None:
    start = draw(sim, PUSH)
    expert, _ = play(sim, start)
    late, actions = play(sim, start, "late", max_chunks=len(expert))
    assert not late[-1].done.any()
    assert actions[0][0, :, :3].abs().sum() == 0
    short, _ = play(sim, start, "stops_short", key=SHORT_KEY)
    assert short[-1].truncated.all()
    assert 0 < short[-1].distances_m[0, -1] < short[0].distances_m[0, 0] - 0.01
    far, _ = play(sim, start, "far", max_chunks=20)
    assert not any(step.success.any() for step in far)
    assert (far[-1].distances_m[0, -1] - far[0].distances_m[0, 0]).abs() < 0.01


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("variant", SCRIPTED_VARIANTS)
def test_a_variant_is_a_function_of_its_key_and_stays_within_bounds(sim, variant) -> None:
    start = draw(sim, PUSH)
    first, again, other = (play(sim, start, variant, key, 3)[1] for key in (1, 1, 2))
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert torch.stack(first).abs().max() <= 1
    if variant not in ("stops_short", "late"):  # whose rows begin alike
        assert torch.equal(torch.stack(first), torch.stack(other)) == (variant == "expert")


def test_an_unknown_variant_or_task_is_named(sim) -> None:
    with pytest.raises(ValueError, match="scripted variant 'sleepy' is not one of expert"):
        sim.make_scripted_policy((PUSH,), ("sleepy",), make_row_keys(1, 0), CHUNK)
    with pytest.raises(ValueError, match="task 'sweep-v3' is not one of reach-v3"):
        sim.make_scripted_policy(("sweep-v3",), ("expert",), make_row_keys(1, 0), CHUNK)


def test_rows_of_several_tasks_do_as_they_do_alone(sim) -> None:
    starts = InitialStates.cat([draw(sim, PUSH), draw(sim, DRAWER)])
    alone = [play(sim, starts.select([row]), max_chunks=2) for row in (0, 1)]
    policy = sim.make_scripted_policy(starts.tasks, ("expert", "expert"), make_row_keys(2, 0), CHUNK)
    observation = sim.reset(starts)
    for number in (0, 1):
        step = sim.step_chunk(policy.act(observation).actions)
        observation = step.observation
        for row in (0, 1):
            assert torch.equal(step.sim_states[row], alone[row][0][number].sim_states[0])
            assert torch.equal(step.frames["close"][row], alone[row][0][number].frames["close"][0])
    before = observation.sim_state[1]
    observation = sim.reset(draw(sim, "reach-v3"), rows=torch.tensor([0]))
    assert observation.task == ("reach-v3", DRAWER)
    assert torch.equal(observation.sim_state[1], before)


@pytest.mark.usefixtures("without_pictures")
def test_a_task_without_distance_says_so(sim) -> None:
    steps, _ = play(sim, draw(sim, HAMMER))
    assert steps[-1].terminated.all()
    assert torch.cat([step.distances_m for step in steps], 1).isnan().all()
    assert sim.spec.task(HAMMER).success_radius_m == 0


def find_fingers(image: Tensor) -> float:
    """The mean row of the cyan finger's pixels."""
    red, green, blue = image.float().unbind(-1)
    rows = ((blue > red + 80) & (green > red + 80)).nonzero()[:, 0].float()
    assert len(rows) > 3
    return rows.mean().item()


def test_cameras_are_upright() -> None:
    """A hand that rises goes up in the image. Meta-World's corner cameras hang upside down."""
    cameras = ("close", *UPSIDE_DOWN)
    sim = MetaWorldSimulator(MetaWorldConfig(tasks=(PUSH,), cameras=cameras, image_size=128, supersampling=1))
    first = sim.reset(draw(sim, PUSH)).frames
    up = torch.tensor([0.0, 0.0, 1.0, -1.0]).expand(1, 20, 4)
    last = sim.step_chunk(up).observation.frames
    sim.close()
    for camera in cameras:
        assert first[camera].shape == (1, 3, 128, 128, 3)
        assert find_fingers(last[camera][0, -1]) < find_fingers(first[camera][0, -1]) - 3, camera


def test_supersampling_averages() -> None:
    images = []
    for scale in (1, 4):
        sim = MetaWorldSimulator(MetaWorldConfig(tasks=(PUSH,), image_size=32, supersampling=scale))
        images.append(sim.reset(draw(sim, PUSH)).frames["close"][0, -1].float())
        sim.close()
    assert images[0].shape == images[1].shape == (32, 32, 3)
    assert 0.5 < (images[0] - images[1]).abs().mean() < 10


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, Tensor], Tensor]:
    return show("")


def show(variation: str) -> tuple[dict[str, Tensor], Tensor]:
    config = MetaWorldConfig(tasks=(PUSH,), cameras=("close", "gripperPOV"), image_size=48, variation=variation)
    sim = MetaWorldSimulator(config)
    start = draw(sim, PUSH)
    images = {camera: frames[0, -1].float() for camera, frames in sim.reset(start).frames.items()}
    sim._render = lambda: draw_black(sim)  # type: ignore[method-assign]
    steps, _ = play(sim, start)
    assert steps[-1].terminated.all(), "the expert still succeeds"
    sim.close()
    return images, start.states


@pytest.mark.parametrize("name", MetaWorldSimulator.VARIATIONS)
def test_a_variation_is_seen_and_changes_no_physics(name, plain) -> None:
    images, states = show(name)
    assert torch.equal(states, plain[1])
    changed = {camera: (image - plain[0][camera]).abs() for camera, image in images.items()}
    if name == "camera":
        assert changed["close"].mean() > 2
        assert changed["gripperPOV"].max() == 0
    elif name == "colour":
        assert 3 < (changed["close"].max(-1).values > 20).sum() < 80, "nothing but the puck changes"
    else:
        assert all(change.mean() > 5 for change in changed.values()), {c: float(x.mean()) for c, x in changed.items()}


def test_variations_are_settings_of_the_section() -> None:
    config = SimulatorConfig(kind="metaworld")
    assert list_variations(config) == MetaWorldSimulator.VARIATIONS
    assert vary_simulator(config, "lighting").chosen_section().variation == "lighting"


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WorldloopError, match=r"metaworld is not installed; .*\.\[metaworld\]"):
        MetaWorldSimulator(MetaWorldConfig())


def test_without_opengl_the_error_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("worldloop.simulators.mujoco_rendering.probe_opengl", lambda name: False)
    with pytest.raises(WorldloopError, match="apt-get install"):
        MetaWorldSimulator(MetaWorldConfig())
