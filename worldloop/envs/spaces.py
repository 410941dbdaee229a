"""The spaces of a world model's environments, and the conversion of an `Observation` into them.

They are flat, because stable-baselines3 refuses nested dictionaries. `worldloop.envs.world_model_env` lists the keys.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Observation

Obs = dict[str, np.ndarray]


def name_images(spec: SimulatorSpec) -> dict[str, str]:
    """Camera name -> key of its image: ``image`` if there is one camera, else ``image_<camera>``.

    A dot in a camera's name becomes an underscore. stable-baselines3 uses the keys as names of modules, and PyTorch
    refuses dots in them. Raises `WorldloopError` for two cameras that would then have the same key.
    """
    names = spec.robot.camera_names
    if len(names) == 1:
        return {names[0]: "image"}
    cameras: dict[str, str] = {}
    for name in names:
        key = f"image_{name.replace('.', '_')}"
        if key in cameras:
            raise WorldloopError(f"cameras {cameras[key]!r} and {name!r} would both be {key!r} here: rename one")
        cameras[key] = name
    return {name: key for key, name in cameras.items()}


def make_observation_space(spec: SimulatorSpec) -> spaces.Dict:
    """Images, proprio and, with several tasks, ``task``: the index in ``spec.task_ids``."""
    keys = name_images(spec)
    entries: dict[str, spaces.Space[np.ndarray] | spaces.Discrete] = {
        keys[camera.name]: spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8)
        for camera in spec.robot.cameras
    }
    entries["proprio"] = spaces.Box(-np.inf, np.inf, (spec.robot.proprio_dim,), np.float32)
    if len(spec.tasks) > 1:
        entries["task"] = spaces.Discrete(len(spec.tasks))
    return spaces.Dict(entries)


def make_action_space(spec: SimulatorSpec) -> spaces.Box:
    """The s actions of one frame, f32 [s, A] within the robot's bounds."""
    bounds = (np.asarray(bound, dtype=np.float32) for bound in (spec.robot.action_low, spec.robot.action_high))
    low, high = (np.tile(bound, (spec.actions_per_frame, 1)) for bound in bounds)
    return spaces.Box(low, high, dtype=np.float32)


def flatten_observation(observation: Observation, spec: SimulatorSpec) -> Obs:
    """The current frame, proprio and task of B rows, as arrays [B, ...] with the keys of `make_observation_space`.

    The arrays are copies. Proprio is in raw units.
    """
    assert observation.proprio is not None
    obs = {key: observation.frames[name][:, -1].numpy().copy() for name, key in name_images(spec).items()}
    obs["proprio"] = observation.proprio.float().numpy().copy()
    if len(spec.tasks) > 1:
        obs["task"] = index_tasks(observation, spec)
    return obs


def index_tasks(observation: Observation, spec: SimulatorSpec) -> np.ndarray:
    """int64 [B]: each row's task as an index in ``spec.task_ids``."""
    return np.array([spec.task_ids.index(task) for task in observation.task], dtype=np.int64)
