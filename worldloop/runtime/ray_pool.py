"""Simulator work on a pool of Ray actors: what becomes of it when an actor dies, hangs or never starts."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.runtime.inline import SIMULATOR_DIED, describe_stuck

POLL_INTERVAL_S = 0.5
PROBE = -1


class SimulatorActor:
    """Executes simulator blocks one after the other, and keeps its simulator between blocks."""

    def execute(self, function: Callable[[Any], Any], item: Any) -> Any:
        return function(item)

    def is_there(self) -> bool:
        return True


@dataclass
class _Call:
    """A call that is running: its actor, the item and its number (`PROBE`: only asks if the actor is there)."""

    actor: Any
    index: int
    item: Any
    began: float
    is_stuck: bool = False  # it took too long, and its actor was killed


class ActorExecutor:
    """`map` over a pool of simulator actors, with results in order.

    An actor gets work once it has answered. Its work is done again, up to ``max_retries`` times per item, if it dies or
    takes longer than ``timeout_s`` (0: no limit). Ray starts such an actor again. One that Ray will not start again is
    left out. `map` raises `WorldloopError` when no actor is left.

    Why not Ray's own retries: until Ray notices that a node is lost, calls fail at once and would use them up.
    """

    def __init__(self, actors: list[Any], max_retries: int, timeout_s: float) -> None:
        self._actors, self._max_retries, self._timeout_s = actors, max_retries, timeout_s

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError

        waiting = deque(enumerate(items))
        retries = [0] * len(waiting)
        results: dict[int, Any] = {}
        running: dict[Any, _Call] = {}
        for actor in self._actors:
            _probe(running, actor)
        idle: deque[Any] = deque()
        for number in range(len(waiting)):
            while number not in results:
                while waiting and idle:
                    actor, (index, item) = idle.popleft(), waiting.popleft()
                    running[actor.execute.remote(function, item)] = _Call(actor, index, item, time.monotonic())
                done, _ = ray.wait([*running], num_returns=1, timeout=POLL_INTERVAL_S)
                if not done:
                    self._end_stuck(ray, running)
                    continue
                call = running.pop(done[0])
                try:
                    result = ray.get(done[0])
                    idle.append(call.actor)
                    if call.index != PROBE:
                        results[call.index] = result
                except (RayActorError, OutOfMemoryError) as error:
                    if call.index != PROBE:
                        retries[call.index] += 1
                        if retries[call.index] > self._max_retries:
                            said = describe_stuck(self._timeout_s) if call.is_stuck else SIMULATOR_DIED
                            raise WorldloopError(said) from error
                        waiting.appendleft((call.index, call.item))
                    elif is_final(error):
                        if not running and not idle:
                            raise WorldloopError(f"no simulator can run: {describe_death(error)}") from error
                        continue
                    time.sleep(POLL_INTERVAL_S)
                    _probe(running, call.actor)
            yield results.pop(number)

    def _end_stuck(self, ray: Any, running: dict[Any, _Call]) -> None:
        """Kill the actors that take too long; their calls then end with an error."""
        for call in running.values():
            takes_long = 0 < self._timeout_s < time.monotonic() - call.began
            if takes_long and not call.is_stuck:  # a probe too: an earlier stage's work may hold the actor
                call.is_stuck = True  # a second kill would use up another of Ray's restarts
                ray.kill(call.actor, no_restart=False)


def _probe(running: dict[Any, _Call], actor: Any) -> None:
    running[actor.is_there.remote()] = _Call(actor, PROBE, None, time.monotonic())


def is_final(error: BaseException) -> bool:
    """Whether ``error``, of a call that only asked if the actor is there, says that Ray will not start it again."""
    from ray.exceptions import ActorDiedError

    return isinstance(error, ActorDiedError)


def describe_death(error: BaseException) -> str:
    """Why an actor died, in one line: the error of its creation, or what Ray knows."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if getattr(error, "actor_init_failed", False):
        return lines[-1]
    return next((line for line in lines if line.startswith("The actor is dead because")), lines[0])
