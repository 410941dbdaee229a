"""The Ray runtime: every stage runs in an actor, simulator work on a pool of simulator actors.

The only import of ray. Stages alternate and never compute at the same time, so simulator actors may share the
processors of the training actor: ``resources.cpus_per_simulator`` is what Ray is told to reserve for each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from worldloop.runtime.progress import Display, RemoteDisplay, replay
from worldloop.types import WorldloopError

POLL_INTERVAL_S = 0.5


class _SimulatorActor:
    """Executes one simulator block after the other; keeps its simulator between blocks."""

    def execute(self, function: Callable[[Any], Any], item: Any) -> Any:
        return function(item)


class _ActorExecutor:
    """`map` over a pool of simulator actors, results in order."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        from ray.util import ActorPool

        yield from ActorPool(self._actors).map(lambda actor, item: actor.execute.remote(function, item), list(items))


class _StageActor:
    """Runs stages; a second thread of it answers `drain` while a stage runs."""

    def __init__(self, simulators: list[Any]) -> None:
        self._executor = _ActorExecutor(simulators)
        self._display = RemoteDisplay()

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        try:
            return function(*arguments, self._executor, self._display)
        except WorldloopError as error:
            return error

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
        trainer_cpus: float,
        trainer_gpus: float,
        display: Display,
    ) -> None:
        import ray

        self.display = display
        self._ray = ray
        address = address or os.environ.get("RAY_ADDRESS", "")
        self._owns_cluster = not address and not ray.is_initialized()
        if not ray.is_initialized():
            _connect(ray, address)
        self._require({"CPU": max(trainer_cpus, cpus_per_simulator), "GPU": trainer_gpus})
        simulator = ray.remote(_SimulatorActor).options(num_cpus=cpus_per_simulator)
        self._simulators: list[Any] = [simulator.remote() for _ in range(max(1, num_simulators))]
        stage = ray.remote(_StageActor).options(num_cpus=trainer_cpus, num_gpus=trainer_gpus, max_concurrency=2)
        self._stage: Any = stage.remote(self._simulators)

    def _require(self, wanted: dict[str, float]) -> None:
        have = self._ray.cluster_resources()
        for name, amount in wanted.items():
            if amount > have.get(name, 0):
                self.close()
                raise WorldloopError(
                    f"the config asks Ray for {amount:g} {name} for one actor, the cluster has {have.get(name, 0):g}: "
                    "lower resources.* or join a larger cluster"
                )

    def run_stage(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments, executor, display)`` in the stage actor; its progress is shown here."""
        ray = self._ray
        result = self._stage.run.remote(function, arguments)
        done: list[Any] = []
        while not done:
            done, _ = ray.wait([result], timeout=POLL_INTERVAL_S)
            replay(ray.get(self._stage.drain.remote()), self.display)
        value = ray.get(result)
        if isinstance(value, WorldloopError):
            raise value
        return value

    def close(self) -> None:
        """Kill this run's actors; shut the cluster down only if this run started it."""
        for actor in [*getattr(self, "_simulators", []), *filter(None, [getattr(self, "_stage", None)])]:
            self._ray.kill(actor)
        if self._owns_cluster:
            self._ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise WorldloopError(
            f"cannot reach Ray{' at ' + address if address else ''}: {reason}; start a cluster, or use runtime=inline"
        ) from error
