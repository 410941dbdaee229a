"""LeRobot's ACT goes through the whole loop, and out to LeRobot and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_lerobot import DIFFUSION, make_smolvla_config

from worldloop.__main__ import main
from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import LikelihoodPolicy
from worldloop.core.types import Observation
from worldloop.factory.build import build_policy, build_simulator_spec
from worldloop.factory.checkpoints import load_policy
from worldloop.loop.run import run_loop
from worldloop.policies.lerobot.policy import LeRobotPolicy

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/debug_lerobot.yaml"
SMALL = (
    "num_iterations=1",
    "clone_policy.num_steps=10",
    "check_world_model.num_videos=0",
    "check_world_model.reset_every=[]",
    "clone_policy.batch_size=8",
    "improve_policy.num_imitation_steps=10",
    "evaluate_policy.num_states=10",
    "promote_policy.max_states=10",
    "promote_policy.states_per_look=10",
    "collect_episodes.num_episodes=10",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_loop(load_config(CONFIG, [*SMALL, f"run_root={tmp_path_factory.mktemp('lerobot')}"])).path


def test_the_loop_ends_with_a_lerobot_policy(run: Path) -> None:
    clone, improved = json.loads((run / "results.json").read_text())["iterations"]
    assert clone["simulated_success"]["n"] == improved["simulated_success"]["n"] == 10
    for path in ("iteration_000/policy", "iteration_001/policy"):
        policy = load_policy(run / "checkpoints" / path)
        assert isinstance(policy, LeRobotPolicy)
        assert type(policy.policy).__name__ == "ACTPolicy"
        assert policy.version == f"checkpoints/{path}"
        # Its statistics are those of the demonstrations: the toy's actions lie within [-1, 1].
        assert -1 <= float(policy.statistics["action"][2].min()) < float(policy.statistics["action"][3].max()) <= 1


def test_a_runs_policy_is_exported_and_imported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lerobot.policies.act.modeling_act import ACTPolicy

    out = tmp_path / "exported"
    assert main(["export-policy", str(run), str(out)]) == 0
    assert "for LeRobot's from_pretrained" in capsys.readouterr().out
    theirs = ACTPolicy.from_pretrained(out, strict=True)
    ours = load_policy(run / json.loads((run / "state.json").read_text())["policy"])
    assert isinstance(ours, LeRobotPolicy)
    for name, weight in ours.policy.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], weight)
    config = load_config(CONFIG, [f"policy.lerobot.path={out}"])
    spec = build_simulator_spec(config.simulator)
    again = build_policy(config.policy, spec, ours.normalisation, config.chunk_length, seed=0)
    assert torch.equal(again.policy.model.action_head.weight, theirs.model.action_head.weight)
    assert main(["export-policy", str(run), str(out)]) == 2
    assert "exists: export into a folder that does not exist yet" in capsys.readouterr().err


def test_only_a_lerobot_policy_is_exported(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-policy", str(debug_run), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "holds a TokenVLA: LeRobot can load policies of policy.kind=lerobot alone" in error
    assert not (tmp_path / "out").exists()
    assert main(["export-policy", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "does not exist: give the folder of a run, or of a policy" in capsys.readouterr().err


@pytest.mark.slow
def test_lerobot_train_learns_from_a_merged_dataset_and_its_policy_acts_here(run: Path, tmp_path: Path) -> None:
    """LeRobot's own command, unmodified, offline; then the same chunks by LeRobot and here, and an evaluation."""
    merged, trained = tmp_path / "merged", tmp_path / "trained"
    assert main(["sans", "merge", str(run / "sans"), "v000", "--out", str(merged), "--outcome", "success"]) == 0
    sizes = json.loads(json.dumps(load_config(CONFIG).policy.chosen_section().config)) | {"chunk_size": 2}
    settings = {f"policy.{name}": "null" if value is None else value for name, value in sizes.items()}
    settings |= {"policy.type": "act", "policy.device": "cpu", "policy.push_to_hub": "false"}
    settings |= {"policy.n_action_steps": 2, "steps": 2, "batch_size": 4, "num_workers": 0, "output_dir": trained}
    settings |= {"dataset.repo_id": "local/merged", "dataset.root": merged}
    command = [Path(sys.executable).parent / "lerobot-train", *(f"--{key}={value}" for key, value in settings.items())]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(list(map(str, command)), env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    folder = trained / "checkpoints/last/pretrained_model"
    taken = [f"policy.lerobot.{name}" for name in (f"path={folder}", "type=''", "config={}", "keeps_statistics=true")]
    only_judged = ["clone_policy.num_steps=0", "num_iterations=0", "run_name=taken", f"run_root={tmp_path}"]
    config = load_config(CONFIG, [*SMALL, *taken, *only_judged])
    finished = run_loop(config).path
    assert json.loads((finished / "results.json").read_text())["iterations"][0]["simulated_success"]["n"] == 10
    policy = load_policy(finished / "checkpoints/iteration_000/policy")
    assert isinstance(policy, LeRobotPolicy)
    assert (policy.actions_per_row, policy.horizon, policy.chunk_length) == (2, 4, 2)

    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    theirs = ACTPolicy.from_pretrained(folder, strict=True).eval()
    before, after = make_pre_post_processors(PreTrainedConfig.from_pretrained(folder), pretrained_path=str(folder))
    row = LeRobotDataset("local/merged", root=merged)[3]
    asked = {name: row[name][None] for name in ("observation.images.base_camera", "observation.state")}
    rows = after(theirs.predict_action_chunk(before(asked | {"task": [row["task"]]})))
    assert rows.shape == (1, 2, 4)  # two rows of two actions, dx and dy
    image = (row["observation.images.base_camera"] * 255).round().byte().movedim(0, -1)
    seen = Observation(
        {"base_camera": image[None, None]}, row["observation.state"][None], ("",), (row["task"],), torch.zeros(1).long()
    )
    chunk = policy.act(seen, None).actions
    assert torch.allclose(chunk, rows.reshape(1, 4, 2)[:, :2].clamp(-1, 1), atol=1e-6)


@pytest.mark.slow
def test_grpo_improves_a_smolvla_with_random_steps(tmp_path: Path) -> None:
    pytest.importorskip("num2words", reason="SmolVLA's processor needs it")
    sizes = [f"policy.lerobot.config.{name}={value}" for name, value in make_smolvla_config(tmp_path / "vlm").items()]
    chosen = ["policy.kind=lerobot", "policy.lerobot.type=smolvla", "policy.lerobot.sde_level=0.5", *sizes]
    few = ["fit_world_model.num_steps=12", "check_world_model.probe_steps=5", "check_closed_loop.num_states=2"]
    few += ["fit_value.num_steps=10", "improve_policy.num_updates=2", "check_closed_loop.num_training_states=2"]
    config = load_config(ROOT / "configs/debug.yaml", [*SMALL, *few, *chosen, f"run_root={tmp_path}"])
    run = run_loop(config).path
    improved = json.loads((run / "results.json").read_text())["iterations"][1]
    assert improved["simulated_success"]["n"] == 10
    assert {"first_update", "last_update"} <= set(improved["imagined_success_in_training"])
    assert isinstance(load_policy(run / "checkpoints/iteration_001/policy_after_002"), LikelihoodPolicy)


@pytest.mark.slow
def test_a_diffusion_policy_learns_in_the_world_model(tmp_path: Path) -> None:
    """It has no density, and imitates four actions at once where it acts in two."""
    sizes = {name: "null" if value is None else value for name, value in DIFFUSION.items()}
    chosen = ["policy.kind=lerobot", "policy.lerobot.type=diffusion", "improve_policy.method=imitate_imagined"]
    chosen += [f"policy.lerobot.config.{name}={value}" for name, value in sizes.items()]
    few = ["fit_world_model.num_steps=12", "check_world_model.probe_steps=5", "check_closed_loop.num_states=2"]
    few += ["improve_policy.num_imagined_groups=8", "check_closed_loop.num_training_states=2"]
    few += ["check_world_model.required_auc=0", "improve_policy.num_candidates=1", "improve_policy.restart_from=policy"]
    config = load_config(ROOT / "configs/debug.yaml", [*SMALL, *few, *chosen, f"run_root={tmp_path}"])
    run = run_loop(config).path
    improved = json.loads((run / "results.json").read_text())["iterations"][1]
    assert improved["imagined_frames"] > 0
    clone, tuned = (
        load_policy(run / "checkpoints" / path) for path in ("iteration_000/policy", "iteration_001/policy_after_010")
    )
    assert isinstance(tuned, LeRobotPolicy)
    assert (tuned.chunk_length, tuned.imitation_length) == (2, 4)
    assert any(not torch.equal(a, b) for a, b in zip(clone.parameters(), tuned.parameters(), strict=True))


def test_grpo_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    config = load_config(CONFIG, ["improve_policy.method=grpo", f"run_root={tmp_path}"])
    with pytest.raises(
        WorldloopError, match=r"lerobot lacks log_prob, which improve_policy.method=grpo needs: set imp"
    ):
        run_loop(config)
    assert not list(tmp_path.iterdir())
