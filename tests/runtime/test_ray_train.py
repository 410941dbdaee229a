"""The coordinator of training workers by itself: threads in the place of actors, and no group of Ray Train."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from torch.distributed import DistBackendError

from worldloop.core.errors import WorldloopError
from worldloop.runtime import ray_train
from worldloop.runtime.ray_train import Coordinator, RemoteError, TrainingGroup, comes_from_loss

GROUP = TrainingGroup(num_workers=2, cpus=1.0, gpus=0.0, max_retries=2)
PATIENCE_S = 20.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A group of Ray Train that lasts until it is set."""
    ended = threading.Event()
    monkeypatch.setattr(ray_train, "_run_group", lambda group: ended.wait())
    yield ended
    ended.set()


def begin(coordinator: Coordinator, pool: ThreadPoolExecutor, trains: bool = True) -> Future[Any]:
    return pool.submit(coordinator.run, len, ("stage",), None, trains)


def lines(coordinator: Coordinator) -> list[str]:
    return [arguments[0] for name, arguments in coordinator.drain() if name == "log"]


@pytest.mark.usefixtures("ended")
def test_a_stage_that_does_not_train_waits_for_no_worker(pool: ThreadPoolExecutor) -> None:
    coordinator = Coordinator(GROUP)
    result = pool.submit(coordinator.run, lambda *given: given, ("stage",), "executor", False).result(PATIENCE_S)
    assert result[:2] == ("stage", "executor")

    def fail(*given: Any) -> None:
        raise WorldloopError("no such state")

    assert "no such state" in str(coordinator.run(fail, (), None, False))


@pytest.mark.usefixtures("ended")
def test_on_a_gpu_every_stage_waits_for_a_worker(pool: ThreadPoolExecutor) -> None:
    coordinator = Coordinator(replace(GROUP, gpus=1.0))
    result = begin(coordinator, pool, trains=False)
    coordinator.deliver(coordinator.take(0, done=0).number, 7)
    assert result.result(PATIENCE_S) == 7


@pytest.mark.usefixtures("ended")
def test_stages_go_to_all_workers_or_to_the_first(pool: ThreadPoolExecutor) -> None:
    coordinator = Coordinator(GROUP)
    coordinator.start()
    result = begin(coordinator, pool, trains=False)
    task = coordinator.take(0, done=0)
    assert (task.function, task.arguments, task.number) == (len, ("stage",), 1)
    second = pool.submit(coordinator.take, 1, 0)  # has no part in the first stage
    coordinator.deliver(1, 7)
    assert result.result(PATIENCE_S) == 7
    result = begin(coordinator, pool)
    assert second.result(PATIENCE_S).number == 2
    assert coordinator.take(0, done=1).number == 2
    coordinator.deliver(1, 8)  # late, from a group that is gone: not this stage's
    assert not result.done()
    coordinator.deliver(2, 9)
    assert result.result(PATIENCE_S) == 9


@pytest.mark.usefixtures("ended")
def test_a_group_that_does_not_come_is_told(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_train, "START_S", 0.05)
    coordinator = Coordinator(GROUP)
    result = begin(coordinator, pool)
    said: list[str] = []
    for _ in range(400):
        said += lines(coordinator)
        if said:
            break
        threading.Event().wait(0.05)
    assert said == ["  no training workers after 0 s: waiting for room in the cluster"]
    coordinator.start()
    coordinator.deliver(1, 7)
    assert result.result(PATIENCE_S) == 7


@pytest.mark.usefixtures("ended")
def test_what_a_dead_worker_asked_holds_no_thread(pool: ThreadPoolExecutor) -> None:
    coordinator = Coordinator(GROUP)
    coordinator.start()
    asked = [pool.submit(coordinator.take, 1, 0)]
    for _ in range(20):  # its successors, each of which is killed in turn: the pool has four threads
        before, latest = asked[-1], pool.submit(coordinator.take, 1, 0)
        assert before.result(PATIENCE_S) is None
        asked.append(latest)
    result = begin(coordinator, pool)
    assert asked[-1].result(PATIENCE_S).number == 1
    coordinator.deliver(1, 7)
    assert result.result(PATIENCE_S) == 7


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize("runs_already", [False, True])
def test_a_stage_may_lose_a_worker_as_often_as_is_allowed(pool: ThreadPoolExecutor, runs_already: bool) -> None:
    coordinator = Coordinator(GROUP)
    if runs_already:
        coordinator.start()
    result = begin(coordinator, pool)
    coordinator.take(0, done=0)
    if not runs_already:
        coordinator.start()
    assert lines(coordinator) == []
    coordinator.explain("RuntimeError: out of luck")
    for attempt, reason in ((2, " (RuntimeError: out of luck)"), (3, "")):  # the reason of one death is not another's
        coordinator.start()
        assert lines(coordinator) == [f"  a worker died{reason}; attempt {attempt} of 3"]
    assert not result.done()
    coordinator.explain("RuntimeError: out of luck")
    coordinator.start()
    assert "died 3 times in one stage (RuntimeError: out of luck)" in str(result.result(PATIENCE_S))


