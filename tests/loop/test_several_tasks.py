"""Two tasks and two cameras of different sizes in one loop: one dataset, one world model, one policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from worldloop.config.loading import load_config
from worldloop.envs.make import make_env
from worldloop.factory.checkpoints import load_policy
from worldloop.factory.pretrained import load_checked_world_model
from worldloop.loop.run import run_loop
from worldloop.reporting.tables import format_report
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("ToyPush-v1", "ToyReach-v1")
SETTINGS = (
    "run_name=several",
    "num_iterations=1",
    f"simulator.toy.tasks=[{','.join(TASKS)}]",
    "simulator.toy.cameras=[base_camera, hand_camera]",
    "simulator.toy.image_sizes={hand_camera: 24}",
    "policy.token_vla.cameras=[hand_camera]",
    "clone_policy.num_steps=30",
    "fit_world_model.num_steps=12",
    "fit_world_model.num_proprio_steps=4",
    "check_world_model.required_auc=0",
    "check_world_model.probe_steps=20",
    "improve_policy.num_updates=2",
    "improve_policy.num_candidates=1",
    "evaluate_policy.num_states=20",
    "evaluate_policy.swapped_states=10",
    "promote_policy.num_states=10",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    root = tmp_path_factory.mktemp("several")
    return run_loop(load_config(ROOT / "configs/debug.yaml", [*SETTINGS, f"run_root={root}"]))


def read_iterations(run: RunDirectory) -> list[dict[str, Any]]:
    iterations: list[dict[str, Any]] = json.loads((run.path / "results.json").read_text())["iterations"]
    return iterations


def test_every_figure_is_there_for_each_task_and_over_both(run: RunDirectory) -> None:
    clone, improved = read_iterations(run)
    for entry in (clone, improved):
        own = [entry["tasks"][task]["simulated_success"] for task in TASKS]
        assert [figures["n"] for figures in own] == [20, 20]
        assert entry["simulated_success"]["k"] == sum(figures["k"] for figures in own)
    assert set(improved["tasks"]) == set(TASKS)
    for task in TASKS:
        figures = improved["tasks"][task]
        assert figures["imagined_success"]["n"] == 20
        assert set(figures["reward_alignment"]) >= {"scripted", "on_policy"}
        assert {"psnr_db/base_camera", "psnr_db/hand_camera"} <= set(figures["world_model_check"]["scripted"])


def test_the_swapped_control_stands_beside_the_success(run: RunDirectory) -> None:
    for entry in read_iterations(run):
        assert entry["swapped_success"]["n"] == 20
        assert entry["swapped_minus_told"]["n"] == 20
        assert [entry["tasks"][task]["swapped_success"]["n"] for task in TASKS] == [10, 10]


def test_the_dataset_holds_both_tasks_and_every_cameras_frames(run: RunDirectory) -> None:
    store = SansStore(run.path / "sans")
    episodes = [e for name in store.list_versions() for e in store.episodes(store.version(name))]
    assert {e.meta.task for e in episodes} == set(TASKS)
    assert {tuple((name, f.shape[1:]) for name, f in e.frames.items()) for e in episodes} == {
        (("base_camera", (16, 16, 3)), ("hand_camera", (24, 24, 3)))
    }
    instructions = {task: {e.meta.instruction for e in episodes if e.meta.task == task} for task in TASKS}
    assert not set.intersection(*instructions.values())


def test_the_world_model_imagines_both_cameras_and_the_policy_reads_its_own(run: RunDirectory) -> None:
    world_model, card = load_checked_world_model(run.path)
    assert world_model.spec.robot.camera_names == ("base_camera", "hand_camera")
    assert set(card.calibrations.by_task) == set(card.starts.task) == set(TASKS)
    assert load_policy(run.path / run.read_state().policy).spec.robot.camera_names == ("hand_camera",)
    env = make_env(run.path, task="ToyReach-v1")
    observation, _ = env.reset(seed=0)
    assert observation["image_hand_camera"].shape == (24, 24, 3)


def test_the_report_names_both_tasks(run: RunDirectory) -> None:
    text = format_report(run.path)
    assert all(task in text for task in TASKS)
