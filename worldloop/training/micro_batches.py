"""The parts of a training batch: where each draws from, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from worldloop.core.interfaces import Metrics
from worldloop.core.randomness import make_generator
from worldloop.stages.context import Context
from worldloop.training.data_parallel import Workers


def make_generators(context: Context, *parts: int | str) -> dict[int, torch.Generator]:
    """A generator for each micro-batch of this worker, by its number."""
    own = context.workers.own(context.num_microbatches)
    return {number: make_generator(*name_draws(context, number, *parts)) for number in own}


def name_draws(context: Context, number: int, *parts: int | str) -> tuple[int | str, ...]:
    """What the draws of micro-batch ``number`` are derived from."""
    return parts if context.num_microbatches == 1 else (*parts, "micro-batch", number)


def share_of(count: int, share: float, number: int) -> int:
    """How many of the ``count`` rows of micro-batch ``number`` are of a kind that has ``share`` of all rows.

    Rounded over the micro-batches together, so that many small ones have as many as a large one.
    """
    return round((number + 1) * count * share) - round(number * count * share)


def sum_metrics(metrics: Mapping[str, float], workers: Workers) -> Metrics:
    """The sums over all workers; what one of them lacks counts as 0."""
    total: Metrics = {}
    for own in workers.gather(dict(metrics)):
        add_metrics(total, own)
    return total


def add_metrics(total: Metrics, metrics: Mapping[str, float], share: float = 1.0) -> None:
    """Add ``share`` of each of ``metrics`` to ``total``."""
    for name, value in metrics.items():
        total[name] = total.get(name, 0.0) + value * share
