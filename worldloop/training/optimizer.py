"""AdamW with two schedules: warm-up and cosine decay for training stages, one cycle for small networks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from worldloop.core.errors import WorldloopError
from worldloop.training.data_parallel import DataParallel
from worldloop.training.sharding import gather, share_like

PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 arithmetic where ``precision`` asks for it; weights stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class Optimizer:
    """AdamW for training stages: call ``backward(loss)`` for each microbatch, then ``step()``.

    Betas (0.9, 0.95), linear warm-up, cosine decay to a tenth of ``learning_rate`` over ``num_steps``; ``None``: no
    decay. A step sums the gradients of all ranks, clips their norm and updates. Weight decay skips vectors (biases,
    norms, embeddings' gains). Raises `WorldloopError` on a loss that is not finite, naming ``name``, before the weights
    change.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        num_steps: int | None,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
        max_grad_norm: float = 1.0,
        name: str = "training",
        data_parallel: DataParallel | None = None,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)

        def schedule(step: int) -> float:
            warm = min(1.0, (step + 1) / max(1, warmup_steps))
            if num_steps is None:
                return warm
            return warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, num_steps)))))

        self.scheduler: torch.optim.lr_scheduler.LRScheduler
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.max_grad_norm = max_grad_norm
        self.name = name
        self.data_parallel = data_parallel or DataParallel()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss`` to those of this step."""
        if not torch.isfinite(loss):
            raise WorldloopError(f"{self.name}: the loss became {float(loss)}; lower the learning rate")
        loss.backward()

    def step(self) -> float:
        """One update; returns the gradient norm before clipping."""
        self.data_parallel.all_reduce_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(gather({"norm": norm})["norm"])

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizer's tensors of each parameter, by the parameter's number, and the number of steps."""
        tensors = {"num_steps": torch.tensor(self.scheduler.last_epoch)}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{name}": value for name, value in values.items()}
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from the `state_dict` of an optimizer with the same parameters and settings."""
        state: dict[int, dict[str, Tensor]] = {}
        numbered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for key, value in tensors.items():
            if key != "num_steps":
                number, name = key.split(".")
                parameter = numbered[int(number)]
                like = {name: parameter} if value.shape == parameter.shape else {}
                state.setdefault(int(number), {}).update(share_like({name: value}, like))
        num_steps = int(tensors["num_steps"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        assert isinstance(self.scheduler, torch.optim.lr_scheduler.LambdaLR)
        rates = [
            rate * schedule(num_steps)
            for rate, schedule in zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.scheduler.load_state_dict(
            {**self.scheduler.state_dict(), "last_epoch": num_steps, "_last_lr": rates, "lr_lambdas": [None, None]}
        )

    @property
    def learning_rate(self) -> float:
        return float(self.scheduler.get_last_lr()[0])


class OneCycleOptimizer(Optimizer):
    """AdamW with a one-cycle schedule and no clipping, to fit a small network from scratch in few steps.

    The learning rate rises over the first tenth and then falls to almost nothing (Smith and Topin 2017,
    arXiv:1708.07120).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        num_steps: int,
        weight_decay: float,
        name: str = "training",
        data_parallel: DataParallel | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay)
        rise = 0.1 if num_steps != 10 else 0.2  # 10 steps: 0.1 would end the rise at once, torch divides by its length
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, learning_rate, total_steps=num_steps, pct_start=rise
        )
        self.max_grad_norm = math.inf
        self.name = name
        self.data_parallel = data_parallel or DataParallel()
