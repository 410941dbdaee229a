"""Models of past iterations go, unless the run, or whoever plays or exports it, still needs them."""

import json
from pathlib import Path

import pytest

from worldloop.storage.retention import RetentionConfig, list_old_models, remove_folder
from worldloop.storage.run_state import LoopState

KINDS = {"policy": "policy", "world_model": "world_model", "critic_1": "critic", "planner": "policy"}


def make_run(run: Path, num_iterations: int) -> Path:
    """Iterations 0 to ``num_iterations`` with a checkpoint of every kind, and labels; 10 bytes of weights each."""
    for iteration in range(num_iterations + 1):
        for name, kind in KINDS.items():
            folder = run / f"checkpoints/iteration_{iteration:03d}/{name}"
            folder.mkdir(parents=True)
            (folder / "checkpoint.json").write_text(json.dumps({"kind": kind}))
            (folder / "model.safetensors").write_bytes(b"0123456789")
        labels = run / f"labels/iteration_{iteration:03d}"
        labels.mkdir(parents=True)
        (labels / "labels.npz").write_bytes(b"0123456789")
    return run


def list_paths(run: Path, state: LoopState, **settings: object) -> list[str]:
    return [found.path for found in list_old_models(run, state, RetentionConfig(**settings))]  # type: ignore[arg-type]


def test_what_the_state_names_and_the_latest_iterations_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path, 3)
    state = LoopState(
        iteration=3,
        clone="checkpoints/iteration_000/policy",
        policy="checkpoints/iteration_001/policy",
        world_model="checkpoints/iteration_003/world_model",
        teacher="checkpoints/iteration_001/world_model",
        critics=("checkpoints/iteration_000/critic_1",),
        labels="labels/iteration_001",
        records=({"world_model": "checkpoints/iteration_000/world_model"},),  # a figure keeps nothing alive
    )
    old = ["checkpoints/iteration_000/world_model", "checkpoints/iteration_001/critic_1", "labels/iteration_000"]
    assert list_paths(run, state) == old
    policies = [f"checkpoints/iteration_{i:03d}/{name}" for i, name in ((0, "planner"), (1, "planner"))]
    assert list_paths(run, state, policies=False) == sorted([*old, *policies])
    assert list_paths(run, state, num_iterations=4) == []


def test_a_folder_that_is_no_checkpoint_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    for name in ("iteration_000/notes", "iteration_own/world_model"):
        (run / "checkpoints" / name).mkdir(parents=True)
    (run / "checkpoints/iteration_000/critic_1/checkpoint.json").write_text("{")
    paths = list_paths(run, LoopState(iteration=5))
    assert len(paths) == 8, "a critic, a world model and labels of each iteration, but not the damaged one"
    assert {path.split("/")[-1] for path in paths if "_000" in path} == {"world_model", "iteration_000"}


def test_what_goes_is_measured_and_goes_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    first, *others = list_old_models(run, LoopState(iteration=9), RetentionConfig())
    size = len((run / first.path / "checkpoint.json").read_bytes())
    assert (first.what, first.num_bytes) == ("critic", 10 + size)
    remove_folder(run, first)
    assert not (run / first.path).exists()
    assert list((run / first.path).parent.glob(".*")) == []
    assert list_old_models(run, LoopState(iteration=9), RetentionConfig()) == others


def test_at_least_the_latest_iteration_stays() -> None:
    with pytest.raises(ValueError, match=r"retention.num_iterations is 0, allowed: >= 1"):
        RetentionConfig(num_iterations=0)
