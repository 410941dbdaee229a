from pathlib import Path

import pytest
import torch

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.loop.run import note_device, open_run
from worldloop.storage.run_state import LoopState

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_run_that_goes_on_on_another_device_says_so_and_records_both() -> None:
    said: list[str] = []
    state = note_device(LoopState(), "cpu", said.append)
    state = note_device(state, "cpu", said.append)
    assert said == []
    assert state.records[0]["devices"] == ["cpu"]
    state = note_device(state, "cuda", said.append)
    assert said == ["  the run began on cpu and goes on on cuda: not repeatable bit by bit"]
    assert state.records[0]["devices"] == ["cpu", "cuda"]
    assert note_device(state, "cuda", said.append).records == state.records
    assert len(said) == 1


def test_a_run_on_a_gpu_that_is_not_there_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changes = [f"run_root={tmp_path}", "runtime=inline", "resources.device=cuda"]
    with pytest.raises(WorldloopError, match="torch sees no GPU"):
        open_run(load_config(CONFIGS / "debug.yaml", changes))
    assert list(tmp_path.glob("*/config.yaml")) == []