@pytest.mark.usefixtures("ended")
def test_the_group_that_an_error_ended_starts_again_without_a_loss(pool: ThreadPoolExecutor) -> None:
    coordinator = Coordinator(GROUP)
    coordinator.start()
    result = begin(coordinator, pool)
    coordinator.deliver(coordinator.take(0, done=0).number, WorldloopError("the loss became nan"))
    assert "nan" in str(result.result(PATIENCE_S))
    result = begin(coordinator, pool)
    coordinator.take(0, done=1)
    coordinator.start()
    assert lines(coordinator) == []
    coordinator.deliver(2, None)
    assert result.result(PATIENCE_S) is None


@pytest.mark.usefixtures("ended")
def test_an_error_of_a_worker_that_comes_again_ends_the_stage_with_its_traceback(pool: ThreadPoolExecutor) -> None:
    coordinator = Coordinator(GROUP)
    coordinator.start()
    result = begin(coordinator, pool)
    coordinator.take(0, done=0)
    coordinator.explain("KeyError: 'pose'", "Traceback: line 7")
    coordinator.start()
    coordinator.explain("ValueError: another", "Traceback: line 8")
    coordinator.start()
    assert not result.done()
    coordinator.explain("KeyError: 'pose'", "Traceback: line 7")
    error = result.result(PATIENCE_S)
    assert isinstance(error, RemoteError)
    assert str(error).splitlines()[0] == "KeyError: 'pose'"
    assert "Traceback: line 7" in str(error)
    result = begin(coordinator, pool)  # another stage may meet it once again
    coordinator.take(0, done=1)
    coordinator.explain("KeyError: 'pose'", "Traceback: line 7")
    assert not result.done()
    coordinator.deliver(2, 7)
    assert result.result(PATIENCE_S) == 7


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("shape mismatch"), False),
        (KeyError("gloo"), False),
    ],
)
def test_errors_of_a_lost_peer_are_told_from_own_ones(error: Exception, is_lost: bool) -> None:
    assert comes_from_loss(error) is is_lost


@pytest.mark.usefixtures("ended")
def test_what_the_driver_asks_reaches_the_first_worker_once() -> None:
    coordinator = Coordinator(GROUP)
    coordinator.ask(to_end=False)
    coordinator.ask(to_end=True)
    assert coordinator.show([]) == [False, True]
    assert coordinator.show([]) == []


def test_groups_that_end_before_they_begin_are_not_started_without_end(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def end_early(group: TrainingGroup) -> None:
        begun.append(len(begun))
        if begun[-1] == 1:
            coordinator.start()  # this group comes up, so the count begins anew
        raise RuntimeError("no module named worldloop")

    monkeypatch.setattr(ray_train, "_run_group", end_early)
    coordinator = Coordinator(GROUP)
    assert "no module named worldloop" in str(begin(coordinator, pool).result(PATIENCE_S))
    assert len(begun) == 1 + 1 + GROUP.max_retries


def fail(group: TrainingGroup) -> None:
    raise RuntimeError("first line\nno such resource")


@pytest.mark.parametrize(("run_group", "reason"), [(fail, "no such resource"), (lambda group: None, "workers ended")])
def test_a_group_that_cannot_be_had_is_an_error_not_a_hang(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, run_group: Callable[..., None], reason: str
) -> None:
    monkeypatch.setattr(ray_train, "_run_group", run_group)
    coordinator = Coordinator(GROUP)
    for _ in range(100):  # asked again, it tries again; whether the group or the stage is first
        assert reason in str(begin(coordinator, pool).result(PATIENCE_S))
