"""ManiSkill behind the Simulator interface: restarts, chunks, experts, and the missing driver's error."""

import importlib.metadata
import importlib.util
import sys

import pytest
import torch

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import InitialStateSource, Simulator
from worldloop.core.randomness import make_row_keys
from worldloop.simulators.maniskill import simulator as maniskill
from worldloop.simulators.maniskill.family import CUBE_XYZ, GOAL_XYZ
from worldloop.simulators.maniskill.simulator import ManiSkillConfig, ManiSkillSimulator
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS

pytest.importorskip("mani_skill")


@pytest.fixture(scope="module")
def push():
    sim = ManiSkillSimulator(ManiSkillConfig(task="PushCube-v1", backend="cpu"))
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def pull():
    sim = ManiSkillSimulator(ManiSkillConfig(task="PullCube-v1", actions_per_frame=4, backend="cpu"))
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def pick():
    sim = ManiSkillSimulator(ManiSkillConfig(task="PickCube-v1", backend="cpu"))
    yield sim
    sim.close()


def play(sim, state, variant, key, chunk_length, num_chunks=99):
    policy, observation = sim.make_scripted_policy((variant,), key, chunk_length), sim.reset(state)
    steps, actions = [], []
    while len(steps) < num_chunks and not (steps and bool(steps[-1].done)):
        actions.append(policy.act(observation, None).actions)
        steps.append(sim.step_chunk(actions[-1]))
        observation = steps[-1].observation
    return steps, actions


def trajectory(sim, state, actions):
    first = sim.reset(state)
    steps = [sim.step_chunk(a) for a in actions]
    frames = torch.cat([first.frames[:, -1:], *(s.frames for s in steps)], dim=1)
    return frames, torch.cat([s.sim_states for s in steps], dim=1), torch.cat([s.proprio for s in steps], dim=1)


def test_spec_is_the_environments(push) -> None:
    assert isinstance(push, Simulator)
    assert isinstance(push, InitialStateSource)
    box = push._env.single_action_space
    assert tuple(box.low.tolist()) == push.spec.action_low
    assert tuple(box.high.tolist()) == push.spec.action_high
    assert push._env.control_freq == push.spec.hz
    assert push._env.goal_radius == push.spec.success_radius_m
    assert push.spec == ManiSkillSimulator.make_spec(push.config)


def test_draws_and_frames(push) -> None:
    few, many = push.draw_initial_states("validation", 2, 3), push.draw_initial_states("validation", 4, 3)
    assert torch.equal(few.states, many.states[:2])
    rest = push.draw_initial_states("validation", 2, 3, first=2)
    assert torch.equal(rest.states, many.states[2:])
    assert rest.ids == many.ids[2:]
    assert few.ids[1] == "PushCube-v1/validation/3-000001"
    observation = push.reset(few.states[:1])
    assert observation.frames.shape == (1, 3, 64, 64, 3)
    assert observation.proprio.shape == (1, push.spec.proprio_dim)
    image = observation.frames[0, -1].float()
    assert image.std() > 20
    blue = (image[..., 2] > image[..., 0] + 40) & (image[..., 2] > 80)
    red = (image[..., 0] > 150) & (image[..., 1] < 100) & (image[..., 2] < 110)
    assert blue.sum() >= 8  # the cube
    assert red.sum() >= 20  # the goal
    assert torch.equal(observation.frames[:, 0], observation.frames[:, 2])


def test_supersampling_averages_blocks_of_a_larger_image(push) -> None:
    state = push.draw_initial_states("validation", 1, 3).states
    large = push.reset(state).frames[0, -1].double()
    sim = ManiSkillSimulator(ManiSkillConfig(image_size=32, supersampling=2, backend="cpu"))
    small = sim.reset(state).frames[0, -1]
    sim.close()
    assert small.dtype == torch.uint8
    assert torch.equal(small, large.reshape(32, 2, 32, 2, 3).mean((1, 3)).round().to(torch.uint8))


