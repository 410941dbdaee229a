"""Copies of a run while it runs: another machine goes on from them, and no error of theirs ends the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import get_context
from reporters import RecordingReporter
from signalled_runs import clone_until_sigterm

import worldloop.loop.run as loop
from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.loop import copying
from worldloop.loop.copying import RunCopier
from worldloop.storage.mirror import Mirror
from worldloop.storage.mirror_upload import CancelledError
from worldloop.storage.object_store import StoreError
from worldloop.storage.snapshot import Files

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
SMALL = (
    "num_iterations=0",
    "clone_policy.num_steps=60",
    "evaluate_policy.num_states=20",
    "evaluate_policy.block_size=5",
)
pytest.importorskip("obstore")


def read_newest(folder: Path) -> dict[str, Any]:
    """The newest manifest of the copy in ``folder``; an empty one if there is none."""
    manifests = sorted((folder / "store/debug/manifests").glob("*.json"))
    return json.loads(manifests[-1].read_bytes()) if manifests else {"files": {}}


@pytest.mark.timeout(900)
def test_a_loop_goes_on_from_its_copy_on_another_machine(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def configure(machine: str) -> loop.LoopConfig:
        return load_config(
            DEBUG, [f"run_root={tmp_path / machine}", f"mirror=file://{tmp_path}/store", "num_iterations=1"]
        )

    def fail(self: Mirror, run: Path, *_: object) -> None:
        raise StoreError("the store is out of reach")

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "push", fail)
        with pytest.raises(StoreError):  # not before the end
            loop.run_loop(configure("one"), "seed_dataset")
    assert "not copied, the next stage tries again: the store is out" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    for stage in ("clone_policy", "evaluate_policy", "collect_episodes", "fit_world_model"):
        loop.run_loop(configure("one"), stage)
    with pytest.raises(WorldloopError, match="or delete it and its copy file://"):
        loop.run_loop(replace(configure("three"), seed=1))
    shutil.rmtree(tmp_path / "one")
    directory = loop.run_loop(configure("two"))
    assert (directory.path / "results.json").read_bytes() == (debug_run / "results.json").read_bytes()
    assert "results.json" in read_newest(tmp_path)["files"]
    shutil.rmtree(tmp_path / "store")
    loop.run_loop(configure("two"))  # ended before: what is not there is copied all the same
    assert "results.json" in read_newest(tmp_path)["files"]


def _die_when_copied(folder: str, stage: str, wanted: str) -> None:
    """Run a loop on machine one; kill this process in ``stage`` as soon as the copy has ``wanted``."""

    class Display(loop.TerminalDisplay):
        now = ""

        def log(self, line: str) -> None:
            if line.startswith("iteration "):
                self.now = line.rpartition(": ")[2]

        def advance(self, count: int, figures: dict[str, float]) -> None:
            while self.now == stage and any((Path(folder) / "one/debug").glob(wanted)):
                if any(Path(name).match(wanted) for name in read_newest(Path(folder))["files"]):
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.01)

    loop.TerminalDisplay = Display  # type: ignore[misc]
    options = ("resources.checkpoint_every_s=0.05", f"mirror=file://{folder}/store", f"run_root={folder}/one")
    loop.run_loop(load_config(DEBUG, [*SMALL, *options]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a loop that nothing interrupts."""
    return loop.run_loop(load_config(DEBUG, [*SMALL, f"run_root={tmp_path_factory.mktemp('whole')}"])).path


