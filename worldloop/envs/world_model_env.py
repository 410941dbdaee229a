"""The world model as Gymnasium environments: one, or many rows in one batch.

One step is one frame of the world model, that is ``actions_per_frame`` s actions at once. Nothing but the world model
runs: no simulator, no Ray. The vector environment imagines all its rows in one pass and honours every `AutoresetMode`.

    observation  {"image": u8 [h, w, 3], "proprio": f32 [S] in raw units}
    action       f32 [s, A] in environment units, inside the simulator's bounds
    reward       1.0 on the frame at which success is declared, else 0
    terminated   after a success; ``truncated`` at the time limit
    info         success bool; success_prob in [0, 1], calibrated; expected_psnr_db, the model's own estimate of how
                 close the frame is to what would be simulated; uncertain bool, where that is below what has been shown
                 to be imagined well; start int, the number of the start observation (-1: given)

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
from worldloop.core.success import Calibration
from worldloop.core.types import Observation
from worldloop.envs.vector_env import Obs, Snapshot, WorldModelVectorEnv, refuse_unknown

OPTIONS = {"start", "image", "proprio", "instruction"}


class WorldModelEnv(gymnasium.Env[Obs, np.ndarray]):
    """One row of a world model; see the module for spaces and info, `WorldModelVectorEnv` for the arguments.

    ``reset(options=...)`` takes ``start`` int, or ``image`` u8 [h, w, 3] with ``proprio`` f32 [S] and, if it is not the
    task's own, ``instruction``.
    """

    def __init__(
        self, world_model: WorldModel, starts: Observation, calibration: Calibration, *, render_mode: str | None = None
    ) -> None:
        self._parts = (world_model, starts, calibration)
        self._row = WorldModelVectorEnv(*self._parts, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode)
        self.metadata = {key: self._row.metadata[key] for key in ("render_modes", "render_fps")}
        self.render_mode = render_mode
        self.observation_space = self._row.single_observation_space
        self.action_space = self._row.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        options = options or {}
        refuse_unknown(options, OPTIONS)
        if "image" not in options and not set(options) <= {"start"}:
            raise WorldloopError("options['proprio'] and options['instruction'] go with options['image']")
        if {"image", "start"} <= set(options):
            raise WorldloopError("options['image'] and options['start'] are two starts: give one")
        if "image" in options:
            options = {"observation": self._as_observation(options)}
        super().reset(seed=seed)
        self._row.generators[0] = self.np_random
        observation, info = self._row.reset(options=options)
        return _first(observation), _first_info(info)

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._row.step(np.asarray(action)[None])
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first_info(info)

    def save(self) -> Snapshot:
        """Everything that decides how the episode goes on."""
        return self._row.save()

    def restore(self, snapshot: Snapshot) -> Obs:
        """Go on from ``snapshot``: the same actions give the same frames, bit for bit."""
        observation = self._row.restore(snapshot)
        self.np_random = self._row.generators[0]
        return _first(observation)

    def fork(self, num_rows: int) -> WorldModelVectorEnv:
        """``num_rows`` rows that go on from here, with the same noise: their futures differ by their actions alone.

        Autoreset is disabled in the vector environment that holds them; a window stays with this one.
        """
        now = self.save()
        mode = "rgb_array" if self.render_mode == "human" else self.render_mode
        forked = WorldModelVectorEnv(*self._parts, num_rows, autoreset_mode=AutoresetMode.DISABLED, render_mode=mode)
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
        """The frame now, u8 [h, w, 3]; a window, which each step draws, gives none."""
        frames = self._row.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self._row.close()

    def _as_observation(self, options: dict[str, Any]) -> Observation:
        image, proprio = np.asarray(options["image"]), np.asarray(options.get("proprio", ()), dtype=np.float32)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or proprio.ndim != 1:
            raise WorldloopError(
                "options['image'] must be u8 [h, w, 3], and options['proprio'] f32 [S] must go with it"
            )
        return Observation(
            frames=torch.from_numpy(image.copy())[None, None],
            proprio=torch.from_numpy(proprio)[None],
            instruction=(options.get("instruction", self._row.world_spec.instruction),),
            env_step=torch.zeros(1, dtype=torch.long),
        )


def _first(batch: Obs) -> Obs:
    return {name: value[0] for name, value in batch.items()}


def _first_info(info: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0].item() for name, value in info.items() if not name.startswith("_")}
