"""The scripted variants: an expert, and seven worse variants of it. Each row's parameters come from its noise key.

Near-success data teaches a world model where the border of success lies. Each variant makes another kind of it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from worldloop.core.randomness import row_uniform

SCRIPTED_VARIANTS: tuple[str, ...] = (
    "expert",
    "stops_short",
    "lateral_offset",
    "too_high",
    "late",
    "noisy",
    "far",
    "grazing",
)


@dataclass
class VariantParameters:
    """Parameters of B rows, each [B] but ``noise_phase``. Lengths are in metres; the toy scales them.

    - ``progress``: share of the way to the goal region after which pushing stops; above 1: it never stops short
    - ``lateral_m``, ``height_m``: shift of the path
    - ``wait_steps``: environment steps before the motion begins
    - ``noise_scale``: amplitude of the smooth action noise; ``noise_phase`` [B, 6]: its phases, see `smooth_noise`
    - ``wanders``: the row stays away from the object; ``lifts_at_end``: the hand lifts at the end of a push
    - ``speed``: largest action, as a share of the scripted policy's limit
    """

    progress: Tensor
    lateral_m: Tensor
    height_m: Tensor
    wait_steps: Tensor
    noise_scale: Tensor
    noise_phase: Tensor
    wanders: Tensor
    lifts_at_end: Tensor
    speed: Tensor

    def __post_init__(self) -> None:
        sizes = {len(getattr(self, f.name)) for f in fields(self)}
        if len(sizes) != 1:
            raise ValueError(f"variant parameters differ in their number of rows: {sorted(sizes)}")


def draw_variant_parameters(variants: tuple[str, ...], row_keys: Tensor) -> VariantParameters:
    """Parameters of the rows. Row b depends on ``variants[b]`` and ``row_keys[b]`` int64 only.

    Raises ``ValueError`` for an unknown variant.
    """
    for variant in variants:
        if variant not in SCRIPTED_VARIANTS:
            raise ValueError(f"scripted variant {variant!r} is not one of {', '.join(SCRIPTED_VARIANTS)}")
    if len(variants) != len(row_keys):
        raise ValueError(f"{len(variants)} variants for {len(row_keys)} row keys")
    uniform = row_uniform(row_keys.cpu(), torch.zeros(len(row_keys), dtype=torch.long), (16,))

    def where(name: str, low: float, high: float, column: int, otherwise: float) -> Tensor:
        mask = torch.tensor([v == name for v in variants])
        return torch.where(mask, low + (high - low) * uniform[:, column], torch.tensor(otherwise))

    side = torch.where(uniform[:, 1] < 0.5, -1.0, 1.0)
    lateral = where("lateral_offset", 0.012, 0.080, 2, 0.0) + where("grazing", 0.015, 0.035, 2, 0.0)
    return VariantParameters(
        progress=where("stops_short", 0.15, 0.95, 0, 1.4),
        lateral_m=side * lateral,
        height_m=where("too_high", 0.05, 0.11, 3, 0.0),
        wait_steps=where("late", 8, 40, 4, 0.0).floor(),
        noise_scale=where("noisy", 0.3, 0.8, 5, 0.0),
        noise_phase=uniform[:, 8:14],
        wanders=torch.tensor([v == "far" for v in variants]),
        lifts_at_end=uniform[:, 6] < 0.5,
        speed=0.4 + 0.3 * uniform[:, 7],
    )


def smooth_noise(phase: Tensor, env_step: Tensor, num_dims: int) -> Tensor:
    """Smooth noise in about [-1, 1], f32 [B, num_dims]: a function of the row's ``phase`` [B, 6] and step [B].

    Two sines per dimension with periods of about 6 to 30 steps, both taken from ``phase``.
    """
    dims = torch.arange(num_dims)
    total = torch.zeros(len(phase), num_dims)
    for k in range(2):
        offset = phase[:, (dims + k) % 6] * 2 * torch.pi
        rate = 0.2 + 0.8 * phase[:, (dims + 3 * k + 2) % 6]
        total = total + torch.sin(rate * env_step[:, None].float() + offset)
    return 0.5 * total
