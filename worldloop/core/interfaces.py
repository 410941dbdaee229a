"""The interfaces of the system. Implementations live in the leaf packages and never import each other.

ManiSkill and a world model both act as a `Simulator`; a policy cannot tell which one it runs in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from worldloop.core.interaction import InteractionRule
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
    """A batch of environments that executes action chunks. There is no hidden auto-reset."""

    spec: SimulatorSpec
    num_envs: int

    def reset(self, initial_states: InitialStates | Observation, rows: Tensor | None = None) -> Observation:
        """Start rows from initial states or from observations; return the observation of the whole batch.

        A real simulator needs observations with ``sim_state``; an imagined one needs observations.

        Without ``rows`` the batch becomes exactly these B <= num_envs rows; with ``rows`` int64 [N] only those
        rows of the running batch start anew.
        """
        ...

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        """Execute ``actions`` f32 [B, H, A]. Rows that have ended do not change, and their ``valid`` is false."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class InitialStateSource(Protocol):
    """A simulator that draws the initial states of a split, each from its own seed."""

    def draw_initial_states(
        self, task: str, split: Split, num_states: int, seed: int, first: int = 0
    ) -> InitialStates: ...


@runtime_checkable
class ScriptedSource(Protocol):
    """A simulator with scripted policies; they record the episodes of iteration 0."""

    def make_scripted_policy(
        self, tasks: tuple[str, ...], variants: tuple[str, ...], row_keys: Tensor, chunk_length: int
    ) -> Actor:
        """A policy for one rollout: row b does ``tasks[b]`` as ``variants[b]``, randomness from ``row_keys`` int64 [B].

        The variant ``expert`` demonstrates the task; every other name in `seed_dataset.episodes` is a worse version of
        it. A scripted policy may read ``observation.sim_state``. Raises ``ValueError`` for an unknown variant.
        """
        ...


class TaskSimulator(Simulator, InitialStateSource, ScriptedSource, Protocol):
    """A simulator that a run can be built on.

    A config names it by its key in `worldloop.simulators.SIMULATORS` or as ``module:Class``. ``Config`` is a frozen
    dataclass, built from the config section of the simulator's name. ``Config`` may have ``for_play() -> Config`` for
    `worldloop.play`: one row, and episodes that end neither at a success nor at a time limit. The class may have
    ``VARIATIONS``, names of changes to test a policy with (`worldloop benchmark-ood`); ``Config`` then has
    ``variation``, one of them or "".
    """

    Config: type[Any]

    def __init__(self, config: Any) -> None: ...

    @staticmethod
    def make_spec(config: Any) -> SimulatorSpec:
        """The spec of the simulator that ``config`` describes. Starts nothing and needs no simulator package."""
        ...


@dataclass(frozen=True)
class WorldState(Rows):
    """The state of an imagined rollout of B rows: plain tensors, so that rows can be indexed, forked, put and saved.

    Noise is a function of ``noise_key`` int64 [B] and of ``step`` int64 [B], the number of frames imagined so far. A
    fork continues bit-equal in a batch of the same size.
    """

    noise_key: Tensor
    step: Tensor

    def __len__(self) -> int:
        return len(self.noise_key)

    def to_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor: everything that `WorldModel.restore` needs."""
        raise NotImplementedError


class WorldModel(Protocol):
    """A video world model with heads for proprio and success.

    ``spec`` has the cameras that the model reads and imagines, all in one pass, and the tasks that it learned.
    """

    spec: SimulatorSpec

    def start(self, context: Observation, noise_key: Tensor) -> WorldState:
        """The state after the frames and proprio of ``context``; ``noise_key`` int64 [B] seeds each row's noise."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> WorldState:
        """The state that was saved as ``tensors``; imagination continues from it, equal within float tolerance."""
        ...

    def imagine(self, state: WorldState, actions: Tensor) -> tuple[WorldState, ImaginedChunk]:
        """Imagine the frames that follow ``actions`` f32 [B, H, A], without gradients."""
        ...

    def features(self, context: Observation) -> Tensor:
        """Tokens [B, N, C] of the frame after the context, with gradients; critics and experts can build on them."""
        ...


