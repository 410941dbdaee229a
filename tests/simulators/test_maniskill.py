"""ManiSkill behind the Simulator interface: restarts, chunks, experts, and the missing driver's error."""

import importlib.metadata
import importlib.util
import sys
from dataclasses import replace

import pytest
import torch

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import InitialStateSource, Simulator
from worldloop.core.randomness import make_row_keys
from worldloop.core.types import InitialStates
from worldloop.simulators.maniskill import TASKS
from worldloop.simulators.maniskill import simulator as maniskill
from worldloop.simulators.maniskill.push_pull import PushPullTask
from worldloop.simulators.maniskill.robots import ROBOTS
from worldloop.simulators.maniskill.simulator import ManiSkillConfig, ManiSkillSimulator
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS

pytest.importorskip("mani_skill")

PUSH, PULL = "PushCube-v1", "PullCube-v1"
BASE, HAND = "base_camera", "hand_camera"
CUBE_XYZ, GOAL_XYZ = TASKS[PUSH].object_xyz, TASKS[PUSH].goal_xyz
BOTH = ManiSkillConfig(
    tasks=(PUSH, PULL), cameras=(BASE, HAND), image_sizes={HAND: 32}, view="table", show_goal=False, backend="cpu"
)


@pytest.fixture(scope="module")
def pull():
    sim = ManiSkillSimulator(ManiSkillConfig(tasks=("PullCube-v1",), actions_per_frame=4, backend="cpu"))
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def pick():
    sim = ManiSkillSimulator(ManiSkillConfig(tasks=("PickCube-v1",), backend="cpu"))
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def both():
    """Two tasks that look the same, from two cameras."""
    sim = ManiSkillSimulator(BOTH)
    yield sim
    sim.close()


def draw(sim, num_states, split="validation", seed=3, first=0, task=None):
    return sim.draw_initial_states(task or sim.spec.task_ids[0], split, num_states, seed, first)


def play(sim, start, variant, key, chunk_length, num_chunks=99):
    policy, observation = sim.make_scripted_policy(start.tasks, (variant,), key, chunk_length), sim.reset(start)
    steps, actions = [], []
    while len(steps) < num_chunks and not (steps and bool(steps[-1].done)):
        actions.append(policy.act(observation, None).actions)
        steps.append(sim.step_chunk(actions[-1]))
        observation = steps[-1].observation
    return steps, actions


def trajectory(sim, start, actions):
    """Every camera's frames, the states and the proprio."""
    first = sim.reset(start)
    steps = [sim.step_chunk(a) for a in actions]
    frames = [torch.cat([first.frames[c][:, -1:], *(s.frames[c] for s in steps)], dim=1) for c in first.frames]
    return *frames, torch.cat([s.sim_states for s in steps], dim=1), torch.cat([s.proprio for s in steps], dim=1)


def count_blue(frames):
    """Pixels of the cube in u8 [..., h, w, 3]."""
    red, green, blue = frames.float().unbind(-1)
    return ((blue > red + 40) & (blue > green + 20)).sum(dim=(-2, -1))


def test_spec_is_the_environments(push) -> None:
    assert isinstance(push, Simulator)
    assert isinstance(push, InitialStateSource)
    box = push._env.single_action_space
    assert tuple(box.low.tolist()) == push.spec.robot.action_low
    assert tuple(box.high.tolist()) == push.spec.robot.action_high
    assert push._env.control_freq == push.spec.robot.hz
    assert push._env.goal_radius == push.spec.tasks[0].success_radius_m
    assert push.spec == ManiSkillSimulator.make_spec(push.config)


def test_state_and_proprio_lie_where_family_and_robot_say(push, both) -> None:
    robot = ROBOTS["panda"]
    for sim in (push, both):
        observation = sim.reset(draw(sim, 1, "train", 0))
        agent, state, proprio = sim._env.agent, observation.sim_state, observation.proprio
        assert len(agent.robot.active_joints) == len(robot.joints)
        assert torch.equal(state[:, robot.qpos], agent.robot.qpos)
        assert torch.equal(state[:, robot.qvel], agent.robot.qvel)
        assert torch.equal(proprio[:, : 2 * len(robot.joints)], agent.robot.get_state()[:, 13:])
        assert torch.equal(proprio[:, robot.tcp_in_proprio], agent.tcp.pose.p)
        assert torch.equal(state[:, CUBE_XYZ], sim._env.obj.pose.p)
        assert torch.equal(state[:, GOAL_XYZ], sim._env.goal_region.pose.p)


