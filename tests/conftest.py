"""What every test needs: one thread, no hub access, and temporary files that vanish with the session."""

import os
import shutil
import tempfile

import pytest

# Set before anything imports torch; subprocesses inherit it. Thread pools slow small tensors down on two cores.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

_session_directory = pytest.StashKey[tuple[str, dict[str, str | None]]]()


def pytest_configure(config: pytest.Config) -> None:
    # Short, because Ray puts sockets below it and a socket's path has at most 107 characters.
    directory = tempfile.mkdtemp(prefix="wl-")
    changed = {"TMPDIR": directory, "HF_HOME": f"{directory}/hf"}
    config.stash[_session_directory] = (directory, {name: os.environ.get(name) for name in changed})
    os.environ.update(changed)
    tempfile.tempdir = directory


def pytest_unconfigure(config: pytest.Config) -> None:
    directory, before = config.stash[_session_directory]
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None
    shutil.rmtree(directory, ignore_errors=True)
