"""Fits the critic that values the last state of short imagined branches, and measures it on held-out episodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldloop.core.randomness import make_generator
from worldloop.core.statistics import auc, bootstrap_interval
from worldloop.core.types import Observation
from worldloop.sans.clips import ClipDataset
from worldloop.stages.context import Context
from worldloop.stages.data import open_clips
from worldloop.storage.run_state import LoopState
from worldloop.value.success_critic import Critic, fit_critic

BATCH_SIZE = 64


def fit_policy_value(state: LoopState, num_steps: int, context: Context) -> tuple[Critic | None, dict[str, Any]]:
    """A critic of the policy's own training episodes and its figures, or ``None`` where they all ended alike."""
    train, held_out = (_OpenFrames(open_clips(context, state.dataset, split)) for split in ("train", "validation"))
    if not train.has_both_outcomes:
        return None, {"value_reason": "the policy's own episodes all ended alike"}
    with context.progress(num_steps, "critic step") as progress:
        critic = fit_critic(
            train.load,
            len(train.index),
            num_steps=num_steps,
            batch_size=BATCH_SIZE,
            max_episode_steps=context.spec.max_episode_steps,
            generator=make_generator(context.seed, state.iteration, "improve_policy/critic"),
            device=context.device,
            on_step=lambda loss: progress.advance(loss=loss),
        )
    if not held_out.has_both_outcomes:
        return critic, {"value_auc": None, "value_auc_reason": "the policy's held-out episodes all ended alike"}
    value = torch.cat([critic.value(held_out.load(rows)[0]) for rows in torch.arange(len(held_out.index)).split(512)])
    clusters = held_out.index[:, 0].numpy()
    low, high = bootstrap_interval(auc, value.numpy(), held_out.label.numpy(), clusters=clusters, num_resamples=300)
    score = auc(value.numpy(), held_out.label.numpy())
    context.log(f"critic: AUC {score:.3f} ({low:.3f}-{high:.3f}) over {len(value)} held-out frames")
    return critic, {"value_auc": {"value": round(score, 4), "low": round(low, 4), "high": round(high, 4)}}


class _OpenFrames:
    """The frames of the policy's own episodes before a success; ``index`` int64 [N, 2], ``label`` bool [N]."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset
        episodes = dataset.episode_index(source="policy")
        rows = [(e, f) for e in episodes.tolist() for f in range(int(dataset.num_open_steps[e]))]
        self.index = torch.tensor(rows, dtype=torch.long).reshape(-1, 2)
        solved = torch.tensor([meta.outcome == "success" for meta in dataset.cache.metas])
        self.label = solved[self.index[:, 0]]

    @property
    def has_both_outcomes(self) -> bool:
        return bool(self.label.any()) and not bool(self.label.all())

    def load(self, rows: Tensor) -> tuple[Observation, Tensor]:
        return self.dataset.observation(self.index[rows]), self.label[rows].float()
