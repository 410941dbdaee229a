"""Environments from checkpoints: a debug loop's world model, reused away from its run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from bare_installs import run_bare
from world_model_toy import TWO_CAMERAS, ToyEpisodes, make_model

from worldloop.core.errors import WorldloopError
from worldloop.core.success import Calibration, Calibrations
from worldloop.envs.make import make_env, make_vector_env
from worldloop.envs.vector_env import WorldModelVectorEnv
from worldloop.factory.checkpoints import save_world_model
from worldloop.play.make import make_play_session
from worldloop.storage.card import WorldModelCard, read_card, write_card

ROOT = Path(__file__).resolve().parents[2]
NAME = "worldloop/WorldModel-v0"


@pytest.fixture(scope="module")
def run(debug_run: Path) -> Path:
    return debug_run


@pytest.fixture(scope="module")
def checkpoint(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the world model alone, away from its run."""
    state = json.loads((run / "state.json").read_bytes())
    return Path(shutil.copytree(run / state["world_model"], tmp_path_factory.mktemp("elsewhere") / "world_model"))


def _actions(env: Any, seed: int) -> np.ndarray:
    env.action_space.seed(seed)
    return env.action_space.sample()


def test_gymnasium_makes_it_by_name_from_the_checkpoint_alone(checkpoint: Path) -> None:
    env = gymnasium.make(NAME, checkpoint=str(checkpoint), task="ToyPush-v1", render_mode="rgb_array")
    first, info = env.reset(seed=5)
    assert env.observation_space.contains(first)
    assert info["start"] >= 0
    second, reward, *_ = env.step(_actions(env, 0))
    assert not np.array_equal(first["image"], second["image"])
    assert np.array_equal(env.render(), second["image"])
    env.reset(seed=5)
    again = env.step(_actions(env, 0))
    assert np.array_equal(again[0]["image"], second["image"])
    assert again[1] == reward


def test_make_vec_gives_the_native_environment_and_a_run_means_its_latest_model(run: Path) -> None:
    env = gymnasium.make_vec(NAME, num_envs=3, checkpoint=run, autoreset_mode="SameStep")
    assert isinstance(env.unwrapped, WorldModelVectorEnv)
    env.reset(seed=0)
    ended = 0
    for t in range(30):
        observation, _, terminated, truncated, info = env.step(_actions(env, t))
        ended += int((terminated | truncated).sum())
        assert ("final_obs" in info) == bool((terminated | truncated).any())
    assert observation["image"].shape == (3, 16, 16, 3)
    assert ended >= 3


def test_the_example_in_the_docs_runs(run: Path) -> None:
    text = (ROOT / "docs/environments.md").read_text()
    lines = text[text.index("    import gymnasium, worldloop.envs ") :].split("\n\n- ")[0].splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in lines).replace("runs/pushcube_cpu", str(run)), names)
    assert 0 <= names["info"]["success_prob"] <= 1
    assert (names["futures"].num_envs, names["envs"].num_envs) == (8, 16)
    assert np.array_equal(names["env"].unwrapped.restore(names["moment"])["image"], names["observation"]["image"])


def test_a_fork_of_a_real_world_model_goes_on_bit_equal(checkpoint: Path) -> None:
    env = make_env(checkpoint)
    env.reset(seed=0)
    env.step(_actions(env, 0))
    saved, actions = env.save(), [_actions(env, t) for t in range(1, 3)]
    first = [env.step(a)[0]["image"] for a in actions]
    env.restore(saved)
    assert np.array_equal([env.step(a)[0]["image"] for a in actions], first)
    env.restore(saved)
    forks = env.fork(4)
    for a, image in zip(actions, first, strict=True):
        observation = forks.step(np.stack([a] * 4))[0]["image"]
        assert (observation == observation[:1]).all()
        # another batch size may round differently by a grey level
        assert np.abs(observation[0].astype(int) - image).max() <= 1