def test_a_family_says_where_its_scene_has_cube_and_goal() -> None:
    class Cluttered(PushPullTask):
        actors = ("table", "clutter", "object", "goal")

    plain, robot = TASKS[PUSH], ROBOTS["panda"]
    cluttered = Cluttered(**vars(plain))
    assert (plain.object_xyz, plain.goal_xyz, plain.state_dim(robot)) == (slice(13, 16), slice(26, 29), 71)
    assert (cluttered.object_xyz, cluttered.goal_xyz, cluttered.state_dim(robot)) == (slice(26, 29), slice(39, 42), 84)
    state = torch.arange(84.0)[None]
    assert cluttered.measure_gap(state).tolist() == [[-13.0, -13.0]]


def test_a_scene_that_is_not_its_familys_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PushPullTask, "actors", ("table", "clutter", "object", "goal"))
    sim = ManiSkillSimulator(ManiSkillConfig(backend="cpu"))
    with pytest.raises(RuntimeError, match="PushCube-v1 has states of 71 numbers, not 84"):
        draw(sim, 1)


def test_draws_and_frames(push) -> None:
    few, many = draw(push, 2), draw(push, 4)
    assert torch.equal(few.states, many.states[:2])
    rest = draw(push, 2, first=2)
    assert torch.equal(rest.states, many.states[2:])
    assert rest.ids == many.ids[2:]
    assert few.ids[1] == "PushCube-v1/validation/3-000001"
    observation = push.reset(few.select([0]))
    frames = observation.frames[BASE]
    assert frames.shape == (1, 3, 64, 64, 3)
    assert observation.proprio.shape == (1, push.spec.robot.proprio_dim)
    image = frames[0, -1].float()
    assert image.std() > 20
    blue = (image[..., 2] > image[..., 0] + 40) & (image[..., 2] > 80)
    red = (image[..., 0] > 150) & (image[..., 1] < 100) & (image[..., 2] < 110)
    assert blue.sum() >= 8  # the cube
    assert red.sum() >= 20  # the goal
    assert torch.equal(frames[:, 0], frames[:, 2])


def test_supersampling_averages_blocks_of_each_cameras_larger_image(both) -> None:
    start = draw(both, 1)
    large = both.reset(start).frames
    sim = ManiSkillSimulator(replace(BOTH, image_size=32, image_sizes={HAND: 16}, supersampling=2))
    small = sim.reset(start).frames
    sim.close()
    for camera, size in ((BASE, 32), (HAND, 16)):
        image = large[camera][0, -1].double()
        assert small[camera].dtype == torch.uint8
        mean = image.reshape(size, 2, size, 2, 3).mean((1, 3)).round().to(torch.uint8)
        assert torch.equal(small[camera][0, -1], mean), camera


def test_restart_is_bit_equal_after_other_episodes(push) -> None:
    """Contacts are what leaked: a reset alone leaves PhysX's contact order as the last episode left it."""
    states = draw(push, 4, "train", 0)
    keys = make_row_keys(4, 1)
    _, actions = play(push, states.select([3]), "noisy", keys[3:4], 5, num_chunks=4)
    reference = trajectory(push, states.select([3]), actions)
    for other in (0, 1, 2):
        _, _ = play(push, states.select([other]), "grazing", keys[other : other + 1], 5, num_chunks=other + 3)
        for a, b in zip(reference, trajectory(push, states.select([3]), actions), strict=True):
            assert torch.equal(a, b)


def test_restart_is_bit_equal_after_episodes_of_another_task(both) -> None:
    starts = [draw(both, 1, "train", 0, task=task) for task in (PUSH, PULL)]
    keys = make_row_keys(1, 1)
    played = [play(both, start, "noisy", keys, 5, num_chunks=4)[1] for start in starts]
    reference = [trajectory(both, start, actions) for start, actions in zip(starts, played, strict=True)]
    for _ in range(2):
        for start, actions, expected in zip(starts, played, reference, strict=True):
            for a, b in zip(expected, trajectory(both, start, actions), strict=True):
                assert torch.equal(a, b), start.tasks


