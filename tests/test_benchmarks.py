"""The benchmarks for machines that are not at hand, or for large datasets, run to their end on small ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_every_row_of_the_published_architecture_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "cosmos.json"
    options = ["--tiny", "--device", "cpu", "--no-compile", "--rounds", "1", "--out", str(out)]
    done = subprocess.run([sys.executable, ROOT / "benchmarks/cosmos.py", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    for size in ("256x256", "480x832"):
        seconds, ratios = result[size]["seconds"], result[size]["ratios"]
        assert len(seconds) == 8
        assert all(values["median"] > 0 for values in seconds.values())
        assert [name for name, values in ratios.items() if values is None] == ["eager / compiled"]
        assert all(values["low"] <= values["median"] <= values["high"] for values in ratios.values() if values)
    assert result["batch"]["batch 4"]["median"] > 0


@pytest.mark.slow
def test_the_stages_that_read_a_dataset_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    for options in (["make", tmp_path, "--episodes", "64", "--size", "16"], ["measure", tmp_path, "--out", out]):
        done = subprocess.run([sys.executable, ROOT / "benchmarks/scale.py", *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["dataset"]["episodes"] == 64
    assert list(result["stages"]) == ["imports", "open", "open again", "clone", "check"]
    assert all(figures["peak_mib"] > 50 for figures in result["stages"].values())
