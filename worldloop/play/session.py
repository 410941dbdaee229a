"""A game: a tree of moments. Each moment is one frame after its parent.

The world model imagines it, and the simulator, if there is one, simulates it. A game does one task, that of its start.
A moment has a frame for each camera that the world model imagines. The player can go back to any moment; a step from
there starts a branch. Neither the time limit nor a success ends a game.
"""

from __future__ import annotations

from collections.abc import Callable
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
from worldloop.play.controls import find_rest, to_actions
from worldloop.simulators.base import choose_instruction

Frames = dict[str, np.ndarray]

MAX_MOMENTS = 2000  # per game; about 200 KB each with one camera of 64 px, plus the denoiser's memory
NUM_STATES = 16  # initial states per task from which a game may start
ROOT = -1  # parent of the first moment


@dataclass(frozen=True)
class Simulated:
    """A moment in the true simulator: ``frames`` camera -> u8 [h, w, 3], ``state`` f32 [D], ``success`` so far."""

    frames: Frames
    state: Tensor
    success: bool


@dataclass(frozen=True)
class Moment:
    """A moment in the world model.

    - ``parent``: number of the moment before, `ROOT` for the first
    - ``frames``: camera -> u8 [h, w, 3]
    - ``state``: the tensors of `WorldState.to_tensors`, on the CPU
    - ``success_prob``: calibrated; ``expected_psnr_db``: corrected by its bias, inf at the first moment
    - ``proprio`` f32 [1, S]
    - ``value`` in [-1, 0]: of critics, if there are any
    - ``simulated``: the moment in the simulator, ``None`` without one
    - ``action``: shares [A] in [-1, 1] of the action that led here, ``None`` for the first
    """

    parent: int
    frames: Frames
    state: dict[str, Tensor]
    success_prob: float
    expected_psnr_db: float
    proprio: Tensor
    simulated: Simulated | None
    value: float | None = None
    action: tuple[float, ...] | None = None