def test_restart_in_the_middle(push) -> None:
    start = draw(push, 1, "train", 0)
    steps, _ = play(push, start, "expert", make_row_keys(1), 5, num_chunks=2)
    middle = steps[-1].observation
    restart = replace(start, states=middle.sim_state)
    again = push.reset(restart)
    assert again.env_step.tolist() == [10]
    assert torch.allclose(again.sim_state, middle.sim_state, atol=1e-6)
    action = torch.tensor([[[0.0, 0.2, 0.2, -0.6]] * 5])
    free = push.step_chunk(action).observation.sim_state
    push.reset(restart)
    assert torch.equal(push.step_chunk(action).observation.sim_state, free)


def test_the_goal_of_a_lift_is_seen_and_measured_in_the_air(pick) -> None:
    start = draw(pick, 1, seed=0, first=1)
    state = start.states
    image = pick.reset(start).frames[BASE][0, -1].float()
    green = (image[..., 1] > 120) & (image[..., 0] < 90) & (image[..., 2] < 90)
    assert green.sum() >= 4
    gap = (state[0, CUBE_XYZ] - state[0, GOAL_XYZ]).norm()
    step = pick.step_chunk(torch.tensor([[[0.0, 0.0, 0.0, 1.0]] * 5]))
    assert step.distances_m is not None
    assert step.distances_m[0, 0].item() == pytest.approx(gap.item() - 0.025, abs=1e-3)
    assert pick._env.goal_thresh == pick.spec.tasks[0].success_radius_m == 0.025
    assert pick.spec.robot.proprio_names[-3:] == ("goal_x", "goal_y", "goal_z")
    assert torch.equal(step.observation.proprio[0, -3:], state[0, GOAL_XYZ])
    assert torch.equal(step.observation.proprio[0, -3:], pick._env.goal_site.pose.p[0])


def test_the_cube_is_in_sight_all_the_way(push, pull, both) -> None:
    for sim, task in ((push, PUSH), (pull, PULL), (both, PUSH), (both, PULL)):
        start = draw(sim, 1, task=task)
        steps, _ = play(sim, start, "expert", make_row_keys(1, 2), sim.spec.actions_per_frame)
        assert steps[-1].terminated.all()
        first = sim.reset(start).frames[BASE][:, -1:]
        frames = torch.cat([first, *(step.frames[BASE] for step in steps)], dim=1)
        assert (count_blue(frames[0]) >= 4).all(), (sim.config.view, task)


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_the_lifting_expert_and_what_goes_wrong(pick) -> None:
    states, keys = draw(pick, 12, seed=11), make_row_keys(12, 2)
    for row in range(12):
        steps, actions = play(pick, states.select([row]), "expert", keys[row : row + 1], 5)
        assert steps[-1].terminated.all(), row
        assert torch.cat(actions, 1)[..., :3].abs().max() <= 0.6 + 1e-6
        if row < 4:
            again, _ = play(pick, states.select([row]), "expert", keys[row : row + 1], 5)
            assert torch.equal(again[-1].observation.sim_state, steps[-1].observation.sim_state)
    for variant, lifts in (("too_high", False), ("far", False), ("expert", True)):
        steps, _ = play(pick, states.select([0]), variant, keys[:1], 5)
        height = torch.cat([s.sim_states for s in steps], 1)[0, :, CUBE_XYZ][:, 2]
        assert bool(height.max() > 0.03) is lifts, variant


def test_time_limit_inside_a_chunk(pull) -> None:
    start = draw(pull, 1, "train", 0)
    start.states[:, -1] = 46
    pull.reset(start)
    hold = torch.tensor([[[0.0, 0.0, 0.0, -0.6]] * 4])
    step = pull.step_chunk(hold)
    assert step.truncated.tolist() == [True]
    start.states[:, -1] = 48
    pull.reset(start)
    step = pull.step_chunk(torch.tensor([[[0.3, 0.0, 0.0, -0.6]] * 8]))
    assert step.valid.tolist() == [[True, True] + [False] * 6]
    assert step.truncated.tolist() == [True]
    assert step.observation.env_step.tolist() == [50]
    assert torch.equal(step.frames[BASE][:, 0], step.frames[BASE][:, 1])  # the second frame step never happened
    frozen = pull.step_chunk(hold)
    assert not frozen.valid.any()
    assert torch.equal(frozen.observation.frames[BASE], step.observation.frames[BASE])
    with pytest.raises(ValueError, match="actions_per_frame"):
        pull.step_chunk(hold[:, :3])


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("name", ["push", "pull"])
def test_expert_and_stops_short(name: str, request: pytest.FixtureRequest) -> None:
    sim = request.getfixturevalue(name)
    states, keys = draw(sim, 20, seed=11), make_row_keys(20, 2)
    chunk = 2 * sim.spec.actions_per_frame if name == "pull" else sim.spec.actions_per_frame
    for row in range(20):
        steps, actions = play(sim, states.select([row]), "expert", keys[row : row + 1], chunk)
        assert steps[-1].terminated.all(), row
        rewards = torch.cat([s.rewards for s in steps], dim=1)
        valid = torch.cat([s.valid for s in steps], dim=1)
        assert rewards.sum() == 1
        assert int(rewards.argmax()) == int(valid.sum()) - 1
        assert torch.cat(actions, 1).abs().max() <= 0.6 + 1e-6
    for row in range(4):
        steps, _ = play(sim, states.select([row]), "stops_short", keys[row : row + 1], chunk)
        margin = torch.cat([s.distances_m for s in steps], dim=1).min()
        assert steps[-1].truncated.all()
        assert 0 < margin < 0.095
    assert "stops_short" in SCRIPTED_VARIANTS