class Planner(Protocol):
    """Imagines what a robot that succeeds will show, from what it sees and from the instruction alone."""

    spec: SimulatorSpec

    @property
    def normalisation(self) -> Normalisation: ...

    @property
    def feature_dim(self) -> int:
        """F, the channels of a token of `features`."""
        ...

    def plan(self, context: Observation, noise_key: Tensor | None, num_frames: int) -> dict[str, Tensor]:
        """The next M = ``num_frames`` frames, camera name -> u8 [B, M, h, w, 3], without gradients.

        ``noise_key`` int64 [B] seeds each row's noise; ``None``: the same noise at every call.
        """
        ...

    def features(self, context: Observation) -> Tensor:
        """Tokens f32 [B, N, F] of the next frame before it is drawn, without gradients; policies can build on them."""
        ...


class ActionReader(Protocol):
    """Inverse dynamics, as an actor uses it."""

    spec: SimulatorSpec

    def read_plan(self, seen: Mapping[str, Tensor], plan: Mapping[str, Tensor]) -> Tensor:
        """The actions that lead from what was ``seen`` through ``plan``, f32 [B, M s, A], within the robot's bounds.

        Both are camera -> u8 frames: [B, K >= 2, h, w, 3], the last of which is now, and [B, M, h, w, 3].
        """
        ...


class SlotReader(Protocol):
    """A world model that lets further tokens, called slots, attend to what it sees; ViVa's value is read from them.

    ``feature_dim`` is F, the channels of a token; ``num_latents`` is the number of latent values of a frame in all
    cameras. It is a `torch.nn.Module`.
    """

    spec: SimulatorSpec

    @property
    def normalisation(self) -> Normalisation: ...

    @property
    def feature_dim(self) -> int: ...

    @property
    def num_latents(self) -> int: ...

    def read_slots(self, context: Observation, slots: Tensor, t: Tensor) -> Tensor:
        """The slots f32 [B, n, F] after they have attended to ``context`` and to one another, with gradients.

        ``t`` f32 [B, n]: the time of each slot, from noise (0) to data (1). No action is known. Whether the slots see
        the proprio of ``context`` depends on the model, so what needs it has a slot for it.
        """
        ...


@dataclass(frozen=True)
class ImaginedChunk(Rows):
    """M imagined frames: ``frames`` camera name -> u8 [B, M, h, w, 3], ``proprio`` f32 [B, M, S].

    ``success_logit`` f32 [B, M] is the success head's. ``expected_psnr_db`` f32 [B, M] is the model's own estimate of
    the PSNR between each frame and the simulated one, the mean over cameras; ``None`` if the model makes no estimate.
    """

    frames: dict[str, Tensor]
    proprio: Tensor
    success_logit: Tensor
    expected_psnr_db: Tensor | None = None


class Actor(Protocol):
    """The part of a policy that a rollout uses; ``version`` names the weights."""

    version: str

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """Sample actions, or take the most likely ones if ``noise_key`` is ``None``. No gradients.

        ``noise_key`` int64 [B]: a row's sample is a function of its key and of its ``observation.env_step``.
        """
        ...


class ImitationSource(Protocol):
    """Observations and the action chunks to imitate, from real episodes."""

    def images(self) -> dict[str, Tensor]:
        """Camera name -> u8 [n, h, w, 3], for image statistics: frames at the starts of chunks, evenly spaced.

        As many as fit in memory; all of them if they do.
        """
        ...

    def observations(self, block_size: int) -> Iterator[Observation]:
        """The observations at the start of every chunk, in a fixed order, in blocks of so many rows."""
        ...

    def proprio(self) -> Tensor:
        """f32 [N, S]: at the start of every chunk, in raw units."""
        ...

    def actions(self) -> Tensor:
        """f32 [n, A]: every valid action, once, in environment units."""
        ...

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        """B chunks of H = ``chunk_length`` actions, drawn with replacement."""
        ...


