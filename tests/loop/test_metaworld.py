"""The whole loop on two tasks of Meta-World, one of which knows no distances, in debug size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from worldloop.config.loading import load_config
from worldloop.loop.run import run_loop
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory

pytest.importorskip("metaworld", reason="needs the extra metaworld")

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("reach-v3", "hammer-v3")
SETTINGS = (
    "run_name=metaworld",
    "num_iterations=1",
    "chunk_length=10",
    "simulator.kind=metaworld",
    f"simulator.metaworld.tasks=[{','.join(TASKS)}]",
    "simulator.metaworld.image_size=16",
    "simulator.metaworld.supersampling=1",
    "simulator.metaworld.actions_per_frame=10",
    "simulator.metaworld.max_episode_steps=90",
    "policy.token_vla.proprio_prefixes=[tcp, gripper]",
    "seed_dataset.episodes={expert: 5, stops_short: 5, lateral_offset: 3, far: 2}",
    "seed_dataset.forked_states=0",
    "clone_policy.num_steps=20",
    "fit_world_model.num_steps=12",
    "fit_world_model.num_proprio_steps=12",
    "check_world_model.probe_steps=10",
    "check_world_model.num_videos=0",
    "check_world_model.reset_every=[]",
    "improve_policy.num_updates=1",
    "improve_policy.num_candidates=1",
    "improve_policy.num_imitation_steps=10",
    "improve_policy.bootstraps=false",
    "world_model.landmarks=true",
    "check_closed_loop.num_states=2",
    "check_closed_loop.num_training_states=0",
    "check_closed_loop.group_size=2",
    "evaluate_policy.num_states=2",
    "promote_policy.num_states=2",
    "promote_policy.max_states=2",
    "promote_policy.states_per_look=2",
    "collect_episodes.num_episodes=4",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    root = tmp_path_factory.mktemp("metaworld")
    return run_loop(load_config(ROOT / "configs/debug.yaml", [*SETTINGS, f"run_root={root}"]))


@pytest.mark.slow
def test_every_stage_of_the_loop_runs_on_both_tasks(run: RunDirectory) -> None:
    results: dict[str, Any] = json.loads((run.path / "results.json").read_text())
    clone, improved = results["iterations"]
    for task in TASKS:
        assert clone["tasks"][task]["simulated_success"]["n"] == 2
        assert improved["tasks"][task]["imagined_success"]["n"] > 0
    assert improved["closed_loop"]
    assert improved["promoted"] in (True, False)
    assert improved["promotion_reason"]


@pytest.mark.slow
def test_episodes_tell_distances_where_the_task_has_them(run: RunDirectory) -> None:
    store = SansStore(run.path / "sans")
    episodes = [e for name in store.list_versions() for e in store.episodes(store.version(name))]
    assert {e.meta.task for e in episodes} == set(TASKS)
    outcomes = {task: {e.meta.outcome for e in episodes if e.meta.task == task} for task in TASKS}
    assert outcomes["reach-v3"] == {"success", "near_success", "failure"}
    assert outcomes["hammer-v3"] == {"success", "failure"}
    for episode in episodes:
        assert episode.sim_state.shape[1] == 325
