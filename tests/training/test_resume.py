"""A training stage that is cut goes on in its middle, and ends as if it had not been cut."""

from __future__ import annotations

from pathlib import Path

import pytest

import worldloop.loop.run as loop
from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
CUTS = (
    ("clone_policy", "step", 40, "clone_policy"),
    ("fit_world_model", "proprio step", 20, "fit_world_model_proprio"),
    ("fit_world_model", "step", 50, "fit_world_model"),
    ("improve_policy", "update", 3, "improve_policy"),
)


class CutDisplay(loop.TerminalDisplay):
    """Ctrl-C after ``cut`` progress of one stage; ``lines`` is what was logged."""

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

    def advance(self, count: int, figures: dict[str, float]) -> None:
        self.count += count
        here = (self.now, self.opened, self.count)
        if here == (CutDisplay.stage, CutDisplay.unit, CutDisplay.cut):
            raise KeyboardInterrupt


def run(root: Path, stage: str = "", unit: str = "", cut: int = 0, keep_every_s: float = 1e-9) -> list[str]:
    CutDisplay.stage, CutDisplay.unit, CutDisplay.cut, CutDisplay.lines = stage, unit, cut, []
    settings = ["runtime=inline", f"run_root={root}", "num_iterations=1", f"resources.keep_every_s={keep_every_s}"]
    loop.run_loop(load_config(DEBUG, settings))
    return CutDisplay.lines


def test_cut_in_every_training_stage(debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TerminalDisplay", CutDisplay)
    for stage, unit, cut, kept in CUTS:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stage, unit, cut)
        assert (tmp_path / "debug/partial" / kept / "partial.json").is_file()
    went_on = [line.strip() for line in run(tmp_path) if "goes on" in line]
    assert went_on == ["improve_policy goes on from step 3"]
    assert not list((tmp_path / "debug/partial").glob("*"))
    assert (tmp_path / "debug/results.json").read_bytes() == (debug_run / "results.json").read_bytes()


def test_a_policy_that_was_cloned_within_a_stage_is_not_cloned_again(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TerminalDisplay", CutDisplay)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "improve_policy", "update", 1, keep_every_s=0)
    assert any("imitating" in line for line in CutDisplay.lines)
    assert not any("imitating" in line for line in run(tmp_path, keep_every_s=0))
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