def test_restart_is_bit_equal_after_other_episodes(push) -> None:
    """Contacts are what leaked: a reset alone leaves PhysX's contact order as the last episode left it."""
    states = push.draw_initial_states("train", 4, 0).states
    keys = make_row_keys(4, 1)
    _, actions = play(push, states[3:4], "noisy", keys[3:4], 5, num_chunks=4)
    reference = trajectory(push, states[3:4], actions)
    for other in (0, 1, 2):
        _, _ = play(push, states[other : other + 1], "grazing", keys[other : other + 1], 5, num_chunks=other + 3)
        for a, b in zip(reference, trajectory(push, states[3:4], actions), strict=True):
            assert torch.equal(a, b)


def test_restart_in_the_middle(push) -> None:
    state = push.draw_initial_states("train", 1, 0).states
    steps, _ = play(push, state, "expert", make_row_keys(1), 5, num_chunks=2)
    middle = steps[-1].observation
    again = push.reset(middle.sim_state)
    assert again.env_step.tolist() == [10]
    assert torch.allclose(again.sim_state, middle.sim_state, atol=1e-6)
    action = torch.tensor([[[0.0, 0.2, 0.2, -0.6]] * 5])
    free = push.step_chunk(action).observation.sim_state
    push.reset(middle.sim_state)
    assert torch.equal(push.step_chunk(action).observation.sim_state, free)


def test_the_goal_of_a_lift_is_seen_and_measured_in_the_air(pick) -> None:
    state = pick.draw_initial_states("validation", 2, 0).states[1:]
    image = pick.reset(state).frames[0, -1].float()
    green = (image[..., 1] > 120) & (image[..., 0] < 90) & (image[..., 2] < 90)
    assert green.sum() >= 4
    gap = (state[0, CUBE_XYZ] - state[0, GOAL_XYZ]).norm()
    step = pick.step_chunk(torch.tensor([[[0.0, 0.0, 0.0, 1.0]] * 5]))
    assert step.distances_m is not None
    assert step.distances_m[0, 0].item() == pytest.approx(gap.item() - pick.spec.success_radius_m, abs=1e-3)
    assert pick._env.goal_thresh == pick.spec.success_radius_m
    assert pick.spec.proprio_names[-3:] == ("goal_x", "goal_y", "goal_z")
    assert torch.equal(step.observation.proprio[0, -3:], state[0, GOAL_XYZ])
    assert torch.equal(step.observation.proprio[0, -3:], pick._env.goal_site.pose.p[0])


def test_the_cube_is_in_sight_all_the_way(push, pull) -> None:
    for sim in (push, pull):
        state = sim.draw_initial_states("validation", 1, 3).states
        steps, actions = play(sim, state, "expert", make_row_keys(1, 2), sim.spec.actions_per_frame)
        frames, _, _ = trajectory(sim, state, actions)
        red, green, blue = frames[0].float().unbind(-1)
        is_cube = (blue > red + 40) & (blue > green + 20)
        assert steps[-1].terminated.all()
        assert (is_cube.sum(dim=(1, 2)) >= 4).all(), sim.spec.task


@pytest.mark.slow
def test_the_lifting_expert_and_what_goes_wrong(pick) -> None:
    states, keys = pick.draw_initial_states("validation", 12, 11).states, make_row_keys(12, 2)
    for row in range(12):
        steps, actions = play(pick, states[row : row + 1], "expert", keys[row : row + 1], 5)
        assert steps[-1].terminated.all(), row
        assert torch.cat(actions, 1)[..., :3].abs().max() <= 0.6 + 1e-6
        again, _ = play(pick, states[row : row + 1], "expert", keys[row : row + 1], 5)
        assert torch.equal(again[-1].observation.sim_state, steps[-1].observation.sim_state)
    for variant, lifts in (("too_high", False), ("far", False), ("expert", True)):
        steps, _ = play(pick, states[:1], variant, keys[:1], 5)
        height = torch.cat([s.sim_states for s in steps], 1)[0, :, CUBE_XYZ][:, 2]
        assert bool(height.max() > 0.03) is lifts, variant


