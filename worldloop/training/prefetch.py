"""Draw the next batch in the background, with the same random numbers as without.

A microbatch draws its batch and its loss from one generator. So its next batch can be drawn as soon as its loss has
been computed: while gradients flow back, other microbatches compute theirs, and weights change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from worldloop.training.resume import Stateful


class HeldState:
    """A `Stateful` whose state can be held as it is now, for checkpoints, while the part itself moves on."""

    def __init__(self, part: Stateful) -> None:
        self.part = part
        self._held: dict[str, Tensor] | None = None

    def hold(self) -> None:
        self._held = self.part.state_dict()

    def let_go(self) -> None:
        self._held = None

    def state_dict(self) -> dict[str, Tensor]:
        return self.part.state_dict() if self._held is None else self._held

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.part.load_state_dict(tensors)


class Prefetcher[BatchT]:
    """Gives the batches of ``draw(step, number)``, for one microbatch ``number`` after the other.

    ``states``: what drawing changes, by microbatch. A batch that is drawn ahead does not count as drawn in them until
    it is taken. Use it as a context: the thread ends with it.
    """

    def __init__(
        self, draw: Callable[[int, int], BatchT], states: Mapping[int, Mapping[str, Stateful]], num_steps: int
    ) -> None:
        self.draw, self.num_steps = draw, num_steps
        self.states = {n: {key: HeldState(part) for key, part in own.items()} for n, own in states.items()}
        self._ahead: dict[int, Future[BatchT]] = {}
        # Of its own accord a new thread would use all cores.
        self._thread = ThreadPoolExecutor(1, "batches", torch.set_num_threads, (torch.get_num_threads(),))

    def begin(self, step: int, number: int) -> None:
        """Begin to draw the batch of ``step``, unless that is past the last step."""
        if step < self.num_steps:
            for state in self.states[number].values():
                state.hold()
            self._ahead[number] = self._thread.submit(self.draw, step, number)

    def take(self, step: int, number: int) -> BatchT:
        """The batch of ``step``. An error of the draw is raised here."""
        if number not in self._ahead:
            return self.draw(step, number)
        batch = self._ahead.pop(number).result()
        for state in self.states[number].values():
            state.let_go()
        return batch

    def __enter__(self) -> Prefetcher[BatchT]:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
