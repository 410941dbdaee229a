"""What is played: a tree of moments, each one frame after its parent, imagined and, where there is one, simulated.

A game does one task, that of its start. The frames of a moment are by camera, those that the world model imagines. Any
moment can be gone back to; a step from it then starts a branch. Neither the time limit nor a success ends a game.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import TaskSimulator, WorldModel
from worldloop.core.randomness import derive_seed
from worldloop.core.success import Calibration, Calibrations
from worldloop.core.types import InitialStates, Observation
from worldloop.simulators.base import choose_instruction

Frames = dict[str, np.ndarray]

MAX_MOMENTS = 2000  # of a game: some 200 KB each for a camera of 64 px, without what a denoiser remembers
NUM_STATES = 16  # initial states of each of the simulator's tasks that a game may begin with
ROOT = -1  # parent of the first moment


@dataclass(frozen=True)
class Simulated:
    """The true simulator's side of a moment: ``frames`` camera -> u8 [h, w, 3], ``state`` f32 [D], ``success``."""

    frames: Frames
    state: Tensor
    success: bool


@dataclass(frozen=True)
class Moment:
    """``frames`` camera -> u8 [h, w, 3]; ``success_prob`` calibrated; ``expected_psnr_db`` without its bias, first inf.

    ``state`` is what `WorldState.to_tensors` gave, in the processor's memory.
    """

    parent: int
    frames: Frames
    state: dict[str, Tensor]
    success_prob: float
    expected_psnr_db: float
    simulated: Simulated | None


