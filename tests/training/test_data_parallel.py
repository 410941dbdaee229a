"""Two data-parallel workers compute what one computes: every training stage of the toy loop, over gloo."""

from __future__ import annotations

import multiprocessing
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.factory import checkpoints
from worldloop.loop.run import TRAINING, advance, run_stage
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.storage.run_state import LoopState
from worldloop.training.data_parallel import Workers
from worldloop.training.optimizer import Optimisation
from worldloop.training.sharding import gather, is_sharded, to_local

CONFIG = (
    "num_iterations=1",
    "num_microbatches=2",
    "clone_policy.num_steps=3",
    "fit_world_model.num_steps=4",
    "fit_world_model.num_proprio_steps=3",
    "fit_world_model.self_rollout_start=0",
    "check_world_model.probe_steps=5",
    "improve_policy.num_updates=2",
    "improve_policy.num_candidates=1",
    "improve_policy.num_imitation_steps=3",
    "improve_policy.num_critic_steps=2",
    "improve_policy.imagination_horizon=8",
    "improve_policy.min_group_std=0.1",
)


SHARDED = ("runtime=ray", "resources.num_workers=2", "resources.shard_world_model=true", "resources.keep_every_s=1e-9")


def configure(shards: bool = False) -> LoopConfig:
    path = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
    return load_config(path, CONFIG + SHARDED if shards else CONFIG)


class Records:
    """What the optimizer steps of a stage saw, taken down in the process that runs it."""

    def __init__(self) -> None:
        self.gradients: dict[str, list[torch.Tensor | None]] = {}
        self.shares: list[list[float]] = []
        self.dropped: list[float] = []
        self.shares_held: dict[str, int] = {}

    def listen(self) -> None:
        from worldloop.stages import improve_policy

        clip, share, improve = torch.nn.utils.clip_grad_norm_, Workers.shares, improve_policy._Improvement.improve
        step, records = Optimisation.step, self

        def recorded_step(own: Optimisation) -> float:
            def recorded_clip(parameters: Any, norm: float) -> Any:
                copies = [None if p.grad is None else gather({"": p.grad})[""].clone() for p in parameters]
                records.gradients.setdefault(own.name, copies)
                records.shares_held[own.name] = sum(to_local(p).numel() for p in parameters if is_sharded(p))
                return clip(parameters, norm)

            torch.nn.utils.clip_grad_norm_ = recorded_clip
            try:
                return step(own)
            finally:
                torch.nn.utils.clip_grad_norm_ = clip

        def recorded_shares(own: Workers, counts: Any) -> list[torch.Tensor]:
            shares = share(own, counts)
            records.shares.append([float(s) for s in shares])
            return shares

        def recorded_improve(own: Any, rollouts: Any) -> dict[str, float]:
            metrics = improve(own, rollouts)
            records.dropped.append(metrics["groups_dropped"])
            return metrics

        Optimisation.step = recorded_step  # type: ignore[method-assign]
        Workers.shares = recorded_shares  # type: ignore[method-assign, assignment]
        improve_policy._Improvement.improve = recorded_improve  # type: ignore[method-assign]


