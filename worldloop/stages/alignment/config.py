"""The settings of `align_world_model`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from worldloop.core.errors import require_choice, require_positive, require_range
from worldloop.executability.reward import RewardConfig

MODES = ("plan", "follow")
ALGORITHMS = ("flow_grpo", "nft", "pathwise")


@dataclass(frozen=True)
class AlignmentConfig:
    TRAINS: ClassVar[bool] = True
    MICROBATCHED: ClassVar[tuple[str, ...]] = ("starts_per_update",)

    enabled: bool = False  # align by a reward from inverse dynamics; what that needs is fitted as well
    mode: str = "plan"  # plan: the planner, by executability | follow: the world model, by following its actions
    algorithm: str = "flow_grpo"  # flow_grpo | nft | pathwise (the only one for a sampler of one step)
    num_updates: int = 30  # rounds of generated videos
    starts_per_update: int = 4  # real starts per round
    group_size: int = 8  # videos per start; pathwise does not compare them, so 1 is enough there
    num_frames: int = 6  # generated frames of a video; three or more in mode plan
    minibatch_size: int = 16  # videos per optimizer step
    learning_rate: float = 1e-4  # AdamW, constant after four steps
    ema_decay: float = 0.9  # decay per optimizer step of the averaged weights, which are the result; 0: none
    min_group_std: float = 1e-4  # groups with a std of rewards up to this are dropped
    kl_coefficient: float = 0.004  # weight of the distance to the model before alignment; 0: none
    random_steps: tuple[int, ...] = (1, 2)  # flow_grpo: sampler steps, from 0, that are random; not the first or last
    noise_level: float = 0.7  # flow_grpo: a in s^2 = a^2 (1 - t) / t
    clip_ratio: float = 1e-3  # flow_grpo: the probability ratio is clipped to 1 +- this
    strength: float = 1.0  # nft: b, how far the mirrored predictions are from the old one
    max_advantage: float = 5.0  # nft: advantages are clipped to +- this
    reward: RewardConfig = field(default_factory=RewardConfig)  # of executability
    guard: bool = True  # multiply executability by the guard against standing still; false: a control
    following_temperature: float = 0.1  # mean squared error of actions, -1 to 1 in bounds, at which the reward is 1/e
    shuffle_rewards: bool = False  # control: permute the rewards over the videos of a microbatch; not for pathwise
    num_states: int = 40  # mode plan: fresh validation states in which the planner acts before and after; 0: none
    block_size: int = 10  # initial states per simulator call
    gate: bool = True  # false, a control: keep the aligned model whatever the judge says
    max_psnr_loss_db: float = 0.5  # PSNR of held-out frames that the model may lose, in dB

    def __post_init__(self) -> None:
        require_choice("align_world_model.mode", self.mode, MODES)
        require_choice("align_world_model.algorithm", self.algorithm, ALGORITHMS)
        for name in ("num_updates", "starts_per_update", "group_size", "minibatch_size", "block_size"):
            require_range(f"align_world_model.{name}", getattr(self, name), 1)
        require_range("align_world_model.num_frames", self.num_frames, 3 if self.mode == "plan" else 1)
        for name in ("learning_rate", "noise_level", "clip_ratio", "strength", "max_advantage"):
            require_positive(f"align_world_model.{name}", getattr(self, name))
        require_positive("align_world_model.following_temperature", self.following_temperature)
        require_range("align_world_model.ema_decay", self.ema_decay, 0, 0.999999)
        for name in ("min_group_std", "kl_coefficient", "max_psnr_loss_db", "num_states"):
            require_range(f"align_world_model.{name}", getattr(self, name), 0)
        if self.algorithm != "pathwise" and self.group_size < 2:
            raise ValueError(f"align_world_model.group_size must be at least 2 for {self.algorithm}")
        if list(self.random_steps) != sorted(set(self.random_steps)) or not self.random_steps:
            raise ValueError(
                f"align_world_model.random_steps is {self.random_steps}, allowed: one or more numbers, in order"
            )
        if self.algorithm == "pathwise" and self.shuffle_rewards:
            raise ValueError(
                "align_world_model.shuffle_rewards does nothing for pathwise, which follows the reward's gradient: "
                "use flow_grpo or nft"
            )

    def check_sampler(self, num_sampler_steps: int, setting: str) -> None:
        """Raise ``ValueError`` if the algorithm cannot learn from a sampler of so many steps; ``setting`` names it."""
        if self.algorithm == "pathwise":
            return
        if num_sampler_steps == 1:
            raise ValueError(
                f"align_world_model.algorithm {self.algorithm} compares videos that differ by noise, and a sampler "
                f"with {setting}=1 adds none: use align_world_model.algorithm=pathwise"
            )
        last = num_sampler_steps - 2
        if self.algorithm == "flow_grpo" and last < 1:
            raise ValueError(
                "align_world_model.algorithm flow_grpo needs three sampler steps or more, as neither the first nor the "
                f"last can be random: {setting} is {num_sampler_steps}"
            )
        if self.algorithm == "flow_grpo" and not all(0 < step <= last for step in self.random_steps):
            raise ValueError(
                f"align_world_model.random_steps is {self.random_steps}, but neither the first nor the last sampler "
                f"step can be random: with {setting}={num_sampler_steps} give numbers from 1 to {last}"
            )
