"""The exact state of a MuJoCo scene inside our f32 ``sim_state``: what Meta-World and LIBERO share.

MuJoCo counts in doubles, and a state that is rounded to floats continues on another path. So each double becomes three
floats whose sum it is. Imports mujoco in functions only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_PARTS = 3  # floats of a double
# A middle or low part is far smaller than its double. Scaled, it is no subnormal float where its double is none.
_SCALES = (1.0, 2.0**24, 2.0**48)


def split_doubles(values: NDArray[np.float64]) -> Tensor:
    """``values`` f64 [..., n] as f32 [..., 3n] without loss: n high parts, n middle parts, n low parts.

    The high parts are ``values`` rounded to float, so a landmark's columns may index them. Three parts of 24 bits hold
    the 53 bits of a double. That is exact for 0 and from 2^-145 (2e-44) to the largest float (3e38); what is smaller
    is rounded to a multiple of 2^-197 (5e-60). Raises ``ValueError`` for what is larger, infinite or not a number.
    """
    rest = np.asarray(values, dtype=np.float64)
    parts = []
    for scale in _SCALES:
        with np.errstate(over="ignore"):
            part = (rest * scale).astype(np.float32)
        if not np.isfinite(part).all():
            raise ValueError("a simulator state has a number that is infinite, not a number, or beyond 3.4e38")
        rest = rest - part.astype(np.float64) / scale
        parts.append(part)
    return torch.from_numpy(np.concatenate(parts, axis=-1))


def join_doubles(parts: Tensor) -> NDArray[np.float64]:
    """The doubles f64 [..., n] that `split_doubles` made f32 [..., 3n] of; the sign of a zero is kept."""
    high, middle, low = np.split(parts.detach().cpu().numpy().astype(np.float64), NUM_PARTS, axis=-1)
    rest = middle / _SCALES[1] + low / _SCALES[2]
    return np.where(rest == 0, high, high + rest)


def read_physics(model: Any, data: Any) -> NDArray[np.float64]:
    """All from which a step continues bit for bit, f64 [n]: ``mjSTATE_INTEGRATION`` without applied forces.

    The forces would be four fifths of it, and robots that move by controls or a mocap body have none. Raises
    ``ValueError`` where there are some.
    """
    import mujoco

    if data.qfrc_applied.any() or data.xfrc_applied.any():
        raise ValueError("the scene has applied forces (qfrc_applied, xfrc_applied), which its state leaves out")
    spec = _choose_parts()
    state = np.empty(mujoco.mj_stateSize(model, spec))
    mujoco.mj_getState(model, data, state, spec)
    return state


def write_physics(model: Any, data: Any, state: NDArray[np.float64]) -> None:
    """Put ``state`` of `read_physics` into ``data``, and compute what follows from it (poses, contacts).

    Raises ``ValueError`` for a state of another length.
    """
    import mujoco

    spec = _choose_parts()
    size = mujoco.mj_stateSize(model, spec)
    if state.shape != (size,):
        raise ValueError(f"the scene has states of {size} numbers, got {list(state.shape)}")
    data.qfrc_applied[:] = 0
    data.xfrc_applied[:] = 0
    mujoco.mj_setState(model, data, state, spec)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, state, spec)  # `mj_forward` has put new accelerations over the warm start


def _choose_parts() -> int:
    """The parts of MuJoCo's state, as the bits of ``mjtState``."""
    from mujoco import mjtState

    forces = mjtState.mjSTATE_QFRC_APPLIED.value | mjtState.mjSTATE_XFRC_APPLIED.value
    return int(mjtState.mjSTATE_INTEGRATION.value) & ~forces
