"""What a run says of itself while it runs."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from worldloop.core.errors import WorldloopError
from worldloop.reporting.status import StatusDisplay, is_alive, read_status


class Silent:
    """Counts what is passed on."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


def test_status_follows_a_stage_and_the_log_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldloop.reporting.status.STATUS_INTERVAL_S", 0.0)
    inner = Silent()
    display = StatusDisplay(inner, tmp_path)
    assert read_status(tmp_path) is None
    display.begin(1, 2, "fit_world_model", 1, 6, ["evaluate_policy"])
    display.open("fit_world_model", 30, "step")
    display.advance(4, {"loss": 0.5})
    display.advance(6, {"loss": 0.25})
    status = read_status(tmp_path)
    assert status is not None
    assert (status["state"], status["stage"], status["stage_number"]) == ("running", "fit_world_model", 1)
    assert status["left"] == ["evaluate_policy"]
    assert (status["pid"], status["host"]) == (os.getpid(), socket.gethostname())
    progress = status["progress"]
    assert (progress["count"], progress["total"], progress["figures"]) == (10, 30, {"loss": 0.25})
    assert is_alive(status) is True
    assert is_alive(status | {"host": "another"}) is None

    display.close()
    display.log("  a line")
    display.end("interrupted")
    after = read_status(tmp_path)
    assert after is not None
    assert after["state"] == "interrupted"
    assert after["progress"] is None
    assert inner.calls == ["log", "open", "advance", "advance", "close", "log"]
    lines = (tmp_path / "logs/iteration_001_fit_world_model.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["event"] for e in events] == ["begin", "progress", "log", "end"]
    assert events[1]["count"] == 4
    assert events[2]["line"] == "a line"
    assert events[3]["state"] == "interrupted"


def test_every_stage_ends_in_its_own_log(tmp_path: Path) -> None:
    display = StatusDisplay(Silent(), tmp_path)  # type: ignore[arg-type]
    display.begin(0, 1, "seed_dataset", 1, 4, [])
    display.finish(seconds=1.5, peak_memory_mib=300)
    display.begin(0, 1, "clone_policy", 2, 4, [])
    display.note_traceback("Traceback ...")
    display.end("failed: KeyError: 'x'")
    first, second = (
        [json.loads(line) for line in (tmp_path / f"logs/iteration_000_{stage}.jsonl").read_text().splitlines()]
        for stage in ("seed_dataset", "clone_policy")
    )
    assert [e["event"] for e in first] == ["begin", "end"]
    assert (first[1]["state"], first[1]["seconds"], first[1]["peak_memory_mib"]) == ("done", 1.5, 300)
    assert [e["event"] for e in second] == ["begin", "traceback", "end"]
    assert second[2]["state"] == "failed: KeyError: 'x'"


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    display = StatusDisplay(Silent(), tmp_path / "gone")  # type: ignore[arg-type]
    display.begin(0, 1, "seed_dataset", 1, 4, [])
    display.open("seed_dataset", 1, "step")
    display.advance(1, {})
    display.end("ended")
    assert not (tmp_path / "gone").exists()


def test_a_broken_status_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(WorldloopError, match="written anew when the run goes on"):
        read_status(tmp_path)
