"""Held-out episodes, imagined open loop: what every judgement of a world model looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.types import Outcome
from worldloop.evaluation.open_loop import Branches, imagine_branches
from worldloop.sans.clips import ClipDataset

SOURCES = {"scripted": ("expert", "perturbed"), "on_policy": ("policy",), "recorded": ("recorded",)}


@dataclass(frozen=True)
class OpenLoop:
    """Whole episodes of one source, open loop: ``logit`` f [n] is the highest confirmed, ``is_success`` bool [n]."""

    logit: np.ndarray
    is_success: np.ndarray
    outcomes: tuple[Outcome, ...]
    branches: Branches


def imagine_episodes(
    world_model: Any, dataset: ClipDataset, episodes: Tensor, batch_size: int, context: Any
) -> OpenLoop:
    """Open loop over the whole of each episode, from its first frame."""
    index = torch.stack([episodes, torch.zeros_like(episodes)], dim=1)
    num_frames = int(dataset.cache.num_steps[episodes.numpy()].max())
    branches = imagine(world_model, dataset, index, num_frames, batch_size, context)
    outcomes = tuple(dataset.cache.metas[e].outcome for e in episodes.tolist())
    return OpenLoop(branches.best_logit.numpy(), branches.succeeds.numpy(), outcomes, branches)


def imagine(
    world_model: Any, dataset: ClipDataset, index: Tensor, num_frames: int, batch_size: int, context: Any
) -> Branches:
    """Branches from ``index`` int64 [N, 2] = (episode, frame), with progress; the run's seed seeds the noise."""
    with context.reporter.progress(len(index), "branch") as progress:
        return imagine_branches(
            world_model,
            dataset,
            index,
            num_frames,
            batch_size=batch_size,
            key=(context.seed, "check_world_model", num_frames),
            on_batch=progress.advance,
        )
