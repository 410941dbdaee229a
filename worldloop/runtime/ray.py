"""The Ray runtime: every stage runs in an actor, simulator work on a pool of simulator actors, training on workers.

Ray is imported only here and in `worldloop.runtime.ray_train`. Training and simulation never compute at the same time,
so simulator actors may share the CPUs of the stage actor: ``resources.cpus_per_simulator`` is what Ray reserves for
each. Several training workers replace the stage actor, see `worldloop.runtime.ray_train`.

If an actor dies (killed, out of memory, its node lost), Ray starts it again, and it repeats its work: a simulator its
block, the stage actor its stage, from the last checkpoint. The results are the same as without the failure.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from worldloop.core import interrupts
from worldloop.core.errors import WorldloopError, first_line
from worldloop.reporting.progress import Display, RemoteDisplay, replay
from worldloop.runtime.ray_pool import POLL_INTERVAL_S, ActorExecutor, SimulatorActor, describe_death, is_final
from worldloop.runtime.ray_train import Coordinator, RemoteError, TrainingGroup, run_alone

WAIT_S = 15.0  # how long an actor may take to start before the user is told
TELL_AGAIN_S = 300.0  # how long until the user is told again
KEEP_S = 25.0  # how long a training stage has for its last checkpoint; schedulers kill half a minute after SIGTERM
CONNECT_S = 5.0  # how long a cluster may take to answer at all
MAX_RESTARTS = 100  # of one actor within a run

Needs = dict[str, float]  # "CPU" and "GPU" that an actor reserves, or a node has


class _StageActor:
    """Runs stages. Its second thread answers `drain` while a stage runs."""

    def __init__(self) -> None:
        self._display = RemoteDisplay()
        self._process = uuid.uuid4().hex

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], executor: Any, trains: bool) -> Any:
        interrupts.forget()
        return run_alone(function, arguments, executor, self._display)

    def name_process(self) -> str:
        """A name that no other process of this actor has."""
        return self._process

    def ask(self, to_end: bool) -> None:
        """Make the stage write a checkpoint after its present training step, and with ``to_end`` end there."""
        interrupts.ask_to_end() if to_end else interrupts.ask_for_checkpoint()

    def drain(self) -> list[tuple[str, tuple[Any, ...]]]:
        return self._display.drain()


class RayRuntime:
    """Connects to the cluster of ``address`` (or RAY_ADDRESS, as in a Ray job), else starts a local one."""

    def __init__(
        self,
        *,
        address: str,
        num_simulators: int,
        cpus_per_simulator: float,
        num_workers: int,
        trainer_cpus: float,
        trainer_gpus: float,
        max_retries: int,
        display: Display,
        block_timeout_s: float = 0.0,
        cluster_grows: bool = False,
        show_prints: bool = False,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.display = display
        self._ray = ray
        address = address or os.environ.get("RAY_ADDRESS", "")
        self._owns_cluster = not address and not ray.is_initialized()
        if not ray.is_initialized():
            _connect(ray, address, show_prints)
        count = max(1, num_simulators)
        if not cluster_grows:
            trainers = [{"CPU": trainer_cpus, "GPU": trainer_gpus}] * num_workers
            self._require(trainers, [{"CPU": cpus_per_simulator}] * count)
        restarts: dict[str, Any] = {"max_restarts": MAX_RESTARTS}
        self._max_retries, self._block_timeout_s = max_retries, block_timeout_s
        simulator = ray.remote(SimulatorActor).options(num_cpus=cpus_per_simulator, **restarts)
        self._simulators: list[Any] = [simulator.remote() for _ in range(count)]
        self._starting = [actor.is_there.remote() for actor in self._simulators]
        self._began = time.monotonic()
        if num_workers > 1:
            # Each worker may wait in a call of its own, in a thread of this actor. The actor runs on the driver's node,
            # so that the loss of another node does not end it.
            coordinator: Any = ray.remote(Coordinator).options(
                num_cpus=0,
                max_concurrency=num_workers + 4,
                scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True),
                **restarts,
            )
            self._stage: Any = coordinator.remote(TrainingGroup(num_workers, trainer_cpus, trainer_gpus, max_retries))
            self._stage.begin.remote()
        else:
            stage = ray.remote(_StageActor).options(
                num_cpus=trainer_cpus, num_gpus=trainer_gpus, max_concurrency=2, **restarts
            )
            self._stage = stage.remote()

    def _require(self, trainers: list[Needs], simulators: list[Needs]) -> None:
        """Raise `WorldloopError` if the cluster can never hold all actors at once. Ray would wait forever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        missing = find_missing(trainers, simulators, nodes)
        if missing:
            self.close()
            raise WorldloopError(
                f"the config asks Ray for {missing}: lower resources.*, join a larger cluster, or set "
                "resources.cluster_grows=true if an autoscaler adds nodes"
            )

    def run_stage(self, function: Callable[..., Any], *arguments: Any, trains: bool = False) -> Any:
        """Run ``function(*arguments, executor, display)`` in the stage actor, and show its progress here.

        With several training workers it runs on all of them if the stage ``trains``, else on the first.
        """
        executor = ActorExecutor(self._simulators, self._max_retries, self._block_timeout_s)
        process = ""
        for attempt in range(self._max_retries + 1):
            if attempt:
                self.display.log(f"  the stage's process is gone; attempt {attempt + 1} of {self._max_retries + 1}")
            process = self._wait_for_stage_actor(process)
            result = self._stage.run.remote(function, arguments, executor, trains)
            try:
                value = self._watch(result)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError):
                continue
            except KeyboardInterrupt:
                if trains:
                    self._let_stage_end(result)
                raise
            if isinstance(value, WorldloopError | RemoteError):
                raise value
            return value
        raise WorldloopError(
            "the stage's process died again and again (killed, or out of memory); run again: it resumes"
        )

    def _watch(self, result: Any) -> Any:
        """Wait for the stage's result, and show its progress meanwhile."""
        ray = self._ray
        done: list[Any] = []
        while not done:
            done, _ = ray.wait([result], timeout=POLL_INTERVAL_S)
            if interrupts.take_checkpoint_request():
                self._stage.ask.remote(to_end=False)
            if not done:
                replay(ray.get(self._stage.drain.remote()), self.display)
                self._tell_of_simulators()
        value = ray.get(result)
        with suppress(ray.exceptions.RayActorError):  # the stage has ended, though its process may be gone by now
            replay(ray.get(self._stage.drain.remote()), self.display)
        return value

    def _let_stage_end(self, result: Any) -> None:
        """Give a training stage `KEEP_S` to write a checkpoint of what it has learned."""
        with suppress(self._ray.exceptions.RayError):
            self._stage.ask.remote(to_end=True)
            self._ray.wait([result], timeout=KEEP_S)

    def _tell_of_simulators(self) -> None:
        """Tell the user, once, which simulators have not started, and why."""
        if not self._starting or time.monotonic() - self._began < WAIT_S:
            return
        ready, waiting = self._ray.wait(self._starting, num_returns=len(self._starting), timeout=0)
        if waiting:
            self.display.log(f"  {len(waiting)} of {len(self._simulators)} simulators wait for room in the cluster")
        for answer in ready:
            try:
                self._ray.get(answer)
            except self._ray.exceptions.RayActorError as error:
                self.display.log(f"  a simulator did not start: {describe_death(error)}")
        self._starting = []

    def _wait_for_stage_actor(self, failed: str) -> str:
        """Wait until Ray has started the stage actor, in another process than ``failed``; returns that process's name.

        The actor may need a CPU in use, or a node that has not joined yet. The failed process may still answer: then it
        is killed, because two must never run. A new process is not killed; that would use up an attempt. Raises
        `WorldloopError` if Ray will not start the actor again.
        """
        began, told = time.monotonic(), time.monotonic()
        while True:
            try:
                process: str = self._ray.get(self._stage.name_process.remote(), timeout=WAIT_S)
                if process != failed:
                    return process
                self._ray.kill(self._stage, no_restart=False)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError) as error:
                if is_final(error):
                    raise WorldloopError(f"the stage's process cannot start: {describe_death(error)}") from error
                time.sleep(POLL_INTERVAL_S)
            if time.monotonic() - told > (WAIT_S if told == began else TELL_AGAIN_S):
                told = time.monotonic()
                self.display.log(
                    f"  waiting for the cluster to have room for the stage's process, for {told - began:.0f} s"
                )

    def close(self) -> None:
        """Kill this run's actors; shut the cluster down only if this run started it."""
        for actor in [*getattr(self, "_simulators", []), *filter(None, [getattr(self, "_stage", None)])]:
            self._ray.kill(actor)
        if self._owns_cluster:
            self._ray.shutdown()


