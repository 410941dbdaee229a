"""A loop without a simulator: it waits for a robot's episodes, says what to do, and goes on with what is added."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from executors import Here
from hand_demonstrations import make_toy_spec

from worldloop.__main__ import main
from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.types import Episode
from worldloop.loop.run import run_loop
from worldloop.loop.startup import check_run_can_start
from worldloop.reporting.progress import TerminalDisplay
from worldloop.reporting.reporter import StageReporter
from worldloop.rollout.simulation import Simulation
from worldloop.sans.shard import ShardLayout, _features, export_for_training
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
INSTRUCTION = "push the disc to the goal"
READING = ("recording.success_key=success", "recording.actions_per_row=2", "recording.image_size=16")
QUICK = (
    "source=robot",
    "recording.actions_per_frame=2",
    "recording.max_episode_steps=20",
    "recording.validation_share=0.4",
    "seed_dataset.forked_states=0",
    "clone_policy.num_steps=20",
    "fit_world_model.num_steps=10",
    "fit_world_model.num_refit_steps=5",
    "fit_world_model.num_proprio_steps=10",
    "check_world_model.num_videos=0",
    "improve_policy.bootstraps=false",
    "improve_policy.truncates_uncertain=false",
    "improve_policy.num_updates=1",
    "improve_policy.groups_per_update=2",
    "improve_policy.num_candidates=1",
    "improve_policy.num_imitation_steps=10",
    "collect_episodes.num_episodes=7",
    "collect_episodes.validation_share=0.4",
)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripted episodes of the toy, successes and failures, as a robot's recorder would leave them."""
    folder = tmp_path_factory.mktemp("demonstrations")
    counts = [f"seed_dataset.episodes.{name}={n}" for name, n in (("expert", 36), ("far", 28))]
    none = [f"seed_dataset.episodes.{name}=0" for name in ("stops_short", "lateral_offset", "noisy")]
    config = load_config(DEBUG, [f"run_root={folder}", "seed_dataset.forked_states=0", *counts, *none])
    store = SansStore(run_loop(config, only_stage="seed_dataset").path / "sans")
    write(list(store.episodes(store.version("v000"))), folder / "demonstrations")
    return folder / "demonstrations"


def write(episodes: list[Episode], out: Path) -> None:
    """As a robot's recorder would: one instruction, no state of a simulator."""
    out.mkdir()
    stripped = [
        replace(
            episode,
            meta=replace(episode.meta, instruction=INSTRUCTION),
            sim_state=np.zeros((len(episode.proprio), 0), np.float32),
        )
        for episode in episodes
    ]
    layout = ShardLayout.of(stripped[0])
    export_for_training(out, stripped, _features(layout, stripped[0].meta, make_toy_spec()))


def load(folder: Path, demonstrations: Path, *settings: str) -> LoopConfig:
    return load_config(DEBUG, [f"run_root={folder}", f"recording.root={demonstrations}", *READING, *QUICK, *settings])


def act_as_robot(run: Path, out: Path, policy: str, num_episodes: int) -> list[Episode]:
    """Stand in for the robot: the toy runs the checkpoint, and what it does is written as a LeRobot dataset."""
    config, reporter = load_config(DEBUG), StageReporter("robot", TerminalDisplay(), out.parent / "tb", writes=False)
    simulation = Simulation(config.simulator, config.chunk_length, len(out.name), run, Here(), reporter)
    states = simulation.draw_fresh_states("train", num_episodes, out.name)
    episodes = simulation.run(
        states, block_size=20, purpose=out.name, iteration=0, policy=policy, temperature=1.0, splits=None
    )
    write(episodes, out)
    return episodes


@pytest.mark.slow
def test_two_iterations_stop_take_in_what_the_robot_did_and_finish(
    demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(tmp_path, demonstrations)
    run, recorded = tmp_path / "debug", []
    for iteration in range(3):  # the last one as well: how it goes is the evaluation
        capsys.readouterr()
        run_loop(config)
        state = RunDirectory(run).read_state()
        assert (state.iteration, state.next_stage) == (iteration, "collect_episodes")
        assert json.loads((run / "status.json").read_text())["state"] == "waiting for episodes"
        told = " ".join(capsys.readouterr().err.split())
        assert f"load_policy(Path('{run / state.policy}'))" in told
        assert "About 7 episodes of each task" in told
        assert f"worldloop sans add {run} DATASET recording.success_key=success" in told
        recorded.append(act_as_robot(run, tmp_path / f"robot_{iteration}", state.policy, 7))
        assert main(["sans", "add", str(run), str(tmp_path / f"robot_{iteration}"), *READING[:2]]) == 0
        assert f"7 episodes of {state.policy} added to iteration {iteration}" in capsys.readouterr().out
    # The same again, before the run has gone on, and twice the same are told apart.
    assert main(["sans", "add", str(run), str(tmp_path / "robot_0"), *READING[:2]]) == 2
    assert "was added in iteration 0: give others" in capsys.readouterr().err
    run_loop(config)
    assert RunDirectory(run).read_state().next_stage == ""
    assert main(["sans", "add", str(run), str(tmp_path / "robot_0"), *READING[:2]]) == 2
    assert "waits for no episodes: it has ended" in capsys.readouterr().err

    entries = json.loads((run / "results.json").read_text())["iterations"]
    for entry, episodes in zip(entries, recorded, strict=True):
        success = entry["logged_success"]
        # The last frame of an episode is not exported, and a success on it is seen by none.
        assert success["n"] == 7
        assert abs(success["k"] - sum(e.is_success for e in episodes)) <= 1
        assert entry["simulated_success"] is None
    assert [entry["promoted"] for entry in entries[1:]] == [bool(e.get("promoted")) for e in entries[1:]]
    store = SansStore(run / "sans")
    version = store.version("v003")
    assert [shard.name[:9] for shard in version.shards] == ["000-recor", "000-robot", "001-robot", "002-robot"]
    own = [meta for meta in store.metas(version) if meta.source == "policy"]
    assert [meta.iteration for meta in own] == [0] * 7 + [1] * 7 + [2] * 7
    assert {meta.split for meta in own} == {"train", "validation"}
    assert len({meta.initial_state_id for meta in own}) == 21
    assert own[0].policy_version == "checkpoints/iteration_000/policy"
    assert main(["report", str(run)]) == 0
    assert "success on the robot" in capsys.readouterr().out


def test_what_cannot_be_added_is_one_clear_error(
    demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(tmp_path, demonstrations)
    run = tmp_path / "debug"
    run_loop(config, only_stage="import_dataset")
    add = ["sans", "add", str(run), str(demonstrations)]
    assert main([*add, "recording.success_key=success"]) == 2
    assert "waits for no episodes: its next stage is clone_policy" in capsys.readouterr().err
    assert main([*add, "policy.kind=lerobot"]) == 2
    assert "policy.kind=lerobot is no setting of how the dataset is read" in capsys.readouterr().err
    assert main(["sans", "add", str(tmp_path / "none"), str(demonstrations)]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_a_robots_loop_needs_a_demonstration(demonstrations: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    assert main(["sans", "label", str(demonstrations), str(labels), "--failure", "0-63"]) == 0
    settings = ("recording.success_key=''", f"recording.labels={labels}")
    with pytest.raises(WorldloopError, match=r"no episode of .* succeeds, so there is nothing to imitate"):
        check_run_can_start(load(tmp_path, demonstrations, *settings))
