"""How the success head's AUC falls with the horizon: episodes are imagined in branches that start from real frames."""

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
    """AUC of the success head over ``n`` branches; the bootstrap resamples episodes.

    A branch is a success if the episode is solved within it.
    """

    n: int
    num_success: int
    auc: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        return {"n": self.n, "num_success": self.num_success, "auc": self.auc and self.auc.to_dict()}


@dataclass(frozen=True)
class Horizon:
    """AUC with branches of ``chunks`` action chunks: over single ``branches``, and over the episodes that they form."""

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
    """Judge ``branches`` of ``chunks`` action chunks each, which together cover ``episodes``; see `cut_branches`."""
    scores = find_best_by_episode(branches, episodes.branches.episode)
    check_finite(scores)
    whole = estimate_by_label(auc, scores, episodes.is_success, digits=DIGITS)
    return Horizon(chunks, whole, align_branches(branches))


def align_branches(branches: Branches) -> BranchAlignment:
    """AUC over the branches that have a valid frame."""
    score, is_success = branches.best_logit.numpy(), branches.succeeds.numpy()
    keep = np.isfinite(score)
    score, is_success, episode = score[keep], is_success[keep], branches.episode.numpy()[keep]
    reached = estimate_by_label(auc, score, is_success, clusters=episode, num_resamples=CURVE_RESAMPLES)
    return BranchAlignment(len(score), int(is_success.sum()), reached)


def find_best_by_episode(branches: Branches, episodes: Tensor) -> np.ndarray:
    """f [E]: for each of ``episodes`` int64 [E], the highest logit over all its branches."""
    best = torch.full((int(branches.episode.max()) + 1,), -torch.inf)
    best = best.scatter_reduce(0, branches.episode, branches.best_logit, "amax")
    return best[episodes].numpy()
