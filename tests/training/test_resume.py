"""A training stage that is cut goes on in its middle, and ends as if it had not been cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import worldloop.loop.run as loop
from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.core.interrupts import ask_for_checkpoint
from worldloop.core.randomness import make_generator
from worldloop.training.data_parallel import DataParallel
from worldloop.training.resume import GeneratorState, TrainableState, TrainingCheckpoint, TrainingSetup

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
CUTS = (  # stage, unit, progress until the cut (a block of episodes, for one), and what is there then
    ("clone_policy", "step", 40, "clone_policy/partial.json"),
    ("collect_episodes", "episode", 20, "episodes"),
    ("fit_world_model", "proprio step", 20, "fit_world_model_proprio/partial.json"),
    ("fit_world_model", "step", 50, "fit_world_model/partial.json"),
    ("improve_policy", "update", 1, "improve_policy/partial.json"),
)


class CutDisplay(loop.TerminalDisplay):
    """Ctrl-C after ``cut`` progress of one stage, with a checkpoint of just then; ``lines`` is what was logged."""

    stage, unit, cut = "", "", 0
    lines: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.now, self.opened, self.count = "", "", 0

    def log(self, line: str) -> None:
        CutDisplay.lines.append(line)
        if line.startswith("iteration "):
            self.now = line.rpartition(": ")[2]

    def open(self, label: str, total: int, unit: str) -> None:
        self.opened, self.count = unit, 0
        self.advance(0, {})

    def advance(self, count: int, figures: dict[str, float]) -> None:
        self.count += count
        if (self.now, self.opened) == (CutDisplay.stage, CutDisplay.unit):
            if self.count == CutDisplay.cut:
                raise KeyboardInterrupt
            if self.count == CutDisplay.cut - 1:
                ask_for_checkpoint()


def run(root: Path, stage: str = "", unit: str = "", cut: int = 0, every_s: float = 3600) -> list[str]:
    CutDisplay.stage, CutDisplay.unit, CutDisplay.cut, CutDisplay.lines = stage, unit, cut, []
    settings = [
        "runtime=inline",
        f"run_root={root}",
        "num_iterations=1",
        f"resources.checkpoint_every_s={every_s}",
    ]
    loop.run_loop(load_config(DEBUG, settings))
    return CutDisplay.lines


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A debug loop that was cut at each of `CUTS`, and what it logged until each cut."""
    root, logs = tmp_path_factory.mktemp("cut"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TerminalDisplay", CutDisplay)
        for stage, unit, progress, kept in CUTS:
            with pytest.raises(KeyboardInterrupt):
                run(root, stage, unit, progress)
            assert (root / "debug/partial" / kept).exists()
            logs.append([line.strip() for line in CutDisplay.lines])
    return root, logs


def go_on(cut: Path, root: Path, every_s: float, *left_out: str) -> list[str]:
    """Run a copy of the loop in ``cut`` to its end, without what is ``left_out``."""
    shutil.copytree(cut / "debug", root / "debug", ignore=shutil.ignore_patterns(".lock", *left_out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TerminalDisplay", CutDisplay)
        return [line.strip() for line in run(root, every_s=every_s)]


@pytest.mark.slow
def test_cut_in_every_stage_that_keeps_its_progress(
    debug_run: Path, tmp_path: Path, cut: tuple[Path, list[list[str]]]
) -> None:
    root, logs = cut
    lines = [line for log in [*logs, go_on(root, tmp_path, 1e-9)] for line in log]
    assert [line for line in lines if "goes on" in line or "from before" in line] == [
        "clone_policy goes on from step 40",
        "20 episodes are there from before the interruption",
        "fit_world_model_proprio goes on from step 20",
        "fit_world_model goes on from step 50",
        "improve_policy goes on from step 1",
    ]
    assert not list((tmp_path / "debug/partial").glob("*"))
    assert (tmp_path / "debug/results.json").read_bytes() == (debug_run / "results.json").read_bytes()


def test_a_policy_that_was_cloned_within_a_stage_is_not_cloned_again(
    debug_run: Path, tmp_path: Path, cut: tuple[Path, list[list[str]]]
) -> None:
    root, logs = cut
    assert any("imitating" in line for line in logs[-1])
    assert not any("imitating" in line for line in go_on(root, tmp_path, 0, "partial"))
    assert (tmp_path / "debug/results.json").read_bytes() == (debug_run / "results.json").read_bytes()


def test_what_is_kept_and_damaged_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TerminalDisplay", CutDisplay)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "clone_policy", "step", 5)
    (kept,) = (tmp_path / "debug/partial/clone_policy").glob("shared_*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WorldloopError, match=r"shared_5.safetensors is damaged; delete it: the stage then begins anew"):
        run(tmp_path, "clone_policy", "step", 5)
    kept.unlink()
    with pytest.raises(WorldloopError, match="damaged or missing"):
        run(tmp_path, "clone_policy", "step", 5)


# --- a checkpoint by itself ---------------------------------------------------------------------------------------


def draw(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))


def test_draws_of_a_microbatch_depend_on_its_number_not_on_the_ranks() -> None:
    (alone,) = TrainingSetup().make_generators(3, "fit").values()
    assert draw(alone) == draw(make_generator(3, "fit"))
    one = {n: draw(g) for n, g in TrainingSetup(num_microbatches=4).make_generators(3, "fit").items()}
    two: dict[int, float] = {}
    for rank in (0, 1):
        setup = TrainingSetup(data_parallel=DataParallel(rank, 2), num_microbatches=4)
        own = setup.make_generators(3, "fit")
        assert list(own) == [2 * rank, 2 * rank + 1]
        two |= {n: draw(g) for n, g in own.items()}
    assert one == two
    assert len(set(one.values())) == 4
    assert one[1] == draw(make_generator(3, "fit", "micro-batch", 1))


class Checkpointed:
    """A layer of which the bias is frozen, and the generators of two microbatches."""

    def __init__(self, root: Path, every_s: float = 1e-9) -> None:
        self.layer = nn.Linear(2, 1)
        self.layer.bias.requires_grad_(False)
        self.generators = {number: make_generator(number) for number in (0, 1)}
        self.setup = TrainingSetup(num_microbatches=2, checkpoint_root=root, checkpoint_every_s=every_s)
        by_microbatch = {n: {"generator": GeneratorState(g)} for n, g in self.generators.items()}
        shared = {"module": TrainableState(self.layer)}
        self.checkpoint = TrainingCheckpoint(self.setup, "fit", shared, by_microbatch)


def test_a_checkpoint_gives_back_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    first, second = Checkpointed(tmp_path), Checkpointed(tmp_path)
    assert second.checkpoint.restore() == 0
    draw(first.generators[1])
    first.checkpoint.save(4)
    files = {path.name for path in (tmp_path / "fit").iterdir()}
    assert files == {
        "partial.json", "shared_4.safetensors", "part_0_4.safetensors", "part_1_4.safetensors",
    }  # fmt: skip
    bias = second.layer.bias.clone()
    assert second.checkpoint.restore() == 4
    assert torch.equal(second.layer.weight, first.layer.weight)
    assert torch.equal(second.layer.bias, bias)
    assert [draw(g) for g in second.generators.values()] == [draw(g) for g in first.generators.values()]


def test_a_later_checkpoint_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    made = Checkpointed(tmp_path)
    made.checkpoint.save(1)
    with torch.no_grad():
        made.layer.weight.fill_(7.0)
    made.checkpoint.save(2)
    assert {path.stem for path in (tmp_path / "fit").glob("*.safetensors")} == {"shared_2", "part_0_2", "part_1_2"}
    again = Checkpointed(tmp_path)
    assert again.checkpoint.restore() == 2
    assert (again.layer.weight == 7.0).all()


def test_a_checkpoint_is_written_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now: Iterator[float] = iter([100.0, 109.0, 110.0, 110.0, 119.0, 119.0])
    monkeypatch.setattr("worldloop.training.resume.time.monotonic", lambda: next(now))
    made = Checkpointed(tmp_path, every_s=10.0)  # 100 s
    made.checkpoint.save(1)  # 109 s: not yet
    assert not made.setup.has_checkpoint("fit")
    made.checkpoint.save(2)  # 110 s
    assert json.loads((tmp_path / "fit/partial.json").read_text())["num_steps"] == 2
    made.checkpoint.save(3)  # 119 s: nine seconds after the last one
    assert json.loads((tmp_path / "fit/partial.json").read_text())["num_steps"] == 2
    made.checkpoint.save(4, always=True)
    assert json.loads((tmp_path / "fit/partial.json").read_text())["num_steps"] == 4


@pytest.mark.parametrize(
    ("version", "reason"), [(1, "written by an older worldloop; delete it"), (9, "a newer worldloop")]
)
def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, version: int, reason: str) -> None:
    Checkpointed(tmp_path).checkpoint.save(1)
    record = json.loads((tmp_path / "fit/partial.json").read_text())
    (tmp_path / "fit/partial.json").write_text(json.dumps(record | {"schema_version": version}))
    with pytest.raises(WorldloopError, match=reason):
        Checkpointed(tmp_path).checkpoint.restore()


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    made = Checkpointed(tmp_path)
    made.checkpoint.save(1)
    other = TrainingCheckpoint(made.setup, "fit", {"module": TrainableState(nn.Linear(3, 1))}, {})
    with pytest.raises(WorldloopError, match=r"shared_1.safetensors is of another training .*; delete it"):
        other.restore()
