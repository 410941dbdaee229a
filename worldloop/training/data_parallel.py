"""Data parallelism: how the ranks share microbatches, and how they sum gradients and metrics.

A training batch is split into ``num_microbatches`` microbatches, each with its own random numbers. Every rank processes
its share of them one after the other, and gradients are summed over all of them. So the number of ranks changes only
the order in which floats are added. A single rank accumulates gradients.

Why not `DistributedDataParallel`: a loss uses several methods of one module, some losses give whole heads no gradient,
and a rank whose GRPO groups were all dropped has no row left to pass through a wrapper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worldloop.core.interfaces import Metrics
from worldloop.training.sharding import is_sharded


@dataclass(frozen=True)
class DataParallel:
    """Rank ``rank`` of ``world_size``. Several ranks need an initialised `torch.distributed` process group.

    Methods that communicate must be called by every rank, equally often and in the same order. Only `is_main` and
    `microbatches` do not communicate.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def of_process_group(cls) -> DataParallel:
        """This process in the `torch.distributed` process group; the only rank if no group is initialised."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and shows progress."""
        return self.rank == 0

    def microbatches(self, num_microbatches: int) -> range:
        """The numbers of this rank's microbatches. All ranks have equally many.

        Raises ``ValueError`` unless ``num_microbatches`` is a multiple of ``world_size``.
        """
        if num_microbatches % self.world_size:
            raise ValueError(f"{num_microbatches} microbatches cannot be shared by {self.world_size} ranks")
        share = num_microbatches // self.world_size
        return range(self.rank * share, (self.rank + 1) * share)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum of all ranks' ``values``, which have one shape."""
        return self._all_reduce(values, dist.ReduceOp.SUM) if self.world_size > 1 else values

    def all_reduce_max(self, values: Tensor) -> Tensor:
        """The maximum over all ranks' ``values``, element by element."""
        return self._all_reduce(values, dist.ReduceOp.MAX) if self.world_size > 1 else values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on at least one rank."""
        return bool(self.all_reduce_sum(torch.tensor(int(flag))))

    def all_gather[T](self, value: T) -> list[T]:
        """All ranks' ``value``, in rank order. It must be picklable."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def sum_metrics(self, metrics: Mapping[str, float]) -> Metrics:
        """``metrics`` summed over all ranks. A metric that a rank lacks counts as 0."""
        total: Metrics = {}
        for own in self.all_gather(dict(metrics)):
            add_metrics(total, own)
        return total

    def weigh(self, counts: Sequence[Tensor]) -> list[Tensor]:
        """Each of this rank's ``counts`` (scalars) divided by the sum over all ranks; zeros if that sum is zero."""
        total = self.all_reduce_sum(torch.tensor(float(sum(map(int, counts)))))
        return [count.float() / total.clamp_min(1) for count in counts]

    @torch.no_grad()
    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum ``grad`` over all ranks, in place. Sharded parameters are skipped, since FSDP2 has summed theirs.

        A parameter without a gradient on any rank keeps ``grad`` ``None``, so that weight decay does not change it.
        """
        parameters = [p for p in parameters if not is_sharded(p)]
        if self.world_size == 1 or not parameters:
            return
        device = parameters[0].device
        has = torch.tensor([p.grad is not None for p in parameters], device=device, dtype=torch.int32)
        used = [p for p, count in zip(parameters, self.all_reduce_sum(has).tolist(), strict=True) if count]
        if not used:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        total = self.all_reduce_sum(torch.cat([g.flatten() for g in gradients]))
        for parameter, gradient in zip(used, total.split([p.numel() for p in used]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    @staticmethod
    def _all_reduce(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, operation)
        return total


def add_metrics(total: Metrics, metrics: Mapping[str, float], weight: float = 1.0) -> None:
    """Add ``weight`` times each of ``metrics`` to ``total``, in place."""
    for name, value in metrics.items():
        total[name] = total.get(name, 0.0) + value * weight


def share_of_microbatch(count: int, share: float, number: int) -> int:
    """How many of the ``count`` rows of microbatch ``number`` are of a kind that has ``share`` of all rows.

    Rounding runs over all microbatches, so that many small ones have as many of these rows as one large one.
    """
    return round((number + 1) * count * share) - round(number * count * share)
