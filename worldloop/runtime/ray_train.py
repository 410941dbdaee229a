"""Several data-parallel workers instead of one stage actor: a worker group of Ray Train that lives as long as the run.

Ray Train places the workers and sets up their `torch.distributed` process group. When one dies, all are started again.
A start takes half a minute. So the group starts with the run, and is kept from stage to stage. A training stage
runs on every worker (`worldloop.training.data_parallel`). Any other stage runs on the first worker only, or in the
coordinator while there is no group. A stage that is started again continues from its checkpoint
(`worldloop.training.resume`).
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from worldloop.core import interrupts
from worldloop.core.errors import WorldloopError, first_line
from worldloop.reporting.progress import Display, RemoteDisplay, SilentDisplay

BACKEND = {"cpu": "gloo", "gpu": "cpu:gloo,cuda:nccl"}
SHOW_INTERVAL_S = 0.5
START_S = 90.0  # how long a group may take to start before the user is told
MAX_REASON = 300  # characters of an error that are shown
MAX_MARK = 2**26


@dataclass(frozen=True)
class TrainingGroup:
    """How many workers there are, what Ray reserves for each, and how many lost workers one stage survives.

    ``mark`` is a number of bytes that Ray reserves for each as well, far fewer than a worker needs. It is drawn at
    random: Ray Train gives its placement groups no name, and so a run tells its own from others.
    """

    num_workers: int
    cpus: float
    gpus: float
    max_retries: int
    mark: int = field(default_factory=lambda: 1 + secrets.randbelow(MAX_MARK))


@dataclass(frozen=True)
class _Task:
    """A stage to run: ``function(*arguments, executor, display)`` on every worker, or on the first only."""

    number: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    executor: Any
    on_all: bool


class RemoteError(Exception):
    """An error in a training worker that another try would meet again; its text ends with the worker's traceback."""


def run_alone(function: Callable[..., Any], arguments: tuple[Any, ...], executor: Any, display: Display) -> Any:
    """Run a stage in this process; returns its result, or the `WorldloopError` that ended it."""
    try:
        return function(*arguments, executor, display)
    except WorldloopError as error:
        return error
    except KeyboardInterrupt:  # asked to end: nobody waits for a result
        return WorldloopError("the stage was interrupted")


class Coordinator:
    """The actor that replaces the stage actor if there are several workers: it hands stages to the group."""

    def __init__(self, group: TrainingGroup) -> None:
        self._group = group
        self._display = RemoteDisplay()
        self._process = uuid.uuid4().hex
        self._changed = threading.Condition()
        self._task: _Task | None = None  # None while there is nothing to do
        self._number = 0
        self._starts = 0  # of the group during the task; a group that is already up counts as the first
        self._is_up = False
        self._asking: dict[int, object] = {}  # rank -> its latest call of `take`; a dead worker's call stays
        self._reason = ""  # error that the last dead worker reported, "" if it could not
        self._known: set[str] = set()  # errors that workers reported during the task
        self._lost = 0  # groups in a row that ended before their first worker called `start`
        self._asked: list[bool] = []  # what `ask` was called with, for the first worker
        self._value: Any = None
        self._server: threading.Thread | None = None

    def begin(self) -> None:
        """Start the group, unless it is up or starting. Does not wait for it."""
        with self._changed:
            if self._server is None:
                self._server = threading.Thread(target=self._serve, daemon=True)
                self._server.start()

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], executor: Any, trains: bool) -> Any:
        """Run a stage; returns its result on the first worker, or the `WorldloopError` that ended it."""
        with self._changed:
            self.begin()  # if the group fails at once, its thread waits for the lock, so it finds the task to end
            if trains or self._is_up or self._group.gpus:
                self._number, self._starts = self._number + 1, int(self._is_up)
                self._task = _Task(self._number, function, arguments, executor, trains)
                self._known.clear()
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: self._task is None, START_S) and not self._is_up:
                    self._display.log(f"  no training workers after {START_S:.0f} s: waiting for room in the cluster")
                self._changed.wait_for(lambda: self._task is None)
                return self._value
        return run_alone(function, arguments, executor, self._display)

    def take(self, rank: int, done: int) -> _Task | None:
        """A worker calls it to wait for its next stage, after the one with the number ``done``.

        Returns ``None`` when a new worker of the same rank calls. Ray does not end the call of a worker that died, and
        each call holds one of this actor's few threads. If such calls went on, no thread would be left.
        """
        question = object()

        def is_answered() -> bool:
            task = self._task
            has_part = task is not None and task.number > done and (task.on_all or rank == 0)
            return has_part or self._asking[rank] is not question

        with self._changed:
            self._asking[rank] = question
            self._changed.notify_all()
            self._changed.wait_for(is_answered)
            return self._task if self._asking[rank] is question else None

    def start(self) -> None:
        """The first worker of a group that has just started calls it."""
        with self._changed:
            self._is_up, self._lost = True, 0
            if self._task is None:
                return
            self._starts += 1
            reason, self._reason = self._reason, ""  # of this death; the next one has its own
            if self._starts > 1:
                said = f" ({reason})" if reason else ""
                self._display.log(f"  a worker died{said}; attempt {self._starts} of {self._group.max_retries + 1}")
            if self._starts > self._group.max_retries + 1:
                self._end(
                    WorldloopError(
                        f"training workers died {self._starts - 1} times in one stage "
                        f"({reason or 'killed, or out of memory'}); run again: it resumes"
                    )
                )

    def deliver(self, number: int, value: Any) -> None:
        """A worker calls it with the result of stage ``number``, or with the error that ended stage and group."""
        with self._changed:
            if isinstance(value, WorldloopError):
                self._is_up = False
            if self._task is not None and self._task.number == number:
                self._end(value)

    def explain(self, reason: str, own_traceback: str = "") -> None:
        """A worker that ends with an error calls it, with a traceback if the error does not come from losing another.

        An error of its own that comes a second time in one stage would come again and again, and ends the stage.
        """
        with self._changed:
            self._reason = reason
            if own_traceback and reason in self._known:
                self._is_up = False
                self._end(RemoteError(f"{reason}\n\nIn a training worker:\n{own_traceback}"))
            elif own_traceback:
                self._known.add(reason)

    def show(self, events: list[tuple[str, tuple[Any, ...]]]) -> list[bool]:
        """The first worker calls it with events to display; returns what it was asked since, see `ask`."""
        self._display.extend(events)
        asked, self._asked = self._asked, []
        return asked

    def ask(self, to_end: bool) -> None:
        """Make the stage write a checkpoint after its present training step, and with ``to_end`` end there."""
        self._asked.append(to_end)

    def drain(self) -> list[tuple[str, tuple[Any, ...]]]:
        return self._display.drain()

    def name_process(self) -> str:
        """A name that no other process of this actor has."""
        return self._process

    def _end(self, value: Any) -> None:
        self._task, self._value = None, value
        self._changed.notify_all()

    def _serve(self) -> None:
        """Run groups of workers until one ends well, or too many in a row end before they have begun.

        Whatever ends them, end the waiting stage, which would wait forever.
        """
        reason = "its workers ended"
        while True:
            try:
                _run_group(self._group)
                break
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:MAX_REASON]
            with self._changed:
                self._is_up, self._lost = False, self._lost + 1
                if self._lost > self._group.max_retries:
                    break
        with self._changed:
            self._is_up, self._server = False, None
            self._end(WorldloopError(f"Ray Train gave up: {reason}; mend that, then run again: it resumes"))


