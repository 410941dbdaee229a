"""One LIBERO scene: its exact state, its steps, its goals and its images. The only module that imports libero.

Tasks whose BDDL files differ in goal and words alone have one scene: all ten of LIBERO-Goal, for example.

What a step depends on, and so what a state holds, f64 [N]:

1. MuJoCo's own, see `mujoco_state.read_physics`;
2. the controller's wanted orientation, 9, which stays while an action does not turn the hand;
3. the fingers' command, 2, which each step moves on;
4. position and quaternion wxyz, 7, of each fixture: LIBERO draws it anew for each episode and writes it into MuJoCo's
   model, so LIBERO's own initial states do not have it.

Departures from LIBERO, none of which changes the motion:

1. observations are not computed;
2. derived quantities are brought up to date after each step (LIBERO's are one physics step old), and success is judged
   then;
3. images have neither shadows nor mirror images, which take three quarters of their time.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import CameraSpec
from worldloop.simulators.libero.goals import Gap, measure_predicate
from worldloop.simulators.mujoco_rendering import SceneRenderer, choose_opengl
from worldloop.simulators.mujoco_state import read_physics, write_physics

Vector = NDArray[np.float64]

NUM_SETTLE_STEPS = 10  # as in LIBERO's evaluation: objects come to rest before an episode begins
ROBOT_NOISE_RAD = 0.02  # standard deviation of the arm's joints in LIBERO's initial states; its own reset has none
MAX_DRAWS = 100  # LIBERO gives up where objects find no place
_HIDDEN_GROUP = 3  # MuJoCo draws groups 0 to 2; robosuite's shapes that are only touched are group 0
_STILL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


def find_libero_path(kind: str) -> Path:
    """LIBERO's folder of ``bddl_files``, ``init_states`` or ``assets``; `WorldloopError` where assets are missing."""
    try:
        from libero.libero import get_libero_path

        return Path(get_libero_path(kind))
    except ImportError as error:
        raise WorldloopError(
            f"LIBERO is not complete ({error}); install it with: pip install -e '.[libero]' in the clone"
        ) from error


@cache
def read_problem(suite: str, task: str) -> tuple[Path, str]:
    """The BDDL file of a task, and a text that is equal for tasks of one scene."""
    path = find_libero_path("bddl_files") / suite / f"{task}.bddl"
    text = re.sub(r"\(:(language|obj_of_interest)[^()]*\)", "", path.read_text())
    return path, " ".join(text.split("(:goal")[0].split())


def read_evaluation_states(suite: str, task: str) -> Vector:
    """LIBERO's initial states f64 [50, D]: time, qpos and qvel."""
    with np.load(find_libero_path("init_states") / suite / f"{task}.pruned_init.npz", allow_pickle=False) as file:
        return np.asarray(file["states"], dtype=np.float64)


def _draw_places[T](seed: int, draw: Callable[[int], T]) -> T:
    """``draw(seed)``, or of the next seed with which LIBERO finds places for all objects.

    LIBERO draws from numpy's global state, which is afterwards as it was.
    """
    from robosuite.utils.errors import RandomizationError

    before = np.random.get_state()
    try:
        for attempt in range(MAX_DRAWS):
            try:
                np.random.seed((seed + attempt) % 2**32)
                return draw((seed + attempt) % 2**32)
            except RandomizationError:
                continue
    finally:
        np.random.set_state(before)
    raise RuntimeError(f"LIBERO found no places for the objects in {MAX_DRAWS} draws")


