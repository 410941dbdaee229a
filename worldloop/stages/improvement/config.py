"""The settings of `improve_policy`, for all of its methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from worldloop.core.errors import require_choice, require_range
from worldloop.rl.grpo import GrpoConfig

NAME = "improve_policy"  # the stage, and its config section
METHODS = ("grpo", "imitate_imagined", "recap", "recap_imagined", "imitate_successes")
STARTS = ("policy", "clone", "successes")


@dataclass(frozen=True)
class ImprovementConfig(GrpoConfig):
    TRAINS: ClassVar[bool] = True
    MICROBATCHED: ClassVar[tuple[str, ...]] = ("groups_per_update", "minibatch_size")

    method: str = "grpo"  # grpo | imitate_imagined (both in rounds) | recap | recap_imagined | imitate_successes
    restart_from: str = "successes"  # successes (clone of all in SANS), policy (the current) or clone (iteration 0's)
    mid_episode_share: float = 0.25  # share of groups that start in the middle of a policy episode, in [0, 1]
    imagination_horizon: int = 6  # most chunks of an imagined rollout; drift grows with each chunk
    truncates_uncertain: bool = False  # end a rollout, as a failure, at its first uncertain frame (floor_db)
    num_candidates: int = 3  # rounds, among which GRPO's updates are divided; each gives a candidate for promotion
    num_imitation_steps: int = 900  # optimizer steps of imitating successes, real or imagined, the latter in each round
    num_recap_steps: int = 2700  # optimizer steps of recap, which imitates all episodes and learns three indicators
    guidance: float = 1.0  # recap acts by log pi_u + guidance (log pi_c - log pi_u); 1: conditioned on good actions
    indicator_dropout: float = 0.3  # recap learns without the indicator this often, 0 to 1
    num_imagined_groups: int = 240  # *_imagined: real states, from each of which group_size rollouts are imagined
    imagined_share: float = 0.25  # *_imagined: share of a batch that is imagined, 0 to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("improve_policy.method", self.method, METHODS)
        require_choice("improve_policy.restart_from", self.restart_from, STARTS)
        for name in (
            "imagination_horizon",
            "num_candidates",
            "num_imitation_steps",
            "num_recap_steps",
            "num_imagined_groups",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"improve_policy.{name} must be at least 1, got {getattr(self, name)}")
        if self.method == "grpo" and self.num_candidates > self.num_updates:
            bounds = f"1..num_updates = {self.num_updates}"
            raise ValueError(f"improve_policy.num_candidates must be in {bounds}, got {self.num_candidates}")
        require_range("improve_policy.mid_episode_share", self.mid_episode_share, 0, 1)
        require_range("improve_policy.guidance", self.guidance, 0)
        require_range("improve_policy.indicator_dropout", self.indicator_dropout, 0, 1)
        require_range("improve_policy.imagined_share", self.imagined_share, 0, 1)
