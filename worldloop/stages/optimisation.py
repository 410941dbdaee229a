"""One optimizer recipe for every training stage: AdamW, linear warm-up, cosine decay to a tenth, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from worldloop.types import WorldloopError

PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 arithmetic where ``precision`` asks for it; weights stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class Optimisation:
    """``step(loss)`` does backward, clipping, the update and the schedule.

    Weight decay leaves out vectors (biases, norms, embeddings' gains). Raises `WorldloopError` on a loss that is not
    finite, naming the stage, before the weights are touched.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        num_steps: int,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
        max_grad_norm: float = 1.0,
        name: str = "training",
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)

        def schedule(step: int) -> float:
            warm = min(1.0, (step + 1) / max(1, warmup_steps))
            return warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, num_steps)))))

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.max_grad_norm = max_grad_norm
        self.name = name

    def step(self, loss: Tensor) -> float:
        """One update; returns the gradient norm before clipping."""
        if not torch.isfinite(loss):
            raise WorldloopError(f"{self.name}: the loss became {float(loss)}; lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        return float(norm)

    @property
    def learning_rate(self) -> float:
        return float(self.scheduler.get_last_lr()[0])
