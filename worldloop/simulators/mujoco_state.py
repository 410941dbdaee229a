"""The exact state of a MuJoCo scene inside our f32 ``sim_state``: what Meta-World and LIBERO share.

MuJoCo counts in doubles, and a state that is rounded to floats continues on another path. So each double becomes three
floats: the double rounded to float, and two whole numbers of 24 bits that say how its bits differ from that.

Doubles that are nearly 0 are common, since velocities die away for ever, and floats cannot come near them. Below 2^-100
(8e-31) the three floats hold the bits of the double itself. Imports mujoco in functions only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_PARTS = 3  # floats of a double
_TINY = 2.0**-100
_BITS = 24  # of a whole number that a float holds
_MASK = 2**_BITS - 1
_WITHOUT_SIGN = 2**63 - 1
_TOP, _TOP_UNIT = 2**14, 2.0**-140  # a tiny double's high part: its 14 highest bits above 2^-126, a normal float


def split_doubles(values: NDArray[np.float64]) -> Tensor:
    """``values`` f64 [..., n] as f32 [..., 3n] without loss: n high parts, n middle parts, n low parts.

    The high parts are ``values`` rounded to float (below 2^-100: something below 2^-125), so a landmark's columns may
    index them. Raises ``ValueError`` for a number beyond the largest float (3e38), infinite or not a number.
    """
    values = np.ascontiguousarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        high = values.astype(np.float32)
    if not np.isfinite(high).all():
        raise ValueError("a simulator state has a number that is infinite, not a number, or beyond 3.4e38")
    is_tiny = np.abs(values) < _TINY
    bits = values.view(np.int64)
    rest = np.where(is_tiny, bits & _WITHOUT_SIGN, bits - high.astype(np.float64).view(np.int64))
    middle = np.where(is_tiny, rest >> _BITS & _MASK, rest >> _BITS)
    top = np.copysign(((rest >> 2 * _BITS) + _TOP) * _TOP_UNIT, values).astype(np.float32)
    high = np.where(is_tiny & (values != 0), top, high)
    parts = (high, middle.astype(np.float32), (rest & _MASK).astype(np.float32))
    return torch.from_numpy(np.concatenate(parts, axis=-1))


def join_doubles(parts: Tensor) -> NDArray[np.float64]:
    """The doubles f64 [..., n] that `split_doubles` made f32 [..., 3n] of; the sign of a zero is kept."""
    high, middle, low = np.split(parts.detach().cpu().numpy().astype(np.float64), NUM_PARTS, axis=-1)
    high = np.ascontiguousarray(high)
    rest = (middle.astype(np.int64) << _BITS) + low.astype(np.int64)
    top = (np.minimum(np.abs(high), _TINY) / _TOP_UNIT).astype(np.int64) - _TOP
    tiny = np.copysign(((top << 2 * _BITS) + rest).view(np.float64), high)
    values = np.where(np.abs(high) < _TINY, tiny, (high.view(np.int64) + rest).view(np.float64))
    return np.where(high == 0, high, values)


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
