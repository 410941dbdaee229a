"""The floor of open-loop figures: how well do the recorded actions alone tell the outcome of an episode?

Recorded actions were chosen on true frames, so they carry the outcome: a policy that still pushes has not succeeded.
The scores are those of a small network that reads actions and nothing else. It learns on the training episodes of the
same source.

A success ends its episode, so whole episodes would give their outcome away by their length. The network reads only the
first frame steps, as many as nine of ten episodes have before they end or succeed; shorter episodes are left out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from worldloop.networks.blocks import make_mlp
from worldloop.sans.clips import ClipDataset
from worldloop.training.optimizer import OneCycleOptimizer

HIDDEN_DIM = 64
NUM_STEPS = 200
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
BATCH_SIZE = 256
LEFT_OUT = 0.1  # share of the shortest training episodes


def score_actions(
    train: ClipDataset,
    train_episodes: Tensor,
    held_out: ClipDataset,
    held_out_episodes: Tensor,
    generator: torch.Generator,
) -> np.ndarray | None:
    """Success logits f [n] of ``held_out_episodes`` int64 [n] from their first actions; NaN for those left out.

    ``None`` without both outcomes among ``train_episodes`` int64 [N]. ``generator`` seeds weights and batches.
    """
    if len(train_episodes) == 0:
        return None
    num_steps = max(1, int(train.num_open_steps[train_episodes].double().quantile(LEFT_OUT)))
    train_episodes = train_episodes[train.num_open_steps[train_episodes] >= num_steps]
    label = torch.tensor([train.cache.metas[e].outcome == "success" for e in train_episodes.tolist()])
    if label.all() or not label.any():
        return None
    actions = _read_actions(train, train_episodes, num_steps)
    mean, std = actions.mean(0), actions.std(0).clamp_min(1e-3)
    actions = (actions - mean) / std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        network = make_mlp(actions.shape[1], HIDDEN_DIM, 1)
    optimizer = OneCycleOptimizer(
        network.parameters(), learning_rate=LEARNING_RATE, num_steps=NUM_STEPS, weight_decay=WEIGHT_DECAY
    )
    weight = torch.where(label, 0.5 / label.float().mean(), 0.5 / (1 - label.float().mean()))
    for _ in range(NUM_STEPS):
        rows = torch.randint(len(label), (min(BATCH_SIZE, len(label)),), generator=generator)
        logit = network(actions[rows])[:, 0]
        optimizer.backward(functional.binary_cross_entropy_with_logits(logit, label[rows].float(), weight[rows]))
        optimizer.step()
    scores = np.full(len(held_out_episodes), np.nan)
    kept = held_out.num_open_steps[held_out_episodes] >= num_steps
    if kept.any():
        with torch.no_grad():
            seen = (_read_actions(held_out, held_out_episodes[kept], num_steps) - mean) / std
            scores[kept.numpy()] = network(seen)[:, 0].double().numpy()
    return scores


def _read_actions(dataset: ClipDataset, episodes: Tensor, num_steps: int) -> Tensor:
    """f32 [n, num_steps * s * A]: the first ``num_steps`` frame steps, which every episode has."""
    actions = dataset.cache.steps("actions", episodes.numpy()[:, None], np.arange(num_steps)[None])
    return torch.from_numpy(actions).float().flatten(1)
