"""The seams of the system. Implementations live in the leaf packages and never import each other.

ManiSkill and a world model are both a `Simulator`; a policy cannot tell which it is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from worldloop.core.tensors import Rows
from worldloop.core.types import (
    ActionChunk,
    ChunkStep,
    Clip,
    ImitationBatch,
    InitialStates,
    Normalisation,
    Observation,
    SimulatorSpec,
    Split,
)

Metrics = dict[str, float]


@runtime_checkable
class Simulator(Protocol):
    """A batch of environments that is stepped by action chunks. There is no hidden auto-reset."""

    spec: SimulatorSpec
    num_envs: int

    def reset(self, initial_states: Tensor | Observation, rows: Tensor | None = None) -> Observation:
        """Start rows from simulator states f32 [B, D] or from observations (an imagined simulator).

        Without ``rows`` the batch becomes exactly these B <= num_envs rows; with ``rows`` int64 [N] only those
        rows of the running batch start anew. Returns the observation of the whole batch.
        """
        ...

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        """Execute ``actions`` f32 [B, H, A]. Rows that have ended stay as they are, with ``valid`` false."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class InitialStateSource(Protocol):
    """A simulator that can draw the initial states of a split, one at a time, from seeds."""

    def draw_initial_states(self, split: Split, num_states: int, seed: int, first: int = 0) -> InitialStates: ...


@runtime_checkable
class ScriptedSource(Protocol):
    """A simulator with scripted policies, of which iteration 0 is recorded."""

    def make_scripted_policy(self, variants: tuple[str, ...], row_keys: Tensor, chunk_length: int) -> Actor:
        """A policy for one rollout: row b plays ``variants[b]``, with randomness from ``row_keys`` int64 [B] alone.

        ``expert`` is the demonstrator; the other names of `seed_dataset.episodes` are ways to be worse. It may look at
        ``observation.sim_state``. Raises ``ValueError`` for a variant that it does not know.
        """
        ...


class TaskSimulator(Simulator, InitialStateSource, ScriptedSource, Protocol):
    """A simulator that a run can be built on.

    It is a line in `worldloop.simulators.SIMULATORS`, or ``module:Class`` in a config.
    ``Config`` is a frozen dataclass, built from the config's section of that name. It may have
    ``for_play() -> Config``: one row, whose episodes neither a success nor a time limit ends, for `worldloop.play`.
    """

    Config: type[Any]

    def __init__(self, config: Any) -> None: ...

    @staticmethod
    def make_spec(config: Any) -> SimulatorSpec:
        """What the simulator under ``config`` will look like. Starts nothing and needs no simulator package."""
        ...


@dataclass(frozen=True)
class WorldModelOutput:
    """What ``compute_loss`` gives: the scalar to minimise, metrics, and the model's own next step.

    ``next_frames`` u8 [B, h, w, 3] and ``next_proprio`` f32 [B, S] are detached one-step predictions of the first
    target, made without looking at it; ``is_prediction`` bool [B] says for which rows that holds. Self-rollout
    training feeds them back as contexts.
    """

    loss: Tensor
    metrics: Metrics
    next_frames: Tensor
    next_proprio: Tensor
    is_prediction: Tensor


class WorldState(Protocol):
    """Plain tensors; ``noise_key`` int64 [B] and ``step`` int64 [B] make the noise a function of (key, step)."""

    noise_key: Tensor
    step: Tensor

    def rows(self, index: Tensor | list[int]) -> Any:
        """Fork or select rows (repeats allowed); a fork continues bit-equal."""
        ...

    def to_tensors(self) -> dict[str, Tensor]:
        """All there is to save, by name; see `WorldModel.restore`."""
        ...


class WorldModel(Protocol):
    """``num_context_frames`` is K of the clips that it learns from, see `worldloop.core.types.Clip`."""

    spec: SimulatorSpec

    @property
    def num_context_frames(self) -> int: ...

    def compute_loss(self, clip: Clip, generator: torch.Generator) -> WorldModelOutput: ...

    def measure(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """What `take_in` needs of a part of a batch: counts, which add up, and extremes, whose largest counts."""
        ...

    def take_in(self, counts: Tensor, extremes: Tensor) -> None:
        """Statistics of the data that the model keeps, brought up to date before the losses of a training batch."""
        ...

    def compute_proprio_loss(self, clip: Clip) -> Tensor:
        """What the proprio head alone learns from, with gradients for nothing else; M frames, unrolled."""
        ...

    def start(self, context: Observation, noise_key: Tensor) -> Any:
        """A `WorldState` from the context's frames and proprio; ``noise_key`` int64 [B]."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> Any:
        """The `WorldState` that ``tensors`` were saved of; it goes on equal within float tolerance."""
        ...

    def imagine(self, state: Any, actions: Tensor) -> tuple[Any, ImaginedChunk]:
        """Roll ``actions`` f32 [B, H, A] forward without gradients."""
        ...

    def features(self, context: Observation) -> Tensor:
        """Tokens [B, N, C] of the last context frame, with gradients, for critics and experts to build on."""
        ...


@dataclass(frozen=True)
class ImaginedChunk(Rows):
    """M imagined frames: ``frames`` u8 [B, M, h, w, 3], ``proprio`` f32 [B, M, S], ``success_logit`` f32 [B, M].

    ``expected_psnr_db`` f32 [B, M] is the model's own estimate of how close each frame is to what would be simulated;
    ``None`` where a model has none.
    """

    frames: Tensor
    proprio: Tensor
    success_logit: Tensor
    expected_psnr_db: Tensor | None = None


class Actor(Protocol):
    """What a rollout needs of a policy; ``version`` names the weights."""

    version: str

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """Sample with one noise key per row (a function of the key and ``observation.env_step``), or take the
        most likely actions when ``noise_key`` is ``None``. No gradients.
        """
        ...


class Network(Protocol):
    """What callers use of a `torch.nn.Module`."""

    training: bool

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def to(self, device: torch.device) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


class Policy(Actor, Network, Protocol):
    """A `torch.nn.Module` that acts: a line in `worldloop.policies.POLICIES`, or ``module:Class`` in a config.

    ``Config`` is a frozen dataclass, built from the config's section of that name. Weights are random at first.
    ``temperature`` is that of sampling and of every log-probability; it and ``version`` are set from outside. For GRPO
    the chunks of `act` have ``log_probs``, and what `log_prob` needs to find them again in ``trace``.
    """

    Config: type[Any]
    spec: SimulatorSpec
    normalisation: Normalisation
    chunk_length: int
    temperature: float

    def __init__(self, config: Any, spec: SimulatorSpec, normalisation: Normalisation, chunk_length: int) -> None: ...

    def fit_image_statistics(self, frames: Tensor) -> None:
        """Called once before cloning with all frames to imitate, u8 [N, h, w, 3]; may do nothing."""
        ...

    def log_prob(self, observation: Observation, chunk: ActionChunk) -> Tensor:
        """Exact log-probability f32 [B, H] of each action of ``chunk``, with gradients."""
        ...

    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """A scalar to minimise, the mean over the batch's valid actions, and metrics; ``generator`` (CPU) augments."""
        ...


__all__ = [
    "ActionChunk",
    "Actor",
    "ChunkStep",
    "ImaginedChunk",
    "InitialStateSource",
    "Metrics",
    "Network",
    "Policy",
    "ScriptedSource",
    "Simulator",
    "TaskSimulator",
    "WorldModel",
    "WorldModelOutput",
    "WorldState",
]
