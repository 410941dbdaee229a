"""How trust falls with the horizon: episodes imagined in branches, between which the context is reset to reality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.statistics import Estimate, auc, estimate_by_label
from worldloop.evaluation.alignment import DIGITS, check_finite
from worldloop.evaluation.fidelity import CURVE_RESAMPLES
from worldloop.evaluation.open_loop import Branches, ImaginedEpisodes


@dataclass(frozen=True)
class BranchAlignment:
    """AUC of the success head over ``n`` branches, whatever became of their episodes; bootstrapped by episode.

    A branch is a success where the episode is solved within it.
    """

    n: int
    num_success: int
    auc: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        return {"n": self.n, "num_success": self.num_success, "auc": self.auc and self.auc.to_dict()}


@dataclass(frozen=True)
class Horizon:
    """Branches of ``chunks`` action chunks: AUC over ``branches``, and over the episodes put together from them."""

    chunks: int
    episodes_auc: Estimate | None
    branches: BranchAlignment

    def to_dict(self) -> dict[str, Any]:
        return {
            "chunks": self.chunks,
            "episodes": {"auc": self.episodes_auc and self.episodes_auc.to_dict()},
            "branches": self.branches.to_dict(),
        }


def judge_horizon(chunks: int, branches: Branches, episodes: ImaginedEpisodes) -> Horizon:
    """From ``branches`` that tile ``episodes``, each ``chunks`` long, see `cut_branches`."""
    scores = find_best_by_episode(branches, episodes.branches.episode)
    check_finite(scores)
    whole = estimate_by_label(auc, scores, episodes.is_success, digits=DIGITS)
    return Horizon(chunks, whole, align_branches(branches))


def align_branches(branches: Branches) -> BranchAlignment:
    """Of the branches that have a valid frame."""
    score, is_success = branches.best_logit.numpy(), branches.succeeds.numpy()
    keep = np.isfinite(score)
    score, is_success, episode = score[keep], is_success[keep], branches.episode.numpy()[keep]
    reached = estimate_by_label(auc, score, is_success, clusters=episode, num_resamples=CURVE_RESAMPLES)
    return BranchAlignment(len(score), int(is_success.sum()), reached)


def find_best_by_episode(branches: Branches, episodes: Tensor) -> np.ndarray:
    """f [E]: the highest logit over all branches of each of ``episodes`` int64 [E]."""
    best = torch.full((int(branches.episode.max()) + 1,), -torch.inf)
    best = best.scatter_reduce(0, branches.episode, branches.best_logit, "amax")
    return best[episodes].numpy()
