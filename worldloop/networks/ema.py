"""Exponential moving average of a module's weights; the averaged copy is what imagines."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from worldloop.sharding import to_local
from worldloop.tensors import prefix, strip


class EmaWeights[ModuleT: nn.Module]:
    """``module`` holds the average of ``source``'s weights with ``decay`` per update.

    The decay is warmed up as min(decay, (1 + n) / (10 + n)) after n updates, so that a short run is not dominated by
    the initial weights. Integer buffers are copied.
    """

    def __init__(self, source: ModuleT, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay {decay} is not in [0, 1)")
        self.decay = decay
        self.num_updates = 0
        self.module: ModuleT = copy.deepcopy(source).eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Tensor]:
        return {"num_updates": torch.tensor(self.num_updates), **prefix("module", self.module.state_dict())}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.num_updates = int(tensors["num_updates"])
        self.module.load_state_dict(strip("module", tensors))

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move the average towards ``source``'s present weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averaged, present = (
            {name: to_local(value) for name, value in module.state_dict().items()} for module in (self.module, source)
        )
        floats = [name for name, value in averaged.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[n] for n in floats], [present[n] for n in floats], 1 - decay)
        for name in averaged.keys() - set(floats):
            averaged[name].copy_(present[name])