def test_time_limit_inside_a_chunk(pull) -> None:
    state = pull.draw_initial_states("train", 1, 0).states
    state[:, -1] = 46
    pull.reset(state)
    hold = torch.tensor([[[0.0, 0.0, 0.0, -0.6]] * 4])
    step = pull.step_chunk(hold)
    assert step.truncated.tolist() == [True]
    state[:, -1] = 48
    pull.reset(state)
    step = pull.step_chunk(torch.tensor([[[0.3, 0.0, 0.0, -0.6]] * 8]))
    assert step.valid.tolist() == [[True, True] + [False] * 6]
    assert step.truncated.tolist() == [True]
    assert step.observation.env_step.tolist() == [50]
    assert torch.equal(step.frames[:, 0], step.frames[:, 1])  # the second frame step never happened
    frozen = pull.step_chunk(hold)
    assert not frozen.valid.any()
    assert torch.equal(frozen.observation.frames, step.observation.frames)
    with pytest.raises(ValueError, match="actions_per_frame"):
        pull.step_chunk(hold[:, :3])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["push", "pull"])
def test_expert_and_stops_short(name: str, request: pytest.FixtureRequest) -> None:
    sim = request.getfixturevalue(name)
    states, keys = sim.draw_initial_states("validation", 20, 11).states, make_row_keys(20, 2)
    chunk = 2 * sim.spec.actions_per_frame if name == "pull" else sim.spec.actions_per_frame
    for row in range(20):
        steps, actions = play(sim, states[row : row + 1], "expert", keys[row : row + 1], chunk)
        assert steps[-1].terminated.all(), row
        rewards = torch.cat([s.rewards for s in steps], dim=1)
        valid = torch.cat([s.valid for s in steps], dim=1)
        assert rewards.sum() == 1
        assert int(rewards.argmax()) == int(valid.sum()) - 1
        assert torch.cat(actions, 1).abs().max() <= 0.6 + 1e-6
    for row in range(4):
        steps, _ = play(sim, states[row : row + 1], "stops_short", keys[row : row + 1], chunk)
        margin = torch.cat([s.distances_m for s in steps], dim=1).min()
        assert steps[-1].truncated.all()
        assert 0 < margin < 0.095
    assert "stops_short" in SCRIPTED_VARIANTS


def test_no_vulkan_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sapien

    class Blind:
        def __init__(self, name: str) -> None: ...

        def can_render(self) -> bool:
            return False

    monkeypatch.setattr(sapien, "Device", Blind)
    with pytest.raises(WorldloopError, match=r"Vulkan.*make setup.*worldloop doctor"):
        ManiSkillSimulator(ManiSkillConfig(backend="cpu"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("task", "Nope-v1"), ("backend", "tpu"), ("num_envs", 0), ("supersampling", 0), ("max_episode_steps", -1)],
)
def test_config_names_the_bad_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        ManiSkillConfig(**{"backend": "cpu", key: value})


def test_many_envs_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="num_envs"):
        ManiSkillConfig(backend="cpu", num_envs=2)
    monkeypatch.setattr(maniskill.torch.cuda, "is_available", lambda: False)
    with pytest.raises(WorldloopError, match="num_envs"):
        ManiSkillSimulator(ManiSkillConfig(num_envs=4))
    with pytest.raises(WorldloopError, match="CUDA"):
        ManiSkillSimulator(ManiSkillConfig(backend="gpu", num_envs=4))


def test_spec_needs_no_mani_skill_import() -> None:
    import subprocess

    code = (
        "import sys; from worldloop.simulators.maniskill.simulator import *;"
        "ManiSkillSimulator.make_spec(ManiSkillConfig());"
        "assert not {'mani_skill', 'sapien'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_spec_is_known_where_there_is_no_maniskill(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    spec = ManiSkillSimulator.make_spec(ManiSkillConfig())
    assert (spec.task, spec.simulator_version) == ("PushCube-v1", "mani_skill (not installed)")
    with pytest.raises(
        WorldloopError, match=r"mani_skill is not installed; install it with: pip install 'worldloop\[sim\]'"
    ):
        ManiSkillSimulator(ManiSkillConfig())
