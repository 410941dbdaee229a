"""The benchmarks for machines that are not at hand run to their end, on small networks."""

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
