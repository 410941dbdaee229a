"""Exponential moving average of a module's weights. World models imagine with the averaged weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from worldloop.core.tensors import load_trained, prefix, strip
from worldloop.training.sharding import to_local


class EmaWeights[ModuleT: nn.Module]:
    """``module`` holds the average of ``source``'s weights, with ``decay`` in [0, 1) per update.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that the initial weights do not dominate a short
    run. Only parameters are averaged. Buffers are copied: they are statistics with rules of their own, e.g. a largest
    value. Frozen parameters are shared with ``source``, to have one copy in memory.
    """

    def __init__(self, source: ModuleT, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay {decay} is not in [0, 1)")
        self.decay = decay
        self.num_updates = 0
        frozen = {name: p for name, p in source.named_parameters() if not p.requires_grad}
        shared: dict[int, object] = {id(parameter): parameter for parameter in frozen.values()}
        self.module: ModuleT = copy.deepcopy(source, shared).eval().requires_grad_(False)
        self.frozen = frozenset(frozen)

    def copy(self) -> ModuleT:
        """A copy of the current average, on the CPU. Frozen parameters are shared, not copied."""
        shared: dict[int, object] = {id(p): p for name, p in self.module.named_parameters() if name in self.frozen}
        copied: ModuleT = copy.deepcopy(self.module, shared)
        for name, tensor in (*copied.named_parameters(), *copied.named_buffers()):
            if name not in self.frozen:
                tensor.data = tensor.data.cpu()
        return copied

    def state_dict(self) -> dict[str, Tensor]:
        """The number of updates and the averaged weights, without frozen parameters."""
        averaged = {name: value for name, value in self.module.state_dict().items() if name not in self.frozen}
        return {"num_updates": torch.tensor(self.num_updates), **prefix("module", averaged)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.num_updates = int(tensors["num_updates"])
        load_trained(self.module, strip("module", tensors), self.frozen)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move the average towards the current weights of ``source``."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averaged, present = (
            {name: to_local(value) for name, value in module.state_dict().items() if name not in self.frozen}
            for module in (self.module, source)
        )
        parameters = [name for name, _ in self.module.named_parameters() if name not in self.frozen]
        torch._foreach_lerp_([averaged[n] for n in parameters], [present[n] for n in parameters], 1 - decay)
        for name in averaged.keys() - set(parameters):
            averaged[name].copy_(present[name])