def test_the_card_carries_calibration_figures_and_training_starts(run: Path, checkpoint: Path) -> None:
    state, card = json.loads((run / "state.json").read_bytes()), read_card(checkpoint)
    assert {task: vars(c) for task, c in card.calibrations.by_task.items()} == state["calibrations"]
    check = state["records"][1]["reward_alignment"]
    assert card.figures["on_policy"]["auc"] == check["on_policy"]["auc"]
    assert {name: images.shape[1:] for name, images in card.starts.frames.items()} == {"base_camera": (1, 16, 16, 3)}
    assert set(card.starts.task) == {"ToyPush-v1"}
    assert len(card.starts) > 1


@pytest.mark.parametrize("file", ["model.safetensors", "starts.safetensors"])
def test_a_card_of_other_weights_is_refused(checkpoint: Path, tmp_path: Path, file: str) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / file).write_bytes((copy / file).read_bytes()[:-1] + b"x")
    with pytest.raises(WorldloopError, match=r"damaged|does not belong"):
        make_env(copy)


def test_mistakes_are_named(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldloopError, match="task 'Stack' is not known"):
        make_env(checkpoint, task="Stack")
    with pytest.raises(WorldloopError, match="does not exist"):
        make_env(tmp_path / "nowhere")
    with pytest.raises(WorldloopError, match="holds a policy"):
        make_env(run / "checkpoints/iteration_000/policy")
    unchecked = Path(shutil.copytree(checkpoint, tmp_path / "unchecked"))
    (unchecked / "card.json").unlink()
    with pytest.raises(WorldloopError, match=r"no card\.json"):
        make_env(unchecked)
    if not torch.cuda.is_available():
        with pytest.raises(WorldloopError, match="sees no GPU"):
            make_env(checkpoint, device="cuda")
    (tmp_path / "other").mkdir()
    state = json.loads((run / "state.json").read_bytes()) | {"world_model": ""}
    (tmp_path / "other/state.json").write_text(json.dumps(state))
    with pytest.raises(WorldloopError, match="no world model yet"):
        make_env(tmp_path / "other")


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, with two cameras and two tasks."""
    directory = tmp_path_factory.mktemp("two") / "world_model"
    tasks = ("Dot", "LeftDot")
    save_world_model(make_model(cameras=TWO_CAMERAS, tasks=tasks), directory)
    starts = ToyEpisodes(6, cameras=TWO_CAMERAS, tasks=tasks).first_observation(6)
    calibrations = {"Dot": Calibration(threshold=0.999), "LeftDot": Calibration(threshold=1e-6)}
    write_card(directory, WorldModelCard(Calibrations(calibrations), {}, starts))
    return directory


def test_a_checkpoint_of_two_cameras_and_two_tasks(two_tasks: Path) -> None:
    env = gymnasium.make(NAME, checkpoint=two_tasks)
    first, _ = env.reset(seed=0)
    assert first["image_base_camera"].shape == (16, 16, 3)
    assert first["image_above_camera"].shape == (8, 12, 3)
    second = env.step(_actions(env, 0))[0]
    for key in ("image_base_camera", "image_above_camera"):
        assert not np.array_equal(first[key], second[key])
    vector = gymnasium.make_vec(NAME, num_envs=4, checkpoint=two_tasks)
    observation, _ = vector.reset(seed=0, options={"task": ["Dot", "LeftDot", "LeftDot", "Dot"]})
    assert observation["task"].tolist() == [0, 1, 1, 0]
    assert vector.step(_actions(vector, 0))[2].tolist() == [False, True, True, False], "each task's own threshold"


def test_task_chooses_starts_and_leaves_no_task_to_observe(two_tasks: Path) -> None:
    env = make_vector_env(two_tasks, 8, task="LeftDot")
    observation, info = env.reset(seed=0)
    assert set(observation) == {"image_base_camera", "image_above_camera", "proprio"}
    assert set(info["start"].tolist()) <= {0, 1, 2}
    assert set(env.save().rows.observation.task) == {"LeftDot"}
    assert set(env.save().rows.observation.instruction) == {"move left"}
    assert env.step(_actions(env, 0))[2].all()
    with pytest.raises(WorldloopError, match=r"task 'Up' is not known to checkpoint .*: it imagines Dot, LeftDot"):
        make_env(two_tasks, task="Up")


@pytest.mark.parametrize("file", ["checkpoint.json", "card.json"])
def test_what_an_earlier_worldloop_made_is_refused(two_tasks: Path, tmp_path: Path, file: str) -> None:
    old = Path(shutil.copytree(two_tasks, tmp_path / "old"))
    (old / file).write_text(json.dumps(json.loads((old / file).read_bytes()) | {"schema_version": 1}))
    for make in (make_env, lambda checkpoint: make_play_session(checkpoint, None)):
        with pytest.raises(WorldloopError, match="made by an earlier worldloop"):
            make(old)


def test_a_game_in_a_checkpoint_of_two_cameras_and_two_tasks(two_tasks: Path) -> None:
    session = make_play_session(two_tasks, None, "cpu")
    assert {task for task, _ in session.starts} == {"Dot", "LeftDot"}
    session.step([0.5, 0.0])
    session.step([0.5, 0.0])
    first = session.moments[2].frames
    session.go_to(1)
    session.step([0.5, 0.0])
    assert {name: frame.shape for name, frame in first.items()} == {
        "base_camera": (16, 16, 3),
        "above.camera": (8, 12, 3),
    }
    for name, frame in session.moments[3].frames.items():
        assert np.abs(frame.astype(int) - first[name]).max() <= 1
    session.reset(1)
    assert (session.task, session.instruction) == session.starts[1]


def test_the_environment_and_play_need_the_base_install_alone(checkpoint: Path) -> None:
    code = (
        "assert {'ray', 'mani_skill', 'lerobot', 'transformers', 'pyarrow', 'PIL'} <= refused\n"
        "import gymnasium\n"
        "import worldloop.envs\n"
        "from worldloop.play.make import make_play_session\n"
        "from worldloop.__main__ import main\n"
        f"env = gymnasium.make_vec({NAME!r}, num_envs=2, checkpoint={str(checkpoint)!r})\n"
        "env.reset(seed=0)\n"
        "env.step(env.action_space.sample())\n"
        "from pathlib import Path\n"
        "from worldloop.play.server import PlayServer\n"
        f"PlayServer(lambda: make_play_session(Path({str(checkpoint)!r}), None)).close()\n"
        "main(['doctor'])\n"
        "print('light')\n"
    )
    done = run_bare([], code)
    assert done.stdout.endswith("light\n"), done.stderr


def test_importing_the_environments_is_enough_to_register() -> None:
    code = f"import gymnasium, worldloop.envs; print({NAME!r} in gymnasium.registry)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_the_old_name_says_the_new_one() -> None:
    with pytest.raises(ImportError, match=r"worldloop\.gym_env is now worldloop\.envs: write `import worldloop\.envs`"):
        import worldloop.gym_env  # noqa: F401


FORK = """
import sys

import gymnasium
import torch

import worldloop.envs

torch.set_num_threads(2)


def make():
    return gymnasium.make("worldloop/WorldModel-v0", checkpoint=sys.argv[1], device="cpu")


env = make()
env.reset(seed=0)
env.step(env.action_space.sample())
torch.randn(512, 512) @ torch.randn(512, 512)  # with both threads
envs = gymnasium.vector.AsyncVectorEnv([make, make])
envs.reset(seed=0)
envs.step(envs.action_space.sample())
envs.close()
"""


def test_environments_work_in_forked_processes(checkpoint: Path) -> None:
    """Torch's threads do not survive a fork: a child that waits for them would hang for ever."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(checkpoint)]
    subprocess.run(command, check=True, timeout=100)
