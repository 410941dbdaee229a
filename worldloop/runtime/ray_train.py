"""A training stage on data-parallel workers: the same stage function on each of them, under Ray Train.

Ray Train places the workers and sets up their `torch.distributed` process group; what they add up and who writes is
the stage's business, see `worldloop.workers`. A worker that dies ends the attempt. The next goes on from what the stage
has kept, see `worldloop.stages.partial`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from worldloop.runtime.progress import RemoteDisplay, SilentDisplay
from worldloop.types import WorldloopError

BACKEND = {"cpu": "gloo", "gpu": "cpu:gloo,cuda:nccl"}
SHOW_INTERVAL_S = 0.5


@dataclass(frozen=True)
class TrainingGroup:
    """How many workers there are, and what Ray reserves for each."""

    num_workers: int
    cpus: float
    gpus: float


class Coordinator:
    """An actor that starts the workers of one stage after the other, shows what they show, and starts them again."""

    def __init__(self) -> None:
        self._display = RemoteDisplay()
        self._value: Any = None

    def train(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], group: TrainingGroup, max_retries: int
    ) -> Any:
        """What ``function(*arguments, executor, display)`` returns on the first worker, or its `WorldloopError`."""
        import ray
        from ray.train import RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        own = ray.get_runtime_context().current_actor
        for attempt in range(max_retries + 1):
            self._value = None
            with tempfile.TemporaryDirectory() as folder:
                trainer = TorchTrainer(
                    _work,
                    train_loop_config={"function": function, "arguments": arguments, "coordinator": own},
                    scaling_config=ScalingConfig(
                        num_workers=group.num_workers,
                        use_gpu=group.gpus > 0,
                        resources_per_worker={"CPU": group.cpus, "GPU": group.gpus},
                    ),
                    torch_config=TorchConfig(backend=BACKEND["gpu" if group.gpus else "cpu"]),
                    run_config=RunConfig(storage_path=folder),
                )
                try:
                    trainer.fit()
                except TrainingFailedError as error:
                    if isinstance(self._value, WorldloopError):
                        return self._value
                    reason = str(error).strip().splitlines()[-1][:200]
                    self._display.log(f"  a worker died ({reason}); attempt {attempt + 1} of {max_retries + 1}")
                    continue
            return self._value
        times = f"{max_retries + 1} times in one stage"
        return WorldloopError(f"training workers died {times} (killed, or out of memory); run again: it resumes")

    def deliver(self, value: Any) -> None:
        """From a worker: what the stage returned, or the error that ended it."""
        if not isinstance(self._value, WorldloopError):
            self._value = value

    def show(self, events: list[tuple[str, tuple[Any, ...]]]) -> None:
        """From the first worker: what it shows."""
        self._display.extend(events)

    def drain(self) -> list[tuple[str, tuple[Any, ...]]]:
        return self._display.drain()


class _NoSimulators:
    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        raise RuntimeError("a stage that simulates does not run on training workers")


class _SentDisplay(RemoteDisplay):
    """Sends its events to the coordinator, twice a second."""

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
        self._sent_at = time.monotonic()
        self._coordinator.show.remote(self.drain())


def _work(config: dict[str, Any]) -> None:
    import ray

    from worldloop.workers import Workers

    coordinator = config["coordinator"]
    is_first = Workers.of_process_group().is_first
    display: Any = _SentDisplay(coordinator) if is_first else SilentDisplay()
    try:
        value = config["function"](*config["arguments"], _NoSimulators(), display)
    except WorldloopError as error:
        ray.get(coordinator.deliver.remote(error))
        raise
    if is_first:
        display.send()
        ray.get(coordinator.deliver.remote(value))
