"""A network that is told the object's true pose, as a ceiling of what a world model can learn from a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core.randomness import make_generator
from worldloop.core.statistics import auc, estimate_by_label, estimate_within_group_auc
from worldloop.core.types import Episode
from worldloop.networks.blocks import make_mlp
from worldloop.rollout.replay import Replay
from worldloop.sans.clips import BalancedClipSampler, ClipDataset, ClipSamplingConfig
from worldloop.simulators.maniskill.family import ManiSkillTask
from worldloop.stages.context import StageContext
from worldloop.training.optimizer import Optimizer

NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 6000, 512, 2e-3
M_PER_UNIT = 0.1  # the network sees the cube's position in decimetres
CONTACT_GAIN = 3.0  # and its way from the hand in units of a third of that
LOSS_WEIGHT = 3.0  # of the cube's pose, beside proprio in standard deviations


class StateNetwork(nn.Module):
    """The next proprio, normalised [B, S], and cube pose [B, 7] from the present ones and s actions [B, s, A]."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, task: ManiSkillTask, clips: ClipDataset, proprio: Tensor, hand: Sequence[int]) -> None:
        super().__init__()
        self.cube, self.hand = task.object_xyz.start, list(hand)
        self.register_buffer("mean", proprio.mean(0))
        self.register_buffer("std", proprio.std(0).clamp_min(1e-3))
        low, high = clips.proprio_range()
        self.register_buffer("low", (low - self.mean) / self.std)
        self.register_buffer("high", (high - self.mean) / self.std)
        action_dim = clips.cache.actions_per_frame * clips.cache.action_dim
        dim = proprio.shape[1]
        self.mlp = make_mlp(dim + action_dim + 7 + 3, 512, dim + 7, gain=4.0)

    def read_pose(self, sim_state: Tensor) -> Tensor:
        """Position in decimetres and quaternion, f32 [..., 7]."""
        pose = sim_state[..., self.cube : self.cube + 7].float()
        return torch.cat([pose[..., :3] / M_PER_UNIT, pose[..., 3:]], dim=-1)

    def forward(self, proprio: Tensor, pose: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        hand = (proprio * self.std + self.mean)[:, self.hand] / M_PER_UNIT
        way = (pose[:, :3] - hand) * CONTACT_GAIN
        change = self.mlp(torch.cat([proprio, actions.flatten(1), pose, way], dim=1)).float()
        following = (proprio + change[:, :-7]).clamp(self.low, self.high)
        return following, pose + change[:, -7:] / LOSS_WEIGHT


def ask_state_network(
    context: StageContext,
    episodes: Sequence[Episode],
    replay: Replay,
    num_chunks: int,
    task: ManiSkillTask,
    number: int,
    version: str = "v001",
) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores f [N] of a network that learned from ``number`` episodes of ``version`` (0: all), and its errors."""
    clips = context.open_clips(version, "train")
    generator = make_generator(context.seed, "precision", number)
    torch.manual_seed(context.seed)
    (hand,) = [m for m in context.spec.tasks[0].landmarks if m.name == "effector"]
    cache = clips.cache
    everything = torch.from_numpy(np.concatenate([cache.episode(e).proprio for e in range(len(cache))]))
    network = StateNetwork(task, clips, everything, hand.columns)
    fit(network, choose(clips, number, generator), generator)

    proprio = (torch.from_numpy(np.stack([e.proprio[0] for e in episodes])) - network.mean) / network.std
    pose = network.read_pose(torch.from_numpy(np.stack([e.sim_state[0] for e in episodes])))
    goal = torch.from_numpy(np.stack([e.sim_state[0] for e in episodes]))
    gaps, hand_mm, cube_mm = [], [], []
    s = cache.actions_per_frame
    for chunk in range(num_chunks):
        with torch.no_grad():
            proprio, pose = network(proprio, pose, replay.actions[:, chunk * s : (chunk + 1) * s])
        goal[:, task.object_xyz] = pose[:, :3] * M_PER_UNIT
        gaps.append(task.measure_gap(goal).norm(dim=1))
        runs = [i for i, e in enumerate(episodes) if e.num_frame_steps > chunk]
        true = torch.from_numpy(np.stack([episodes[i].sim_state[chunk + 1] for i in runs]))
        real = torch.from_numpy(np.stack([episodes[i].proprio[chunk + 1] for i in runs]))
        apart = (proprio[runs] * network.std + network.mean - real)[:, list(hand.columns)].norm(dim=1)
        hand_mm.append(round(1000 * float(apart.mean()), 1))
        cube_mm.append(round(1000 * float((goal[runs] - true)[:, task.object_xyz].norm(dim=1).mean()), 1))
    return -torch.stack(gaps, 1).amin(1).double().numpy(), {"hand_error_mm": hand_mm, "cube_error_mm": cube_mm}


def choose(clips: ClipDataset, number: int, generator: torch.Generator) -> BalancedClipSampler:
    """A sampler of the frame steps of ``number`` training episodes, drawn at random; 0: of all."""
    if number:
        episodes = torch.from_numpy(clips.cache.select(split="train"))
        kept = episodes[torch.randperm(len(episodes), generator=generator)[:number]]
        rows = torch.isin(clips.candidates[:, 0], kept)
        clips.candidates, clips.candidate_motion = clips.candidates[rows], clips.candidate_motion[rows]
    return BalancedClipSampler(clips, ClipSamplingConfig())


def fit(network: StateNetwork, clips: BalancedClipSampler, generator: torch.Generator) -> None:
    """One frame step at a time; Huber losses."""
    cache = clips.dataset.cache
    optimizer = Optimizer(network.parameters(), learning_rate=LEARNING_RATE, num_steps=NUM_STEPS)
    for _ in range(NUM_STEPS):
        episode, now = clips.sample(generator, BATCH_SIZE).numpy().T
        states = [torch.from_numpy(cache.frames("sim_state", episode, now + i)) for i in (0, 1)]
        proprios = [torch.from_numpy(cache.frames("proprio", episode, now + i)) for i in (0, 1)]
        before, after = ((p - network.mean) / network.std for p in proprios)
        pose, next_pose = (network.read_pose(s) for s in states)
        proprio, moved = network(before, pose, torch.from_numpy(cache.steps("actions", episode, now)))
        loss = functional.huber_loss(proprio, after, delta=0.3)
        loss = loss + functional.huber_loss(LOSS_WEIGHT * moved, LOSS_WEIGHT * next_pose, delta=0.3)
        optimizer.backward(loss)
        optimizer.step()


def judge_gap(score: np.ndarray, truth: np.ndarray, start: np.ndarray, task: ManiSkillTask) -> dict[str, Any]:
    """AUC within groups and over all, and the share of failures that are told; a success ends inside the region."""
    within, pooled = estimate_within_group_auc(score, truth, start), estimate_by_label(auc, score, truth)
    said = score > -task.goal_radius_m
    return {
        "within_group_auc": within and within.to_dict(),
        "auc": pooled and pooled.to_dict(),
        "true_negative_rate": float(np.mean(~said[~truth])) if (~truth).any() else None,
        "accuracy": float(np.mean(said == truth)),
    }
