"""Label every training frame step: was the action that followed better than the policy's usual one?

The advantage over N environment steps is compared with a threshold of the task (RECAP, arXiv:2511.14759, section IV).
The labels lie beside the dataset version, never in it: another critic would give others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from worldloop.core.errors import require_range
from worldloop.core.files import hash_file
from worldloop.evaluation.episode_values import EpisodeFrames
from worldloop.sans.advantages import AdvantageLabels, write_labels
from worldloop.stages import fit_value
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState
from worldloop.value.config import ValueConfig
from worldloop.value.returns import choose_threshold

NAME = "label_advantages"


@dataclass(frozen=True)
class Config:
    num_env_steps: int = 20  # N of the N-step advantage; rounded up to whole stored frames
    positive_share: float = 0.4  # share of the policy's own frame steps, per task, that count as good
    batch_size: int = 256  # frames that are valued at once

    def __post_init__(self) -> None:
        require_range("label_advantages.num_env_steps", self.num_env_steps, 1)
        require_range("label_advantages.batch_size", self.batch_size, 1)
        if not 0 < self.positive_share < 1:
            raise ValueError(f"label_advantages.positive_share is {self.positive_share}, allowed: above 0, below 1")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.has_policy and schedule.uses_advantages


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Label the training episodes of ``state.dataset`` by ``state.critics``; ``state.labels`` is where they lie."""
    fitting = context.config_of(fit_value.Config)
    frames = fit_value.open_frames(state, fitting, context)
    critics = [context.models.load_critic(path).to(context.device) for path in state.critics]
    values = frames.compute_values(critics, config.batch_size, context.reporter)
    num_frames = -(-config.num_env_steps // frames.cache.actions_per_frame)
    advantages = frames.compute_advantages(values, num_frames)
    thresholds = choose_thresholds(frames, advantages, config.positive_share)

    everywhere = np.full(int(frames.cache.num_steps.sum()), np.nan, dtype=np.float32)
    is_good = np.zeros(len(everywhere), dtype=bool)
    row = frames.cache.first_step[frames.index[:, 0]] + frames.index[:, 1]
    everywhere[row] = advantages
    is_good[row] = advantages > np.array([thresholds[name] for name in frames.task.tolist()])
    labels = AdvantageLabels(
        version=context.store.version(state.dataset).fingerprint,
        critics=hash_critics(state, context),
        settings=asdict(config) | {"target": context.config_of(ValueConfig).target, "num_frames": num_frames},
        thresholds=thresholds,
        advantage=everywhere,
        is_good=is_good,
    )
    path = f"labels/iteration_{state.iteration:03d}"
    write_labels(context.models.run_dir / path, labels)
    sources = np.unique(frames.source).tolist()
    shares = {source: float(is_good[row][frames.source == source].mean()) for source in sources}
    listed = ", ".join(f"{source} {share:.2f}" for source, share in shares.items())
    context.reporter.log(f"share of good frame steps: {listed}")
    return replace(state, labels=path).record(advantage_thresholds=thresholds, good_share=shares)


def hash_critics(state: LoopState, context: StageContext) -> tuple[str, ...]:
    """The sha256 of the weights of ``state.critics``."""
    return tuple(hash_file(context.models.run_dir / path / "model.safetensors") for path in state.critics)


def choose_thresholds(frames: EpisodeFrames, advantages: np.ndarray, positive_share: float) -> dict[str, float]:
    """Task -> threshold, on the policy's own episodes of the task if there are any, else on all of them."""
    thresholds = {}
    for name in np.unique(frames.task).tolist():
        of_task = frames.task == name
        rows = of_task & (frames.source == "policy")
        rows = rows if rows.any() else of_task
        thresholds[name] = choose_threshold(advantages[rows], positive_share)
    return thresholds
