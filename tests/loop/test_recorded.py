"""From a recording to an environment, without any simulator: label, fit, check, drive. By the command line."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from recording import record

from worldloop.__main__ import main
from worldloop.config.loading import load_config
from worldloop.loop.run import run_loop

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "recording.image_size=16",
    "recording.actions_per_frame=3",
    "recording.validation_share=0.25",
    "chunk_length=3",
    "world_model.hybrid.patch=2",
    "world_model.hybrid.width=16",
    "world_model.hybrid.num_res_blocks=1",
    "world_model.hybrid.dim=32",
    "world_model.hybrid.num_heads=2",
    "world_model.hybrid.num_blocks=1",
    "world_model.hybrid.condition_dim=32",
    "world_model.hybrid.num_poses=2",
    "fit_world_model.num_steps=60",
    "fit_world_model.num_proprio_steps=60",
    "check_world_model.reset_every=[2]",
    "check_world_model.num_videos=1",
    "resources.num_threads=1",
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dot that moves right by its action, 24 episodes in video: those of an odd number reach the right edge."""
    pytest.importorskip("lerobot.datasets.lerobot_dataset")
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(24):
        n = 25
        speed = (1.0 if number % 2 else 0.4) * rng.uniform(0.9, 1.0)
        action = np.full((n, 1), speed, dtype=np.float32) * rng.uniform(0.8, 1.2, (n, 1)).astype(np.float32)
        x = np.concatenate([[0.0], np.cumsum(action[:-1, 0])]).astype(np.float32)
        images = np.full((n, 48, 64, 3), 60, dtype=np.uint8)
        for row in range(n):
            column = min(int(x[row] * 2.2) + 4, 60)
            images[row, 16:32, column - 4 : column + 4] = (230, 220, 40)
        episodes.append(
            {"images": images, "state": x[:, None], "action": action, "success": x > 21, "task": "go right"}
        )
    return record(tmp_path_factory.mktemp("recordings") / "dot", episodes)


def test_recording_becomes_an_environment(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, sheet = tmp_path / "labels.json", tmp_path / "sheet.png"
    odd = ",".join(str(i) for i in range(1, 24, 2))
    assert main(["sans", "label", str(recording), str(labels), "--sheet", str(sheet)]) == 0
    assert "no label    24  0-23" in capsys.readouterr().out
    assert not labels.exists()
    assert sheet.read_bytes()[:4] == b"\x89PNG"
    assert main(["sans", "label", str(recording), str(labels), "--success", odd, "--failure", "rest"]) == 0
    assert "failure     12  0, 2, 4" in capsys.readouterr().out

    data = [f"recording.root={recording}", f"recording.labels={labels}", f"run_root={tmp_path}"]
    assert main(["run", str(ROOT / "configs/recorded_cpu.yaml"), *data, *SMALL]) == 0
    out = capsys.readouterr()
    assert "24 recorded episodes: 9 train failure, 9 train success, 3 validation failure" in out.err + out.out
    run = tmp_path / "recorded_cpu"
    results = json.loads((run / "results.json").read_text())
    last = results["iterations"][1]
    assert last["simulated_success"] is None
    assert last["reward_alignment"]["recorded"]["n"] == 6
    assert last["psnr_db"] > 15

    import worldloop.envs  # noqa: F401

    env = gymnasium.make("worldloop/WorldModel-v0", checkpoint=run, task="dot", render_mode="rgb_array", device="cpu")
    check_env(env.unwrapped, skip_render_check=True)
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == (16, 16, 3)
    low, high = env.action_space.low, env.action_space.high
    assert low.shape == (3, 1)
    positions = {}
    for name, action in (("slow", low), ("fast", high)):
        env.reset(seed=0, options={"start": 0})
        for _ in range(4):
            observation, *_ = env.step(action)
        positions[name] = float(observation["proprio"][0])
    assert positions["fast"] > positions["slow"] + 4  # 12 actions of .4 to 1.2 apart
    image = np.full((16, 16, 3), 60, dtype=np.uint8)
    observation, info = env.reset(options={"image": image, "proprio": np.zeros(1, dtype=np.float32)})
    assert np.array_equal(observation["image"], image)
    assert info["start"] == -1


def test_two_cameras_and_two_instructions_become_an_environment(tmp_path: Path) -> None:
    """One dot in two views of different sizes: it is to go right, or to go down."""
    pytest.importorskip("lerobot.datasets.lerobot_dataset")
    episodes = []
    for number in range(16):
        n, down, is_fast = 13, number % 2, number % 4 < 2
        state = np.zeros((n, 2), dtype=np.float32)
        state[:, down] = np.arange(n) * (1.0 if is_fast else 0.3)
        views = {"front": (32, 48), "side": (24, 24)}
        images = {name: np.full((n, *size, 3), 60, dtype=np.uint8) for name, size in views.items()}
        for row, (x, y) in enumerate(state.round().astype(int)):
            for view in images.values():
                view[row, 4 + y : 8 + y, 4 + x : 8 + x] = (230, 220, 40)
        action = np.full((n, 2), 0.3 + 0.7 * is_fast, dtype=np.float32)
        success = state[:, down] > 8
        task = ("go right", "go down")[down]
        episodes.append({"images": images, "state": state, "action": action, "success": success, "task": task})
    root = record(tmp_path / "dot", episodes, use_videos=False)
    overrides = [
        f"recording.root={root}",
        "recording.success_key=next.success",
        "recording.image_sizes.side=24",
        f"run_root={tmp_path}",
        *SMALL,
        "fit_world_model.num_steps=4",
        "fit_world_model.num_proprio_steps=4",
    ]
    run = run_loop(load_config(ROOT / "configs/recorded_cpu.yaml", overrides)).path
    record_of_check = json.loads((run / "results.json").read_text())["iterations"][1]
    assert list(record_of_check["tasks"]) == ["dot/go-down", "dot/go-right"]
    for figures in record_of_check["tasks"].values():
        assert figures["reward_alignment"]["recorded"]["n"] == 2  # a success and a failure of each are held out
    assert record_of_check["reward_alignment"]["recorded"]["n"] == 4

    import worldloop.envs  # noqa: F401

    env = gymnasium.make("worldloop/WorldModel-v0", checkpoint=run, device="cpu")
    observation, _ = env.reset(seed=0)
    assert observation["image_front"].shape == (16, 16, 3)
    assert observation["image_side"].shape == (24, 24, 3)
    assert observation["task"] in (0, 1)
    observation, *_ = env.step(env.action_space.high)
    assert observation["image_side"].shape == (24, 24, 3)


def test_mistakes_are_one_line(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(text: str, *arguments: str) -> None:
        assert main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.startswith("worldloop: ")
        assert error.count("\n") == 1

    config, root = str(ROOT / "configs/recorded_cpu.yaml"), f"run_root={tmp_path}"
    refuse("recording.root is not given", "run", config, root)
    refuse("nothing says which episodes", "run", config, root, f"recording.root={recording}")
    refuse("num_iterations is 3, allowed", "run", config, root, "num_iterations=3")
    labels = str(tmp_path / "labels.json")
    refuse("'30' does not fit", "sans", "label", str(recording), labels, "--success", "30")
    refuse("'wrist' is none of them", "sans", "label", str(recording), labels, "--camera", "wrist")
    refuse("is no LeRobotDataset", "sans", "label", str(tmp_path), labels)
    assert not list(tmp_path.iterdir()), "what was refused leaves nothing behind"
