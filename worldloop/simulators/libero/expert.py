"""The scripted expert of every LIBERO task, and its perturbed variants: a script per row.

A policy hands over a whole chunk, but a script looks at the scene before every action. So the chunk is tried out first:
the scene is set to the observation's state, the script acts in it for as many steps as the chunk has, and the scene is
put back. States are exact, so the same motion follows when the chunk is executed. It costs the physics twice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from worldloop.core.types import ActionChunk, Observation
from worldloop.simulators.libero.deviation import Deviation, read_deviation
from worldloop.simulators.libero.family import LiberoTask, Script
from worldloop.simulators.libero.hand import OPEN, Hand, point_down
from worldloop.simulators.libero.scene import Scene
from worldloop.simulators.perturbations import VariantParameters

OpenScene = Callable[[str], Scene]  # the scene of a task, with its goal; what runs in it stays
ReadState = Callable[[Tensor], np.ndarray]  # a row's sim_state [D] -> the scene's state


class LiberoScriptedPolicy:
    """One script per row; rows restart at ``env_step == 0`` by themselves. ``act`` needs ``observation.sim_state``."""

    version = "scripted-1"

    def __init__(
        self,
        tasks: tuple[LiberoTask, ...],
        parameters: VariantParameters,
        chunk_length: int,
        open_scene: OpenScene,
        read_state: ReadState,
    ) -> None:
        self._tasks = tasks
        self._deviations = [read_deviation(parameters, row) for row in range(len(tasks))]
        self._chunk_length = chunk_length
        self._open_scene, self._read_state = open_scene, read_state
        self._scripts: list[Script | None] = [None] * len(tasks)

    def act(self, observation: Observation, noise_key: Tensor | None = None) -> ActionChunk:
        """H actions f32 [B, H, 7] within [-1, 1]; the randomness is in the row keys, ``noise_key`` is not used."""
        if observation.sim_state is None:
            raise ValueError("a scripted policy needs observation.sim_state")
        rows = [
            self._try_out(row, state, int(step))
            for row, (state, step) in enumerate(zip(observation.sim_state, observation.env_step, strict=True))
        ]
        return ActionChunk(torch.from_numpy(np.stack(rows)), policy_version=self.version)

    def _try_out(self, row: int, sim_state: Tensor, first_step: int) -> np.ndarray:
        """The next H actions f32 [H, 7] of a row; the scene is afterwards as it was."""
        scene = self._open_scene(self._tasks[row].id)
        before = scene.read_state()
        scene.write_state(self._read_state(sim_state))
        script = self._scripts[row]
        if script is None or first_step == 0:
            hand = Hand(scene, self._deviations[row])
            script = self._scripts[row] = make_script(self._tasks[row], hand)
        actions = []
        for step in range(first_step, first_step + self._chunk_length):
            action = self._deviations[row].add_noise(next(script), torch.tensor([step])).astype(np.float32)
            scene.step(action.astype(np.float64))
            actions.append(action)
        scene.write_state(before)
        return np.stack(actions)


def make_script(task: LiberoTask, hand: Hand) -> Script:
    """The actions of one row without end: it may wait first, and stays where it is when the task's script ends."""
    deviation: Deviation = hand.deviation
    yield from hand.hold(OPEN, point_down(), deviation.wait_steps)
    fingers = OPEN
    for action in hand.wander(point_down()) if deviation.wanders else task.perform(hand):
        fingers = action[-1]
        yield action
    pose = hand.scene.hand_rotation
    while True:
        yield from hand.hold(fingers, pose, 100)