class Policy(nn.Module, ABC):
    """A policy that can act and imitate; ``Policy(config, spec, normalisation, chunk_length)`` has random weights.

    A config names it by its key in `worldloop.policies.POLICIES` or as ``module:Class``. ``Config`` is a frozen
    dataclass, built from the config section of the policy's name. ``temperature`` applies to sampling and to every
    log-probability. ``version`` names the weights. The caller sets both.
    """

    Config: ClassVar[type[Any]]
    interaction: InteractionRule | None = None  # what the batches of a policy that tells interaction from transit say
    spec: SimulatorSpec  # with only the cameras that the policy reads
    normalisation: Normalisation
    chunk_length: int
    temperature: float
    version: str

    @classmethod
    def choose_class(cls, settings: Any) -> type[Policy]:
        """The class to build with ``settings``: this one, or a subclass that can do more."""
        return cls

    @abstractmethod
    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """See `Actor.act`."""

    @abstractmethod
    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The loss to minimise, a mean over the valid actions of ``batch``, and metrics.

        ``generator`` (CPU) draws the augmentation.
        """

    def prepare(self, dataset: ImitationSource) -> None:
        """Prepare for cloning; called once before it. Image statistics, for example, become part of the state dict."""
        return

    @property
    def imitation_length(self) -> int:
        """H of the chunks to imitate, a multiple of ``actions_per_frame``; longer than those it acts in, or as long."""
        return self.chunk_length

    def describe_settings(self, settings: Any) -> Any:
        """``settings``, an instance of ``Config``, as a checkpoint keeps them, which must load without other files.

        Settings that name a file are replaced by what was read from it.
        """
        return settings


class PlannedPolicy(Policy):
    """A policy that builds on a fitted planner, ``PlannedPolicy(config, planner, chunk_length)``.

    ``planner`` is a `Planner` and a `torch.nn.Module`, frozen, and part of the policy's state dict. The loop fits it
    before it clones the policy, in iteration 0 as well.
    """

    planner: nn.Module


class GatedPolicy(Policy):
    """A policy that chooses between experts by whether it sees an interaction; ``interaction`` gives the labels."""

    @abstractmethod
    def tell_interaction(self, observation: Observation) -> Tensor:
        """The probability of an interaction, f32 [B]; without gradients."""


class LikelihoodPolicy(Policy):
    """A policy with exact log-probabilities, which GRPO needs.

    `act` returns chunks with ``log_probs``; their ``trace`` holds what `log_prob` needs to compute them again.
    """

    @abstractmethod
    def log_prob(self, observation: Observation, chunk: ActionChunk) -> Tensor:
        """Exact log-probability f32 [B, H] of each action of ``chunk``, with gradients."""


class AdvantageConditionedPolicy(Policy):
    """A policy that learns from good and bad actions, told which is which (RECAP, arXiv:2511.14759).

    ``guidance`` b >= 0 says how it acts: by log pi_u + b (log pi_c - log pi_u), where pi_c is conditioned on good
    actions and pi_u is not. 0, as after construction: pi_u. 1: pi_c. Above 1 the condition is strengthened. The caller
    sets it; it is a buffer, so checkpoints keep it.
    """

    guidance_weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("guidance_weight", torch.tensor(0.0))

    @property
    def guidance(self) -> float:
        return float(self.guidance_weight)

    @guidance.setter
    def guidance(self, value: float) -> None:
        self.guidance_weight.fill_(value)

    @abstractmethod
    def compute_conditioned_loss(
        self, batch: ImitationBatch, is_good: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """As `compute_imitation_loss`; ``is_good`` int64 [B]: 1: positive advantage, 0: any other, -1: unknown."""


__all__ = [
    "ActionChunk",
    "ActionReader",
    "Actor",
    "AdvantageConditionedPolicy",
    "ChunkStep",
    "GatedPolicy",
    "ImaginedChunk",
    "ImitationSource",
    "InitialStateSource",
    "LikelihoodPolicy",
    "Metrics",
    "PlannedPolicy",
    "Planner",
    "Policy",
    "ScriptedSource",
    "Simulator",
    "TaskSimulator",
    "WorldModel",
    "WorldState",
]
