"""The data types that packages exchange, with their shapes checked.

Shape legend: B rows, K context frames, H actions a chunk, M = H / s frames a chunk, s actions per
stored frame (``actions_per_frame``), T environment steps, F = ceil(T / s) frame steps of an episode,
S proprio, A action, D simulator state, h x w pixels.

Images are ``uint8`` HWC everywhere outside a network; only `worldloop.core.images` converts them.
A stored `Episode` is numpy; everything else is torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from worldloop.core.tensors import Rows, check_dtype, check_frames, check_shape

Outcome = Literal["success", "near_success", "failure"]
Source = Literal["expert", "perturbed", "policy", "recorded"]
Split = Literal["train", "validation", "evaluation"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
SOURCES: tuple[Source, ...] = get_args(Source)
SPLITS: tuple[Split, ...] = get_args(Split)

EPISODE_SCHEMA_VERSION = 2  # 2: imagined_success


@dataclass(frozen=True)
class InitialStates:
    """N simulator states of one split, from which episodes start.

    - ``ids``: N unique strings, e.g. ``PushCube-v1/evaluation/000017``; ``tasks``: N task ids
    - ``states`` f32 [N, D]: the last entry is the environment step; a shorter state is padded with zeros before it
    """

    split: Split
    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    states: Tensor

    def __post_init__(self) -> None:
        check_shape("InitialStates.states", self.states, (len(self.ids), None))
        if len(self.tasks) != len(self.ids):
            raise ValueError(f"{len(self.tasks)} tasks for {len(self.ids)} initial states")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is not one of {SPLITS}")

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, index: Tensor | list[int] | range) -> InitialStates:
        """The states at ``index``, in that order."""
        index = list(index) if not isinstance(index, Tensor) else index.tolist()
        ids, tasks = (tuple(values[i] for i in index) for values in (self.ids, self.tasks))
        return InitialStates(self.split, ids, tasks, self.states[index])

    @classmethod
    def cat(cls, parts: Sequence[InitialStates]) -> InitialStates:
        """The states of all ``parts``, in order; all parts are of one split."""
        ids = tuple(i for part in parts for i in part.ids)
        tasks = tuple(task for part in parts for task in part.tasks)
        return cls(parts[0].split, ids, tasks, torch.cat([part.states for part in parts]))


@dataclass(frozen=True)
class EpisodeMeta:
    """Where an episode comes from and how it ended.

    - ``task``: the id of its `TaskSpec`; ``instruction``: one of the task's paraphrases
    - ``margin_m``: smallest distance to the success region over the episode, in metres; 0 on success, NaN if unknown
    - ``source``: scripted (``expert`` or ``perturbed``), a ``policy``, or ``recorded`` elsewhere (`sans.recordings`).
      ``expert`` is also a demonstration that was recorded elsewhere for a run with a simulator (`sans.demonstrations`)
    - ``variant``: the scripted variant (``expert``, ``stops_short``, ...), ``demonstration``, or ``noisy_replay`` for
      a policy's actions with noise. Of a policy:
      ``policy``; ``rejected`` for a candidate that did not become the policy; ``replay`` for actions that it chose in
      imagination
    - ``imagined_success``: of a replay, the success probability that the world model gave to these actions, 0 to 1.
      Beside ``outcome`` it tells what the model got wrong. ``None``: not imagined
    """

    task: str
    instruction: str
    initial_state_id: str
    split: Split
    outcome: Outcome
    margin_m: float
    source: Source
    variant: str
    iteration: int
    control_mode: str
    hz: float
    actions_per_frame: int
    simulator_version: str
    policy_version: str
    schema_version: int = EPISODE_SCHEMA_VERSION
    imagined_success: float | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES or self.source not in SOURCES or self.split not in SPLITS:
            raise ValueError(f"bad outcome, source or split: {self.outcome}, {self.source}, {self.split}")


@dataclass(frozen=True)
class Episode:
    """One stored episode. Rule: ``actions[f]`` leads from ``frames[f]`` to ``frames[f + 1]``.

    - ``frames``: camera name -> u8 [F+1, h, w, 3]
    - ``proprio`` f32 [F+1, S]
    - ``sim_state`` f32 [F+1, D], privileged: only for exact restart and labels; D = 0 without a simulator, NaN in a
      demonstration that was recorded elsewhere
    - ``actions`` f32 [F, s, A] in environment units; where no step was executed zeros, in a recording the last action
    - ``valid`` bool [F, s]: executed, and not after the first success
    - ``rewards`` f32 [F, s]: 1.0 on the step of the first success, else 0
    - ``success`` bool [F, s]: the simulator's own flag at that step
    - ``distances_m`` f32 [F, s]: distance to the success region after that step (0 = inside), NaN if unknown
    - ``terminated``: ended by success; ``truncated``: ended by the time limit

    Worked example, s=2, T=3, success at the third step: ``valid = [[1, 1], [1, 0]]``,
    ``success = [[0, 0], [1, 1]]``, ``rewards = [[0, 0], [1, 0]]``, ``terminated = True``.
    """

    meta: EpisodeMeta
    frames: dict[str, np.ndarray]
    proprio: np.ndarray
    actions: np.ndarray
    valid: np.ndarray
    rewards: np.ndarray
    success: np.ndarray
    distances_m: np.ndarray
    sim_state: np.ndarray
    terminated: bool
    truncated: bool

    def __post_init__(self) -> None:
        F, s = self.actions.shape[:2]
        for name, images in self.frames.items():
            check_shape(f"Episode.frames[{name!r}]", images, (F + 1, None, None, 3))
            check_dtype(f"Episode.frames[{name!r}]", images, np.uint8)
        check_shape("Episode.proprio", self.proprio, (F + 1, None))
        check_shape("Episode.sim_state", self.sim_state, (F + 1, None))
        check_shape("Episode.actions", self.actions, (F, s, None))
        for key in ("valid", "rewards", "success", "distances_m"):
            check_shape(f"Episode.{key}", getattr(self, key), (F, s))
        if F == 0:
            raise ValueError("an episode needs at least one frame step")

    @property
    def num_frame_steps(self) -> int:
        return int(self.actions.shape[0])

    @property
    def num_env_steps(self) -> int:
        """The number of valid environment steps: up to the first success, including it."""
        return int(self.valid.sum())

    @property
    def is_success(self) -> bool:
        return self.meta.outcome == "success"


@dataclass(frozen=True)
class Observation(Rows):
    """B rows of what a policy and a world model see.

    - ``frames``: camera name -> u8 [B, K, h, w, 3]: K = 3 is (first of the episode, previous, now), K = 1 only
      now. Cameras may differ in size, but not in K.
    - ``proprio`` f32 [B, S] in raw units, or ``None`` if there is none (never zeros)
    - ``task``: B task ids; ``instruction``: B strings that say what to do
    - ``env_step`` int64 [B]: environment steps since the episode's start
    - ``sim_state`` f32 [B, D] or ``None``: privileged, for scripted experts and exact restart; never an input to a
      policy or a world model
    """

    frames: dict[str, Tensor]
    proprio: Tensor | None
    task: tuple[str, ...]
    instruction: tuple[str, ...]
    env_step: Tensor
    sim_state: Tensor | None = None

    def __post_init__(self) -> None:
        B = len(self.instruction)
        check_frames("Observation.frames", self.frames, B)
        if len(self.task) != B:
            raise ValueError(f"{len(self.task)} tasks for {B} instructions")
        check_shape("Observation.env_step", self.env_step, (B,))
        if self.proprio is not None:
            check_shape("Observation.proprio", self.proprio, (B, None))

    def __len__(self) -> int:
        return len(self.instruction)

    @property
    def num_frames(self) -> int:
        """K, the number of context frames."""
        return next(iter(self.frames.values())).shape[1]

    def with_cameras(self, names: Sequence[str]) -> Observation:
        """The same observation with only the cameras called ``names``. Raises ``ValueError`` if one is missing."""
        missing = [name for name in names if name not in self.frames]
        if missing:
            raise ValueError(f"the observation has no camera {missing[0]!r}: it has {', '.join(self.frames)}")
        return replace(self, frames={name: self.frames[name] for name in names})


@dataclass(frozen=True)
class ActionChunk(Rows):
    """H actions decided at once.

    - ``actions`` f32 [B, H, A] in environment units
    - ``log_probs`` f32 [B, H] (summed over A), exact under the policy that acted, or ``None``
    - ``trace``: tensors [B, ...] that ``LikelihoodPolicy.log_prob`` needs, e.g. token ids
    """

    actions: Tensor
    log_probs: Tensor | None = None
    trace: dict[str, Tensor] = field(default_factory=dict)
    policy_version: str = ""

    def __post_init__(self) -> None:
        B, H, _ = self.actions.shape
        if self.log_probs is not None:
            check_shape("ActionChunk.log_probs", self.log_probs, (B, H))


@dataclass(frozen=True)
class ChunkStep(Rows):
    """What a real or imagined simulator returns for one chunk of H actions.

    - ``observation``: after the chunk
    - ``frames``: camera name -> u8 [B, M, h, w, 3], ``proprio`` f32 [B, M, S] or ``None``: after every s actions
    - ``rewards`` f32 [B, H]: sparse; 1.0 on the step of the first success (simulated), or on the last step of the frame
      that declares a success (imagined)
    - ``success_prob`` f32 [B, M]: 0 or 1 (simulated), or the success head's probability of each frame (imagined)
    - ``valid`` bool [B, H]: false after the first success, and for rows that ended before this chunk
    - ``success`` bool [B, H]: the success flag after each action
    - ``terminated`` bool [B]: ended after a success, in a simulator ``SimulatorSpec.success_hold_frames`` frames later
    - ``truncated`` bool [B]: ended without a success, e.g. at the time limit; both stay true once a row has ended
    - ``distances_m`` f32 [B, H] or ``None``, ``sim_states`` f32 [B, M, D] or ``None``: privileged
    - ``expected_psnr_db`` f32 [B, M] (imagined) or ``None``: the calibrated PSNR that the model expects of each frame,
      the mean over cameras; ``inf`` where nothing was imagined

    Worked example, B=1, H=4, s=2, success at the third action: ``valid = [[1, 1, 1, 0]]``,
    ``rewards = [[0, 0, 1, 0]]``, ``success = [[0, 0, 1, 1]]``, ``success_prob = [[0, 1]]``, ``terminated = [1]``.
    """

    observation: Observation
    frames: dict[str, Tensor]
    proprio: Tensor | None
    rewards: Tensor
    success_prob: Tensor
    valid: Tensor
    success: Tensor
    terminated: Tensor
    truncated: Tensor
    distances_m: Tensor | None = None
    sim_states: Tensor | None = None
    expected_psnr_db: Tensor | None = None

    def __post_init__(self) -> None:
        B, H = self.valid.shape
        M = self.success_prob.shape[1]
        check_frames("ChunkStep.frames", self.frames, B, M)
        check_shape("ChunkStep.rewards", self.rewards, (B, H))
        check_shape("ChunkStep.success", self.success, (B, H))
        check_shape("ChunkStep.success_prob", self.success_prob, (B, None))
        check_shape("ChunkStep.terminated", self.terminated, (B,))
        check_shape("ChunkStep.truncated", self.truncated, (B,))

    @property
    def done(self) -> Tensor:
        return self.terminated | self.truncated


@dataclass(frozen=True)
class Clip(Rows):
    """A training window: K context frames, then M frame steps to predict.

    - ``context``: camera name -> u8 [B, K, h, w, 3]: see `worldloop.core.context_frames`
    - ``context_proprio`` f32 [B, S] and ``context_landmarks`` f32 [B, P], in metres: at the frame now. P coordinates of
      objects, which proprio does not tell; 0 where none are known, NaN where the simulator's state is not
    - ``actions`` f32 [B, M, s, A]: the actions before each target frame
    - ``frames``: camera name -> u8 [B, M, h, w, 3], ``proprio`` f32 [B, M, S], ``landmarks`` f32 [B, M, P]: targets
    - ``success`` f32 [B, M]: 1 if the episode has succeeded at or before that frame: the outcome, which stays
    - ``holds`` f32 [B, M]: 1 if the task is solved at that frame, which the frame shows: the success head's label. A
      grasp that slips within the frame step is a success that does not hold.
    - ``valid`` bool [B, M]: false where the episode had already ended (padding repeats the last frame)
    - ``task``: B task ids; ``instruction``: B strings
    - ``index`` int64 [B, 2]: (episode, frame step of "now") in the dataset version the clip came from
    - ``is_on_policy`` bool [B]: a policy acted in the episode

    A clip that was loaded without cameras has no images: ``context`` and ``frames`` are empty.
    """

    context: dict[str, Tensor]
    context_proprio: Tensor
    context_landmarks: Tensor
    actions: Tensor
    frames: dict[str, Tensor]
    proprio: Tensor
    landmarks: Tensor
    success: Tensor
    holds: Tensor
    valid: Tensor
    task: tuple[str, ...]
    instruction: tuple[str, ...]
    index: Tensor
    is_on_policy: Tensor

    def __post_init__(self) -> None:
        B, M = self.valid.shape
        if self.context or self.frames:
            check_frames("Clip.context", self.context, B)
            check_frames("Clip.frames", self.frames, B, M)
        check_shape("Clip.context_proprio", self.context_proprio, (B, None))
        check_shape("Clip.context_landmarks", self.context_landmarks, (B, None))
        check_shape("Clip.actions", self.actions, (B, M, None, None))
        check_shape("Clip.proprio", self.proprio, (B, M, None))
        check_shape("Clip.landmarks", self.landmarks, (B, M, self.context_landmarks.shape[1]))
        check_shape("Clip.success", self.success, (B, M))
        check_shape("Clip.holds", self.holds, (B, M))
        check_shape("Clip.index", self.index, (B, 2))


@dataclass(frozen=True)
class ImitationBatch(Rows):
    """Observations and the action chunks to imitate: ``actions`` f32 [B, H, A], ``valid`` bool [B, H].

    ``is_interaction`` int64 [B], for a policy with an `InteractionRule`: 1 where a chunk begins in an interaction, 0
    where not, -1 unknown; else ``None``.
    """

    observation: Observation
    actions: Tensor
    valid: Tensor
    is_interaction: Tensor | None = None


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of proprio, f32 [S] each. They never change and are part of every checkpoint."""

    proprio_mean: Tensor
    proprio_std: Tensor

    def normalise(self, proprio: Tensor) -> Tensor:
        return (proprio - self.proprio_mean.to(proprio)) / self.proprio_std.to(proprio)

    def denormalise(self, normal: Tensor) -> Tensor:
        """Inverse of `normalise`."""
        return normal * self.proprio_std.to(normal) + self.proprio_mean.to(normal)


