"""Meta-World's own scripted policies as experts, and worse variants of them.

They decide anew at each environment step, and we plan a whole chunk ahead. So they act in a twin of the scene, which
begins in its exact state: what they do there is bit for bit what they would do at each step of the scene itself.

The variants' parameters (`perturbations`) mean: ``progress`` is the share of the second half of the expert's time to
success after which the row stops, since the first half is the way to the object; then ``lifts_at_end`` opens the
fingers and lifts the hand. ``lateral_m`` and ``height_m`` shift where
the expert believes objects and goal to be, sideways to the way from object to goal, and up. ``speed`` is not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worldloop.core.types import ActionChunk, Observation
from worldloop.simulators.metaworld.scene import MetaWorldScene
from worldloop.simulators.metaworld.tasks import GOAL, HAND, OBJECT, SECOND_OBJECT
from worldloop.simulators.mujoco_state import join_doubles
from worldloop.simulators.perturbations import VariantParameters, smooth_noise

STEP_M = 0.01  # metres that an action of 1 moves the hand's target
SLOWER = 4  # Meta-World makes 80 steps a second where the variants' times and noises are made for 20
OPEN = -1.0  # action of the gripper
AWAY_M = 0.15  # from object and goal, for rows that wander
LIFT_STEPS = 12  # environment steps of lifting the hand at the end


class MetaWorldScriptedPolicy:
    """One variant per row, of the task of the row. ``open_twin`` gives a scene of a task that nothing else needs.

    It keeps for each row where its episode began, anew at ``env_step == 0``, so use a fresh one for each rollout.
    ``act`` needs ``observation.sim_state``.
    """

    version = "metaworld-scripted-1"

    def __init__(
        self,
        open_twin: Callable[[str], MetaWorldScene],
        tasks: tuple[str, ...],
        parameters: VariantParameters,
        chunk_length: int,
        max_episode_steps: int,
    ) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._open_twin = open_twin
        self._tasks = tasks
        policies: dict[str, Any] = ENV_POLICY_MAP  # its values are typed as an abstract class
        self._experts = [policies[task]() for task in tasks]
        self._p = parameters
        self._chunk_length = chunk_length
        self._max_steps = max_episode_steps
        self._began: list[NDArray[np.float64] | None] = [None] * len(tasks)  # what was observed then
        self._stop_at = [0] * len(tasks)  # environment step from which a row stands still

    def act(self, observation: Observation, noise_key: torch.Tensor | None = None) -> ActionChunk:
        """H actions f32 [B, H, 4] within +-1; the randomness is in the row keys, ``noise_key`` is not used."""
        if observation.sim_state is None:
            raise ValueError("a scripted policy needs observation.sim_state")
        states, steps = join_doubles(observation.sim_state[:, :-1]), observation.env_step.tolist()
        rows = [self._act_in_row(row, states[row], step) for row, step in enumerate(steps)]
        return ActionChunk(torch.from_numpy(np.stack(rows)), policy_version=self.version)

    def _act_in_row(self, row: int, state: NDArray[np.float64], step: int) -> NDArray[np.float32]:
        twin = self._open_twin(self._tasks[row])
        twin.write(state, step)
        if step == 0 or self._began[row] is None:
            self._began[row] = twin.observed
            if self._p.progress[row] < 1:
                self._stop_at[row] = step + self._count_steps(row, twin, step)
                twin.write(state, step)
        actions = []
        for h in range(self._chunk_length):
            actions.append(self._plan(row, twin.observed, step + h))
            twin.step(actions[-1])
        return np.stack(actions)

    def _count_steps(self, row: int, twin: MetaWorldScene, step: int) -> int:
        """The environment steps from here to where the row stops, if the expert needs this long to success."""
        count = 0
        while not twin.success and step + count < self._max_steps:
            twin.step(self._ask_expert(row, twin.observed))
            count += 1
        return int((1 + float(self._p.progress[row])) / 2 * count)

    def _plan(self, row: int, observed: NDArray[np.float64], step: int) -> NDArray[np.float32]:
        p = self._p
        if step < SLOWER * int(p.wait_steps[row]):
            return np.array([0, 0, 0, OPEN], dtype=np.float32)
        if p.wanders[row]:
            return self._wander(row, observed, step)
        action = self._ask_expert(row, observed + self._shift(row))
        if p.progress[row] < 1 and step >= self._stop_at[row]:
            lifts = bool(p.lifts_at_end[row])
            rises = 1.0 if lifts and step < self._stop_at[row] + LIFT_STEPS else 0.0
            action = np.array([0, 0, rises, OPEN if lifts else action[3]], dtype=np.float32)
        if p.noise_scale[row] > 0:
            time = torch.tensor([step / SLOWER])
            noise = p.noise_scale[row] * smooth_noise(p.noise_phase[row : row + 1], time, 3)[0]
            action[:3] = np.clip(action[:3] + noise.numpy(), -1, 1)
        return action

    def _ask_expert(self, row: int, observed: NDArray[np.float64]) -> NDArray[np.float32]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its actions are above 1: they are clipped, as Meta-World does
            action = self._experts[row].get_action(observed)
        return np.clip(action, -1, 1).astype(np.float32)

    def _shift(self, row: int) -> NDArray[np.float64]:
        """What to add to an observation, so that objects and goal seem to be beside and above their places."""
        shift, began = np.zeros(39), self._began[row]
        assert began is not None
        way = began[GOAL] - began[OBJECT]
        length = float(np.hypot(way[0], way[1]))
        side = np.array([way[1], -way[0], 0.0]) / length if length > 0.01 else np.array([1.0, 0.0, 0.0])
        moved = side * float(self._p.lateral_m[row]) + np.array([0.0, 0.0, float(self._p.height_m[row])])
        for place in (OBJECT, GOAL, *([SECOND_OBJECT] if began[SECOND_OBJECT].any() else [])):
            shift[place] = moved
        return shift

    def _wander(self, row: int, observed: NDArray[np.float64], step: int) -> NDArray[np.float32]:
        """Towards a slowly moving point in the air, `AWAY_M` and more from where object and goal were."""
        phase, began = self._p.noise_phase[row].tolist(), self._began[row]
        assert began is not None
        middle = (began[OBJECT] + began[GOAL]) / 2
        radius = float(np.linalg.norm((began[OBJECT] - began[GOAL])[:2])) / 2 + AWAY_M + 0.05 * phase[2]
        angle = 2 * np.pi * phase[0] + (phase[1] - 0.5) * 0.12 * step / SLOWER
        height = 0.12 + 0.2 * phase[3] + 0.02 * np.sin(0.3 * step / SLOWER)
        target = np.array([middle[0] + radius * np.cos(angle), middle[1] + radius * np.sin(angle), height])
        motion = np.clip((target - observed[HAND]) / STEP_M * 0.1, -0.7, 0.7)
        return np.append(motion, OPEN).astype(np.float32)
