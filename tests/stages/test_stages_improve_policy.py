"""What GRPO starts from."""

from pathlib import Path

from worldloop import build
from worldloop.config import load_config
from worldloop.loop import run_loop

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
SMALL = (
    "num_iterations=1",
    "fit_world_model.num_steps=8",
    "fit_world_model.num_proprio_steps=4",
    "clone_policy.num_steps=8",
    "check_world_model.probe_steps=5",
    "improve_policy.num_updates=2",
    "improve_policy.num_candidates=1",
    "improve_policy.num_imitation_steps=10",
    "improve_policy.restart_from=successes",
)


def test_grpo_goes_on_from_a_policy_that_imitates_every_success(tmp_path: Path) -> None:
    overrides = [f"run_root={tmp_path}", "check_world_model.required_auc=0", "improve_policy.learning_rate=1e-9"]
    directory = run_loop(load_config(DEBUG, [*overrides, *SMALL]))
    entry = directory.read_results()["iterations"][1]
    imitated, improved = (f"checkpoints/iteration_001/policy_{name}" for name in ("of_successes", "after_002"))
    assert set(entry["validation_success"]) == {imitated, improved}
    assert entry["imagined_frames"] > 0
    clone, start, end = (
        build.load_policy(directory.path / path).state_dict()
        for path in ("checkpoints/iteration_000/policy", imitated, improved)
    )
    moved = {name for name in start if (end[name].float() - start[name].float()).abs().max() > 1e-5}
    assert not moved, "with steps this small GRPO stays where it began"
    assert any((clone[name].float() - start[name].float()).abs().max() > 1e-2 for name in start)


def test_a_distrusted_model_leaves_the_imitation_to_the_gate(tmp_path: Path) -> None:
    overrides = [f"run_root={tmp_path}", "check_world_model.required_auc=1", "check_world_model.max_fits=1"]
    enough = "seed_dataset.episodes.noisy=100"  # held-out successes to judge by
    entry = run_loop(load_config(DEBUG, [*overrides, enough, *SMALL])).read_results()["iterations"][1]
    assert list(entry["validation_success"]) == ["checkpoints/iteration_001/policy_of_successes"]
    assert "below check_world_model.required_auc 1" in entry["improvement_skipped"]
