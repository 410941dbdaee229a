"""Actors of a local Ray cluster: they die in the middle of their work, and the work is done all the same."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worldloop.core.errors import WorldloopError
from worldloop.core.interrupts import answer_signals
from worldloop.reporting.progress import TerminalDisplay
from worldloop.runtime.ray import RayRuntime, _connect, find_missing
from worldloop.runtime.ray_pool import ActorExecutor, SimulatorActor


def test_what_a_cluster_lacks() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}]
    assert find_missing([{"CPU": 6.0}], [{"CPU": 2.0}] * 3, nodes) == ""
    assert find_missing([{"CPU": 9.0}], [], nodes) == "9 CPU for one actor, the largest node has 8"
    assert (
        find_missing([{"CPU": 4.0}], [{"CPU": 4.0}] * 3, nodes) == "16 CPU for all actors together, the cluster has 12"
    )
    assert find_missing([{"CPU": 1.0, "GPU": 2.0}], [], nodes) == "2 GPU for one actor, the largest node has 1"
    apart = find_missing([{"CPU": 6.0, "GPU": 1.0}], [], nodes)
    assert apart == (
        "1 training actors of 6 CPU and 1 GPU each, for which its nodes are too small (4 CPU and 1 GPU; 8 CPU)"
    )
    three_each = [{"CPU": 8.0, "GPU": 3.0}] * 2
    assert "2 GPU each, for which" in find_missing([{"CPU": 1.0, "GPU": 2.0}] * 3, [], three_each)
    assert find_missing([{"CPU": 1.0, "GPU": 1.5}] * 4, [{"CPU": 6.0}] * 2, three_each) == ""
    crowded = find_missing([{"CPU": 1.0, "GPU": 1.5}] * 2, [{"CPU": 4.5}] * 3, three_each)
    assert "of 1 CPU and 1.5 GPU each beside 3 simulators of 4.5 CPU, for which" in crowded
    both_on_the_small_one = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 2.0}]
    assert find_missing([{"CPU": 1.0, "GPU": 1.0}] * 2, [{"CPU": 8.0}], both_on_the_small_one) == ""


def start(num_simulators: int, cpus_per_simulator: float, num_workers: int = 1) -> RayRuntime:
    return RayRuntime(
        address="",
        num_simulators=num_simulators,
        cpus_per_simulator=cpus_per_simulator,
        num_workers=num_workers,
        trainer_cpus=1.0 / num_workers**2,  # beside the module's other runtime on two processors
        trainer_gpus=0.0,
        max_retries=2,
        display=TerminalDisplay(),
    )


@pytest.fixture(scope="module")
def runtime() -> Iterator[RayRuntime]:
    address = os.environ.pop("RAY_ADDRESS", None)
    runtime = start(num_simulators=2, cpus_per_simulator=0.0)
    yield runtime
    runtime.close()
    if address is not None:
        os.environ["RAY_ADDRESS"] = address


def make_stage(folder: Path, times: int, kills_stage: bool) -> Any:
    """A stage that squares numbers on simulators; the simulator of number 2, or the stage, dies ``times`` times.

    Nested functions, because those travel to the actors by value.
    """

    def die() -> None:
        died = len(list(folder.iterdir()))
        if died < times:
            (folder / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def square(number: int) -> int:
        if number == 2 and not kills_stage:
            die()
        return number**2

    def stage(executor: Any, display: Any) -> list[int]:
        results = list(executor.map(square, range(6)))
        if kills_stage:
            die()
        return results

    return stage


@pytest.mark.parametrize("kills_stage", [False, True])
def test_the_work_of_an_actor_that_died_is_done_again(runtime: RayRuntime, tmp_path: Path, kills_stage: bool) -> None:
    assert runtime.run_stage(make_stage(tmp_path, 2, kills_stage)) == [0, 1, 4, 9, 16, 25]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("kills_stage", "message"), [(False, "simulator's process died"), (True, "stage's process died")]
)
def test_work_that_always_kills_its_actor_is_one_clear_error(
    runtime: RayRuntime, tmp_path: Path, kills_stage: bool, message: str
) -> None:
    with pytest.raises(WorldloopError, match=message):
        runtime.run_stage(make_stage(tmp_path, 100, kills_stage))
    assert len(list(tmp_path.iterdir())) == 3
    after = tmp_path / "after"
    after.mkdir()
    assert runtime.run_stage(make_stage(after, 0, kills_stage)) == [0, 1, 4, 9, 16, 25]  # the actors live on


def test_an_actor_that_ray_has_started_again_is_not_killed(
    runtime: RayRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine Ray may be done with the restart before the next attempt begins."""
    import ray

    def wait_for_the_restart(line: str) -> None:
        if "is gone" in line:
            while True:
                try:
                    ray.get(runtime._stage.name_process.remote())
                    break
                except ray.exceptions.RayActorError:
                    time.sleep(0.2)

    monkeypatch.setattr(runtime.display, "log", wait_for_the_restart)
    with pytest.raises(WorldloopError, match="stage's process died"):
        runtime.run_stage(make_stage(tmp_path, 100, kills_stage=True))
    assert len(list(tmp_path.iterdir())) == 3, "an attempt that Ray's new process did not get would be lost"