def _connect(ray: Any, address: str, show_prints: bool = False) -> None:
    """Join the cluster at ``address``, or start one on this machine. The signal handlers stay as they are."""
    where = f" at {address}" if address else ""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _require_listener(address)
        if address:
            ray.init(address=address, log_to_driver=show_prints, logging_level="ERROR")
        else:
            ray.init(include_dashboard=False, log_to_driver=show_prints, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise WorldloopError(
            f"cannot reach Ray{where}: {first_line(error)}; start a cluster, or use runtime=inline"
        ) from error
    except OSError as error:
        raise WorldloopError(
            f"Ray cannot start: {first_line(error)}; it needs a short TMPDIR and a HOME to write to, or use "
            "runtime=inline"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _require_listener(address: str) -> None:
    """Raise ``ConnectionError`` if nothing listens at ``address``, host:port. Ray would go on trying for minutes."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers there ({error.strerror or error})") from error


def find_missing(trainers: list[Needs], simulators: list[Needs], nodes: list[Needs]) -> str:
    """What ``nodes`` lack to hold all actors at once, "" if nothing.

    All trainers need the same resources, and so do all simulators.
    """
    actors = [*trainers, *simulators]
    for name in ("CPU", "GPU"):
        largest = max(actor.get(name, 0) for actor in actors)
        total = sum(actor.get(name, 0) for actor in actors)
        have = [node.get(name, 0) for node in nodes]
        if largest > max(have, default=0):
            return f"{largest:g} {name} for one actor, the largest node has {max(have, default=0):g}"
        if total > sum(have):
            return f"{total:g} {name} for all actors together, the cluster has {sum(have):g}"
    if _most_simulators(trainers, simulators, nodes) < len(simulators):
        have_each = "; ".join(_describe(node) for node in nodes)
        beside = f" beside {len(simulators)} simulators of {_describe(simulators[0])}" if simulators else ""
        return (
            f"{len(trainers)} training actors of {_describe(trainers[0])} each{beside}, "
            f"for which its nodes are too small ({have_each})"
        )
    return ""


def _most_simulators(trainers: list[Needs], simulators: list[Needs], nodes: list[Needs]) -> int:
    """Most simulators that fit beside all trainers, over all placements of the trainers; -1 if these do not fit."""
    best = {0: 0}  # trainers placed so far -> simulators that fit beside them
    for node in nodes:
        room = {}
        for count in range(min(len(trainers), _fit(node, trainers[0])) + 1):
            rest = {name: node.get(name, 0) - count * trainers[0].get(name, 0) for name in ("CPU", "GPU")}
            room[count] = min(len(simulators), _fit(rest, simulators[0])) if simulators else 0
        after: dict[int, int] = {}
        for placed, fitting in best.items():
            for count, more in room.items():
                if placed + count <= len(trainers):
                    after[placed + count] = max(after.get(placed + count, 0), fitting + more)
        best = after
    return best.get(len(trainers), -1)


def _fit(node: Needs, actor: Needs) -> int:
    """How many actors like ``actor`` fit on ``node``; a large number if it needs nothing."""
    return min([int(node.get(name, 0) / need + 1e-6) for name, need in actor.items() if need > 0], default=10**6)


def _describe(needs: Needs) -> str:
    named = [f"{needs[name]:g} {name}" for name in ("CPU", "GPU") if needs.get(name)]
    return " and ".join(named) or "0 CPU"