def test_two_tasks_start_with_the_same_pictures(both) -> None:
    """The goal is not drawn, so the instruction alone says whether to push or to pull."""
    push, pull = draw(both, 2, task=PUSH), draw(both, 2, task=PULL)
    assert not torch.equal(push.states, pull.states), "every task has seeds of its own"
    for env in (both._open_env(task, on_gpu=False) for task in (PUSH, PULL)):
        env.reset(seed=7)
    states = [both._open_env(task, on_gpu=False).get_state()[0] for task in (PUSH, PULL)]
    goals = [state[GOAL_XYZ].clone() for state in states]
    assert (goals[0] - goals[1]).tolist() == pytest.approx([0.4, 0, 0], abs=1e-6)
    for state in states:
        state[GOAL_XYZ] = 0
    assert torch.equal(*states), "the same seed is the same start in both but for the goal"
    mirrored = replace(push, tasks=(PULL, PULL), states=push.states.clone())
    mirrored.states[:, GOAL_XYZ.start] -= 0.4
    for row in range(2):
        seen, other = both.reset(push.select([row])), both.reset(mirrored.select([row]))
        assert list(seen.frames) == [BASE, HAND]
        for camera, size in ((BASE, 64), (HAND, 32)):
            assert seen.frames[camera].shape == (1, 3, size, size, 3)
            assert seen.frames[camera].float().std() > 20
            assert torch.equal(seen.frames[camera], other.frames[camera]), camera
        assert count_blue(seen.frames[BASE][0, -1]) >= 8
        assert seen.instruction[0] in both.spec.task(PUSH).instructions
        assert other.instruction[0] in both.spec.task(PULL).instructions
        assert torch.equal(other.sim_state[:, GOAL_XYZ], mirrored.states[row : row + 1, GOAL_XYZ])
    far = both.step_chunk(torch.zeros(1, 5, 4)).distances_m
    assert far[0, -1].item() == pytest.approx(0.1, abs=1e-4), "to the goal that is not seen"


def test_the_wrist_camera_moves_with_the_hand(both) -> None:
    import sapien

    start = draw(both, 1)
    steps, actions = play(both, start, "expert", make_row_keys(1, 2), 5, num_chunks=3)
    base, hand, _, _ = trajectory(both, start, actions)
    moved = [(frames[0, -1].float() - frames[0, 0].float()).abs().mean() for frames in (base, hand)]
    assert moved[1] > 2 * moved[0]  # everything that it sees
    assert torch.equal(steps[-1].observation.frames[HAND], hand[:, [0, 2, 3]])
    (housing,) = both._env.agent.robot.links_map["camera_link"]._objs
    body = housing.entity.find_component_by_type(sapien.render.RenderBodyComponent)
    assert body.visibility == 0, "still after resets: drawing it takes three times the rest"


