"""What every test needs: one thread, no hub access, and temporary files that vanish with the session."""

import atexit
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
    RAY_worker_niceness="0",  # not the usual 15, at which actors wait for the tests of the other process
)

LONGEST = "test_loop.py"  # a process runs a file as a whole
TOGETHER = {  # and these after another one, because the first picture of ManiSkill in a process takes seconds
    "tests/simulators/test_stack.py": "tests/simulators/test_maniskill.py",
    "tests/simulators/test_variations.py": "tests/simulators/test_maniskill.py",
}

_session_directory = pytest.StashKey[tuple[str, dict[str, str | None]]]()


def pytest_configure(config: pytest.Config) -> None:
    # Short, because Ray puts sockets below it and a socket's path has at most 107 characters.
    directory = tempfile.mkdtemp(prefix="wl-")
    # Registered before multiprocessing is imported, hence run after it has tidied up its own folder in there.
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    changed = {"TMPDIR": directory, "HF_HOME": f"{directory}/hf"}
    config.stash[_session_directory] = (directory, {name: os.environ.get(name) for name in changed})
    os.environ.update(changed)
    tempfile.tempdir = directory


def pytest_unconfigure(config: pytest.Config) -> None:
    _, before = config.stash[_session_directory]
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file and those with slow tests first, so that no process is left with one of them in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != LONGEST, item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """As ``--dist loadfile``, with the files of `TOGETHER` in one process."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def debug_run(request, tmp_path_factory):
    """A finished debug loop of one iteration: its run directory, for reading alone.

    The first test process that needs it runs the loop; the others wait, and each has a copy of its own.
    """
    import fcntl

    own = tmp_path_factory.mktemp("runs")
    if not hasattr(request.config, "workerinput"):  # the only process
        return _run_debug_loop(own)
    shared = tmp_path_factory.getbasetemp().parent / "debug_run"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = _run_debug_loop(shared)  # ends at once where another process has run it
        return shutil.copytree(run, own / run.name, ignore=shutil.ignore_patterns(".lock"))


def _run_debug_loop(root):
    from pathlib import Path

    from worldloop.config.loading import load_config
    from worldloop.loop.run import run_loop

    config = Path(__file__).resolve().parents[1] / "configs/debug.yaml"
    return run_loop(load_config(config, ["runtime=inline", f"run_root={root}", "num_iterations=1"])).path


@pytest.fixture
def toy_clips(tmp_path):
    """A `ClipDataset` of toy episodes, all held out: three states with three scripted variants each."""
    import torch

    from worldloop.core.randomness import make_row_keys
    from worldloop.core.types import Normalisation
    from worldloop.rollout.rollout import rollout_to_episodes, run_rollout
    from worldloop.sans.clips import ClipDataset
    from worldloop.sans.store import SansStore
    from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

    simulator = ToySimulator(ToyConfig(image_size=32))
    states = simulator.draw_initial_states("ToyPush-v1", "validation", 3, seed=0).select([0, 0, 0, 1, 1, 1, 2, 2, 2])
    variants = ("expert", "stops_short", "far") * 3
    policy = simulator.make_scripted_policy(states.tasks, variants, make_row_keys(9, "toy_clips"), 4)
    rollout = run_rollout(policy, simulator, states, None, initial_state_id=states.ids)
    episodes = rollout_to_episodes(
        rollout, simulator.spec, sources=tuple("expert" if v == "expert" else "perturbed" for v in variants),
        variants=variants, splits=("validation",) * 9, iteration=0,
    )  # fmt: skip
    store = SansStore(tmp_path / "sans")
    robot = simulator.spec.robot
    unit = Normalisation(torch.zeros(robot.proprio_dim), torch.ones(robot.proprio_dim))
    version = store.snapshot("v0", [store.append(episodes, "a", simulator.spec)], normalisation=unit)
    return ClipDataset(store.open_cache(version), "validation", robot.camera_names)


@pytest.fixture(scope="session")
def s3_server():
    """An S3-compatible server on the loopback, for all tests of this process."""
    from object_servers import S3Server

    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The server, with an empty bucket called ``bucket`` and credentials in the environment."""
    from object_servers import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    s3_server.empty()
    s3_server.make_bucket("bucket")
    return s3_server
