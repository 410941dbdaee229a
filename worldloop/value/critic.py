"""What every critic is, and how it is fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from worldloop.core.interfaces import Metrics
from worldloop.core.reporting import Reporter
from worldloop.core.specs import SimulatorSpec
from worldloop.core.tensors import Rows, check_shape
from worldloop.core.types import Normalisation, Observation
from worldloop.networks.augment import augment_frames
from worldloop.training.trainer import BatchObjective, fit_small

SHIFT_PX, BRIGHTNESS = 2, 0.05
MAX_ROWS = 256


@dataclass(frozen=True)
class ValueRows(Rows):
    """B frames that a critic learns from.

    - ``observation``: at the frame
    - ``returns`` f32 [B] in [-1, 0]: from the frame on, see `worldloop.value.returns`
    - ``future_proprio`` f32 [B, S]: some steps later, or at the episode's end if that comes first; in raw units
    """

    observation: Observation
    returns: Tensor
    future_proprio: Tensor

    def __post_init__(self) -> None:
        B = len(self.observation)
        check_shape("ValueRows.returns", self.returns, (B,))
        check_shape("ValueRows.future_proprio", self.future_proprio, (B, None))
        if not bool(((self.returns >= -1) & (self.returns <= 0)).all()):
            low, high = float(self.returns.min()), float(self.returns.max())
            raise ValueError(f"returns lie between {low} and {high}, allowed: -1 to 0")

    def __len__(self) -> int:
        return len(self.returns)


LoadRows = Callable[[Tensor], ValueRows]  # the rows with these numbers, int64 [B]


class Critic(nn.Module, ABC):
    """A network that predicts the return from an observation; higher is better.

    It reads the cameras of ``spec`` and knows its tasks. ``normalisation`` scales proprio. A critic draws random
    numbers only from the generator that it is given, and from torch's global one (dropout).
    """

    LEARNING_RATE: ClassVar[float] = 2e-3
    WEIGHT_DECAY: ClassVar[float] = 0.05

    def __init__(self, spec: SimulatorSpec, normalisation: Normalisation) -> None:
        super().__init__()
        self.spec, self.normalisation = spec, normalisation

    @abstractmethod
    def value(self, observation: Observation) -> Tensor:
        """The expected return, f32 [B] in [-1, 0], on the CPU, without gradients."""

    @abstractmethod
    def compute_loss(self, rows: ValueRows, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The loss of one batch, and its parts. ``generator`` is on the CPU."""

    def prepare(self, sample: Observation) -> None:
        """Take statistics from a sample of the data, before the fit; by default nothing."""
        del sample

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def learning_rate(self) -> float:
        return self.LEARNING_RATE

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without weights that come from somewhere else, see ``frozen``."""
        return {name: value for name, value in self.state_dict().items() if name not in self.frozen}

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the weights that are not trained and not stored."""
        return frozenset()


class CriticObjective(BatchObjective[ValueRows]):
    """A critic's loss on randomly drawn rows, with frames shifted and brightened at random."""

    def __init__(
        self, critic: Critic, load: LoadRows, num_rows: int, *, batch_size: int, generator: torch.Generator
    ) -> None:
        super().__init__({0: generator})
        self.critic, self.load, self.num_rows, self.batch_size = critic, load, num_rows, batch_size
        self.camera_names = critic.spec.robot.camera_names

    def draw(self, generator: torch.Generator) -> ValueRows:
        rows = self.load(torch.randint(self.num_rows, (self.batch_size,), generator=generator))
        observation = rows.observation.with_cameras(self.camera_names)
        frames = augment_frames(observation.frames, SHIFT_PX, BRIGHTNESS, generator)
        return replace(rows, observation=replace(observation, frames=frames))

    def count(self, batch: ValueRows) -> Tensor:
        return torch.tensor(len(batch))

    def compute_loss(self, batch: ValueRows, number: int) -> tuple[Tensor, Metrics]:
        loss, metrics = self.critic.compute_loss(batch.to(self.critic.device), self.generators[number])
        return loss, metrics | {"loss": float(loss.detach())}


def fit_critic[CriticT: Critic](
    critic: CriticT,
    load: LoadRows,
    num_rows: int,
    *,
    num_steps: int,
    batch_size: int,
    generator: torch.Generator,
    reporter: Reporter,
) -> CriticT:
    """Fit ``critic`` on rows 0..num_rows - 1 of ``load``; returns it in eval mode, on its device.

    All random numbers come from ``generator``.
    """
    sample = load(torch.randint(num_rows, (min(num_rows, 1024),), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        critic.prepare(sample.observation)
        return fit_small(
            critic,
            CriticObjective(critic, load, num_rows, batch_size=batch_size, generator=generator),
            reporter,
            num_steps=num_steps,
            learning_rate=critic.learning_rate,
            weight_decay=critic.WEIGHT_DECAY,
            unit="critic step",
        )


def average_value(critics: Sequence[Critic], observation: Observation) -> Tensor:
    """The mean value of ``critics``, f32 [B] in [-1, 0], on the CPU; `MAX_ROWS` rows are valued at once."""
    blocks = torch.arange(len(observation)).split(MAX_ROWS)
    values = [torch.cat([critic.value(observation.rows(rows)) for rows in blocks]) for critic in critics]
    return torch.stack(values).mean(0)


def value_as_return(critics: Sequence[Critic], observation: Observation) -> Tensor:
    """The mean value of ``critics`` plus 1, f32 [B] in [0, 1]: as a return, of which a success gives 1.

    With ``value.target=outcome`` it is a probability of success. With ``recap`` a failure is worth up to .5.
    """
    return average_value(critics, observation) + 1
