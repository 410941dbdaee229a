"""Many rows of a world model as one Gymnasium vector environment. `world_model_env` describes its spaces."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import WorldModel
from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import Calibration
from worldloop.core.types import ChunkStep, Observation
from worldloop.envs.window import FrameWindow
from worldloop.rollout.imagination import ImaginedRows, ImaginedSimulator

Obs = dict[str, np.ndarray]
RENDER_MODES = ("rgb_array", "human")
OPTIONS = {"reset_mask", "start", "observation"}
GIVEN = -1  # the number of a start observation that the caller gave
_MAX_KEY = 2**62


@dataclass(frozen=True)
class Snapshot:
    """What `WorldModelVectorEnv.save` gives: rows, starts, which rows wait for a reset, and each row's generator."""

    rows: ImaginedRows
    start: np.ndarray
    ended: np.ndarray
    generators: list[np.random.Generator]


class WorldModelVectorEnv(VectorEnv):
    """``num_envs`` rows of one world model, imagined together.

    - ``starts``: observations that episodes start from; each reset draws one
    - ``calibration``: how to read the heads, from the check of the world model
    - ``autoreset_mode``: Gymnasium's next-step (default), same-step (``final_obs``, ``final_info``) or disabled, in
      which ended rows wait for ``reset(options={"reset_mask": bool [num_envs]})``
    - ``rows_at_once``: rows imagined together, 0 for all; halved where a GPU's memory does not hold them

    ``reset`` takes ``seed`` as an int (row i gets seed + i) or one per row, and in ``options`` also ``start`` int [n],
    or ``observation`` (an `Observation` of n rows), for the n rows that are reset. Bad input raises `WorldloopError`.
    """

    def __init__(
        self,
        world_model: WorldModel,
        starts: Observation,
        calibration: Calibration,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        rows_at_once: int = 0,
    ) -> None:
        if render_mode not in (None, *RENDER_MODES):
            raise WorldloopError(f"render_mode {render_mode!r} is not known: {' or '.join(RENDER_MODES)}")
        if rows_at_once < 0:
            raise WorldloopError(f"rows_at_once is {rows_at_once}, allowed: 0 (all) or more")
        if len(starts) == 0 or num_envs < 1:
            raise WorldloopError(f"{num_envs} rows and {len(starts)} observations to start from: at least one of each")
        if autoreset_mode not in list(AutoresetMode) and autoreset_mode not in [mode.value for mode in AutoresetMode]:
            known = ", ".join(mode.value for mode in AutoresetMode)
            raise WorldloopError(f"autoreset_mode {autoreset_mode!r} is not known: {known}")
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": frames_per_second(world_model.spec),
            "autoreset_mode": AutoresetMode(autoreset_mode),
        }
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.starts = starts
        self.world_spec = world_model.spec
        self._check_observation("starts", starts, len(starts))
        self.single_action_space: spaces.Box
        self.single_observation_space = make_observation_space(world_model.spec)
        self.single_action_space = make_action_space(world_model.spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._simulator = ImaginedSimulator(
            world_model, world_model.spec, calibration, num_envs, max_batch=rows_at_once
        )
        self._calibration = calibration
        self.generators = [np.random.default_rng() for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, dtype=bool)
        self._start = np.full(num_envs, GIVEN)
        self._started = False
        title = f"{world_model.spec.task}, imagined"
        self._window = FrameWindow(title, self.metadata["render_fps"]) if render_mode == "human" else None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        options = options or {}
        seeds = self._spread(seed)
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise WorldloopError(f"options['reset_mask'] must be bool [{self.num_envs}] with at least one True")
        if not mask.all():
            self._require_start()
        self._check_options(options, int(mask.sum()))
        for i in np.flatnonzero(mask):
            if seeds[i] is not None:
                self.generators[i] = np.random.default_rng(seeds[i])
        self._restart(mask, options)
        self._show()
        return self._observe(), self._start_info(mask)

    def step(self, actions: Any) -> tuple[Obs, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._require_start()
        chunk = self._check_actions(actions)
        again = self._ended.copy()
        mode = self.metadata["autoreset_mode"]
        if again.any() and mode is AutoresetMode.DISABLED:
            raise WorldloopError(f"rows {np.flatnonzero(again).tolist()} have ended: reset them with 'reset_mask'")
        step = self._simulator.step_chunk(chunk)  # rows that have ended cost nothing and stay as they are
        if again.any():
            self._restart(again, {})
        rewards = step.rewards.sum(1).double().numpy()
        terminated, truncated = step.terminated.numpy() & ~again, step.truncated.numpy() & ~again
        info = self._step_info(step, ~again)
        if again.any():
            _merge(info, self._start_info(again))
        self._ended = terminated | truncated
        if mode is AutoresetMode.SAME_STEP and self._ended.any():
            info = self._finish(info)
        self._show()
        return self._observe(), np.where(again, 0.0, rewards), terminated, truncated, info

    def save(self) -> Snapshot:
        """Everything that decides how the rows go on, random generators included."""
        self._require_start()
        rows = self._simulator.save()
        return Snapshot(rows, self._start.copy(), self._ended.copy(), copy.deepcopy(self.generators))

    def restore(self, snapshot: Snapshot) -> Obs:
        """Go on from ``snapshot``: the same actions give the same frames, bit for bit."""
        if len(snapshot.start) != self.num_envs:
            raise WorldloopError(f"the snapshot has {len(snapshot.start)} rows, this environment {self.num_envs}")
        self._simulator.restore(snapshot.rows)
        self._start, self._ended = snapshot.start.copy(), snapshot.ended.copy()
        self.generators = copy.deepcopy(snapshot.generators)
        self._started = True
        self._show()
        return self._observe()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The frame that each row shows now, u8 [h, w, 3]; a window, which each step draws, gives none."""
        return tuple(self._observe()["image"]) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        self._simulator.close()
        if self._window is not None:
            self._window.close()

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(self._observe()["image"])

    def _restart(self, mask: np.ndarray, options: dict[str, Any]) -> None:
        """Start the rows of ``mask`` anew, each with a start and a noise key drawn by its own generator."""
        rows = np.flatnonzero(mask)
        drawn = np.array([self.generators[i].integers(len(self.starts)) for i in rows])
        keys = torch.tensor([int(self.generators[i].integers(_MAX_KEY)) for i in rows])
        if "observation" in options:
            drawn, observation = np.full(len(rows), GIVEN), options["observation"]
        else:
            drawn = np.atleast_1d(options.get("start", drawn))
            observation = self.starts.rows(torch.from_numpy(drawn))
        everything = len(rows) == self.num_envs
        self._simulator.start(observation, keys, None if everything else torch.from_numpy(rows))
        self._start[rows] = drawn
        self._ended[rows] = False
        self._started = True

    def _finish(self, info: dict[str, Any]) -> dict[str, Any]:
        """Same-step autoreset: what the ended rows showed last goes into ``info``, and they start anew."""
        done, shown = self._ended.copy(), self._observe()
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(done):
            final_obs[i] = {name: value[i] for name, value in shown.items()}
        final_info = {name: value & done if name.startswith("_") else value.copy() for name, value in info.items()}
        self._restart(done, {})
        _merge(info, self._start_info(done))
        self._ended = np.zeros(self.num_envs, dtype=bool)
        return info | {
            "final_obs": final_obs,
            "_final_obs": done,
            "final_info": final_info,
            "_final_info": done.copy(),
        }

    def _require_start(self) -> None:
        if not self._started:
            raise gymnasium.error.ResetNeeded("the world model shows nothing yet: call reset() first")

    def _observe(self) -> Obs:
        self._require_start()
        observation = self._simulator.save().observation
        assert observation.proprio is not None
        return {
            "image": observation.frames[:, -1].numpy().copy(),
            "proprio": observation.proprio.float().numpy().copy(),
        }

    def _start_info(self, mask: np.ndarray) -> dict[str, Any]:
        n = self.num_envs
        return _masked(
            mask,
            success=np.zeros(n, dtype=bool),
            success_prob=np.zeros(n, dtype=np.float32),
            expected_psnr_db=np.full(n, np.inf, dtype=np.float32),
            uncertain=np.zeros(n, dtype=bool),
            start=self._start.copy(),
        )

    def _step_info(self, step: ChunkStep, mask: np.ndarray) -> dict[str, Any]:
        expected = step.expected_psnr_db
        psnr_db = torch.full_like(step.success_prob, torch.inf) if expected is None else expected
        return _masked(
            mask,
            success=step.success.any(1).numpy(),
            success_prob=step.success_prob[:, -1].numpy(),
            expected_psnr_db=psnr_db[:, -1].numpy(),
            uncertain=psnr_db[:, -1].numpy() < self._calibration.floor_db,
            start=self._start.copy(),
        )

    def _spread(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        seeds = [seed] * self.num_envs if seed is None else seed
        seeds = [int(seeds) + i for i in range(self.num_envs)] if isinstance(seeds, int | np.integer) else list(seeds)
        if len(seeds) != self.num_envs:
            raise WorldloopError(f"{len(seeds)} seeds for {self.num_envs} rows: give one per row, or a single one")
        return seeds

    def _check_actions(self, actions: Any) -> torch.Tensor:
        """f32 [num_envs, s, A], finite and inside the bounds up to rounding."""
        array = np.asarray(actions, dtype=np.float32)
        box, spec = self.single_action_space, self.world_spec
        if array.shape != (self.num_envs, *box.low.shape):
            raise WorldloopError(f"actions have the shape {array.shape}, expected {(self.num_envs, *box.low.shape)}")
        slack = 1e-5 * (box.high - box.low)
        bad = ~((array >= box.low - slack) & (array <= box.high + slack))  # NaN is neither
        if bad.any():
            row, _, column = (int(i[0]) for i in np.nonzero(bad))
            bounds = f"{spec.action_low[column]} to {spec.action_high[column]}"
            raise WorldloopError(
                f"action {spec.action_names[column]!r} of row {row} is {array[bad][0]}, allowed: {bounds}"
            )
        return torch.from_numpy(array.copy())

    def _check_options(self, options: dict[str, Any], num_rows: int) -> None:
        """Refuse a start that does not fit, before anything has changed."""
        refuse_unknown(options, OPTIONS)
        if "observation" in options:
            self._check_observation("options['observation']", options["observation"], num_rows)
        elif "start" in options:
            start = np.atleast_1d(options["start"])
            fits = start.shape == (num_rows,) and np.issubdtype(start.dtype, np.integer)
            if not fits or start.min() < 0 or start.max() >= len(self.starts):
                raise WorldloopError(f"options['start'] must be {num_rows} numbers from 0 to {len(self.starts) - 1}")

    def _check_observation(self, what: str, observation: Any, num_rows: int) -> None:
        size, dim = self.world_spec.image_size, self.world_spec.proprio_dim
        if not isinstance(observation, Observation) or len(observation) != num_rows or observation.proprio is None:
            raise WorldloopError(f"{what} must be an Observation of {num_rows} rows with proprio")
        if observation.frames.shape[2:4] != (size, size) or observation.proprio.shape[1] != dim:
            height, width = observation.frames.shape[2:4]
            raise WorldloopError(
                f"the given image is {height} x {width} with {observation.proprio.shape[1]} proprio values; "
                f"this world model was made for {size} x {size} and {dim}"
            )
        if not bool(observation.proprio.isfinite().all()):
            raise WorldloopError(f"{what} has proprio that is not finite: {observation.proprio.tolist()[:3]}")


def refuse_unknown(options: dict[str, Any], known: set[str]) -> None:
    """Raise `WorldloopError` for an option of ``reset`` that is none of ``known``."""
    if unknown := sorted(set(options) - known):
        raise WorldloopError(f"reset option {unknown[0]!r} is not known: {', '.join(sorted(known))}")


def make_observation_space(spec: SimulatorSpec) -> spaces.Dict:
    return spaces.Dict(
        {
            "image": spaces.Box(0, 255, (spec.image_size, spec.image_size, 3), np.uint8),
            "proprio": spaces.Box(-np.inf, np.inf, (spec.proprio_dim,), np.float32),
        }
    )


def make_action_space(spec: SimulatorSpec) -> spaces.Box:
    """The s actions of one frame, [s, A]."""
    bounds = (np.asarray(bound, dtype=np.float32) for bound in (spec.action_low, spec.action_high))
    low, high = (np.tile(bound, (spec.actions_per_frame, 1)) for bound in bounds)
    return spaces.Box(low, high, dtype=np.float32)


def frames_per_second(spec: SimulatorSpec) -> float:
    return spec.hz / spec.actions_per_frame


def _masked(mask: np.ndarray, **arrays: np.ndarray) -> dict[str, Any]:
    """Gymnasium's vector info: beside every array, which rows it speaks of."""
    return {**arrays, **{f"_{name}": mask.copy() for name in arrays}}


def _merge(info: dict[str, Any], other: dict[str, Any]) -> None:
    """Write the rows that ``other`` speaks of into ``info``, in place."""
    for name, value in other.items():
        if not name.startswith("_"):
            mask = other[f"_{name}"]
            info[name] = np.where(mask, value, info[name])
            info[f"_{name}"] = info[f"_{name}"] | mask