def make_actors(*can_start: bool) -> list[Any]:
    """One simulator actor each, of which some can never be created."""
    import ray

    class Broken(SimulatorActor):
        def __init__(self) -> None:
            raise ModuleNotFoundError("No module named 'mani_skill'")

        def name_process(self) -> str:
            return "never"

    options = {"num_cpus": 0, "max_restarts": 3}
    return [ray.remote(SimulatorActor if can else Broken).options(**options).remote() for can in can_start]


@pytest.mark.usefixtures("runtime")
def test_actors_that_never_start_are_left_out_or_end_the_run_with_their_cause() -> None:
    def square(number: int) -> int:
        return number**2

    some = ActorExecutor(make_actors(False, True), max_retries=2, timeout_s=0)
    assert list(some.map(square, range(4))) == [0, 1, 4, 9]
    none = ActorExecutor(make_actors(False, False), max_retries=2, timeout_s=0)
    with pytest.raises(WorldloopError, match="no simulator can run: ModuleNotFoundError: No module named 'mani_skill'"):
        list(none.map(square, range(4)))


@pytest.mark.usefixtures("runtime")
def test_a_simulator_that_is_stuck_is_replaced(tmp_path: Path) -> None:
    def hang_once(number: int) -> int:
        if number == 1 and not (tmp_path / "hung").exists():
            (tmp_path / "hung").touch()
            time.sleep(600)
        return number**2

    def hang(number: int) -> int:
        time.sleep(600)
        return number

    executor = ActorExecutor(make_actors(True), max_retries=1, timeout_s=2)
    assert list(executor.map(hang_once, range(3))) == [0, 1, 4]
    with pytest.raises(WorldloopError, match=r"within 2 s, again and again; raise resources.block_timeout_s"):
        list(executor.map(hang, [0]))


