"""The environments of a world model with two cameras of different sizes and two tasks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from two_views import TwoViews, make_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import CameraSpec
from worldloop.core.success import Calibration, Calibrations
from worldloop.envs.spaces import make_observation_space
from worldloop.envs.world_model_env import WorldModelEnv, WorldModelVectorEnv

MODEL = TwoViews()
STARTS = MODEL.make_starts([0.0, 0.5, -0.5, 1.0], ["Right-v1", "Right-v1", "Left-v1", "Left-v1"])
CALIBRATIONS = Calibrations({"Right-v1": Calibration(floor_db=0.0), "Left-v1": Calibration(floor_db=18.0)})
PUSH = np.full((2, 1), 0.5, dtype=np.float32)  # one further with a frame
IMAGES = {"wide": np.full((4, 6, 3), 7, dtype=np.uint8), "hand": np.full((2, 3, 3), 9, dtype=np.uint8)}


def make_env(**options: Any) -> WorldModelEnv:
    return WorldModelEnv(MODEL, STARTS, CALIBRATIONS, **options)


def make_vector(num_envs: int, **options: Any) -> WorldModelVectorEnv:
    return WorldModelVectorEnv(MODEL, STARTS, CALIBRATIONS, num_envs, **options)


def test_gymnasium_and_stable_baselines3_accept_it() -> None:
    from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

    check_env(make_env(render_mode="rgb_array"), skip_render_check=False)
    check_env(make_env(task="Left-v1", render_mode="rgb_array"), skip_render_check=False)
    check_env_of_sb3(make_env(), warn=False)


def test_an_observation_has_an_image_of_each_camera_and_the_task() -> None:
    env = make_env()
    assert {name: space.shape for name, space in env.observation_space.items()} == {
        "image_wide": (4, 6, 3), "image_hand": (2, 3, 3), "proprio": (1,), "task": (),
    }  # fmt: skip
    observation, info = env.reset(seed=0, options={"start": 3})
    assert (observation["task"], info["task"], info["start"]) == (1, 1, 3)
    assert (observation["image_wide"] == 110).all()
    assert (observation["image_hand"] == 190).all()
    observation, _, _, _, info = env.step(-PUSH)
    assert (observation["image_wide"] == 100).all()
    assert (observation["image_hand"] == 200).all()
    assert (observation["task"], info["task"]) == (1, 1)


def test_cameras_whose_images_would_share_a_key_are_refused_by_name() -> None:
    spec = make_spec(CameraSpec("top.left", 4, 6), CameraSpec("top_left", 2, 3))
    with pytest.raises(WorldloopError, match=r"cameras 'top\.left' and 'top_left' would both be 'image_top_left'"):
        make_observation_space(spec)
    spec = make_spec(CameraSpec("top.left", 4, 6), CameraSpec("top_right", 2, 3))
    assert set(make_observation_space(spec)) == {"image_top_left", "image_top_right", "proprio", "task"}


def test_success_uncertainty_and_time_limit_are_those_of_the_row_s_task() -> None:
    env = make_vector(2, autoreset_mode="Disabled")
    env.reset(seed=0, options={"start": [1, 2]})
    both = np.stack([PUSH, -PUSH])
    _, rewards, terminated, _, info = env.step(both)  # 1.5 to the right, 1.5 to the left
    assert (rewards.tolist(), terminated.tolist()) == ([0, 0], [False, False])
    assert info["expected_psnr_db"].tolist() == [15, 15]
    assert info["uncertain"].tolist() == [False, True]
    _, rewards, terminated, _, _ = env.step(both)
    assert (rewards.tolist(), terminated.tolist()) == ([1, 1], [True, True])
    env.reset(options={"start": [0, 2]})
    still = np.zeros((2, 2, 1), dtype=np.float32)
    assert env.step(still)[3].tolist() == [False, False]
    assert env.step(still)[3].tolist() == [False, True]
    for _ in range(2):
        env.reset(options={"reset_mask": np.array([False, True]), "start": [2]})
        truncated = env.step(still)[3]
    assert truncated.tolist() == [True, False]


def test_a_chosen_task_is_the_only_one() -> None:
    env = make_env(task="Left-v1")
    assert set(env.observation_space) == {"image_wide", "image_hand", "proprio"}
    starts = [env.reset(seed=seed) for seed in range(20)]
    assert {info["start"] for _, info in starts} == {0, 1}
    assert {float(observation["proprio"][0]) for observation, _ in starts} == {-0.5, 1.0}
    assert all("task" not in info for _, info in starts)
    env.reset(options={"image": IMAGES, "proprio": [-1.5]})
    assert env.step(-PUSH)[2]
    assert env.fork(2).single_observation_space == env.observation_space
    observation = env.save().rows.observation
    assert (observation.task, observation.instruction) == (("Left-v1",), ("go left",))


def test_a_reset_may_ask_for_a_task() -> None:
    env = make_env()
    assert {env.reset(seed=seed)[1]["task"] for seed in range(20)} == {0, 1}
    assert {env.reset(seed=seed, options={"task": "Left-v1"})[1]["start"] for seed in range(20)} == {2, 3}
    vector = make_vector(3)
    assert vector.reset(seed=0, options={"task": "Right-v1"})[0]["task"].tolist() == [0, 0, 0]
    observation, info = vector.reset(seed=0, options={"task": ["Left-v1", "Right-v1", "Left-v1"]})
    assert observation["task"].tolist() == info["task"].tolist() == [1, 0, 1]
    assert observation["task"].dtype == vector.observation_space["task"].dtype


def test_starts_from_given_images() -> None:
    env = make_env()
    given = {"image": IMAGES, "proprio": [-1.5], "task": "Left-v1"}
    observation, info = env.reset(options=given)
    assert np.array_equal(observation["image_wide"], IMAGES["wide"])
    assert np.array_equal(observation["image_hand"], IMAGES["hand"])
    assert (observation["task"], info["start"]) == (1, -1)
    assert env.save().rows.observation.instruction == ("go left",)
    assert env.step(-PUSH)[2]
    env.reset(options={**given, "task": "Right-v1", "instruction": "move to the right"})
    assert env.save().rows.observation.instruction == ("move to the right",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": IMAGES["wide"]}, r"an image of each camera: wide uint8 \(4, 6, 3\), hand uint8 \(2, 3, 3\)"),
        ({"image": {"wide": IMAGES["wide"]}}, "lacks camera 'hand': this world model reads wide, hand"),
        ({"image": {**IMAGES, "top": IMAGES["wide"]}}, "has a camera 'top': this world model reads wide, hand"),
        (
            {"image": {**IMAGES, "hand": IMAGES["wide"]}},
            r"camera 'hand' is uint8 \(4, 6, 3\), expected uint8 \(2, 3, 3\)",
        ),
        ({"image": IMAGES, "task": None}, r"options\['task'\] must say what to do from there: Right-v1, Left-v1"),
        ({"image": IMAGES, "task": "Up-v1"}, "task'.* 'Up-v1' is not known to this world model: it imagines Right-v1,"),
        ({"task": "Up-v1"}, "'Up-v1' is not known to this world model: it imagines Right-v1, Left-v1"),
        ({"task": "Left-v1", "start": 0}, "two starts"),
    ],
)
def test_bad_starts_are_named(options: dict[str, Any], message: str) -> None:
    if "image" in options:
        options = {"proprio": [0.0], "task": "Left-v1", **options}
        options = {name: value for name, value in options.items() if value is not None}
    with pytest.raises(WorldloopError, match=message):
        make_env().reset(options=options)


def test_bad_tasks_and_starts_are_named_when_it_is_made() -> None:
    with pytest.raises(WorldloopError, match=r"task 'Up-v1' is not known .* imagines Right-v1, Left-v1"):
        make_env(task="Up-v1")
    with pytest.raises(
        WorldloopError, match="no observation to start task 'Left-v1' from: there are those of Right-v1"
    ):
        WorldModelEnv(MODEL, STARTS.rows([0, 1]), CALIBRATIONS, task="Left-v1")
    with pytest.raises(WorldloopError, match="no observation to start task 'Left-v1' from"):
        WorldModelEnv(MODEL, STARTS.rows([0, 1]), CALIBRATIONS).reset(options={"task": "Left-v1"})
    with pytest.raises(WorldloopError, match="starts has a task that does not fit: task 'Up-v1'"):
        WorldModelEnv(MODEL, replace(STARTS, task=("Up-v1",) * 4), CALIBRATIONS)
    with pytest.raises(WorldloopError, match="2 tasks for 3 rows"):
        make_vector(3).reset(options={"task": ["Left-v1", "Right-v1"]})
    with pytest.raises(WorldloopError, match="this world model was made for 2 x 3"):
        WorldModelEnv(TwoViews(make_spec(hand=CameraSpec("hand", 2, 3))), _with_hand(STARTS, 3, 3), CALIBRATIONS)
    env = WorldModelEnv(MODEL, replace(STARTS, frames={"top": STARTS.frames["hand"], **STARTS.frames}), CALIBRATIONS)
    env.reset(seed=0)
    assert list(env.save().rows.observation.frames) == ["wide", "hand"]


def _with_hand(starts: Any, height: int, width: int) -> Any:
    frames = {**starts.frames, "hand": torch.zeros(len(starts), 1, height, width, 3, dtype=torch.uint8)}
    return replace(starts, frames=frames)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_is_as_gymnasium_makes_it_of_single_ones(mode: AutoresetMode) -> None:
    own, other = make_vector(4, autoreset_mode=mode), SyncVectorEnv([make_env] * 4, autoreset_mode=mode)
    assert own.observation_space == other.observation_space
    ours, theirs = own.reset(seed=3), other.reset(seed=3)
    rng, tasks = np.random.default_rng(0), set()
    for _ in range(30):
        for name, value in ours[0].items():
            assert np.array_equal(value, theirs[0][name]), name
        assert np.array_equal(ours[-1]["task"][ours[-1]["_task"]], theirs[-1]["task"][ours[-1]["_task"]])
        if "final_info" in ours[-1]:
            ended = ours[-1]["_final_info"]
            assert np.array_equal(ours[-1]["final_info"]["task"][ended], theirs[-1]["final_info"]["task"][ended])
        tasks |= set(ours[0]["task"].tolist())
        actions = rng.uniform(-1, 1, (4, 2, 1)).astype(np.float32)
        ours, theirs = own.step(actions), other.step(actions)
        assert [np.array_equal(a, b) for a, b in zip(ours[1:4], theirs[1:4], strict=True)] == [True] * 3
    assert tasks == {0, 1}


def test_views_are_rendered_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(render_mode="rgb_array")
    env.reset(options={"start": 0})
    shown = env.render()
    assert shown is not None
    assert shown.shape == (4, 9, 3)
    assert shown[:, :, 0].tolist() == [[100] * 6 + [200] * 3] * 2 + [[100] * 6 + [0] * 3] * 2
    rows = make_vector(2, render_mode="rgb_array")
    rows.reset(options={"start": [0, 3]})
    second = rows.render()
    assert second is not None
    assert second[1][0, :, 0].tolist() == [110] * 6 + [190] * 3
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame")
    window = make_env(render_mode="human")
    window.reset(options={"start": 0})
    scale = 768 // 9
    assert pygame.display.get_surface().get_size() == (9 * scale, 4 * scale)
    assert tuple(pygame.display.get_surface().get_at((8 * scale, scale)))[:3] == (200, 200, 200)
    assert pygame.display.get_caption()[0] == "Right-v1, Left-v1, imagined"
    window.close()


def test_ppo_of_stable_baselines3_learns_both_tasks_by_their_number() -> None:
    """From the middle only ``task`` says where to go: a policy that does not read it solves half of them."""
    from sb3_adapter import WorldModelVecEnv
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy

    spec = make_spec(CameraSpec("wide", 36, 40), CameraSpec("hand", 36, 36))  # the fewest that its convolutions take
    model = TwoViews(replace(spec, tasks=tuple(replace(task, max_episode_steps=8) for task in spec.tasks)))
    starts = model.make_starts([0.0, 0.0], ["Right-v1", "Left-v1"])

    def make() -> WorldModelVecEnv:
        env = WorldModelVectorEnv(model, starts, Calibrations(), 8, autoreset_mode=AutoresetMode.SAME_STEP)
        rows = WorldModelVecEnv(env)
        rows.seed(0)
        return rows

    ppo = PPO(
        "MultiInputPolicy", make(), n_steps=32, batch_size=64, learning_rate=3e-3, n_epochs=4, gamma=0.9, seed=0,
        device="cpu", policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 4}},
    )  # fmt: skip
    before, _ = evaluate_policy(ppo, make(), n_eval_episodes=40, warn=False)
    ppo.learn(1500)
    after, _ = evaluate_policy(ppo, make(), n_eval_episodes=40, warn=False)
    assert before < 0.6
    assert after > 0.9