class Scene:
    """A running scene with one robot. `goals` judges it, scripts look at it, see `hand.SceneView`."""

    def __init__(self, problem: Path) -> None:
        choose_opengl()  # robosuite asks for it when it is imported
        logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
        find_libero_path("assets")
        import mujoco
        from libero.libero.envs import TASK_MAPPING
        from libero.libero.envs.bddl_utils import get_problem_info
        from robosuite import load_controller_config

        self._mujoco = mujoco
        self._problem = problem
        make_env = partial(
            TASK_MAPPING[get_problem_info(str(problem))["problem_name"]],
            str(problem),
            robots=["Panda"],
            controller_configs=load_controller_config(default_controller="OSC_POSE"),
            initialization_noise=None,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            control_freq=20,
            ignore_done=True,
            hard_reset=False,
        )
        self.env: Any = _draw_places(0, lambda seed: make_env())
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        self.model.geom_group[self.model.geom_group == 0] = _HIDDEN_GROUP
        self.model.mat_reflectance[:] = 0  # mirror images on the table would double the time of an image
        self._fixture_ids = [self.model.body(o.root_body).id for o in self.env.fixtures_dict.values()]
        self._num_physics = len(read_physics(self.model, self.data))
        self._num_substeps = int(self.env.control_timestep / self.env.model_timestep)
        self._renderer: SceneRenderer | None = None
        robot = self.env.robots[0]
        self._tcp = robot.eef_site_id
        self._hand = self.model.body(robot.robot_model.eef_name).id  # its fingers open along its y

    @property
    def num_numbers(self) -> int:
        """N, the numbers of a state."""
        return self._num_physics + 9 + 2 + 7 * len(self._fixture_ids)

    def read_state(self) -> Vector:
        """The exact state f64 [N], see the module."""
        robot = self.env.robots[0]
        return np.concatenate(
            [
                read_physics(self.model, self.data),
                robot.controller.goal_ori.ravel(),
                robot.gripper.current_action,
                self.model.body_pos[self._fixture_ids].ravel(),
                self.model.body_quat[self._fixture_ids].ravel(),
            ]
        )

    def write_state(self, state: Vector) -> None:
        """Continue from ``state`` of `read_state`, bit for bit."""
        num_fixtures = len(self._fixture_ids)
        cuts = np.cumsum([self._num_physics, 9, 2, 3 * num_fixtures])
        physics, orientation, fingers, places, turns = np.split(state, cuts)
        self.model.body_pos[self._fixture_ids] = places.reshape(num_fixtures, 3)
        self.model.body_quat[self._fixture_ids] = turns.reshape(num_fixtures, 4)
        write_physics(self.model, self.data, physics)
        robot = self.env.robots[0]
        robot.controller.goal_ori = orientation.reshape(3, 3).copy()
        robot.controller.new_update = True
        robot.gripper.current_action = fingers.copy()
        self.env._post_process()

    def step(self, action: Vector) -> None:
        """One environment step with ``action`` f64 [7], as LIBERO does it."""
        for substep in range(self._num_substeps):
            self.env.sim.forward()
            self.env._pre_action(action, substep == 0)
            self.env.sim.step()
        warm_start = self.data.qacc_warmstart.copy()
        self._mujoco.mj_forward(self.model, self.data)
        self.data.qacc_warmstart[:] = warm_start
        self.env._post_process()

    def draw(self, seed: int) -> None:
        """Begin an episode that LIBERO draws from ``seed``, whatever happened before."""
        self._reset(seed, ROBOT_NOISE_RAD)
        self._settle()

    def start(self, initial_state: Vector) -> None:
        """Begin an episode at one of LIBERO's ``initial_states``: time, qpos and qvel.

        They do not say where the fixtures stand: each is in the middle of its region.
        """
        self._reset(0, 0.0)
        self._centre_fixtures()
        self.env.sim.set_state_from_flattened(initial_state)
        self.env.sim.forward()
        self._settle()

    def _reset(self, seed: int, noise_rad: float) -> None:
        """LIBERO's reset, twice, because objects on a fixture are placed where the fixture stood before."""
        robot = self.env.robots[0]

        def reset(seed: int) -> None:
            for _ in range(2):
                np.random.seed(seed)
                robot.gripper.current_action = np.zeros(2)
                self.env.reset()
            self.data.qpos[robot._ref_joint_pos_indexes] += noise_rad * np.random.randn(len(robot.robot_joints))

        _draw_places(seed, reset)
        self._mujoco.mj_forward(self.model, self.data)

    def _centre_fixtures(self) -> None:
        for sampler in self.env.placement_initializer.samplers.values():
            (thing,) = sampler.mujoco_objects
            if thing.name in self.env.fixtures_dict:
                body = self.model.body(thing.root_body).id
                ranges = (sampler.x_ranges, sampler.y_ranges)
                centre = [float(np.mean(r[0])) + sampler.reference_pos[i] for i, r in enumerate(ranges)]
                self.model.body_pos[body, :2] = centre

    def _settle(self) -> None:
        for _ in range(NUM_SETTLE_STEPS):
            self.step(_STILL)

    def render(self, cameras: tuple[CameraSpec, ...], scale: int = 1) -> dict[str, NDArray[np.uint8]]:
        """Images u8 [h, w, 3] by camera, upright, ``scale`` times as large as the camera says."""
        if self._renderer is None:
            largest = max(camera.width for camera in cameras) * scale, max(camera.height for camera in cameras) * scale
            self._renderer = SceneRenderer(self.model, *largest)
        return {c.name: self._renderer.render(self.data, c.name, c.width * scale, c.height * scale) for c in cameras}

    def close(self) -> None:
        """Give the memory back; the scene cannot be used afterwards."""
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None
        self.env.close()
        del self.env, self.model, self.data
        gc.collect()  # LIBERO's objects refer to one another, and Python does not know that they hold a GiB

    # what scripts and goals look at

    @property
    def goals(self) -> list[tuple[str, ...]]:
        """The predicates of the present goal; all of them must hold."""
        return [tuple(predicate) for predicate in self.env.parsed_problem["goal_state"]]

    def set_goal(self, problem: Path) -> None:
        """Judge by the goal of ``problem``, the BDDL file of a task of this scene."""
        if problem == self._problem:
            return
        from libero.libero.envs.bddl_utils import robosuite_parse_problem

        self.env.parsed_problem["goal_state"] = robosuite_parse_problem(str(problem))["goal_state"]
        self._problem = problem

    @property
    def goal(self) -> tuple[str, ...]:
        return self.goals[0]

    @property
    def is_solved(self) -> bool:
        return bool(self.env._check_success())

    def measure_gap(self) -> Gap:
        """How far the present state is from the goal: the gap of the predicate that is furthest from being true."""
        gaps = [measure_predicate(self, predicate) for predicate in self.goals]
        return max(gaps, key=lambda gap: gap.distance_m)

    def read_joint(self, name: str) -> tuple[float, Vector, Vector, bool]:
        """(position, axis f64 [3], a point of the axis f64 [3], whether it is a hinge) of the joint ``name``."""
        joint = self.model.joint(name)
        is_hinge = int(joint.type[0]) == int(self._mujoco.mjtJoint.mjJNT_HINGE)
        axis, anchor = np.array(self.data.xaxis[joint.id]), np.array(self.data.xanchor[joint.id])
        return float(self.data.qpos[joint.qposadr[0]]), axis, anchor, is_hinge

    @property
    def movable(self) -> tuple[str, ...]:
        return tuple(self.env.objects_dict)

    @property
    def hand_position(self) -> Vector:
        return np.array(self.data.site_xpos[self._tcp])

    @property
    def hand_quaternion(self) -> Vector:
        """(w, x, y, z), with MuJoCo's sign."""
        return np.array(self.data.xquat[self._hand])

    @property
    def hand_rotation(self) -> Vector:
        return np.array(self.data.xmat[self._hand]).reshape(3, 3)

    def _find_body(self, name: str) -> int:
        return int(self.env.obj_body_id[name] if name in self.env.obj_body_id else self.model.body(name).id)

    def position_of(self, name: str) -> Vector:
        if name in self.env.object_sites_dict:
            return np.array(self.data.site(name).xpos)
        return np.array(self.data.xpos[self._find_body(name)])

    def rotation_of(self, name: str) -> Vector:
        if name in self.env.object_sites_dict:
            return np.array(self.data.site(name).xmat).reshape(3, 3)
        return np.array(self.data.xmat[self._find_body(name)]).reshape(3, 3)

    def bounds_of(self, name: str, part: str = "") -> tuple[Vector, Vector]:
        if name in self.env.object_sites_dict:
            half = np.abs(self.rotation_of(name)) @ self.model.site(name).size
            return self.position_of(name) - half, self.position_of(name) + half
        lows, highs = zip(*self.parts_of(name, part), strict=True)
        return np.min(lows, axis=0), np.max(highs, axis=0)

    def parts_of(self, name: str, part: str = "") -> list[tuple[Vector, Vector]]:
        root = self.model.body_rootid[self._find_body(name)]
        boxes = []
        for geom in range(self.model.ngeom):
            body = self.model.geom_bodyid[geom]
            is_own = self.model.body_rootid[body] == root and self.model.body(body).name.startswith(name)
            if is_own and part in self.model.body(body).name and self.model.geom_contype[geom]:
                centre, half = np.split(self.model.geom_aabb[geom], 2)
                rotation = self.data.geom_xmat[geom].reshape(3, 3)
                middle, reach = self.data.geom_xpos[geom] + rotation @ centre, np.abs(rotation) @ half
                boxes.append((middle - reach, middle + reach))
        return boxes