class PlaySession:
    """One game at a time. Without a simulator, a game starts from one of ``starts``.

    With a simulator, it starts from one of the simulator's initial states: `NUM_STATES` of each of the world model's
    tasks, one task after the other. ``start_actions`` f32 [N, A] are the first recorded actions after ``starts``, in
    environment units. ``note`` is shown beside the game. ``value``, if given, is what critics say of an
    observation, f32 [B] in [-1, 0], and ``plan`` the frames that a planner expects after it, camera -> u8
    [B, M, h, w, 3]. It is asked only while ``shows_plan``, for a plan takes longer than a frame. Bad input raises
    `WorldloopError` and changes nothing.
    """

    def __init__(
        self,
        world_model: WorldModel,
        calibrations: Calibrations,
        starts: Observation,
        simulator: TaskSimulator | None = None,
        seed: int = 0,
        note: str = "",
        value: Callable[[Observation], Tensor] | None = None,
        plan: Callable[[Observation], dict[str, Tensor]] | None = None,
        start_actions: Tensor | None = None,
    ) -> None:
        self.world_model, self.calibrations = world_model, calibrations
        self.spec = world_model.spec
        self.simulator, self.note, self._value, self._plan = simulator, note, value, plan
        self.simulator_error = ""
        self.shows_plan = False
        self._plans: dict[int, Frames] = {}  # by moment
        self._seed = seed
        self._observations, self._start_actions = starts, start_actions
        self._initial_states = None if simulator is None else self._draw_initial_states(simulator)
        self._now_simulated = ROOT  # the moment that the simulator is at
        self._now_imagined = ROOT  # the moment whose world model state is in `_state`
        self._state: Any = None
        self.moments: list[Moment] = []
        self.now = 0
        self.start = 0
        self.task = self.instruction = ""
        self.reset(0)

    @property
    def starts(self) -> list[tuple[str, str]]:
        """Task and instruction of every start of a game."""
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
        """Begin a new game from the start numbered ``start``."""
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
        assert observation.proprio is not None
        frames, value = self._show(observation.frames), self._judge(observation)
        begin = Moment(ROOT, frames, _keep(self._state, {}), 0.0, float("inf"), observation.proprio, simulated, value)
        self.moments, self._begin, self._plans = [begin], observation, {}
        self.now, self.start, self._now_simulated, self._now_imagined = 0, start, 0, 0
        self.task, self.instruction = observation.task[0], observation.instruction[0]

    def step(self, action: list[float]) -> None:
        """Go one frame further by s times the same action: A numbers, -1 for the lower bound to 1 for the upper."""
        if len(self.moments) >= MAX_MOMENTS:
            raise WorldloopError(f"this game has {MAX_MOMENTS} moments, which is as many as are kept: start a new one")
        self._check_action(action)
        actions = to_actions(self.spec.robot, action, self.spec.actions_per_frame)
        here = self.moments[self.now]
        before = self._state if self._now_imagined == self.now else self.world_model.restore(here.state)
        state, chunk = self.world_model.imagine(before, actions)
        psnr_db = float("inf")
        if chunk.expected_psnr_db is not None:
            psnr_db = float(chunk.expected_psnr_db[0, -1]) - self.calibration.psnr_bias_db
        frames = self._show(chunk.frames)
        proprio = chunk.proprio[:, -1].cpu()
        moment = Moment(
            parent=self.now,
            frames=frames,
            state=_keep(state, here.state),
            success_prob=float(self.calibration.probability(chunk.success_logit[0, -1])),
            expected_psnr_db=psnr_db,
            proprio=proprio,
            simulated=self._simulate(actions),
            value=self._judge(self._observe(self.now, frames, proprio)),
            action=tuple(action),
        )
        self.moments.append(moment)
        self.now = self._now_imagined = len(self.moments) - 1
        self._state = state
        if moment.simulated is not None:
            self._now_simulated = self.now

    def rest(self) -> list[float]:
        """The action that moves nothing from now on, shares [A] in [-1, 1]; see `find_rest`."""
        here, first = self.moments[self.now], None
        if self._initial_states is None and self._start_actions is not None:
            first = self._start_actions[self.start]
        return find_rest(self.spec.robot, here.action, first, here.proprio[0])

    def go_to(self, moment: int) -> None:
        """Go to the moment numbered ``moment``. Later moments are kept, and the next step starts a branch."""
        if not isinstance(moment, int) or not 0 <= moment < len(self.moments):
            raise WorldloopError(f"moment is {moment!r}, allowed: 0 to {len(self.moments) - 1}")
        self.now = moment

    def show_plan(self, shown: bool) -> None:
        """Show what a planner expects after every moment, or no longer."""
        if not isinstance(shown, bool) or (shown and not self.has_planner):
            raise WorldloopError(f"shown is {shown!r}, allowed: false" + (", true" if self.has_planner else ""))
        self.shows_plan = shown

    @property
    def has_planner(self) -> bool:
        return self._plan is not None

    def plan(self) -> Frames | None:
        """The frames that the planner expects next, ``None`` while they are not shown."""
        if self._plan is None or not self.shows_plan:
            return None
        if self.now not in self._plans:
            here = self.moments[self.now]
            observation = self._begin if self.now == 0 else self._observe(here.parent, here.frames, here.proprio)
            self._plans[self.now] = self._show(self._plan(observation))
        return self._plans[self.now]

    def path(self, end: int | None = None) -> list[int]:
        """The moments from the beginning to ``end``, or to now."""
        path = [self.now if end is None else end]
        while (parent := self.moments[path[-1]].parent) != ROOT:
            path.append(parent)
        return path[::-1]

    def branches(self) -> list[list[int]]:
        """For each leaf, its moments since its path left that of an earlier leaf; leaves in the order of creation."""
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
        """The state that sets the simulator to the moment numbered ``moment``; ``ValueError`` if it has none."""
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
        """Of ``frames`` [1, n, h, w, 3], the last frame of each camera that the world model imagines."""
        return {name: frames[name][0, -1].cpu().numpy().copy() for name in self.spec.robot.camera_names}

    def _judge(self, observation: Observation) -> float | None:
        """The value of ``observation``, of one row."""
        return None if self._value is None else float(self._value(observation))

    def _observe(self, parent: int, frames: Frames, proprio: Tensor) -> Observation:
        """What a policy would see one frame after ``parent``, where ``frames`` and ``proprio`` [1, S] are imagined."""
        first, now = self.moments[0].frames, self.moments[parent].frames
        seen = {name: np.stack([first[name], now[name], frames[name]])[None] for name in frames}
        return Observation(
            frames={name: torch.from_numpy(images) for name, images in seen.items()},
            proprio=proprio,
            task=(self.task,),
            instruction=(self.instruction,),
            env_step=torch.tensor([len(self.path(parent)) * self.spec.actions_per_frame]),
        )

    def _check_action(self, action: list[float]) -> None:
        """Raise `WorldloopError` unless ``action`` is A numbers from -1 to 1."""
        names = self.spec.robot.action_names
        if not isinstance(action, list) or len(action) != len(names):
            raise WorldloopError(f"an action is {len(names)} numbers: {', '.join(names)}")
        for name, value in zip(names, action, strict=True):
            if not isinstance(value, int | float) or isinstance(value, bool) or not -1 <= value <= 1:  # NaN is not
                raise WorldloopError(f"action {name!r} is {value!r}, allowed: -1 to 1")

    def _simulate(self, actions: Tensor) -> Simulated | None:
        """Step the simulator. If it fails, the game goes on without it, and ``simulator_error`` says why."""
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
    """The tensors of ``state`` on the CPU. Unchanged ones (e.g. the instruction) are shared with ``before``."""
    kept = {name: value.cpu() for name, value in state.to_tensors().items()}
    return {n: before[n] if n in before and torch.equal(before[n], value) else value for n, value in kept.items()}