class PlaySession:
    """One game at a time. ``starts`` are what it may begin with where there is no simulator.

    With a simulator it begins with initial states of all tasks of the world model, one task after the other.

    Bad input raises `WorldloopError` and changes nothing.
    """

    def __init__(
        self,
        world_model: WorldModel,
        calibrations: Calibrations,
        starts: Observation,
        simulator: TaskSimulator | None = None,
        seed: int = 0,
    ) -> None:
        self.world_model, self.calibrations = world_model, calibrations
        self.spec = world_model.spec
        self.simulator = simulator
        self.simulator_error = ""
        self._seed = seed
        self._observations = starts
        self._initial_states = None if simulator is None else self._draw_initial_states(simulator)
        self._now_simulated = ROOT  # the moment at which the simulator stands
        self._now_imagined = ROOT  # the moment at which the world model's state is at hand, `_state`
        self._state: Any = None
        self.moments: list[Moment] = []
        self.now = 0
        self.start = 0
        self.task = self.instruction = ""
        self.reset(0)

    @property
    def starts(self) -> list[tuple[str, str]]:
        """Task and instruction of everything that a game may begin with."""
        states = self._initial_states
        if states is None:
            return list(zip(self._observations.task, self._observations.instruction, strict=True))
        pairs = zip(states.tasks, states.ids, strict=True)
        return [(task, choose_instruction(self.spec.task(task), state_id)) for task, state_id in pairs]

    @property
    def calibration(self) -> Calibration:
        """How to read the heads in the game's task."""
        return self.calibrations.of(self.task)

    def reset(self, start: int) -> None:
        """A new game from the start numbered ``start``."""
        num_starts = len(self._observations if self._initial_states is None else self._initial_states)
        if not isinstance(start, int) or not 0 <= start < num_starts:
            raise WorldloopError(f"start is {start!r}, allowed: 0 to {num_starts - 1}")
        simulated = None
        if self._initial_states is None:
            observation = self._observations.rows([start])
        else:
            assert self.simulator is not None
            observation = self.simulator.reset(self._initial_states.select([start]))
            assert observation.sim_state is not None
            simulated = Simulated(self._show(observation.frames), observation.sim_state[0].clone(), success=False)
        observation = replace(observation.with_cameras(self.spec.robot.camera_names), sim_state=None)
        key = torch.tensor([derive_seed(self._seed, "play", start)])
        self._state = self.world_model.start(observation, key)
        frames = self._show(observation.frames)
        self.moments = [Moment(ROOT, frames, _keep(self._state, {}), 0.0, float("inf"), simulated)]
        self.now, self.start, self._now_simulated, self._now_imagined = 0, start, 0, 0
        self.task, self.instruction = observation.task[0], observation.instruction[0]

    def step(self, action: list[float]) -> None:
        """One frame further by s times the same action, [A] in shares of the bounds: -1 the lowest, 1 the highest."""
        if len(self.moments) >= MAX_MOMENTS:
            raise WorldloopError(f"this game has {MAX_MOMENTS} moments, which is as many as are kept: start a new one")
        actions = self._scale(action)
        here = self.moments[self.now]
        before = self._state if self._now_imagined == self.now else self.world_model.restore(here.state)
        state, chunk = self.world_model.imagine(before, actions)
        psnr_db = float("inf")
        if chunk.expected_psnr_db is not None:
            psnr_db = float(chunk.expected_psnr_db[0, -1]) - self.calibration.psnr_bias_db
        moment = Moment(
            parent=self.now,
            frames=self._show(chunk.frames),
            state=_keep(state, here.state),
            success_prob=float(self.calibration.probability(chunk.success_logit[0, -1])),
            expected_psnr_db=psnr_db,
            simulated=self._simulate(actions),
        )
        self.moments.append(moment)
        self.now = self._now_imagined = len(self.moments) - 1
        self._state = state
        if moment.simulated is not None:
            self._now_simulated = self.now

    def go_to(self, moment: int) -> None:
        """Back to the moment numbered ``moment``; the ones after it stay, and the next step starts a branch."""
        if not isinstance(moment, int) or not 0 <= moment < len(self.moments):
            raise WorldloopError(f"moment is {moment!r}, allowed: 0 to {len(self.moments) - 1}")
        self.now = moment

    def path(self) -> list[int]:
        """The moments from the beginning to now."""
        path = [self.now]
        while (parent := self.moments[path[-1]].parent) != ROOT:
            path.append(parent)
        return path[::-1]

    def branches(self) -> list[list[int]]:
        """Every leaf's moments from where it left an earlier leaf's, in the order in which they were made."""
        parents = {moment.parent for moment in self.moments}
        taken: set[int] = set()
        branches = []
        for leaf in (i for i in range(len(self.moments)) if i not in parents):
            branch = [leaf]
            while (parent := self.moments[branch[-1]].parent) != ROOT and parent not in taken:
                branch.append(parent)
            taken.update(branch)
            branches.append(branch[::-1])
        return branches

    def close(self) -> None:
        if self.simulator is not None:
            self.simulator.close()

    def sim_state(self, moment: int) -> InitialStates:
        """What to reset the simulator to for the moment numbered ``moment``; raises ``ValueError`` without one."""
        simulated = self.moments[moment].simulated
        if simulated is None or self._initial_states is None:
            raise ValueError(f"moment {moment} was not simulated")
        return replace(self._initial_states.select([self.start]), states=simulated.state[None])

    def _draw_initial_states(self, simulator: TaskSimulator) -> InitialStates:
        """``NUM_STATES`` of each task of the world model, task after task."""
        return InitialStates.cat(
            [simulator.draw_initial_states(task, "train", NUM_STATES, self._seed) for task in self.spec.task_ids]
        )

    def _show(self, frames: dict[str, Tensor]) -> Frames:
        """The last of the only row's ``frames`` [1, n, h, w, 3], of the cameras that the world model imagines."""
        return {name: frames[name][0, -1].cpu().numpy().copy() for name in self.spec.robot.camera_names}

    def _scale(self, action: list[float]) -> Tensor:
        """f32 [1, s, A] in environment units."""
        names = self.spec.robot.action_names
        if not isinstance(action, list) or len(action) != len(names):
            raise WorldloopError(f"an action is {len(names)} numbers: {', '.join(names)}")
        for name, value in zip(names, action, strict=True):
            if not isinstance(value, int | float) or isinstance(value, bool) or not -1 <= value <= 1:  # NaN is not
                raise WorldloopError(f"action {name!r} is {value!r}, allowed: -1 to 1")
        share = (torch.tensor(action, dtype=torch.float32) + 1) / 2
        low, high = torch.tensor(self.spec.robot.action_low), torch.tensor(self.spec.robot.action_high)
        return (low + share * (high - low)).expand(1, self.spec.actions_per_frame, -1).contiguous()

    def _simulate(self, actions: Tensor) -> Simulated | None:
        """The simulator's next moment; one that fails is left out from then on, and says why."""
        before = self.moments[self.now].simulated
        if self.simulator is None or before is None:
            return None
        try:
            if self._now_simulated != self.now:
                self.simulator.reset(self.sim_state(self.now))
            step = self.simulator.step_chunk(actions)
        except Exception as error:  # a renderer may raise anything; the imagined game goes on
            self.simulator_error = f"the simulator failed: {error}"
            self.simulator = self._initial_states = None
            return None
        assert step.sim_states is not None
        success = before.success or bool(step.success[0, -1])
        return Simulated(self._show(step.frames), step.sim_states[0, -1].clone(), success)


def _keep(state: Any, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """What there is to save of ``state``, sharing with ``before`` what has not changed (the instruction)."""
    kept = {name: value.cpu() for name, value in state.to_tensors().items()}
    return {n: before[n] if n in before and torch.equal(before[n], value) else value for n, value in kept.items()}
