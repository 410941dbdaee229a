"""The floor of open-loop figures: how well do the recorded actions alone tell the outcome of an episode?

Recorded actions were chosen on true frames, so they carry the outcome: a policy that still pushes has not succeeded.
The scores are those of a small network that reads the actions of whole episodes and nothing else. It learns on the
training episodes of the same source. A world model has to beat its AUC before the imagined *pictures* say anything.
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


def score_actions(
    train: ClipDataset,
    train_episodes: Tensor,
    held_out: ClipDataset,
    held_out_episodes: Tensor,
    generator: torch.Generator,
) -> np.ndarray | None:
    """Success logits f [n] of ``held_out_episodes`` int64 [n], from their actions alone.

    ``None`` without both outcomes among ``train_episodes`` int64 [N]. ``generator`` seeds weights and batches.
    """
    metas = train.cache.metas
    label = torch.tensor([metas[e].outcome == "success" for e in train_episodes.tolist()])
    if label.all() or not label.any():
        return None
    num_frames = int(train.cache.num_steps[train_episodes.numpy()].max())
    actions = _read_actions(train, train_episodes, num_frames)
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
    with torch.no_grad():
        seen = (_read_actions(held_out, held_out_episodes, num_frames) - mean) / std
        return network(seen)[:, 0].double().numpy()


def _read_actions(dataset: ClipDataset, episodes: Tensor, num_frames: int) -> Tensor:
    """f32 [n, num_frames * (A + 1) * s]: actions and whether they were executed; zeros past an episode's end."""
    cache, episode = dataset.cache, episodes.numpy()[:, None]
    last = cache.num_steps[episode]
    step = np.arange(num_frames)[None]
    executed = cache.steps("valid", episode, np.minimum(step, last - 1)) & (step < last)[..., None]
    actions = cache.steps("actions", episode, np.minimum(step, last - 1)) * executed[..., None]
    parts = [torch.from_numpy(values).float().flatten(1) for values in (actions, executed)]
    return torch.cat(parts, dim=1)
