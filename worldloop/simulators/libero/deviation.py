"""How one row's script deviates from the expert's: the perturbed variants, in terms of LIBERO's tasks.

- ``stops_short``: stops at a share of the way, drawer or turn; half of these rows let go there: an early drop
- ``lateral_offset``, ``grazing``: half grasp beside the object, half put it down beside its place
- ``too_high``: half close the fingers above the object, half let go of it above its place, which often succeeds
- ``late``: waits first. ``noisy``: smooth noise on the motion
- ``far``: half move about in the air, half do the task with a wrong object of the scene
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from worldloop.simulators.perturbations import VariantParameters, smooth_noise

WAIT_SCALE = 2.0  # LIBERO's episodes are longer than those that the parameters were made for


@dataclass(frozen=True)
class Deviation:
    """The parameters of one row. Lengths in metres; shifts are world coordinates f64 [3].

    - ``progress``: share of the way after which it stops; 1 or more: never
    - ``grasp_shift``: from the right grasp to where it grasps; ``place_shift``: the same of where it puts down
    - ``lets_go``: opens the fingers where it stops short
    - ``wanders``, ``takes_wrong_object``: see the module
    - ``speed``: largest motion per step, as a share of the robot's limit
    - ``noise_phase`` f32 [1, 6]: see `smooth_noise`
    """

    progress: float
    grasp_shift: NDArray[np.float64]
    place_shift: NDArray[np.float64]
    lets_go: bool
    wait_steps: int
    wanders: bool
    takes_wrong_object: bool
    speed: float
    noise_scale: float
    noise_phase: Tensor

    def add_noise(self, action: NDArray[np.float64], step: Tensor) -> NDArray[np.float64]:
        """``action`` f64 [7] with noise on the motion, within [-1, 1]; ``step`` int64 [1]."""
        noisy = action.copy()
        if self.noise_scale > 0:
            noisy[:3] += self.noise_scale * smooth_noise(self.noise_phase, step, 3)[0].numpy()
        return noisy.clip(-1.0, 1.0)


def read_deviation(parameters: VariantParameters, row: int) -> Deviation:
    """The deviation of ``row``."""
    is_half = bool(parameters.lifts_at_end[row])
    far = bool(parameters.wanders[row])
    shift = np.array([0.0, float(parameters.lateral_m[row]), float(parameters.height_m[row])])
    nothing = np.zeros(3)
    return Deviation(
        progress=float(parameters.progress[row]),
        grasp_shift=nothing if is_half else shift,
        place_shift=shift if is_half else nothing,
        lets_go=is_half,
        wait_steps=int(WAIT_SCALE * float(parameters.wait_steps[row])),
        wanders=far and is_half,
        takes_wrong_object=far and not is_half,
        speed=min(1.0, float(parameters.speed[row]) + 0.4),
        noise_scale=float(parameters.noise_scale[row]),
        noise_phase=parameters.noise_phase[row : row + 1],
    )