@dataclass(frozen=True)
class Rollout:
    """B on-policy rows from one simulator, real or imagined, over C chunks, before advantages are computed.

    - ``group_id`` int64 [B]; ``initial_state_id``: B strings; ``origin``
    - ``observations``: C observations [B]; ``chunks``: C action chunks [B]; ``steps``: C results [B]
    - ``policy_version``, ``simulator_version``

    The policy chose ``chunks[c]`` from ``observations[c]``; ``steps[c]`` is the result.
    """

    origin: Literal["imagined", "simulated"]
    group_id: Tensor
    initial_state_id: tuple[str, ...]
    observations: tuple[Observation, ...]
    chunks: tuple[ActionChunk, ...]
    steps: tuple[ChunkStep, ...]
    policy_version: str
    simulator_version: str

    def __post_init__(self) -> None:
        if not len(self.observations) == len(self.chunks) == len(self.steps) > 0:
            raise ValueError("a rollout needs as many observations as chunks and steps, and at least one")

    @property
    def success(self) -> Tensor:
        """bool [B]: success at any valid step."""
        return torch.stack([(s.success & s.valid).any(1) for s in self.steps]).any(0)

    @property
    def valid(self) -> Tensor:
        """bool [B, C*H]."""
        return torch.cat([s.valid for s in self.steps], dim=1)

    @property
    def lowest_expected_psnr_db(self) -> Tensor | None:
        """f32 [B]: the lowest expected PSNR of each row, ``inf`` if nothing was imagined; ``None`` in a simulator."""
        parts = [s.expected_psnr_db for s in self.steps if s.expected_psnr_db is not None]
        return torch.cat(parts, dim=1).amin(1) if len(parts) == len(self.steps) else None
