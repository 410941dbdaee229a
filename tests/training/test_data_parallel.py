"""Two data-parallel ranks compute what one computes: every training stage of the toy loop, over gloo."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import get_context

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.factory import checkpoints
from worldloop.loop.run import run_stage
from worldloop.loop.schedule import advance
from worldloop.reporting.progress import SilentDisplay
from worldloop.rl.grpo import GrpoObjective
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import trains
from worldloop.storage.run_state import LoopState
from worldloop.training.data_parallel import DataParallel, add_metrics, share_of_microbatch
from worldloop.training.optimizer import Optimizer
from worldloop.training.sharding import gather, is_sharded, to_local

PATIENCE_S = 280  # with a round of ranks, of which there are three: they take half a minute where nobody else is busy
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)

CONFIG = (
    "num_iterations=1",
    "num_microbatches=2",
    "clone_policy.num_steps=3",
    "fit_world_model.num_steps=4",
    "fit_world_model.num_proprio_steps=3",
    "fit_world_model.self_rollout_start=0",
    "check_world_model.probe_steps=5",
    "check_world_model.num_videos=0",
    "check_world_model.reset_every=[]",
    "evaluate_policy.num_states=10",
    "improve_policy.num_updates=2",
    "improve_policy.num_candidates=1",
    "improve_policy.num_imitation_steps=3",
    "fit_value.num_steps=2",
    "improve_policy.imagination_horizon=8",
    "improve_policy.min_group_std=0.1",
    "improve_policy.require_success=false",
    "check_closed_loop.num_states=0",
)


SHARDED = (
    "runtime=ray",
    "resources.num_workers=2",
    "resources.shard_world_model=true",
    "resources.checkpoint_every_s=1e-9",
)


def configure(shards: bool = False) -> LoopConfig:
    path = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
    return load_config(path, CONFIG + SHARDED if shards else CONFIG)


class Records:
    """What the optimizer steps of a stage saw, taken down in the process that runs it."""

    def __init__(self) -> None:
        self.gradients: dict[str, list[torch.Tensor | None]] = {}
        self.weights: list[list[float]] = []
        self.dropped: list[float] = []
        self.shares_held: dict[str, int] = {}

    def listen(self) -> None:
        clip, weigh, end_step = torch.nn.utils.clip_grad_norm_, DataParallel.weigh, GrpoObjective.end_step
        step, records = Optimizer.step, self

        def recorded_step(own: Optimizer) -> float:
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

        def recorded_weigh(own: DataParallel, counts: Any) -> list[torch.Tensor]:
            weights = weigh(own, counts)
            records.weights.append([float(w) for w in weights])
            return weights

        def recorded_end_step(own: GrpoObjective, step: int, metrics: dict[str, float]) -> dict[str, float]:
            records.dropped.append(metrics["groups_dropped"])
            return end_step(own, step, metrics)

        Optimizer.step = recorded_step  # type: ignore[method-assign]
        DataParallel.weigh = recorded_weigh  # type: ignore[method-assign, assignment]
        GrpoObjective.end_step = recorded_end_step  # type: ignore[method-assign]


def run_training_stages(
    rank: int, size: int, port: int, stages: list[tuple[LoopState, str]], out: str, shards: bool
) -> None:
    """Rank ``rank`` of ``size``: each of ``stages``, a state and the run directory in which it is next."""
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
    """Ctrl-C after the second optimizer step, of which there is a checkpoint."""

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
    DataParallel.of_process_group().barrier()  # the main rank writes last
    assert (Path(directory) / "partial/fit_world_model/partial.json").exists()


def check_sums(rank: int) -> None:
    data_parallel = DataParallel.of_process_group()
    assert data_parallel == DataParallel(rank, 2)
    assert data_parallel.is_main == (rank == 0)
    first, second, third = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad = torch.tensor([1.0, 10.0]) * (rank + 1)
    second.grad = torch.tensor([5.0, 7.0]) if rank == 1 else None
    data_parallel.all_reduce_gradients([first, second, third])
    assert first.grad.tolist() == [3.0, 30.0]
    assert second.grad is not None
    assert second.grad.tolist() == [5.0, 7.0]
    assert third.grad is None
    counts = [torch.tensor(1), torch.tensor(0)] if rank == 0 else [torch.tensor(2), torch.tensor(5)]
    weights = [float(w) for w in data_parallel.weigh(counts)]
    assert weights == pytest.approx([0.125, 0.0] if rank == 0 else [0.25, 0.625])
    assert data_parallel.all_reduce_max(torch.tensor([rank, 1 - rank])).tolist() == [1, 1]
    assert data_parallel.all_gather(rank) == [0, 1]
    assert data_parallel.any(rank == 1)
    assert not data_parallel.any(False)
    own = {"loss": 1.0} if rank == 0 else {"loss": 2.0, "kl": 3.0}
    assert data_parallel.sum_metrics(own) == {"loss": 3.0, "kl": 3.0}


def start_ranks(
    size: int, stages: list[tuple[LoopState, str]], out: Path, shards: bool = False
) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context()
    processes = [
        context.Process(target=run_training_stages, args=(rank, size, port, stages, str(out), shards))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    return [torch.load(out / f"records_{size}_{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Path], dict[str, LoopState], list[dict[str, Any]]]:
    """Each training stage twice from the same beginning: by one rank and by two; what the ranks saw."""
    root = tmp_path_factory.mktemp("ranks")
    config, state = configure(), LoopState()
    run = root / "run"
    begun: list[tuple[LoopState, str]] = []
    while state.next_stage != "promote_policy":
        makes_start = state.next_stage == "improve_policy" and not state.start  # cloning, which has a stage of its own
        if trains(state.next_stage) and not makes_start:
            begun.append((state, str(root / f"two_{state.next_stage}")))
            shutil.copytree(run, begun[-1][1])
            shutil.copytree(run, root / f"one_{state.next_stage}")
            shutil.copytree(run, root / f"shards_{state.next_stage}")
        state, _ = run_stage(state, config, str(run), InlineRuntime(0, 0, SilentDisplay()), SilentDisplay())
        state = advance(config, state)
    one = [(s, str(root / f"one_{s.next_stage}")) for s, _ in begun]
    records = [*start_ranks(1, one, root), *start_ranks(2, begun, root)]
    sharded = [(s, str(root / f"shards_{s.next_stage}")) for s, _ in begun if s.next_stage == "fit_world_model"]
    (root / "shards").mkdir()
    records += start_ranks(2, sharded, root / "shards", shards=True)
    return {"root": root}, {s.next_stage: s for s, _ in begun}, records


@pytest.mark.slow
def test_gradients_of_a_step_are_those_of_one_rank(runs: Any) -> None:
    _, _, (one, first, second, *_) = runs
    assert set(one["gradients"]) == {
        "clone_policy",
        "fit_world_model_proprio",
        "fit_world_model",
        "improve_policy",
    }
    for name, gradients in one["gradients"].items():
        for other in (first, second):
            for expected, got in zip(gradients, other["gradients"][name], strict=True):
                assert (expected is None) == (got is None), name
                if expected is not None:
                    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_microbatches_have_unequal_counts_and_lose_groups(runs: Any) -> None:
    """Else the test above would not tell a mean over ranks from a mean over actions."""
    _, _, (one, first, second, *_) = runs
    assert any(len(w) == 2 and abs(w[0] - w[1]) > 0.02 for w in one["weights"])
    assert all(sum(w) == pytest.approx(1.0) for w in one["weights"] if w)
    assert all(
        sum(a) + sum(b) == pytest.approx(1.0)
        for a, b in zip(first["weights"], second["weights"], strict=True)
        if a or b
    )
    assert 0 < one["dropped"][0] < 8
    assert one["dropped"] == first["dropped"] == second["dropped"]


def test_a_sharded_world_model_is_trained_as_a_whole_one(runs: Any) -> None:
    """Cut after its second step, resumed from what that kept, each rank holding a share: the same in the end."""
    paths, _, (one, _, _, first, second) = runs
    gradients = one["gradients"]["fit_world_model"]
    for other in (first, second):
        assert set(other["gradients"]) == {"fit_world_model_proprio", "fit_world_model"}
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


def test_microbatches_have_to_fit() -> None:
    path = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
    for overrides, message in (
        (["num_microbatches=3"], "fit_world_model.batch_size 32 is no multiple of num_microbatches 3"),
        (["resources.num_workers=2"], "num_microbatches 1 must be a multiple of resources.num_workers 2"),
        (["num_microbatches=2", "resources.num_workers=2"], "resources.num_workers 2 needs runtime ray"),
        (["resources.shard_world_model=true"], "shard_world_model needs resources.num_workers of at least 2"),
    ):
        with pytest.raises(WorldloopError, match=message):
            load_config(path, overrides)
    assert replace(configure(), num_microbatches=4).num_microbatches == 4


def test_one_rank_asks_nobody() -> None:
    alone = DataParallel.of_process_group()
    assert alone == DataParallel(0, 1)
    assert alone.is_main
    values = torch.tensor([1.0, 2.0])
    assert alone.all_reduce_sum(values) is values
    assert alone.all_reduce_max(values) is values
    assert alone.all_gather("a") == ["a"]
    assert alone.any(True)
    assert not alone.any(False)
    assert alone.sum_metrics({"loss": 2.0}) == {"loss": 2.0}
    parameter = torch.nn.Parameter(torch.zeros(2))
    alone.all_reduce_gradients([parameter])
    assert parameter.grad is None
    alone.barrier()


def test_ranks_share_out_the_microbatches() -> None:
    assert [list(DataParallel(rank, 3).microbatches(6)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="4 microbatches cannot be shared by 3 ranks"):
        DataParallel(0, 3).microbatches(4)


def test_counts_become_weights() -> None:
    weights = DataParallel().weigh([torch.tensor(3), torch.tensor(0), torch.tensor(1)])
    assert [float(w) for w in weights] == [0.75, 0.0, 0.25]
    assert [float(w) for w in DataParallel().weigh([torch.tensor(0), torch.tensor(0)])] == [0.0, 0.0]
    assert DataParallel().weigh([]) == []


def test_metrics_add_up_by_weight() -> None:
    total = {"loss": 1.0}
    add_metrics(total, {"loss": 2.0, "kl": 4.0}, 0.5)
    add_metrics(total, {"kl": 1.0})
    assert total == {"loss": 2.0, "kl": 3.0}


def test_kinds_of_rows_have_their_share_of_many_small_microbatches_too() -> None:
    assert [share_of_microbatch(3, 0.25, number) for number in range(4)] == [1, 1, 0, 1]  # 0.75, 1.5, 2.25, 3 so far
    for parts in (1, 2, 4, 8, 12, 24):
        drawn = [share_of_microbatch(24 // parts, 0.25, number) for number in range(parts)]
        assert sum(drawn) == 6
        assert max(drawn) <= 24 // parts
    assert share_of_microbatch(5, 0.0, 3) == 0
    assert share_of_microbatch(5, 1.0, 3) == 5
