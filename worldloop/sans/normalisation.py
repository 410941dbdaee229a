"""Mean and standard deviation of proprio: computed once, from version 1, then frozen.

Frozen, because every checkpoint of a run must read the same numbers: a policy cloned in iteration 0 still acts in
iteration 5, and a world model trained on version 4 must understand it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from worldloop.core.errors import WorldloopError
from worldloop.core.types import Normalisation

MIN_STD = 0.01
"""Floor of a standard deviation, in the dimension's own unit: 10 mm, 0.01 rad (0.6 degrees), 0.01 rad/s.

A closed gripper's joints vary by 0.1 mm in the first demonstrations, and would come out at 400 standard deviations
when a later policy opens it by 40 mm; with the floor they come out at 4.
"""


def compute_normalisation(proprio: Iterable[np.ndarray]) -> Normalisation:
    """Mean and standard deviation over all rows of the arrays f32 [n, S], accumulated in double precision.

    Standard deviations are at least `MIN_STD`. Raises ``WorldloopError`` when there is no row, ``ValueError`` for a
    value that is not finite.
    """
    count, total, squares = 0, np.float64(0.0), np.float64(0.0)
    for rows in proprio:
        values = rows.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("proprio holds a value that is not finite")
        count, total, squares = count + len(values), total + values.sum(0), squares + (values**2).sum(0)
    if count == 0:
        raise WorldloopError("no training episode to compute normalisation from: collect 'train' episodes first")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return Normalisation(
        torch.from_numpy(np.asarray(mean)).float(), torch.from_numpy(np.asarray(std)).float().clamp_min(MIN_STD)
    )


def normalisation_to_json(value: Normalisation) -> dict[str, list[float]]:
    """Plain lists; f32 values survive the round trip exactly."""
    return {"proprio_mean": value.proprio_mean.tolist(), "proprio_std": value.proprio_std.tolist()}


def normalisation_from_json(value: dict[str, Any]) -> Normalisation:
    """The inverse of `normalisation_to_json`."""
    return Normalisation(
        torch.tensor(value["proprio_mean"], dtype=torch.float32),
        torch.tensor(value["proprio_std"], dtype=torch.float32),
    )
