"""A run of the command line that gets SIGTERM while it clones."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path


def clone_until_sigterm(config: Path, root: Path, *settings: str, timeout_s: float) -> str:
    """What the run prints from SIGTERM on, to standard error; it must end with 143 and without a traceback."""
    command = [sys.executable, "-m", "worldloop", "run", str(config), f"run_root={root}", "num_iterations=0"]
    command += ["clone_policy.num_steps=100000", *settings]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "imitating" in line:
                break
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=timeout_s)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in rest
    return rest
