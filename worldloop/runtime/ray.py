"""The Ray runtime: every stage runs in an actor, simulator work on a pool of simulator actors, training on workers.

Ray is imported here and in `worldloop.runtime.ray_train` alone. Stages alternate and never compute at the same time, so
simulator actors may share the processors of the training actor: ``resources.cpus_per_simulator`` is what Ray is told to
reserve for each. Several training workers take the place of the stage actor, see `worldloop.runtime.ray_train`.

An actor that dies (killed, out of memory, its node lost) is started again by Ray, and does again what it was at: a
simulator its block, the stage actor its stage, from what that has kept. Both give what they would have given, see
`worldloop.loop`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from worldloop.runtime.inline import SIMULATOR_DIED
from worldloop.runtime.progress import Display, RemoteDisplay, replay
from worldloop.runtime.ray_train import Coordinator, TrainingGroup
from worldloop.types import WorldloopError

POLL_INTERVAL_S = 0.5
MAX_RESTARTS = 100  # of one actor within a run


class _SimulatorActor:
    """Executes one simulator block after the other; keeps its simulator between blocks."""

    def execute(self, function: Callable[[Any], Any], item: Any) -> Any:
        return function(item)


class _ActorExecutor:
    """`map` over a pool of simulator actors, results in order."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        from ray.exceptions import RayActorError
        from ray.util import ActorPool

        try:
            yield from ActorPool(self._actors).map(lambda actor, item: actor.execute.remote(function, item), [*items])
        except RayActorError as error:
            raise WorldloopError(SIMULATOR_DIED) from error


class _StageActor:
    """Runs stages; a second thread of it answers `drain` while a stage runs."""

    def __init__(self) -> None:
        self._display = RemoteDisplay()

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], executor: Any, trains: bool) -> Any:
        try:
            return function(*arguments, executor, self._display)
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
        num_workers: int,
        trainer_cpus: float,
        trainer_gpus: float,
        max_retries: int,
        display: Display,
    ) -> None:
        import ray

        self.display = display
        self._ray = ray
        address = address or os.environ.get("RAY_ADDRESS", "")
        self._owns_cluster = not address and not ray.is_initialized()
        if not ray.is_initialized():
            _connect(ray, address)
        count = max(1, num_simulators)
        simulators = [{"CPU": cpus_per_simulator}] * count
        self._require([{"CPU": trainer_cpus, "GPU": trainer_gpus}] * num_workers + simulators)
        restarts: dict[str, Any] = {"max_restarts": MAX_RESTARTS, "max_task_retries": max_retries}
        simulator = ray.remote(_SimulatorActor).options(num_cpus=cpus_per_simulator, **restarts)
        self._simulators: list[Any] = [simulator.remote() for _ in range(count)]
        if num_workers > 1:
            # every worker may be waiting in a call of its own
            coordinator = ray.remote(Coordinator).options(num_cpus=0, max_concurrency=num_workers + 4, **restarts)
            self._stage: Any = coordinator.remote(TrainingGroup(num_workers, trainer_cpus, trainer_gpus, max_retries))
        else:
            stage = ray.remote(_StageActor).options(
                num_cpus=trainer_cpus, num_gpus=trainer_gpus, max_concurrency=2, **restarts
            )
            self._stage = stage.remote()

    def _require(self, actors: list[dict[str, float]]) -> None:
        """Raise where the cluster could never hold all ``actors`` at once: Ray would wait forever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        missing = find_missing(actors, nodes)
        if missing:
            self.close()
            raise WorldloopError(f"the config asks Ray for {missing}: lower resources.* or join a larger cluster")

    def run_stage(self, function: Callable[..., Any], *arguments: Any, trains: bool = False) -> Any:
        """``function(*arguments, executor, display)`` in the stage actor; its progress is shown here.

        Where there are several training workers: on all of them if the stage ``trains``, else on the first.
        """
        ray = self._ray
        result = self._stage.run.remote(function, arguments, _ActorExecutor(self._simulators), trains)
        done: list[Any] = []
        try:
            while not done:
                done, _ = ray.wait([result], timeout=POLL_INTERVAL_S)
                replay(ray.get(self._stage.drain.remote()), self.display)
            value = ray.get(result)
        except ray.exceptions.RayActorError as error:
            raise WorldloopError(
                "the stage's process died again and again (killed, or out of memory); run again: it resumes"
            ) from error
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


def find_missing(actors: list[dict[str, float]], nodes: list[dict[str, float]]) -> str:
    """What ``nodes`` lack to hold all ``actors``, "" if nothing: the largest actor on one node, and all together."""
    for name in ("CPU", "GPU"):
        largest = max(actor.get(name, 0) for actor in actors)
        total = sum(actor.get(name, 0) for actor in actors)
        have = [node.get(name, 0) for node in nodes]
        if largest > max(have, default=0):
            return f"{largest:g} {name} for one actor, the largest node has {max(have, default=0):g}"
        if total > sum(have):
            return f"{total:g} {name} for all actors together, the cluster has {sum(have):g}"
    return ""