def run_training_stages(
    rank: int, size: int, port: int, stages: list[tuple[LoopState, str]], out: str, shards: bool
) -> None:
    """Worker ``rank`` of ``size``: each of ``stages``, a state and the run directory in which it is next."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
        check_sums(rank)
    records = Records()
    records.listen()
    for state, directory in stages:
        if shards:
            cut_after_two_steps(state, directory)
        run_stage(state, configure(shards), directory, InlineRuntime(0, 0, SilentDisplay()), SilentDisplay())
    torch.save(vars(records), f"{out}/records_{size}_{rank}.pt")


class CutDisplay(SilentDisplay):
    """Ctrl-C after the second optimizer step, which has been kept."""

    count, unit = 0, ""

    def open(self, label: str, total: int, unit: str) -> None:
        self.count, self.unit = 0, unit

    def advance(self, count: int, figures: dict[str, float]) -> None:
        self.count += count
        if (self.count, self.unit) == (2, "step"):
            raise KeyboardInterrupt


def cut_after_two_steps(state: LoopState, directory: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(state, configure(shards=True), directory, InlineRuntime(0, 0, CutDisplay()), CutDisplay())
    Workers.of_process_group().wait()  # the first of them writes last
    assert (Path(directory) / "partial/fit_world_model/partial.json").exists()


def check_sums(rank: int) -> None:
    workers = Workers.of_process_group()
    assert workers == Workers(rank, 2)
    first, second, third = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad = torch.tensor([1.0, 10.0]) * (rank + 1)
    second.grad = torch.tensor([5.0, 7.0]) if rank == 1 else None
    workers.sum_gradients([first, second, third])
    assert first.grad.tolist() == [3.0, 30.0]
    assert second.grad is not None
    assert second.grad.tolist() == [5.0, 7.0]
    assert third.grad is None
    counts = [torch.tensor(1), torch.tensor(0)] if rank == 0 else [torch.tensor(2), torch.tensor(5)]
    assert [float(s) for s in workers.shares(counts)] == pytest.approx([0.125, 0.0] if rank == 0 else [0.25, 0.625])
    assert workers.maximum(torch.tensor([rank, 1 - rank])).tolist() == [1, 1]
    assert workers.gather(rank) == [0, 1]


def start_workers(
    size: int, stages: list[tuple[LoopState, str]], out: Path, shards: bool = False
) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=run_training_stages, args=(rank, size, port, stages, str(out), shards))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(out / f"records_{size}_{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Path], dict[str, LoopState], list[dict[str, Any]]]:
    """Each training stage twice from the same beginning: by one worker and by two; what the workers saw."""
    root = tmp_path_factory.mktemp("workers")
    config, state = configure(), LoopState()
    run = root / "run"
    begun: list[tuple[LoopState, str]] = []
    while state.next_stage != "promote_policy":
        if state.next_stage in TRAINING:
            begun.append((state, str(root / f"two_{state.next_stage}")))
            shutil.copytree(run, begun[-1][1])
            shutil.copytree(run, root / f"one_{state.next_stage}")
            shutil.copytree(run, root / f"shards_{state.next_stage}")
        state, _ = run_stage(state, config, str(run), InlineRuntime(0, 0, SilentDisplay()), SilentDisplay())
        state = advance(config, state)
    one = [(s, str(root / f"one_{s.next_stage}")) for s, _ in begun]
    records = [*start_workers(1, one, root), *start_workers(2, begun, root)]
    sharded = [(s, str(root / f"shards_{s.next_stage}")) for s, _ in begun if s.next_stage == "fit_world_model"]
    (root / "shards").mkdir()
    records += start_workers(2, sharded, root / "shards", shards=True)
    return {"root": root}, {s.next_stage: s for s, _ in begun}, records


def test_gradients_of_a_step_are_those_of_one_worker(runs: Any) -> None:
    _, _, (one, first, second, *_) = runs
    assert set(one["gradients"]) == {
        "clone_policy",
        "fit_world_model (proprio head)",
        "fit_world_model",
        "improve_policy",
    }
    for name, gradients in one["gradients"].items():
        for other in (first, second):
            for expected, got in zip(gradients, other["gradients"][name], strict=True):
                assert (expected is None) == (got is None), name
                if expected is not None:
                    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_parts_have_unequal_counts_and_lose_groups(runs: Any) -> None:
    """Else the test above would not tell a mean over workers from a mean over actions."""
    _, _, (one, first, second, *_) = runs
    assert any(len(s) == 2 and abs(s[0] - s[1]) > 0.02 for s in one["shares"])
    assert [sum(s) for s in one["shares"]] == pytest.approx(
        [sum(a) + sum(b) for a, b in zip(first["shares"], second["shares"], strict=True)]
    )
    assert 0 < one["dropped"][0] < 8
    assert one["dropped"] == first["dropped"] == second["dropped"]


def test_a_sharded_world_model_is_trained_as_a_whole_one(runs: Any) -> None:
    """Cut after its second step, resumed from what that kept, each worker holding a share: the same in the end."""
    paths, _, (one, _, _, first, second) = runs
    gradients = one["gradients"]["fit_world_model"]
    for other in (first, second):
        assert set(other["gradients"]) == {"fit_world_model (proprio head)", "fit_world_model"}
        for expected, got in zip(gradients, other["gradients"]["fit_world_model"], strict=True):
            assert (expected is None) == (got is None)
            if expected is not None:
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    trained = sum(g.numel() for g in gradients if g is not None)
    held = [other["shares_held"]["fit_world_model"] for other in (first, second)]
    assert sum(held) == trained
    assert max(held) < 0.55 * trained
    name = "checkpoints/iteration_001/world_model"
    whole, shared = (
        checkpoints.load_world_model(paths["root"] / f"{who}_fit_world_model" / name) for who in ("one", "shards")
    )
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[key], value, rtol=0, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("stage", ["clone_policy", "fit_world_model", "improve_policy"])
def test_the_stage_ends_with_the_same_weights(runs: Any, stage: str) -> None:
    paths, states, _ = runs
    name = {"fit_world_model": "world_model", "improve_policy": "policy_after_002"}.get(stage, "policy")
    checkpoint = f"checkpoints/iteration_{states[stage].iteration:03d}/{name}"
    load = checkpoints.load_world_model if stage == "fit_world_model" else checkpoints.load_policy
    one, two = (load(paths["root"] / f"{who}_{stage}" / checkpoint).state_dict() for who in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_microbatches_have_to_fit(tmp_path: Path) -> None:
    from worldloop.core.errors import WorldloopError

    path = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
    for overrides, message in (
        (["num_microbatches=3"], "clone_policy.batch_size 32 is no multiple of num_microbatches 3"),
        (["resources.num_workers=2"], "num_microbatches 1 must be a multiple of resources.num_workers 2"),
        (["num_microbatches=2", "resources.num_workers=2"], "resources.num_workers 2 needs runtime ray"),
        (["resources.shard_world_model=true"], "shard_world_model needs resources.num_workers of at least 2"),
    ):
        with pytest.raises(WorldloopError, match=message):
            load_config(path, overrides)
    assert replace(configure(), num_microbatches=4).num_microbatches == 4
