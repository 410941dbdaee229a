"""GRPO inside the learned world model.

Each group starts from one real state (an episode's first frame, or one in the middle of a policy's own episode), shares
the world model's noise among its members and differs only in the policy's samples. The return of a row is 1 if it was
declared a success, else the highest calibrated success probability it reached.

After World-VLA-Loop (arXiv 2602.06508) and SimpleVLA-RL. Departures: GRPO starts from a policy that imitates every
success in SANS, the paper's from iteration 0's clone (``restart_from``), rewards are calibrated on imagined frames and
not cut at a hand-set threshold, a share of the groups starts in the middle of real episodes (keyframe starts), rollouts
end after ``imagination_horizon`` chunks, and a critic may value where they were cut off (``num_critic_steps``).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.errors import require_positive, require_range
from worldloop.core.interfaces import Metrics
from worldloop.core.randomness import make_row_keys
from worldloop.core.success import Calibration
from worldloop.core.types import Observation
from worldloop.rl.grpo import (
    GroupAdvantages,
    compute_group_advantages,
    compute_kl_penalty,
    compute_policy_loss,
    shuffle_returns,
)
from worldloop.rollout.imagination import ImaginedSimulator
from worldloop.rollout.rollout import Rollout, run_rollout
from worldloop.sans.imitation import EVERY_SUCCESS
from worldloop.stages.clone_policy import ClonePolicyConfig, imitate
from worldloop.stages.context import Context
from worldloop.stages.data import open_clips
from worldloop.stages.decisions import Decisions, compute_returns, flatten
from worldloop.stages.policy_value import fit_policy_value
from worldloop.storage.run_state import LoopState
from worldloop.training.ema import EmaWeights
from worldloop.training.micro_batches import add_metrics, make_generators, name_draws, share_of, sum_metrics
from worldloop.training.optimizer import Optimisation
from worldloop.training.resume import KeptGenerator, PartialStage, drop_partial, has_partial
from worldloop.value.success_critic import Critic

NAME = "improve_policy"
METHODS = ("grpo", "imitate_successes")
STARTS = ("policy", "clone", "successes")


@dataclass(frozen=True)
class ImprovePolicyConfig:
    method: str = "grpo"  # grpo | imitate_successes (control: clone every success in SANS, no world model)
    restart_from: str = "successes"  # successes (imitates all in SANS) | policy (last promoted) | clone (the first)
    num_updates: int = 30  # rounds of imagined rollouts
    groups_per_update: int = 24  # real start states per round
    group_size: int = 8  # imagined rollouts per start state
    num_epochs: int = 1  # passes over each round's decisions
    minibatch_size: int = 256  # decisions (action chunks) per optimizer step
    learning_rate: float = 6e-4  # AdamW, constant
    ema_decay: float = 0.98  # decay per optimizer step of the averaged weights that candidates are made of; 0: none
    temperature: float = 1.0  # of the policy's action distribution while it explores
    clip_ratio_low: float = 0.2  # lower clip of the probability ratio
    clip_ratio_high: float = 0.28  # upper clip of the probability ratio
    kl_coefficient: float = 0.01  # weight of the KL to the policy that the stage started from
    min_group_std: float = 0.02  # groups whose returns vary less are dropped and counted
    mid_episode_share: float = 0.25  # share of groups that start in the middle of one of the policy's episodes
    imagination_horizon: int = 6  # chunks a rollout is imagined for at most; drift grows with every one
    num_critic_steps: int = 0  # optimizer steps of a critic that values where a rollout is cut off; 0: no critic
    uncertainty_penalty: float = 0.0  # off a row's return per dB its worst frame is expected below what can be trusted
    truncates_uncertain: bool = False  # end a rollout, unsuccessful, at its first frame below what can be trusted
    num_candidates: int = 3  # checkpoints, evenly spaced over the updates, among which promotion chooses
    num_imitation_steps: int = 900  # optimizer steps of imitating successes, which are more episodes than the clone had
    shuffle_rewards: bool = False  # control: permute the returns over all rows

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"improve_policy.method {self.method!r} is not one of {', '.join(METHODS)}")
        if self.restart_from not in STARTS:
            raise ValueError(f"improve_policy.restart_from {self.restart_from!r} is not one of {', '.join(STARTS)}")
        counts = ("num_updates", "groups_per_update", "num_epochs", "minibatch_size", "imagination_horizon")
        for name in (*counts, "num_imitation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"improve_policy.{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.num_candidates <= self.num_updates:
            bounds = f"1..num_updates = {self.num_updates}"
            raise ValueError(f"improve_policy.num_candidates must be in {bounds}, got {self.num_candidates}")
        if self.num_critic_steps < 0:
            raise ValueError(f"improve_policy.num_critic_steps must be >= 0, got {self.num_critic_steps}")
        if self.uncertainty_penalty < 0:
            raise ValueError(f"improve_policy.uncertainty_penalty must be >= 0, got {self.uncertainty_penalty}")
        if self.group_size < 2:
            raise ValueError(f"improve_policy.group_size must be at least 2, got {self.group_size}")
        for name in ("learning_rate", "temperature"):
            require_positive(f"improve_policy.{name}", getattr(self, name))
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"improve_policy.ema_decay must be in [0, 1), got {self.ema_decay}")
        for name in ("mid_episode_share", "clip_ratio_low"):
            require_range(f"improve_policy.{name}", getattr(self, name), 0, 1)
        for name in ("clip_ratio_high", "kl_coefficient", "min_group_std"):
            require_range(f"improve_policy.{name}", getattr(self, name), 0)


def run(state: LoopState, config: ImprovePolicyConfig, clone: ClonePolicyConfig, context: Context) -> LoopState:
    """Make ``state.candidates`` in the world model (grpo), or one from all successes (imitate_successes).

    A world model that its check distrusts makes none. Where GRPO starts from a policy that imitates every success in
    SANS (``restart_from: successes``), that is a candidate too.
    """
    path = f"checkpoints/iteration_{state.iteration:03d}/policy"
    start = state.clone if config.restart_from == "clone" else state.policy
    imitated: tuple[str, ...] = ()
    if config.method == "imitate_successes" or config.restart_from == "successes":
        start = path if config.method == "imitate_successes" else f"{path}_of_successes"
        if not has_partial(context, NAME):
            imitate(state, replace(clone, num_steps=config.num_imitation_steps), context, EVERY_SUCCESS, start)
        imitated = (start,)
    if config.method == "imitate_successes":
        return replace(state, candidates=imitated)
    if state.trust is not None and not state.trust.is_trusted:
        context.log(f"no policy is improved: {state.trust.reason}")
        return replace(state, candidates=imitated).record(improvement_skipped=state.trust.reason)
    improvement = _Improvement(state, config, start, context)
    candidates, figures = improvement.train(path)
    drop_partial(context, NAME)
    context.log(f"imagined success {figures['first']:.3f} -> {figures['last']:.3f} over {config.num_updates} updates")
    return replace(state, candidates=(*imitated, *candidates)).record(
        imagined_success_in_training={"first_update": figures["first"], "last_update": figures["last"]},
        imagined_frames=int(figures["frames"]),
        **improvement.critic_figures,
    )


class _Improvement:
    """The models, start states and optimizer of one stage."""

    def __init__(self, state: LoopState, config: ImprovePolicyConfig, start: str, context: Context) -> None:
        self.config, self.context, self.iteration = config, context, state.iteration
        self.policy = context.load_policy(start).to(context.device)
        self.reference = context.load_policy(start).to(context.device).eval()
        for model in (self.policy, self.reference):
            model.temperature = config.temperature
        self.averaged = EmaWeights(self.policy, config.ema_decay)
        self.world_model = context.load_world_model(state.world_model).to(context.device).for_imagination()
        self.calibration = state.calibration or Calibration()
        self.dataset = open_clips(context, state.dataset, "train")
        self.episodes = self.dataset.episode_index()
        self.policy_episodes = self.dataset.episode_index(source="policy")
        self.generators = make_generators(context, context.seed, state.iteration, NAME)
        self.critic: Critic | None = None
        self.critic_figures: dict[str, Any] = {}
        if config.num_critic_steps:
            self.critic, self.critic_figures = fit_policy_value(state, config.num_critic_steps, context)
        self.optimisation = Optimisation(
            self.policy.parameters(),
            learning_rate=config.learning_rate,
            num_steps=10**9,
            weight_decay=0.0,
            warmup_steps=4,
            name=NAME,
            workers=context.workers,
        )

    def train(self, path: str) -> tuple[tuple[str, ...], dict[str, float]]:
        """All updates; returns the candidates' checkpoints, the imagined success before and after, and all frames."""
        config, context = self.config, self.context
        saved_after = np.linspace(0, config.num_updates, config.num_candidates + 1).round()[1:].astype(int).tolist()
        first = (self.iteration - 1) * config.num_updates
        history = _History()
        kept = PartialStage(
            context,
            NAME,
            {"policy": self.policy, "averaged": self.averaged, "optimisation": self.optimisation, "history": history},
            {number: {"generator": KeptGenerator(generator)} for number, generator in self.generators.items()},
        )
        done = kept.resume()
        with (
            context.progress(config.num_updates - done, "update") as progress,
            context.writer(NAME, purge_step=first + done) as writer,
        ):
            for update in range(done, config.num_updates):
                began = time.perf_counter()
                rollouts = [self.imagine(update, number) for number in self.generators]
                seconds = time.perf_counter() - began
                metrics = self.improve(rollouts)
                history.add(metrics["imagined_success_rate"], metrics["imagined_frames"])
                metrics["imagined_frames_per_s"] = metrics.pop("imagined_frames") / seconds
                writer.scalars(first + update, {f"{NAME}/{k}": v for k, v in metrics.items()})
                if update + 1 in saved_after:
                    context.save_policy(self.averaged.module, f"{path}_after_{update + 1:03d}")
                kept.keep(update + 1)
                progress.advance(imagined_success=metrics["imagined_success_rate"])
        return tuple(f"{path}_after_{update:03d}" for update in saved_after), history.summarise()

    def imagine(self, update: int, number: int) -> Rollout:
        """The grouped rollouts of one micro-batch in one round."""
        config, context = self.config, self.context
        index = self._start_states(number)
        groups = torch.arange(len(index)).repeat_interleave(config.group_size)
        start = self.dataset.observation(index)
        draws = name_draws(context, number, context.seed, self.iteration, NAME, update)
        world_keys = make_row_keys(len(index), *draws, "world_model")
        policy_keys = make_row_keys(len(groups), *draws, "policy")
        simulator = ImaginedSimulator(
            self.world_model,
            context.spec,
            self.calibration,
            len(groups),
            truncates_uncertain=config.truncates_uncertain,
            rows_at_once=context.rows_at_once,
        )
        self.policy.eval()

        def begin() -> Observation:
            """What a group has in common is computed once."""
            simulator.start(start, world_keys)
            return simulator.restore(simulator.save().rows(groups))

        return run_rollout(
            self.policy,
            simulator,
            start.rows(groups),
            policy_keys,
            initial_state_id=tuple(f"{e}/{f}" for e, f in index[groups].tolist()),
            group_id=groups,
            max_chunks=config.imagination_horizon,
            origin="imagined",
            reset=begin,
        )

    def _start_states(self, number: int) -> Tensor:
        """int64 [N, 2] of (episode, frame): first frames of any episode, and frames in the middle of a policy's own.

        The middle of a scripted failure is a place the policy never gets to.
        """
        generator = self.generators[number]
        num_groups = self.config.groups_per_update // self.context.num_microbatches
        share = self.config.mid_episode_share if len(self.policy_episodes) else 0.0
        num_middle = share_of(num_groups, share, number)

        def draw(episodes: Tensor, count: int) -> Tensor:
            return episodes[torch.randint(len(episodes), (count,), generator=generator)]

        first = draw(self.episodes, num_groups - num_middle)
        middle = draw(self.policy_episodes, num_middle) if num_middle else first[:0]
        frame = (torch.rand(num_middle, generator=generator) * self.dataset.num_open_steps[middle]).long()
        starts = [torch.stack([first, torch.zeros_like(first)], 1), torch.stack([middle, frame], 1)]
        return torch.cat(starts)

    def improve(self, rollouts: list[Rollout]) -> dict[str, float]:
        """Advantages of one round, a rollout per micro-batch of this worker, and the optimizer steps on it."""
        config, workers = self.config, self.context.workers
        metrics: Metrics = {}
        decisions: list[Decisions | None] = []
        for rollout, generator in zip(rollouts, self.generators.values(), strict=True):
            groups, figures = self._judge(rollout, generator)
            add_metrics(metrics, figures)
            decisions.append(flatten(rollout, groups))
        size = config.minibatch_size // self.context.num_microbatches
        longest = torch.tensor(max(0 if d is None else math.ceil(len(d.advantages) / size) for d in decisions))
        num_minibatches = int(workers.maximum(longest))
        self.policy.train()
        for _ in range(config.num_epochs):
            orders = [
                () if d is None else torch.randperm(len(d.advantages), generator=g).split(size)
                for d, g in zip(decisions, self.generators.values(), strict=True)
            ]
            for step in range(num_minibatches):
                chosen = [(d, o[step]) for d, o in zip(decisions, orders, strict=True) if d and step < len(o)]
                add_metrics(metrics, self._update(chosen), 1 / (num_minibatches * config.num_epochs))
        return sum_metrics(metrics, workers)

    def _judge(self, rollout: Rollout, generator: torch.Generator) -> tuple[GroupAdvantages, dict[str, float]]:
        """The advantages of one micro-batch, and its share of the round's metrics."""
        config, context = self.config, self.context
        returns = compute_returns(
            rollout,
            context.spec.success_confirm_frames,
            config.uncertainty_penalty,
            self.calibration.floor_db,
            None if self.critic is None else self.critic.value(rollout.steps[-1].observation),
        )
        if config.shuffle_rewards:
            returns = shuffle_returns(returns, generator)
        groups = compute_group_advantages(returns, rollout.group_id, config.min_group_std)
        means = {"return_mean": returns.mean(), "imagined_success_rate": rollout.success.float().mean()}
        if (lowest := rollout.lowest_expected_psnr_db) is not None:
            means["uncertain_share"] = (lowest < self.calibration.floor_db).float().mean()
        running = rollout.valid[:, :: context.chunk_length].sum()
        return groups, {
            **{name: float(mean) / context.num_microbatches for name, mean in means.items()},
            "groups_dropped": float(groups.num_dropped),
            "imagined_frames": float(running) * context.chunk_length / context.spec.actions_per_frame,
        }

    def _update(self, chosen: list[tuple[Decisions, Tensor]]) -> dict[str, float]:
        """One optimizer step on the chosen rows of this worker's micro-batches, of which some may have none left."""
        workers = self.context.workers
        metrics: Metrics = {}
        shares = workers.shares([decisions.valid[index].sum() for decisions, index in chosen])
        for (decisions, index), share in zip(chosen, shares, strict=True):
            loss, figures = self._compute_loss(decisions, index)
            self.optimisation.backward(loss * share.to(loss.device))
            add_metrics(metrics, figures, float(share))
        # every worker has the same norm, and metrics are added up over them
        metrics["grad_norm"] = self.optimisation.step() / workers.size
        self.averaged.update(self.policy)
        return metrics

    def _compute_loss(self, decisions: Decisions, index: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The mean over the valid actions of the rows at ``index``, and metrics."""
        config, device = self.config, self.context.device
        observation = decisions.observation.rows(index).to(device)
        chunk = decisions.chunk.rows(index).to(device)
        valid = decisions.valid[index].to(device)
        log_probs = self.policy.log_prob(observation, chunk)
        loss, metrics = compute_policy_loss(
            log_probs,
            decisions.log_probs[index].to(device),
            decisions.advantages[index].to(device),
            valid,
            config.clip_ratio_low,
            config.clip_ratio_high,
        )
        if config.kl_coefficient > 0:
            with torch.no_grad():
                reference = self.reference.log_prob(observation, chunk)
            kl = compute_kl_penalty(log_probs, reference, valid)
            loss = loss + config.kl_coefficient * kl
            metrics["kl_to_start"] = float(kl.detach())
        return loss, metrics | {"loss": float(loss.detach())}


class _History:
    """The imagined success of every round so far, and all imagined frames."""

    def __init__(self) -> None:
        self.success: list[float] = []
        self.num_frames = 0.0

    def add(self, success: float, num_frames: float) -> None:
        self.success.append(success)
        self.num_frames += num_frames

    def summarise(self) -> dict[str, float]:
        """The first round's success, the mean of the last fifth, and the frames."""
        tail = self.success[-max(1, len(self.success) // 5) :]
        return {
            "first": round(self.success[0], 6),
            "last": round(sum(tail) / len(tail), 6),
            "frames": self.num_frames,
        }

    def state_dict(self) -> dict[str, Tensor]:
        success, num_frames = (torch.tensor(x, dtype=torch.float64) for x in (self.success, self.num_frames))
        return {"success": success, "num_frames": num_frames}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.success, self.num_frames = tensors["success"].tolist(), float(tensors["num_frames"])
