"""Data-parallel workers: who goes through which part of a training batch, and what they add up.

A batch falls into ``num_microbatches`` parts, each with draws of its own. The workers share the parts out, every worker
goes through its own one after the other, and gradients add up over all of them. So the number of workers changes
the order in which floats are added and nothing else; a single worker accumulates gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worldloop.training.sharding import is_sharded


@dataclass(frozen=True)
class Workers:
    """Worker ``rank`` of ``size``. More than one need an initialised `torch.distributed` process group.

    Every worker has to call the other methods but `own` (and what is made of them) equally often, in the same order.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_process_group(cls) -> Workers:
        """This process among those of `torch.distributed`; the only one where no group was initialised."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that writes files and shows progress."""
        return self.rank == 0

    def own(self, num_microbatches: int) -> range:
        """The parts of a batch that this worker goes through; as many as every other's."""
        if num_microbatches % self.size:
            raise ValueError(f"{num_microbatches} micro-batches cannot be shared by {self.size} workers")
        share = num_microbatches // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every worker's ``values``, of one shape."""
        return self._reduce(values, dist.ReduceOp.SUM) if self.size > 1 else values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on one of the workers."""
        return bool(self.sum(torch.tensor(int(flag))))

    def gather(self, value: Any) -> list[Any]:
        """Every worker's ``value``, which can be pickled, in the order of the workers."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """The largest of every worker's ``values``, element by element."""
        return self._reduce(values, dist.ReduceOp.MAX) if self.size > 1 else values

    def shares(self, counts: Sequence[Tensor]) -> list[Tensor]:
        """What each of this worker's ``counts`` (scalars) is of the sum of all workers'; zeros where that is zero."""
        total = self.sum(torch.tensor(float(sum(map(int, counts)))))
        return [count.float() / total.clamp_min(1) for count in counts]

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up what every worker's backward passes left in ``grad``; FSDP2 has done so for sharded parameters.

        A parameter that got no gradient on any worker still has none, so that weight decay leaves it alone too.
        """
        parameters = [p for p in parameters if not is_sharded(p)]
        if self.size == 1 or not parameters:
            return
        device = parameters[0].device
        has = self.sum(torch.tensor([p.grad is not None for p in parameters], device=device, dtype=torch.int32))
        used = [p for p, count in zip(parameters, has.tolist(), strict=True) if count]
        if not used:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        total = self.sum(torch.cat([g.flatten() for g in gradients]))
        for parameter, gradient in zip(used, total.split([p.numel() for p in used]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def wait(self) -> None:
        """Until every worker is here."""
        if self.size > 1:
            dist.barrier()

    @staticmethod
    def _reduce(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, operation)
        return total
