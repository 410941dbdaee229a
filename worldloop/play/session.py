"""What is played: a tree of moments, each one frame after its parent, imagined and, where there is one, simulated.

Any moment can be gone back to; a step from it then starts a branch. Neither the time limit nor a success ends a game.
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
from worldloop.core.success import Calibration
from worldloop.core.types import Observation

MAX_MOMENTS = 2000  # of a game: some 200 KB each at 64 px, without what a denoiser remembers
NUM_STATES = 16  # initial states of the simulator that a game may begin with
ROOT = -1  # parent of the first moment


@dataclass(frozen=True)
class Simulated:
    """The true simulator's side of a moment: ``frame`` u8 [h, w, 3], ``state`` f32 [D], its own ``success``."""

    frame: np.ndarray
    state: Tensor
    success: bool


@dataclass(frozen=True)
class Moment:
    """``frame`` u8 [h, w, 3]; ``success_prob`` calibrated; ``expected_psnr_db`` without its bias, inf at first.

    ``state`` is what `WorldState.to_tensors` gave, in the processor's memory.
    """

    parent: int
    frame: np.ndarray
    state: dict[str, Tensor]
    success_prob: float
    expected_psnr_db: float
    simulated: Simulated | None


class PlaySession:
    """One game at a time. ``starts`` are what it may begin with where there is no simulator.

    Bad input raises `WorldloopError` and changes nothing.
    """

    def __init__(
        self,
        world_model: WorldModel,
        calibration: Calibration,
        starts: Observation,
        simulator: TaskSimulator | None = None,
        seed: int = 0,
    ) -> None:
        self.world_model, self.calibration, self.starts = world_model, calibration, starts
        self.spec = world_model.spec
        self.simulator = simulator
        self.simulator_error = ""
        self._seed = seed
        self._initial = None if simulator is None else simulator.draw_initial_states("train", NUM_STATES, seed).states
        self._now_simulated = ROOT  # the moment at which the simulator stands
        self._now_imagined = ROOT  # the moment at which the world model's state is at hand, `_state`
        self._state: Any = None
        self.moments: list[Moment] = []
        self.now = 0
        self.start = 0
        self.reset(0)

    @property
    def num_starts(self) -> int:
        return len(self.starts) if self._initial is None else len(self._initial)

    def reset(self, start: int) -> None:
        """A new game from the start numbered ``start``."""
        if not isinstance(start, int) or not 0 <= start < self.num_starts:
            raise WorldloopError(f"start is {start!r}, allowed: 0 to {self.num_starts - 1}")
        simulated = None
        if self._initial is None:
            observation = self.starts.rows([start])
        else:
            assert self.simulator is not None
            observation = self.simulator.reset(self._initial[[start]])
            assert observation.sim_state is not None
            frame = observation.frames[0, -1].numpy().copy()
            simulated = Simulated(frame, observation.sim_state[0].clone(), success=False)
        observation = replace(observation, sim_state=None)
        key = torch.tensor([derive_seed(self._seed, "play", start)])
        self._state = self.world_model.start(observation, key)
        frame = observation.frames[0, -1].numpy().copy()
        self.moments = [Moment(ROOT, frame, _keep(self._state, {}), 0.0, float("inf"), simulated)]
        self.now, self.start, self._now_simulated, self._now_imagined = 0, start, 0, 0

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
            frame=chunk.frames[0, -1].cpu().numpy(),
            state=_keep(state, here.state),
            success_prob=float(self.calibration.probability(chunk.success_logit)[0, -1]),
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

    def _scale(self, action: list[float]) -> Tensor:
        """f32 [1, s, A] in environment units."""
        names = self.spec.action_names
        if not isinstance(action, list) or len(action) != len(names):
            raise WorldloopError(f"an action is {len(names)} numbers: {', '.join(names)}")
        for name, value in zip(names, action, strict=True):
            if not isinstance(value, int | float) or isinstance(value, bool) or not -1 <= value <= 1:  # NaN is not
                raise WorldloopError(f"action {name!r} is {value!r}, allowed: -1 to 1")
        share = (torch.tensor(action, dtype=torch.float32) + 1) / 2
        low, high = torch.tensor(self.spec.action_low), torch.tensor(self.spec.action_high)
        return (low + share * (high - low)).expand(1, self.spec.actions_per_frame, -1).contiguous()

    def _simulate(self, actions: Tensor) -> Simulated | None:
        """The simulator's next moment; one that fails is left out for the rest of the game, and says why."""
        before = self.moments[self.now].simulated
        if self.simulator is None or before is None:
            return None
        try:
            if self._now_simulated != self.now:
                self.simulator.reset(before.state[None])
            step = self.simulator.step_chunk(actions)
        except Exception as error:  # a renderer may raise anything; the imagined game goes on
            self.simulator_error = f"the simulator failed: {error}"
            self.simulator = None
            return None
        assert step.sim_states is not None
        success = before.success or bool(step.success[0, -1])
        return Simulated(step.frames[0, -1].numpy().copy(), step.sim_states[0, -1].clone(), success)


def _keep(state: Any, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """What there is to save of ``state``, sharing with ``before`` what has not changed (the instruction)."""
    kept = {name: value.cpu() for name, value in state.to_tensors().items()}
    return {n: before[n] if n in before and torch.equal(before[n], value) else value for n, value in kept.items()}
