"""A simulator and a policy of one's own, named in the config, go through the whole loop."""

import json
from pathlib import Path

import pytest
import torch

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.envs.make import make_env
from worldloop.factory.checkpoints import load_policy
from worldloop.loop.run import run_loop

ROOT = Path(__file__).resolve().parents[2]
OWN = ["simulator.kind=own_parts:ReachSimulator", "policy.kind=own_parts:GaussianPolicy", "policy.options.width=48"]


def test_the_loop_runs_on_ones_own_simulator_and_policy(tmp_path: Path) -> None:
    enough = ["seed_dataset.episodes.expert=60", "clone_policy.num_steps=300", "check_world_model.num_videos=0"]
    config = load_config(ROOT / "configs/debug.yaml", [*OWN, *enough, f"run_root={tmp_path}", "num_iterations=1"])
    run = run_loop(config).path
    clone, improved = json.loads((run / "results.json").read_text())["iterations"]
    assert clone["simulated_success"]["rate"] > 0.4
    assert clone["scripted_episodes"]["near_success"] + clone["scripted_episodes"]["failure"] > 20
    assert improved["imagined_success"]["n"] == 40
    path = run / json.loads((run / "state.json").read_text())["policy"]
    policy = load_policy(path, own_kind="own_parts:GaussianPolicy")
    assert type(policy).__name__ == "GaussianPolicy"
    assert policy.mean[0].out_features == 48
    env = make_env(run)
    observation, _ = env.reset(seed=0)
    assert observation["proprio"].shape == (2,)
    assert torch.tensor(observation["image"]).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ("simulator.kind=own_parts:NoExpert", "own_parts:NoExpert lacks make_scripted_policy"),
        ("simulator.kind=own_parts:NoConfig", "own_parts:NoConfig lacks Config"),
        ("simulator.kind=own_parts:NoSpec", "own_parts:NoSpec lacks make_spec"),
        ("simulator.kind=own_parts:Unbuildable", "own_parts:Unbuildable is not built from what a config gives it"),
        ("simulator.kind=own_parts:Absent", "cannot load 'own_parts:Absent'"),
        ("policy.kind=own_parts:Wordless", "own_parts:Wordless lacks log_prob"),
        ("policy.kind=own_parts:Abstract", "own_parts:Abstract lacks act, compute_imitation_loss, log_prob"),
        ("policy.kind=own_parts:NoPolicy", r"own_parts:NoPolicy is no subclass of .*\.LikelihoodPolicy"),
        ("policy.options.depth=3", "own_parts:GaussianPolicy does not take the config's options: .*depth"),
        ("simulator.options.gravity=9", "own_parts:ReachSimulator does not take .*gravity"),
        ("chunk_length=3", "multiple of its 2 actions per frame"),
    ],
)
def test_what_an_own_part_lacks_is_named_at_start_up(tmp_path: Path, own: str, named: str) -> None:
    config = load_config(ROOT / "configs/debug.yaml", [*OWN, f"run_root={tmp_path}", own])
    with pytest.raises(WorldloopError, match=named):
        run_loop(config)
    assert not list(tmp_path.iterdir())
