"""The settings of a LeRobot policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from worldloop.core.errors import require_range


@dataclass(frozen=True)
class LeRobotConfig:
    """Which of LeRobot's policies, its size, and how our observations are called in it."""

    type: str = ""  # LeRobot's name of a policy with fresh weights: act | diffusion | smolvla | pi0 | ...
    path: str = ""  # folder, or hf://owner/name@revision, of a pretrained policy; "": fresh weights
    config: dict[str, Any] = field(default_factory=dict)  # fields of LeRobot's config class, e.g. dim_model: 128
    cameras: dict[str, str] = field(default_factory=dict)  # our camera -> its name in the policy; {}: all, as they are
    imagenet_statistics: bool = True  # normalise images by ImageNet's mean and std, as LeRobot's training does
    keeps_statistics: bool = False  # of path: normalise by its statistics, not by those of the episodes to imitate
    sde_level: float = 0.0  # smolvla: noise of the denoising steps, which gives log-probabilities for grpo; 0: none
    tells_advantage: bool = False  # the instruction says whether actions are good, for recap; smolvla, pi0, ...
    saved: dict[str, Any] = field(default_factory=dict)  # for checkpoints only: config and processors in full

    def __post_init__(self) -> None:
        require_range("policy.lerobot.sde_level", self.sde_level, 0)
        if self.sde_level and self.tells_advantage:
            raise ValueError("policy.lerobot.sde_level is for grpo and tells_advantage for recap: set one of them")