def test_a_stage_process_that_can_never_start_is_an_error_with_its_cause(
    runtime: RayRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_stage", make_actors(False)[0])
    with pytest.raises(WorldloopError, match="stage's process cannot start: ModuleNotFoundError: No module named"):
        runtime.run_stage(make_stage(Path(), 0, kills_stage=False))


@pytest.mark.parametrize(("sent", "ends"), [(signal.SIGTERM, True), (signal.SIGUSR1, False)])
def test_a_training_stage_is_asked_for_a_checkpoint(
    runtime: RayRuntime, tmp_path: Path, sent: signal.Signals, ends: bool
) -> None:
    def stage(folder: str, driver: int, executor: Any, display: Any) -> str:
        from worldloop.core.interrupts import finish_step, take_checkpoint_request, wants_checkpoint

        for step in range(1000):
            with finish_step():
                if step == 3:
                    os.kill(driver, sent)
                time.sleep(0.05)
                if wants_checkpoint():
                    (Path(folder) / f"step_{step}").touch()
                    take_checkpoint_request()
                    if not ends:
                        return "went on"
        return "never asked"

    with answer_signals():
        if ends:
            with pytest.raises(KeyboardInterrupt):
                runtime.run_stage(stage, str(tmp_path), os.getpid(), trains=True)
        else:
            assert runtime.run_stage(stage, str(tmp_path), os.getpid(), trains=True) == "went on"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cluster_that_is_too_small_says_so_at_once(runtime: RayRuntime) -> None:
    with pytest.raises(WorldloopError, match="CPU for all actors together, the cluster has"):
        start(num_simulators=1000, cpus_per_simulator=1.0)


def make_training_stage(folder: Path, end: str) -> Any:
    """A stage on two workers, of which the second dies once; then it ``end``s well, or with a clear error."""

    def stage(executor: Any, display: Any) -> Any:
        import torch

        from worldloop.core.errors import WorldloopError
        from worldloop.training.data_parallel import DataParallel

        data_parallel = DataParallel.of_process_group()
        display.log(f"worker {data_parallel.rank}")
        if data_parallel.rank == 1 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "error" and not data_parallel.is_main:
            raise WorldloopError("the loss became nan")
        return int(data_parallel.all_reduce_sum(torch.tensor(data_parallel.rank + 1))), data_parallel

    return stage


@pytest.mark.slow
@pytest.mark.usefixtures("runtime")
def test_training_workers_add_up_and_are_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    from worldloop.training.data_parallel import DataParallel

    group = start(num_simulators=1, cpus_per_simulator=0.0, num_workers=2)
    assert group.run_stage(make_training_stage(tmp_path, "well"), trains=True) == (3, DataParallel(0, 2))
    shown = capsys.readouterr().err
    assert "attempt 2 of 3" in shown
    assert "worker 0" in shown
    assert "worker 1" not in shown
    after = tmp_path / "after"
    after.mkdir()
    assert group.run_stage(make_stage(after, 0, False)) == [0, 1, 4, 9, 16, 25]  # on the first of them alone
    other = placement_group([{"memory": 7}])  # of somebody else in the same job
    assert other.wait(30)
    ray.kill(group._stage, no_restart=False)  # the coordinator, and its group with it
    assert group.run_stage(make_training_stage(tmp_path, "well"), trains=True) == (3, DataParallel(0, 2))
    reserved = [key for key, entry in placement_group_table().items() if entry["state"] != "REMOVED"]
    assert len(reserved) == 2  # nothing is left of the first group's
    assert other.id.hex() in reserved
    with pytest.raises(WorldloopError, match="the loss became nan"):
        group.run_stage(make_training_stage(tmp_path, "error"), trains=True)
    group.close()


# --- connecting ---------------------------------------------------------------------------------------------------


class _Ray:
    """What `_connect` needs of ray; ``init`` replaces signal handlers, as the real one does, and may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.was_asked = error, False

    def init(self, **_: object) -> None:
        self.was_asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.error is not None:
            raise self.error


def test_connecting_leaves_the_signal_handlers_as_they_are() -> None:
    before = signal.getsignal(signal.SIGTERM)
    _connect(_Ray(), "")
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(WorldloopError, match=r"Ray cannot start: AF_UNIX path too long; it needs a short TMPDIR"):
        _connect(_Ray(OSError("AF_UNIX path too long")), "")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_dead_address_is_one_error_at_once() -> None:
    ray = _Ray()
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(WorldloopError, match=rf"cannot reach Ray at {address}: nothing answers there \(Connection"):
            _connect(ray, address)
    assert not ray.was_asked
    for named in ("auto", "ray://head:10001"):
        _connect(ray, named)