def _run_group(group: TrainingGroup) -> None:
    """Run `_work` on the workers, until one dies or all have ended. Called in the coordinator's actor."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # one process less to start; we need no warning
    _free_placement_groups(ray.get_runtime_context().get_job_id(), group.mark)
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            _work,
            train_loop_config={"coordinator": ray.get_runtime_context().current_actor},
            scaling_config=ScalingConfig(
                num_workers=group.num_workers,
                use_gpu=group.gpus > 0,
                resources_per_worker={"CPU": group.cpus, "GPU": group.gpus, "memory": group.mark},
            ),
            torch_config=TorchConfig(backend=BACKEND["gpu" if group.gpus else "cpu"]),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=0)),
        ).fit()


def _free_placement_groups(job_id: str, mark: int) -> None:
    """Remove the placement groups with that ``mark`` in this job: a dead coordinator's group reserved them.

    Ray moves them to other nodes, and the next group would wait forever for these resources. Ray Train's own cleaner
    needs Ray's dashboard.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for number, entry in placement_group_table().items():
        is_own = number.endswith(job_id) and all(needs.get("memory") == mark for needs in entry["bundles"].values())
        if is_own and entry["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(number))))


def comes_from_loss(error: Exception) -> bool:
    """Whether ``error`` may come from losing another worker: from gloo, NCCL, or the store through which they meet."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


class _SentDisplay(RemoteDisplay):
    """Sends its events to the coordinator, at most twice a second while a progress bar advances."""

    def __init__(self, coordinator: Any) -> None:
        super().__init__()
        self._coordinator, self._sent_at = coordinator, 0.0

    def advance(self, count: int, figures: dict[str, float]) -> None:
        super().advance(count, figures)
        if time.monotonic() - self._sent_at > SHOW_INTERVAL_S:
            self.send()

    def close(self) -> None:
        super().close()
        self.send()

    def send(self) -> None:
        """Send the events, and take what the coordinator was asked meanwhile."""
        import ray

        self._sent_at = time.monotonic()
        for to_end in ray.get(self._coordinator.show.remote(self.drain())):
            interrupts.ask_to_end() if to_end else interrupts.ask_for_checkpoint()


def _work(config: dict[str, Any]) -> None:
    """One worker: stage after stage, until the coordinator is gone."""
    import ray
    from ray.exceptions import RayActorError

    from worldloop.training.data_parallel import DataParallel

    coordinator = config["coordinator"]
    rank, done = DataParallel.of_process_group().rank, 0
    display: Any = SilentDisplay() if rank else _SentDisplay(coordinator)
    try:
        if rank == 0:
            ray.get(coordinator.start.remote())
        while True:
            task = ray.get(coordinator.take.remote(rank, done))
            if task is None:  # another worker of this rank has been started
                return
            try:
                value = task.function(*task.arguments, task.executor, display)
            except WorldloopError as error:
                ray.get(coordinator.deliver.remote(task.number, error))
                raise  # the others may be waiting for this worker: all must start again
            except RayActorError:
                raise
            except KeyboardInterrupt:  # asked to end; the others stop when the group is killed
                ray.get(coordinator.deliver.remote(task.number, WorldloopError("the stage was interrupted")))
                return
            except Exception as error:
                reason = f"{type(error).__name__}: {first_line(error)}"[:MAX_REASON]
                own_traceback = "" if comes_from_loss(error) else traceback.format_exc()
                ray.get(coordinator.explain.remote(reason, own_traceback))
                raise
            done = task.number
            if rank == 0:
                display.send()
                ray.get(coordinator.deliver.remote(done, value))
    except RayActorError:
        return
