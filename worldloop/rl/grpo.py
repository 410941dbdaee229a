"""GRPO inside a learned world model.

After World-VLA-Loop (arXiv:2602.06508) and SimpleVLA-RL (arXiv:2509.09674):

- Group advantages and the k3 KL penalty: GRPO, DeepSeekMath, arXiv:2402.03300 (eq. 3-4).
- The asymmetric clip ("clip-higher") and dropping groups without variance: DAPO, arXiv:2503.14476 (eq. 8, 11).

Departures:

1. Only actions up to the first success count (``valid``). Later actions do not influence the return and get no
   gradient.
2. Members of a group share the world model's noise and differ only in the policy's samples.
3. The success probability is calibrated on imagined frames; there is no hand-set threshold on the reward.
4. A share of the groups starts in the middle of real episodes. Rollouts end after ``imagination_horizon`` chunks.
   Critics may value the state where they were cut off, and the state before each chunk (`shape_by_value`). It is the
   mean of all critics, although some of them have learned the episode that the rollout started from.
5. Candidates have moving averages of the weights.
6. Groups in which no success is declared are dropped: their returns are only probabilities of the success head.
7. The KL penalty has GRPO's k3 estimator. Its value estimates KL(policy || start). Its gradient, on the policy's own
   actions, is that of KL(start || policy), see `compute_kl_penalty`.

Shapes: B rows (N groups x G members), N decisions, T actions a row (chunks x H). Log-probabilities are summed over
action dimensions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worldloop.core.errors import require_positive, require_range
from worldloop.core.interfaces import LikelihoodPolicy, Metrics
from worldloop.core.success import Calibrations
from worldloop.core.tensors import check_shape
from worldloop.core.types import Observation, Rollout
from worldloop.rl.advantages import compute_group_advantages, shape_by_value, shuffle_rows
from worldloop.rl.decisions import Decisions, flatten_decisions
from worldloop.rl.reward_context import RewardContext
from worldloop.rl.rewards import check_reward, score_rollout
from worldloop.training.data_parallel import DataParallel, add_metrics
from worldloop.training.resume import Stateful
from worldloop.training.trainer import Objective


@dataclass(frozen=True)
class GrpoConfig:
    num_updates: int = 30  # rounds of imagined rollouts
    groups_per_update: int = 24  # real start states per round, spread evenly over the tasks
    group_size: int = 8  # imagined rollouts per start state
    num_epochs: int = 1  # passes over the decisions of a round
    minibatch_size: int = 256  # decisions (action chunks) per optimizer step
    learning_rate: float = 6e-4  # AdamW, constant
    ema_decay: float = 0.98  # decay per optimizer step of the averaged weights, which candidates have; 0: none
    temperature: float = 1.0  # of the policy's action distribution while it explores
    clip_ratio_low: float = 0.2  # the probability ratio is clipped below 1 - this
    clip_ratio_high: float = 0.28  # the probability ratio is clipped above 1 + this
    kl_coefficient: float = 0.01  # weight of the KL to the policy at the start of the stage; 0: none
    min_group_std: float = 0.02  # groups with a std of returns up to this are dropped
    require_success: bool = True  # drop groups in which no rollout declares a success
    normalise_advantages: bool = True  # divide by the std of the group's returns; false: as in Dr. GRPO
    bootstraps: bool = False  # a rollout that is cut off gets 1 + the critics' value of its last state as its return
    shapes_by_value: bool = False  # subtract 1 + the critics' value of the state before each chunk from its return
    reward: dict[str, float] = field(default_factory=lambda: {"success": 1.0})  # weights of terms in rl/rewards.py
    shuffle_rewards: bool = False  # control: permute the returns over all rows

    def __post_init__(self) -> None:
        for name in ("num_updates", "groups_per_update", "num_epochs", "minibatch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"improve_policy.{name} must be at least 1, got {getattr(self, name)}")
        if self.group_size < 2:
            raise ValueError(f"improve_policy.group_size must be at least 2, got {self.group_size}")
        for name in ("learning_rate", "temperature"):
            require_positive(f"improve_policy.{name}", getattr(self, name))
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"improve_policy.ema_decay must be in [0, 1), got {self.ema_decay}")
        require_range("improve_policy.clip_ratio_low", self.clip_ratio_low, 0, 1)
        for name in ("clip_ratio_high", "kl_coefficient", "min_group_std"):
            require_range(f"improve_policy.{name}", getattr(self, name), 0)
        check_reward(self.reward)

    @property
    def uses_value(self) -> bool:
        """Whether the returns or advantages need critics."""
        return self.bootstraps or self.shapes_by_value


class GrpoObjective(Objective[Decisions]):
    """One step is a round: imagine groups, score them, then take optimizer steps over their decisions.

    - ``policy`` is trained; ``reference`` is the policy at the start of the stage, for the KL penalty
    - ``imagine(update, number) -> Rollout``: the grouped rollouts of one microbatch
    - ``value(observation) -> f32 [B]``: what critics expect from a state, on the scale of a return; ``None`` if the
      config needs no values
    """

    progress_metric = "imagined_success_rate"
    log_every = 1

    def __init__(
        self,
        policy: LikelihoodPolicy,
        reference: LikelihoodPolicy,
        config: GrpoConfig,
        imagine: Callable[[int, int], Rollout],
        generators: Mapping[int, torch.Generator],
        *,
        calibrations: Calibrations,
        num_microbatches: int,
        data_parallel: DataParallel,
        device: torch.device,
        value: Callable[[Observation], Tensor] | None = None,
    ) -> None:
        super().__init__(generators)
        self.policy, self.reference, self.config, self.imagine = policy, reference, config, imagine
        self.calibrations, self.num_microbatches = calibrations, num_microbatches
        self.data_parallel, self.device = data_parallel, device
        self.value = value
        self.history = GrpoHistory()
        self._seconds = 0.0

    def batches(self, step: int) -> Iterable[Mapping[int, Decisions]]:
        # imagine: in eval mode, as all of the round. With dropout the ratios of the first update would not be 1
        began = time.perf_counter()
        self.policy.eval()
        rollouts = {number: self.imagine(step, number) for number in self.generators}
        self._seconds = time.perf_counter() - began

        # score: the decisions of each microbatch, without dropped groups
        judged = {number: self._judge(rollout, number) for number, rollout in rollouts.items()}
        decisions = {number: kept for number, kept in judged.items() if kept is not None}

        # minibatches: the same number on every rank
        size = self.config.minibatch_size // self.num_microbatches
        longest = torch.tensor(max((math.ceil(len(d) / size) for d in decisions.values()), default=0))
        num_minibatches = int(self.data_parallel.all_reduce_max(longest))
        for _ in range(self.config.num_epochs):
            orders = {
                number: torch.randperm(len(d), generator=self.generators[number]).split(size)
                for number, d in decisions.items()
            }
            for i in range(num_minibatches):
                yield {n: decisions[n].rows(order[i]) for n, order in orders.items() if i < len(order)}

    def count(self, batch: Decisions) -> Tensor:
        return batch.valid.sum()

    def compute_loss(self, batch: Decisions, number: int) -> tuple[Tensor, Metrics]:
        """The clipped surrogate plus the KL penalty, each a mean over the valid actions of ``batch``."""
        config = self.config
        batch = batch.to(self.device)
        log_probs = self.policy.log_prob(batch.observation, batch.chunk)
        loss, metrics = compute_policy_loss(
            log_probs, batch.log_probs, batch.advantages, batch.valid, config.clip_ratio_low, config.clip_ratio_high
        )
        if config.kl_coefficient > 0:
            with torch.no_grad():
                reference = self.reference.log_prob(batch.observation, batch.chunk)
            kl = compute_kl_penalty(log_probs, reference, batch.valid)
            loss = loss + config.kl_coefficient * kl
            metrics["kl_to_start"] = float(kl.detach())
        return loss, metrics | {"loss": float(loss.detach())}

    def end_step(self, step: int, metrics: Metrics) -> Metrics:
        for name in [name for name in metrics if name.startswith("num_rows/")]:
            metrics[f"imagined_success_rate/{name.removeprefix('num_rows/')}"] /= metrics.pop(name)
        frames = metrics.pop("imagined_frames")
        self.history.add(metrics["imagined_success_rate"], frames)
        return metrics | {"imagined_frames_per_s": frames / self._seconds}

    def state(self) -> dict[str, Stateful]:
        return {"history": self.history}

    def _judge(self, rollout: Rollout, number: int) -> Decisions | None:
        """The decisions of one microbatch with their advantages; also adds its part to the round's metrics."""
        config, spec = self.config, self.policy.spec
        last_value = None
        if config.bootstraps:
            assert self.value is not None
            last_value = self.value(rollout.steps[-1].observation)
        returns, terms = score_rollout(rollout, config.reward, RewardContext(spec, self.calibrations, last_value))
        success = rollout.success
        if config.shuffle_rewards:
            order = shuffle_rows(len(returns), self.generators[number])
            returns, success = returns[order], success[order]
        groups = compute_group_advantages(
            returns,
            rollout.group_id,
            config.min_group_std,
            success=success if config.require_success else None,
            normalises=config.normalise_advantages,
        )
        if config.shapes_by_value:
            assert self.value is not None
            values = torch.stack([self.value(observation) for observation in rollout.observations], dim=1)
            valid = torch.stack([step.valid.any(1) for step in rollout.steps], dim=1)
            groups = shape_by_value(groups, returns, values, valid, rollout.group_id)
        means = {"return_mean": float(returns.mean()), "imagined_success_rate": float(rollout.success.float().mean())}
        means |= {f"reward_{name}": value for name, value in terms.items()}
        if (lowest := rollout.lowest_expected_psnr_db) is not None:
            floor_db = self.calibrations.column("floor_db", rollout.observations[0].task)
            means["uncertain_share"] = float((lowest < floor_db).float().mean())
        add_metrics(self.step_metrics, means, 1 / self.num_microbatches)
        running = rollout.valid[:, :: self.policy.chunk_length].sum()
        frames = float(running) * self.policy.chunk_length / spec.actions_per_frame
        add_metrics(self.step_metrics, {"groups_dropped": float(groups.num_dropped), "imagined_frames": frames})
        if len(spec.tasks) > 1:
            add_metrics(self.step_metrics, count_by_task(rollout))
        return flatten_decisions(rollout, groups)