@pytest.mark.parametrize(
    ("stage", "wanted", "said"),
    [
        ("clone_policy", "partial/*/partial.json", "goes on from step"),
        ("evaluate_policy", "partial/episodes/*.safetensors", "episodes are there from before the interruption"),
    ],
)
def test_a_stage_that_a_machine_did_not_live_to_end_goes_on_on_another(
    whole: Path, tmp_path: Path, stage: str, wanted: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    process = get_context().Process(target=_die_when_copied, args=(str(tmp_path), stage, wanted))
    process.start()
    process.join(200)
    assert process.exitcode == -signal.SIGKILL
    shutil.rmtree(tmp_path / "one")
    copied = load_config(DEBUG, [*SMALL, f"mirror=file://{tmp_path}/store", f"run_root={tmp_path}/two"])
    two = loop.run_loop(copied)
    assert said in capsys.readouterr().err
    assert (two.path / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert not [name for name in read_newest(tmp_path)["files"] if name.startswith("partial/")]


def test_a_run_that_sigterm_ends_copies_its_last_checkpoint(tmp_path: Path) -> None:
    clone_until_sigterm(DEBUG, tmp_path, f"mirror=file://{tmp_path}/store", timeout_s=60)
    assert [name for name in read_newest(tmp_path)["files"] if Path(name).match("partial/*/partial.json")]


class Pushes:
    """Takes the place of `Mirror.push`: does what ``acts`` say, one after the other, then nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *acts: Callable[[Callable[[], bool]], None]) -> None:
        self.acts, self.num_calls, self.is_done = list(acts), 0, threading.Event()
        monkeypatch.setattr(Mirror, "push", lambda mirror, *arguments: self.push(*arguments))

    def push(self, run: Path, base: Files | None = None, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        self.num_calls += 1
        if self.num_calls > len(self.acts):
            self.is_done.set()
            return
        self.acts[self.num_calls - 1](is_cancelled)


def fail(_: object) -> None:
    raise StoreError("the store is out of reach")


def work(_: object) -> None:
    pass


def hang(is_cancelled: Callable[[], bool]) -> None:
    while not is_cancelled():
        time.sleep(0.001)
    raise CancelledError


def make_copier(tmp_path: Path, every_s: float) -> tuple[RunCopier, list[str]]:
    config = load_config(DEBUG, [f"mirror=file://{tmp_path}/store", f"resources.checkpoint_every_s={every_s}"])
    display = RecordingReporter()
    return RunCopier(config, tmp_path / "run", display), display.lines  # type: ignore[arg-type]


def find_copiers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "copies"]


def test_errors_of_copies_are_logged_once_and_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(_: object) -> None:
        raise RuntimeError("unheard of")

    pushes = Pushes(monkeypatch, fail, fail, fail, work, break_down)
    copier, lines = make_copier(tmp_path, 0.001)
    with copier.during_stage():
        assert pushes.is_done.wait(30)
    assert lines == [
        f"  what this stage keeps was not copied, trying again: {reason}"
        for reason in ("the store is out of reach", "unheard of")
    ]
    assert not find_copiers()


def test_a_copy_is_given_up_when_its_stage_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushes = Pushes(monkeypatch, hang)
    copier, lines = make_copier(tmp_path, 0.001)
    with copier.during_stage():
        while not pushes.num_calls:
            time.sleep(0.001)
    assert not find_copiers()
    assert (pushes.num_calls, lines) == (1, [])


@pytest.mark.parametrize(("act", "said"), [(work, []), (fail, ["not copied"]), (hang, ["was given up after"])])
def test_a_run_that_is_interrupted_copies_once_more_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[object], None], said: list[str]
) -> None:
    monkeypatch.setattr(copying, "LAST_COPY_S", 0.2 if act is hang else 30.0)
    pushes = Pushes(monkeypatch, act)
    copier, lines = make_copier(tmp_path, 3600)
    with pytest.raises(KeyboardInterrupt), copier.during_stage():
        raise KeyboardInterrupt
    assert pushes.num_calls == 1
    assert len(lines) == len(said)
    assert all(words in line for words, line in zip(said, lines, strict=True))
    assert not find_copiers()


@pytest.mark.parametrize("error", [None, WorldloopError("it failed")])
def test_a_short_stage_copies_nothing_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    pushes = Pushes(monkeypatch)
    for every_s in (3600, 0):
        copier, _ = make_copier(tmp_path, every_s)
        try:
            with copier.during_stage():
                assert len(find_copiers()) == (every_s > 0)
                if error is not None:
                    raise error
        except WorldloopError:
            assert error is not None
        assert not find_copiers()
    assert pushes.num_calls == 0
