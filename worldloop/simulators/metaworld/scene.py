"""One Meta-World environment as a scene that can be drawn, stepped, seen, stored and restored exactly.

A scene's state is f64 [108]: Meta-World's observation 39, the random vector from which it builds the scene 6, and
MuJoCo's state 63 (see `mujoco_state`), the last two filled up with zeros. Imports metaworld and mujoco in functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldloop.simulators.base import ENDLESS_STEPS
from worldloop.simulators.metaworld import TASKS
from worldloop.simulators.metaworld.cameras import CAMERAS, UPSIDE_DOWN
from worldloop.simulators.metaworld.tasks import BEFORE, NOW, NUM_OBSERVED
from worldloop.simulators.metaworld.variations import VARIATIONS, move_camera
from worldloop.simulators.mujoco_rendering import SceneRenderer
from worldloop.simulators.mujoco_state import read_physics, write_physics

NUM_RANDOM = 6  # most numbers of a random vector
NUM_PHYSICS = 63  # most numbers of MuJoCo's state among the 50 tasks
NUM_STATE = NUM_OBSERVED + NUM_RANDOM + NUM_PHYSICS
NUM_ARM_JOINTS = 9  # of the arm 7 and the fingers 2, which come first in MuJoCo's state
_RANDOM = slice(NUM_OBSERVED, NUM_OBSERVED + NUM_RANDOM)


class MetaWorldScene:
    """The environment of one task. `draw` or `write` comes first. Images have at most ``largest_image_px`` a side.

    ``success`` and ``distance_m`` (NaN if unknown) hold for the present state.
    """

    def __init__(self, task: str, variation: str = "", largest_image_px: int = 480) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self.task = TASKS[task]
        env: Any = ALL_V3_ENVIRONMENTS[task]()
        env._set_task_called = True  # a task of Meta-World's is a random vector, and ours comes with the state
        env._partially_observable = False  # scripted policies see the goal
        env.__dict__.pop("sawyer_observation_space", None)  # made for a hidden goal
        env.seeded_rand_vec = True
        env.max_path_length = 2 * ENDLESS_STEPS  # the time limit is not the environment's
        if variation:
            VARIATIONS[variation](env.model)
        self._env = env
        self._variation = variation
        self._num_random = env._random_reset_space.low.size
        self._built: NDArray[np.float64] = np.zeros(0)  # the random vector of the scene as it stands
        self._before: NDArray[np.float64] = np.zeros(BEFORE.stop - BEFORE.start)
        self._largest_image_px = largest_image_px
        self._renderer: SceneRenderer | None = None
        self._images: dict[tuple[str, int, int], NDArray[np.uint8]] = {}
        self.success, self.distance_m = False, float("nan")

    @property
    def observed(self) -> NDArray[np.float64]:
        """Meta-World's observation f64 [39] of the present state, with the goal; not clipped to its bounds."""
        return np.concatenate([self._env._prev_obs, self._before, self._env._get_pos_goal()])

    @property
    def joints(self) -> NDArray[np.float64]:
        """Positions (rad; fingers m) and then velocities of arm and fingers, f64 [18]."""
        data = self._env.data
        return np.concatenate([data.qpos[:NUM_ARM_JOINTS], data.qvel[:NUM_ARM_JOINTS]])

    def draw(self, seed: int) -> None:
        """Go to the initial state that ``seed`` stands for."""
        env = self._env
        env.seed(seed)
        env._freeze_rand_vec = False
        env.reset()
        self._build(env._last_rand_vec)  # what came before must not show

    def read(self) -> NDArray[np.float64]:
        """The present state f64 [108], for `write`."""
        state = np.zeros(NUM_STATE)
        state[:NUM_OBSERVED] = self.observed
        state[_RANDOM][: self._num_random] = self._env._last_rand_vec
        physics = read_physics(self._env.model, self._env.data)
        state[_RANDOM.stop : _RANDOM.stop + len(physics)] = physics
        return state

    def write(self, state: NDArray[np.float64], env_step: int) -> None:
        """Go to ``state`` f64 [108] of `read`, after ``env_step`` environment steps."""
        env, random = self._env, state[_RANDOM][: self._num_random]
        if not np.array_equal(random, self._built):
            self._build(random)
        size = len(read_physics(env.model, env.data))
        write_physics(env.model, env.data, state[_RANDOM.stop : _RANDOM.stop + size])
        for site in env._target_site_config:
            env._set_pos_site(*site)
        env._prev_obs = state[NOW].copy()
        self._before = state[BEFORE].copy()
        env.curr_path_length = env_step
        self._evaluate(env.evaluate_state(self.observed, np.zeros(4, dtype=np.float32))[1])

    def step(self, action: NDArray[np.float32]) -> None:
        """One environment step with ``action`` f32 [4]: motion of the hand and of the gripper (1 closes)."""
        before = self._env._prev_obs
        info = self._env.step(action)[4]
        self._before = before
        self._evaluate(info)

    def render(self, camera: str, width: int, height: int) -> NDArray[np.uint8]:
        """The image u8 [height, width, 3] of one of `CAMERAS`, drawn once for each state."""
        key = (camera, width, height)
        if key not in self._images:
            if self._renderer is None:
                self._renderer = SceneRenderer(self._env.model, self._largest_image_px, self._largest_image_px)
            view = move_camera(self._variation, CAMERAS[camera])
            image = self._renderer.render(self._env.data, view, width, height)
            self._images[key] = np.rot90(image, 2) if camera in UPSIDE_DOWN else image
        return self._images[key]

    def close(self) -> None:
        """Free what drawing needs; the scene cannot be used afterwards."""
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()

    def _build(self, random: NDArray[np.float64]) -> None:
        """Build the scene that ``random`` stands for; nothing else changes MuJoCo's model. It takes 10 ms."""
        env = self._env
        env._freeze_rand_vec, env._last_rand_vec = True, random.copy()
        env.reset()
        self._built = random.copy()
        self._before = env._prev_obs.copy()
        self._evaluate(env.evaluate_state(self.observed, np.zeros(4, dtype=np.float32))[1])

    def _evaluate(self, info: dict[str, Any]) -> None:
        self._images = {}
        self.success = bool(info["success"])
        self.distance_m = self.task.measure_distance_m(self.observed, float(info["obj_to_target"]))