def count_by_task(rollout: Rollout) -> Metrics:
    """Per task the number of rows and of successes; `GrpoObjective.end_step` divides their sums to get the rate."""
    counts: Metrics = {}
    for task, success in zip(rollout.observations[0].task, rollout.success.tolist(), strict=True):
        add_metrics(counts, {f"num_rows/{task}": 1.0, f"imagined_success_rate/{task}": float(success)})
    return counts


class GrpoHistory:
    """The imagined success rate of every round so far, and the total number of imagined frames."""

    def __init__(self) -> None:
        self.success: list[float] = []
        self.num_frames = 0.0

    def add(self, success: float, num_frames: float) -> None:
        self.success.append(success)
        self.num_frames += num_frames

    @property
    def first_success(self) -> float:
        return round(self.success[0], 6)

    @property
    def last_success(self) -> float:
        """The mean over the last fifth of the rounds."""
        tail = self.success[-max(1, len(self.success) // 5) :]
        return round(sum(tail) / len(tail), 6)

    def state_dict(self) -> dict[str, Tensor]:
        success, num_frames = (torch.tensor(x, dtype=torch.float64) for x in (self.success, self.num_frames))
        return {"success": success, "num_frames": num_frames}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.success, self.num_frames = tensors["success"].tolist(), float(tensors["num_frames"])


def compute_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    valid: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate, per action: mean of max(-A r, -A clip(r, 1 - low, 1 + high)), r = exp(log_probs - old).

    Every valid action of the batch has the same weight, however many its row has (DAPO).

    Args:
        log_probs, old_log_probs: f32 [B, T]; only ``log_probs`` gets a gradient.
        advantages: f32 [B].
        valid: bool [B, T]; invalid actions (after a success) do not count.
        clip_ratio_low, clip_ratio_high: e.g. 0.2 and 0.28.

    Returns the scalar loss and the metrics of `_policy_metrics`. Without valid actions the loss is 0.
    """
    check_shape("old_log_probs", old_log_probs, tuple(log_probs.shape))
    check_shape("valid", valid, tuple(log_probs.shape))
    check_shape("advantages", advantages, (log_probs.shape[0],))
    # Mask before the exponential: inf * 0 would give NaN in the gradient of valid actions.
    log_ratio = torch.where(valid, log_probs - old_log_probs.detach(), torch.zeros_like(log_probs))
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high)
    advantage = advantages.detach()[:, None]
    per_action = torch.maximum(-advantage * ratio, -advantage * clipped)
    loss = (per_action * valid).sum() / valid.sum().clamp_min(1)
    with torch.no_grad():
        is_clipped = torch.maximum(-advantage * ratio, -advantage * clipped) > -advantage * ratio
        metrics = _policy_metrics(log_ratio, ratio, is_clipped, valid)
    return loss, {"loss_policy": loss.item(), **metrics}


def _policy_metrics(log_ratio: Tensor, ratio: Tensor, is_clipped: Tensor, valid: Tensor) -> Metrics:
    """Over valid actions: the share that the clip leaves without a gradient, k3 of KL(old || new), and the ratios."""
    if not bool(valid.any()):
        return {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio_mean": 1.0, "ratio_max": 1.0, "ratio_min": 1.0}
    chosen = ratio[valid]
    return {
        "clip_fraction": is_clipped[valid].float().mean().item(),
        # Schulman's k3 with samples of the old policy: (r - 1) - log r.
        "approx_kl": (chosen - 1 - log_ratio[valid]).mean().item(),
        "ratio_mean": chosen.mean().item(),
        "ratio_max": chosen.max().item(),
        "ratio_min": chosen.min().item(),
    }


def compute_kl_penalty(log_probs: Tensor, reference_log_probs: Tensor, valid: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference), GRPO eq. 4: mean of q - log q - 1 with q = pi_ref / pi.

    On the policy's own actions its value is an unbiased estimate of KL(policy || reference). The expected gradient is
    another: (1 - q) grad log pi has the mean -E_ref[grad log pi], which is the gradient of KL(reference || policy). So
    the penalty keeps the policy from giving up what the reference does. It is never negative, and zero where both
    agree. Shapes are as in `compute_policy_loss`; the reference gets no gradient.
    """
    check_shape("reference_log_probs", reference_log_probs, tuple(log_probs.shape))
    log_q = torch.where(valid, reference_log_probs.detach() - log_probs, torch.zeros_like(log_probs))
    k3 = log_q.exp() - log_q - 1
    return (k3 * valid).sum() / valid.sum().clamp_min(1)
