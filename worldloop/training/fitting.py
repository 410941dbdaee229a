"""The short fit of a small network: AdamW under a one-cycle schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def minimise(
    parameters: Iterable[nn.Parameter],
    compute_loss: Callable[[], Tensor],
    *,
    num_steps: int,
    learning_rate: float,
    weight_decay: float,
    on_step: Callable[[float], None],
) -> None:
    """``num_steps`` steps on a fresh ``compute_loss()`` each; ``on_step(loss)`` is called after every step.

    The learning rate rises over the first tenth and then falls to almost nothing (Smith and Topin 2017,
    arXiv:1708.07120).
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    rise = 0.1 if num_steps != 10 else 0.2  # torch divides by zero where the rise would end with the first step
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps, pct_start=rise)
    for _ in range(num_steps):
        loss = compute_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(float(loss.detach()))
