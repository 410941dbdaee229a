"""The world model as Gymnasium environments: one, or many rows in one batch.

One step is one frame of the world model, for s = ``actions_per_frame`` actions. Only the world model runs: no
simulator, no Ray. The vector environment imagines all its rows in one pass and supports every `AutoresetMode`.

    observation  {"image": u8 [h, w, 3], "proprio": f32 [S] in raw units}; with several cameras "image_<camera>" each;
                 with several tasks, unless one was chosen, also "task": the index in the model's ``spec.task_ids``
    action       f32 [s, A] in environment units, inside the simulator's bounds
    reward       1.0 on the frame at which success is declared, else 0
    terminated   after a success; ``truncated`` at the time limit of the row's task
    info         success bool; success_prob in [0, 1], calibrated; expected_psnr_db, the model's own estimate of the
                 PSNR between the frame and a simulated one; uncertain bool, true if that is below ``floor_db`` of the
                 task's `Calibration`; start int, the number of the start observation (-1: given by the caller);
                 task int, as in the observation

``import worldloop.envs`` registers ``worldloop/WorldModel-v0``; `worldloop.envs.make` says what `gymnasium.make` takes.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import WorldModel
from worldloop.core.success import Calibrations
from worldloop.core.types import Observation
from worldloop.envs.checks import check_task, read_images, refuse_unknown
from worldloop.envs.spaces import Obs
from worldloop.envs.vector_env import Snapshot, WorldModelVectorEnv

OPTIONS = {"start", "task", "image", "proprio", "instruction"}


class WorldModelEnv(gymnasium.Env[Obs, np.ndarray]):
    """One row of a world model; see the module for spaces and info, `WorldModelVectorEnv` for the arguments.

    ``reset(options=...)`` takes one of

    - ``start`` int: the number of a start observation
    - ``task``: the id of a task; one of its start observations is drawn
    - ``image`` u8 [h, w, 3] (with several cameras a mapping of camera name -> image), together with ``proprio`` f32
      [S], with ``task`` if there are several, and with ``instruction`` if it is not the task's first
    """

    def __init__(
        self,
        world_model: WorldModel,
        starts: Observation,
        calibrations: Calibrations,
        *,
        task: str = "",
        render_mode: str | None = None,
    ) -> None:
        self._parts, self._task = (world_model, starts, calibrations), task
        self._row = self._make_rows(1, render_mode)
        self.metadata = {key: self._row.metadata[key] for key in ("render_modes", "render_fps")}
        self.render_mode = render_mode
        self.observation_space = self._row.single_observation_space
        self.action_space = self._row.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        options = options or {}
        refuse_unknown(options, OPTIONS)
        if "image" in options:
            if "start" in options:
                raise WorldloopError("options['image'] and options['start'] are two starts: give one")
            options = {"observation": self._as_observation(options)}
        elif not set(options) <= {"start", "task"}:
            raise WorldloopError("options['proprio'] and options['instruction'] go with options['image']")
        super().reset(seed=seed)
        self._row.generators[0] = self.np_random
        observation, info = self._row.reset(options=options)
        return _first(observation), _first_info(info)

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._row.step(np.asarray(action)[None])
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first_info(info)

    def save(self) -> Snapshot:
        """The whole state of the episode, random generator included."""
        return self._row.save()

    def restore(self, snapshot: Snapshot) -> Obs:
        """Continue from ``snapshot``: the same actions give the same frames, bit for bit."""
        observation = self._row.restore(snapshot)
        self.np_random = self._row.generators[0]
        return _first(observation)

    def fork(self, num_rows: int) -> WorldModelVectorEnv:
        """A vector environment whose ``num_rows`` rows continue from here, with autoreset disabled.

        The rows share the noise, so only their actions make them differ. It opens no window: the render mode ``human``
        becomes ``rgb_array``.
        """
        now = self.save()
        mode = "rgb_array" if self.render_mode == "human" else self.render_mode
        forked = self._make_rows(num_rows, mode)
        forked.restore(
            Snapshot(
                now.rows.rows([0] * num_rows),
                now.start.repeat(num_rows),
                now.ended.repeat(num_rows),
                [copy.deepcopy(now.generators[0]) for _ in range(num_rows)],
            )
        )
        return forked

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The current frame u8 [h, w, 3], cameras side by side. ``None`` unless the render mode is ``rgb_array``.

        In the mode ``human`` every step draws its frame in a window.
        """
        frames = self._row.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self._row.close()

    def _make_rows(self, num_rows: int, render_mode: str | None) -> WorldModelVectorEnv:
        return WorldModelVectorEnv(
            *self._parts, num_rows, task=self._task, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode
        )

    def _as_observation(self, options: dict[str, Any]) -> Observation:
        """The options as an observation of one row. Its proprio is checked later, by `check_observation`."""
        spec = self._row.world_spec
        if "task" not in options and len(spec.tasks) > 1:
            raise WorldloopError(f"options['task'] must say what to do from there: {', '.join(spec.task_ids)}")
        task = spec.task(check_task("options['task']", options.get("task", spec.task_ids[0]), spec))
        proprio = np.asarray(options.get("proprio", ()), dtype=np.float32)
        if proprio.ndim != 1:
            raise WorldloopError(f"options['proprio'] has the shape {proprio.shape}, expected f32 [S]")
        return Observation(
            frames=read_images(options["image"], spec),
            proprio=torch.from_numpy(proprio)[None],
            task=(task.id,),
            instruction=(options.get("instruction", task.instruction),),
            env_step=torch.zeros(1, dtype=torch.long),
        )


def _first(batch: Obs) -> Obs:
    return {name: value[0] for name, value in batch.items()}


def _first_info(info: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0].item() for name, value in info.items() if not name.startswith("_")}
