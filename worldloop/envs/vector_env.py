"""Many rows of a world model as one Gymnasium vector environment. `world_model_env` describes the spaces."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldloop.core.errors import WorldloopError
from worldloop.core.images import join_views
from worldloop.core.interfaces import WorldModel
from worldloop.core.success import Calibrations
from worldloop.core.types import ChunkStep, Observation
from worldloop.envs.checks import check_actions, check_observation, check_task, refuse_unknown
from worldloop.envs.spaces import (
    Obs,
    flatten_observation,
    index_tasks,
    make_action_space,
    make_observation_space,
    name_images,
)
from worldloop.envs.window import FrameWindow
from worldloop.rollout.imagination import ImaginedRows, ImaginedSimulator

RENDER_MODES = ("rgb_array", "human")
OPTIONS = {"reset_mask", "start", "observation", "task"}
GIVEN = -1  # start number of an observation that the caller gave
_MAX_KEY = 2**62


@dataclass(frozen=True)
class Snapshot:
    """What `WorldModelVectorEnv.save` returns: rows, start numbers, which rows wait for a reset, generators."""

    rows: ImaginedRows
    start: np.ndarray
    ended: np.ndarray
    generators: list[np.random.Generator]


class WorldModelVectorEnv(VectorEnv):
    """``num_envs`` rows of one world model, imagined together.

    - ``starts``: observations that episodes start from; each reset draws one
    - ``calibrations``: how to read the heads, from the check of the world model
    - ``task``: the only task that the rows do; "": all tasks of the world model
    - ``autoreset_mode``: Gymnasium's next-step (default), same-step (``final_obs``, ``final_info``) or disabled. If it
      is disabled, ended rows wait for ``reset(options={"reset_mask": bool [num_envs]})``
    - ``rows_at_once``: most rows that are imagined together; 0: all, halved when CUDA runs out of memory

    ``reset`` takes a ``seed``: an int (row i gets seed + i), or one per row. For the n rows that are reset, ``options``
    may also hold one of ``start`` int [n], ``task`` (one id or n ids, to draw starts of), and ``observation`` (an
    `Observation` of n rows). Bad input raises `WorldloopError`.
    """

    def __init__(
        self,
        world_model: WorldModel,
        starts: Observation,
        calibrations: Calibrations,
        num_envs: int = 1,
        *,
        task: str = "",
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
        self.world_spec = world_model.spec
        if task:
            check_task("task", task, world_model.spec)
            self.world_spec = replace(world_model.spec, tasks=(world_model.spec.task(task),))
            starts = _choose_starts(starts, task)
        self.starts = check_observation("starts", starts, len(starts), self.world_spec)
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": self.world_spec.frames_per_second,
            "autoreset_mode": AutoresetMode(autoreset_mode),
        }
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_action_space: spaces.Box
        self.single_observation_space = make_observation_space(self.world_spec)
        self.single_action_space = make_action_space(self.world_spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._simulator = ImaginedSimulator(world_model, calibrations, num_envs, max_batch=rows_at_once)
        self._calibrations = calibrations
        self.generators = [np.random.default_rng() for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, dtype=bool)
        self._start = np.full(num_envs, GIVEN)
        self._started = False
        title = f"{', '.join(self.world_spec.task_ids)}, imagined"
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
        options = self._check_options(options, int(mask.sum()))
        for i in np.flatnonzero(mask):
            if seeds[i] is not None:
                self.generators[i] = np.random.default_rng(seeds[i])
        self._restart(mask, options)
        self._show()
        return self._observe(), self._start_info(mask)

    def step(self, actions: Any) -> tuple[Obs, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._require_start()
        chunk = check_actions(actions, self.num_envs, self.single_action_space, self.world_spec)
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
        """The whole state of the rows, random generators included."""
        self._require_start()
        rows = self._simulator.save()
        return Snapshot(rows, self._start.copy(), self._ended.copy(), copy.deepcopy(self.generators))

    def restore(self, snapshot: Snapshot) -> Obs:
        """Continue from ``snapshot``: the same actions give the same frames, bit for bit."""
        if len(snapshot.start) != self.num_envs:
            raise WorldloopError(f"the snapshot has {len(snapshot.start)} rows, this environment {self.num_envs}")
        self._simulator.restore(snapshot.rows)
        self._start, self._ended = snapshot.start.copy(), snapshot.ended.copy()
        self.generators = copy.deepcopy(snapshot.generators)
        self._started = True
        self._show()
        return self._observe()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The current frame u8 [h, w, 3] of each row, cameras side by side. ``None`` unless the mode is ``rgb_array``.

        In the mode ``human`` every step draws the frames in a window.
        """
        return tuple(self._join_views()) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        self._simulator.close()
        if self._window is not None:
            self._window.close()

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(self._join_views())

    def _join_views(self) -> np.ndarray:
        """u8 [num_envs, h, w, 3]."""
        shown = self._observe()
        views = [torch.from_numpy(shown[key]) for key in name_images(self.world_spec).values()]
        return join_views(views).numpy()

    def _restart(self, mask: np.ndarray, options: dict[str, Any]) -> None:
        """Restart the rows of ``mask``. Each row's own generator draws a start and a noise key.

        A start that is given in ``options`` replaces the one that was drawn.
        """
        rows = np.flatnonzero(mask)
        tasks = options.get("task", [""] * len(rows))
        drawn = np.array([self._draw_start(i, task) for i, task in zip(rows, tasks, strict=True)])
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

    def _draw_start(self, row: int, task: str) -> int:
        """The number of a start of ``task`` ("": of any task), drawn by the generator of ``row``."""
        fitting = [i for i, of_start in enumerate(self.starts.task) if task in ("", of_start)]
        return fitting[self.generators[row].integers(len(fitting))]

    def _finish(self, info: dict[str, Any]) -> dict[str, Any]:
        """Same-step autoreset: put the last observation and info of ended rows into ``info``, then restart them."""
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
        return flatten_observation(self._simulator.save().observation, self.world_spec)

    def _start_info(self, mask: np.ndarray) -> dict[str, Any]:
        n = self.num_envs
        return self._make_info(
            mask,
            self._simulator.save().observation,
            success=np.zeros(n, dtype=bool),
            success_prob=np.zeros(n, dtype=np.float32),
            expected_psnr_db=np.full(n, np.inf, dtype=np.float32),
            uncertain=np.zeros(n, dtype=bool),
        )

    def _step_info(self, step: ChunkStep, mask: np.ndarray) -> dict[str, Any]:
        expected = step.expected_psnr_db
        psnr_db = (torch.full_like(step.success_prob, torch.inf) if expected is None else expected)[:, -1]
        return self._make_info(
            mask,
            step.observation,
            success=step.success.any(1).numpy(),
            success_prob=step.success_prob[:, -1].numpy(),
            expected_psnr_db=psnr_db.numpy(),
            uncertain=(psnr_db < self._calibrations.column("floor_db", step.observation.task)).numpy(),
        )

    def _make_info(self, mask: np.ndarray, observation: Observation, **arrays: np.ndarray) -> dict[str, Any]:
        """Gymnasium's vector info: each array, and under ``_name`` a copy of ``mask``, the rows for which it holds."""
        arrays["start"] = self._start.copy()
        if len(self.world_spec.tasks) > 1:
            arrays["task"] = index_tasks(observation, self.world_spec)
        return {**arrays, **{f"_{name}": mask.copy() for name in arrays}}

    def _spread(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        seeds = [seed] * self.num_envs if seed is None else seed
        seeds = [int(seeds) + i for i in range(self.num_envs)] if isinstance(seeds, int | np.integer) else list(seeds)
        if len(seeds) != self.num_envs:
            raise WorldloopError(f"{len(seeds)} seeds for {self.num_envs} rows: give one per row, or a single one")
        return seeds

    def _check_options(self, options: dict[str, Any], num_rows: int) -> dict[str, Any]:
        """The options, with one task per row. Raises `WorldloopError` for a bad option, before anything has changed."""
        refuse_unknown(options, OPTIONS)
        ways = [name for name in ("observation", "start", "task") if name in options]
        if len(ways) > 1:
            raise WorldloopError(f"options[{ways[0]!r}] and options[{ways[1]!r}] are two starts: give one")
        if "observation" in options:
            given = check_observation("options['observation']", options["observation"], num_rows, self.world_spec)
            return {**options, "observation": given}
        if "start" in options:
            start = np.atleast_1d(options["start"])
            fits = start.shape == (num_rows,) and np.issubdtype(start.dtype, np.integer)
            if not fits or start.min() < 0 or start.max() >= len(self.starts):
                raise WorldloopError(f"options['start'] must be {num_rows} numbers from 0 to {len(self.starts) - 1}")
        if "task" in options:
            return {**options, "task": self._check_tasks(options["task"], num_rows)}
        return options

    def _check_tasks(self, given: Any, num_rows: int) -> list[str]:
        """One task per row that is reset; raises `WorldloopError` for a task without a start."""
        tasks = [given] * num_rows if isinstance(given, str) else list(np.atleast_1d(given))
        if len(tasks) != num_rows:
            raise WorldloopError(
                f"options['task'] has {len(tasks)} tasks for {num_rows} rows: give one, or one per row"
            )
        for task in tasks:
            check_task("options['task']", task, self.world_spec)
            _choose_starts(self.starts, task)
        return tasks


def _choose_starts(starts: Observation, task: str) -> Observation:
    """The rows of ``starts`` of ``task``; raises `WorldloopError` if there is none."""
    chosen = [i for i, of_start in enumerate(starts.task) if of_start == task]
    if not chosen:
        known = ", ".join(sorted(set(starts.task)))
        raise WorldloopError(f"no observation to start task {task!r} from: there are those of {known}")
    return starts.rows(chosen)


def _merge(info: dict[str, Any], other: dict[str, Any]) -> None:
    """Copy the rows for which ``other`` holds into ``info``, in place."""
    for name, value in other.items():
        if not name.startswith("_"):
            mask = other[f"_{name}"]
            info[name] = np.where(mask, value, info[name])
            info[f"_{name}"] = info[f"_{name}"] | mask
