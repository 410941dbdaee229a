"""What critics learn from, made by hand, and a quick fit."""

from __future__ import annotations

import torch
from reporters import RecordingReporter
from torch import Tensor

from worldloop.core.types import Normalisation, Observation
from worldloop.value.critic import Critic, LoadRows, ValueRows, fit_critic


def make_normalisation(proprio_dim: int) -> Normalisation:
    """The units of the data; 0: data without proprio."""
    return Normalisation(torch.zeros(proprio_dim), torch.ones(proprio_dim))


def make_rows(observation: Observation, returns: Tensor) -> ValueRows:
    """Rows whose future proprio is the present one."""
    proprio = observation.proprio
    return ValueRows(observation, returns, torch.zeros(len(observation), 0) if proprio is None else proprio)


def observe(frames: dict[str, Tensor], proprio: Tensor | None, env_step: Tensor, task: str = "push") -> Observation:
    """Rows that all do the same task."""
    B = len(env_step)
    return Observation(frames, proprio, (task,) * B, ("i",) * B, env_step)


def fit[CriticT: Critic](
    critic: CriticT,
    load: LoadRows,
    num_rows: int = 400,
    num_steps: int = 60,
    batch_size: int = 32,
    reporter: RecordingReporter | None = None,
) -> CriticT:
    return fit_critic(
        critic.train(), load, num_rows, num_steps=num_steps, batch_size=batch_size,
        generator=torch.Generator().manual_seed(0), reporter=reporter or RecordingReporter(),
    )  # fmt: skip
