"""`worldloop clean`: what a run no longer needs."""

import json
from pathlib import Path

import pytest
import torch
from hand_episodes import build_episode

from worldloop.__main__ import main
from worldloop.core.types import Normalisation
from worldloop.loop.cleaning import clean_after_iteration, find_removable
from worldloop.reporting.event_files import list_event_files, measure_videos
from worldloop.reporting.tensorboard import open_writer
from worldloop.sans.store import SansStore
from worldloop.storage.retention import RetentionConfig
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

OLD = "checkpoints/iteration_000/world_model"
MODEL = "checkpoints/iteration_003/world_model"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run in iteration 3: two world models, a dataset with a shard that no version has."""
    directory = RunDirectory(tmp_path / "run")
    directory.create("retention: {num_iterations: 2}\n", {})
    directory.write_state(LoopState(iteration=3, next_stage="check_world_model", world_model=MODEL))
    for path in (OLD, MODEL):
        (directory.path / path).mkdir(parents=True)
        (directory.path / path / "checkpoint.json").write_text(json.dumps({"kind": "world_model"}))
    store = SansStore(directory.path / "sans")
    shards = [store.append([build_episode(number)], f"shard{number}") for number in (1, 2)]
    size = len(build_episode(1).proprio[0])
    store.snapshot("v000", shards[:1], normalisation=Normalisation(torch.zeros(size), torch.ones(size)))
    return directory


def list_videos(run: RunDirectory, stage: str) -> list[int]:
    files = list_event_files(run.path / "tensorboard" / stage)
    return [step for path in files for step in measure_videos(path)]


def test_nothing_goes_unasked_and_with_yes_what_was_shown(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, steps in (("check_world_model", (0, 1, 3)), ("check_value", (0, 1))):
        for step in steps:
            with open_writer(run.path / "tensorboard" / stage, step) as writer:
                writer.video(f"{stage}/video", step, torch.zeros(2, 4, 4, 3, dtype=torch.uint8), 4.0)
    before = sorted(run.path.rglob("*"))
    assert main(["clean", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert "nothing has been deleted; --yes deletes it" in shown
    assert sorted(run.path.rglob("*")) == before
    assert main(["clean", str(run.path), "--yes"]) == 0
    assert capsys.readouterr().out == shown.replace("nothing has been deleted; --yes deletes it", "freed")
    assert not (run.path / OLD).exists()
    assert (run.path / MODEL).exists()
    assert [p.name.split("-")[0] for p in (run.path / "sans/cache").iterdir() if p.is_dir()] == ["shard1"]
    assert list_videos(run, "check_world_model") == [3]
    assert list_videos(run, "check_value") == [1], "the latest of a stage, which the report shows"
    assert main(["clean", str(run.path)]) == 0
    assert capsys.readouterr().out == "nothing to free\n"


def test_a_run_that_has_ended_needs_no_cache(run: RunDirectory) -> None:
    run.write_state(LoopState(iteration=3, next_stage="", world_model=MODEL))
    found = find_removable(run.path, run.read_state(), RetentionConfig(num_iterations=9))
    assert [item.what for item in found] == ["cache", "cache"]
    lines: list[str] = []
    for _ in range(2):
        clean_after_iteration(run, run.read_state(), RetentionConfig(num_iterations=9), lines.append)
    assert [line[:8] for line in lines] == ["  freed "]
    store = SansStore(run.path / "sans")
    assert len(store.open_cache(store.version("v000"))) == 1


def test_errors_are_one_line(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", str(tmp_path)]) == 2
    assert f"{tmp_path} is no run directory" in capsys.readouterr().err
    assert main(["clean", str(run.path), "--iterations", "0"]) == 2
    assert "--iterations must be at least 1, got 0" in capsys.readouterr().err
    run.lock()
    assert main(["clean", str(run.path), "--yes"]) == 2
    assert "in use by another worldloop process" in capsys.readouterr().err
    run.unlock()
    assert (run.path / OLD).exists()
