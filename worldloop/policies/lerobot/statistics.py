"""Statistics of a dataset's features, in LeRobot's names, as part of a policy's state dict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("mean", "std", "min", "max", *QUANTILES)  # in this order along the first axis of a table
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEAST_HALF_RANGE = 0.01  # of proprio, in its own unit: 10 mm, 0.01 rad
Table = dict[str, dict[str, Tensor]]  # feature -> name -> statistic, as LeRobot's processors take it


class Statistics(nn.Module):
    """A buffer f32 [len(NAMES), *shape] for every feature of ``shapes``."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.features = tuple(shapes)
        for feature, shape in shapes.items():
            self.register_buffer(_name(feature), torch.zeros(len(NAMES), *shape))

    def __getitem__(self, feature: str) -> Tensor:
        return self.get_buffer(_name(feature))

    def put(self, feature: str, values: Tensor) -> None:
        """Set the statistics of ``feature`` to ``values`` [len(NAMES), *shape]."""
        self[feature].copy_(values)

    def table(self) -> Table:
        """Copies on the CPU."""
        return {
            feature: dict(zip(NAMES, self[feature].detach().cpu().clone(), strict=True)) for feature in self.features
        }


def _name(feature: str) -> str:
    return feature.replace(".", "/")  # the name of a buffer has no dot


def describe_vectors(values: Tensor) -> Tensor:
    """Statistics f32 [len(NAMES), d] of ``values`` f32 [n, d], n > 0."""
    array = values.cpu().numpy().astype(np.float64)
    rows = [array.mean(0), array.std(0), array.min(0), array.max(0), *np.quantile(array, list(QUANTILES.values()), 0)]
    return torch.from_numpy(np.stack(rows)).float()


def describe_images(images: Tensor) -> Tensor:
    """Statistics f32 [len(NAMES), 3, 1, 1], of values in [0, 1], of ``images`` u8 [n, h, w, 3]; exact."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    columns = []
    for channel in range(3):
        count = torch.bincount(images[..., channel].reshape(-1).cpu(), minlength=256).double()
        share = count / count.sum()
        mean = (share * levels).sum()
        seen, cumulative = levels[count > 0], share.cumsum(0)
        quantiles = [levels[min(255, int((cumulative < q - 1e-9).sum()))] for q in QUANTILES.values()]
        std = (share * (levels - mean).square()).sum().sqrt()
        columns.append(torch.stack([mean, std, seen[0], seen[-1], *quantiles]))
    return torch.stack(columns, dim=1).float()[..., None, None]


def guess(mean: Tensor, std: Tensor) -> Tensor:
    """Statistics f32 [len(NAMES), *shape] of a normal distribution, with three standard deviations as its range."""
    normal = torch.distributions.Normal(0.0, 1.0)
    deviations = [0.0, 0.0, -3.0, 3.0, *normal.icdf(torch.tensor(list(QUANTILES.values()))).tolist()]
    values = torch.stack([mean + deviation * std for deviation in deviations])
    values[NAMES.index("std")] = std
    return values


def widen(values: Tensor) -> Tensor:
    """``values`` [len(NAMES), d] whose ranges are at least 2 `LEAST_HALF_RANGE` wide, around the same middle.

    What never varied in the demonstrations would otherwise be divided by zero when it first does.
    """
    values = values.clone()
    for low, high in (("min", "max"), ("q01", "q99"), ("q10", "q90")):
        first, last = NAMES.index(low), NAMES.index(high)
        middle, half = (values[first] + values[last]) / 2, (values[last] - values[first]) / 2
        is_narrow = half < LEAST_HALF_RANGE
        values[first] = torch.where(is_narrow, middle - LEAST_HALF_RANGE, values[first])
        values[last] = torch.where(is_narrow, middle + LEAST_HALF_RANGE, values[last])
    return values