def test_a_batch_holds_one_task(both) -> None:
    mixed = InitialStates.cat([draw(both, 1, task=PUSH), draw(both, 1, task=PULL)])
    wide = ManiSkillSimulator(BOTH)
    wide.num_envs = 2  # as on a GPU; nothing is made
    message = "one task, got PullCube-v1, PushCube-v1"
    with pytest.raises(ValueError, match=message):
        wide.reset(mixed)
    with pytest.raises(ValueError, match=message):
        wide.make_scripted_policy(mixed.tasks, ("expert", "expert"), make_row_keys(2), 5)
    with pytest.raises(ValueError, match=message):
        wide._load(mixed.states[1:], (PULL,), torch.tensor([1]), num_rows=2)
    with pytest.raises(ValueError, match="'PickCube-v1' is not one of PushCube-v1, PullCube-v1"):
        draw(both, 1, task="PickCube-v1")


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
    [
        ("tasks", ("Nope-v1",)),
        ("backend", "tpu"),
        ("num_envs", 0),
        ("supersampling", 0),
        ("max_episode_steps", -1),
        ("cameras", ("head",)),
        ("image_sizes", {HAND: 32}),
        ("view", "above"),
        ("view", "task"),
    ],
)
def test_config_names_the_bad_key(key: str, value: object) -> None:
    tasks = {"tasks": (PUSH, PULL)} if value == "task" else {}
    with pytest.raises(ValueError, match=f"simulator.maniskill.{key}"):
        ManiSkillConfig(**{"backend": "cpu", **tasks, key: value})


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


def test_the_spec_names_tasks_cameras_and_arm() -> None:
    spec = ManiSkillSimulator.make_spec(BOTH)
    assert spec.task_ids == (PUSH, PULL)
    assert [(c.name, c.height, c.width) for c in spec.robot.cameras] == [(BASE, 64, 64), (HAND, 32, 32)]
    assert (spec.robot.name, spec.robot.proprio_dim) == ("panda_wristcam", 25)
    assert ManiSkillSimulator.make_spec(ManiSkillConfig()).robot.name == "panda"
    lift = ManiSkillSimulator.make_spec(replace(BOTH, tasks=(PUSH, "PickCube-v1"), max_episode_steps=30))
    assert lift.robot.proprio_dim == 28, "the robot's proprio is the same in all its tasks"
    assert [task.success_radius_m for task in lift.tasks] == [0.1, 0.025]
    assert lift.max_episode_steps == 30
    assert all(len(set(task.instructions)) == 3 for task in (*spec.tasks, *lift.tasks))


def test_a_goal_that_proprio_tells_is_a_landmark_of_proprio() -> None:
    lift = ManiSkillSimulator.make_spec(replace(BOTH, tasks=(PUSH, "PickCube-v1"), max_episode_steps=30))
    for task in lift.tasks:
        goal = {mark.name: mark for mark in task.landmarks}["goal"]
        assert goal.source == "proprio"
        assert [lift.robot.proprio_names[i] for i in goal.columns] == ["goal_x", "goal_y", "goal_z"]
    assert [mark.source for mark in ManiSkillSimulator.make_spec(BOTH).tasks[0].landmarks] == [
        "sim_state",
        "sim_state",
        "proprio",
    ]


def test_after_half_a_turn_the_fingers_are_swapped() -> None:
    turn = ManiSkillSimulator.make_spec(ManiSkillConfig()).half_turn
    assert turn.reversed_actions == ("dx", "dy")
    assert turn.swapped_proprio == (("qpos_finger1", "qpos_finger2"), ("qvel_finger1", "qvel_finger2"))


def test_the_spec_is_known_where_there_is_no_maniskill(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    spec = ManiSkillSimulator.make_spec(ManiSkillConfig())
    assert (spec.task_ids[0], spec.simulator_version) == ("PushCube-v1", "mani_skill (not installed)")
    with pytest.raises(
        WorldloopError, match=r"mani_skill is not installed; install it with: pip install -e '\.\[sim\]' in the clone"
    ):
        ManiSkillSimulator(ManiSkillConfig())


def test_labels_say_where_the_arm_goes_in_the_picture() -> None:
    """As rendered pictures show it: from across the table +x goes left, and +y towards the camera, down."""
    table = ManiSkillSimulator.make_spec(ManiSkillConfig(view="table")).robot
    assert table.action_labels == (("right", "left"), ("up", "down"), ("lower", "raise"), ("close", "open"))
    assert len(table.action_labels) == table.action_dim
    assert not table.holds_targets
    push, pick = (TASKS[name].camera.name_directions() for name in ("PushCube-v1", "PickCube-v1"))
    assert push == (("right", "left"), ("up", "down"))
    assert sorted(pick[0] + pick[1]) == ["down", "left", "right", "up"]
    assert pick[1] in (("left", "right"), ("up", "down"))
