"""The seams of the system. Implementations live in the leaf packages and never import each other.

ManiSkill and a world model are both a `Simulator`; a policy cannot tell which it is in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from worldloop.core.specs import SimulatorSpec
from worldloop.core.tensors import Rows
from worldloop.core.types import (
    ActionChunk,
    ChunkStep,
    ImitationBatch,
    InitialStates,
    Normalisation,
    Observation,
    Split,
)

Metrics = dict[str, float]


@runtime_checkable
class Simulator(Protocol):
    """A batch of environments that is stepped by action chunks. There is no hidden auto-reset."""

    spec: SimulatorSpec
    num_envs: int

    def reset(self, initial_states: InitialStates | Observation, rows: Tensor | None = None) -> Observation:
        """Start rows from simulator states, or from observations (with ``sim_state``, or in an imagined simulator).

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

    def draw_initial_states(
        self, task: str, split: Split, num_states: int, seed: int, first: int = 0
    ) -> InitialStates: ...


@runtime_checkable
class ScriptedSource(Protocol):
    """A simulator with scripted policies, of which iteration 0 is recorded."""

    def make_scripted_policy(
        self, tasks: tuple[str, ...], variants: tuple[str, ...], row_keys: Tensor, chunk_length: int
    ) -> Actor:
        """A policy for one rollout: row b does ``tasks[b]`` as ``variants[b]``, randomness from ``row_keys`` int64 [B].

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
class WorldState(Rows):
    """Where an imagined rollout of B rows stands: plain tensors, so that rows can be indexed, forked, put and saved.

    Noise is a function of ``noise_key`` int64 [B] and ``step`` int64 [B], the frames imagined so far. A fork continues
    bit-equal in a batch of the same size.
    """

    noise_key: Tensor
    step: Tensor

    def __len__(self) -> int:
        return len(self.noise_key)

    def to_tensors(self) -> dict[str, Tensor]:
        """All there is to save, by name; see `WorldModel.restore`."""
        raise NotImplementedError


class WorldModel(Protocol):
    """A video world model with heads for proprio and success, as everything that imagines sees it.

    ``spec`` names the cameras that it reads and imagines, all in one pass, and the tasks that it learned.
    """

    spec: SimulatorSpec

    def start(self, context: Observation, noise_key: Tensor) -> WorldState:
        """From the context's frames and proprio; ``noise_key`` int64 [B]."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> WorldState:
        """The state that ``tensors`` were saved of; it goes on equal within float tolerance."""
        ...

    def imagine(self, state: WorldState, actions: Tensor) -> tuple[WorldState, ImaginedChunk]:
        """Roll ``actions`` f32 [B, H, A] forward without gradients."""
        ...

    def features(self, context: Observation) -> Tensor:
        """Tokens [B, N, C] of the last context frame, with gradients, for critics and experts to build on."""
        ...


@dataclass(frozen=True)
class ImaginedChunk(Rows):
    """M imagined frames: ``frames`` camera name -> u8 [B, M, h, w, 3], ``proprio`` f32 [B, M, S].

    ``success_logit`` f32 [B, M]. ``expected_psnr_db`` f32 [B, M] is the model's own estimate of how close each frame is
    to what would be simulated, the mean over cameras; ``None`` where a model has none.
    """

    frames: dict[str, Tensor]
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


class ImitationSource(Protocol):
    """Observations and the action chunks to imitate, from real episodes."""

    def images(self) -> dict[str, Tensor]:
        """Camera name -> u8 [N, h, w, 3]: the frame at every start of a chunk."""
        ...

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        """B chunks of H = ``chunk_length`` actions, drawn with replacement."""
        ...


class Policy(nn.Module, ABC):
    """A policy that can act and imitate; ``Policy(config, spec, normalisation, chunk_length)`` has random weights.

    It is a line in `worldloop.policies.POLICIES`, or ``module:Class`` in a config. ``Config`` is a frozen dataclass,
    built from the config's section of that name.
    ``temperature`` is that of sampling and of every log-probability; it and ``version``, which names the weights, are
    set from outside.
    """

    Config: ClassVar[type[Any]]
    spec: SimulatorSpec  # of the cameras that it reads
    normalisation: Normalisation
    chunk_length: int
    temperature: float
    version: str

    @abstractmethod
    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """See `Actor.act`."""

    @abstractmethod
    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """A scalar to minimise, the mean over the batch's valid actions, and metrics; ``generator`` (CPU) augments."""

    def prepare(self, dataset: ImitationSource) -> None:
        """Called once before cloning, e.g. for image statistics, which then belong to the state dict."""
        return


class LikelihoodPolicy(Policy):
    """A policy with exact log-probabilities, as GRPO needs them.

    The chunks of `act` have ``log_probs``, and in ``trace`` what `log_prob` needs to find them again.
    """

    @abstractmethod
    def log_prob(self, observation: Observation, chunk: ActionChunk) -> Tensor:
        """Exact log-probability f32 [B, H] of each action of ``chunk``, with gradients."""


class AdvantageConditionedPolicy(Policy):
    """A policy that learns from good and bad actions alike, told which is which (RECAP, arXiv:2511.14759).

    `act` asks for good ones. ``guidance`` b >= 1 sharpens that: log pi_u + b (log pi_c - log pi_u), with c conditioned
    and u not; it is set from outside.
    """

    guidance: float

    @abstractmethod
    def compute_conditioned_loss(
        self, batch: ImitationBatch, is_good: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """As `compute_imitation_loss`; ``is_good`` int64 [B]: 1 for a positive advantage, 0 for another, -1 unknown."""


class Progress(Protocol):
    """A progress bar; ``advance`` may raise ``KeyboardInterrupt`` where the run was interrupted."""

    def advance(self, count: int = 1, **figures: float) -> None: ...


class Writer(Protocol):
    """TensorBoard of one stage; steps start where `Reporter.writer` was told to purge."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def judgement(self, tag: str, step: int, probability: np.ndarray, is_success: np.ndarray) -> None:
        """Precision-recall and reliability of ``probability`` f [n] against ``is_success`` bool [n]."""
        ...

    def video(self, tag: str, step: int, frames: Tensor, fps: float) -> None:
        """``frames`` u8 [F, h, w, 3]."""
        ...


class Reporter(Protocol):
    """What a person sees of a stage. On a rank that is not the main one nothing is shown or written."""

    def progress(self, total: int, unit: str) -> AbstractContextManager[Progress]: ...

    def writer(self, name: str, purge_step: int) -> AbstractContextManager[Writer]:
        """A writer to the folder ``name``; what it holds from ``purge_step`` on is dropped."""
        ...

    def log(self, line: str) -> None: ...


class SilentWriter:
    """A `Writer` that writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def judgement(self, tag: str, step: int, probability: np.ndarray, is_success: np.ndarray) -> None:
        pass

    def video(self, tag: str, step: int, frames: Tensor, fps: float) -> None:
        pass


__all__ = [
    "ActionChunk",
    "Actor",
    "AdvantageConditionedPolicy",
    "ChunkStep",
    "ImaginedChunk",
    "ImitationSource",
    "InitialStateSource",
    "LikelihoodPolicy",
    "Metrics",
    "Policy",
    "Progress",
    "Reporter",
    "ScriptedSource",
    "SilentWriter",
    "Simulator",
    "TaskSimulator",
    "WorldModel",
    "WorldState",
    "Writer",
]
