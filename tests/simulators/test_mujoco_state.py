import numpy as np
import pytest
import torch

from worldloop.simulators.mujoco_state import join_doubles, read_physics, split_doubles, write_physics

# A box that is thrown, turns and falls onto the floor: contacts, friction and a warm start.
THROWN_BOX = """
<mujoco><worldbody>
  <geom type="plane" size="2 2 .1"/>
  <body pos="0 0 .3" euler="20 35 5"><freejoint/><geom type="box" size=".05 .04 .1"/></body>
</worldbody></mujoco>
"""


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.int64), b.view(np.int64))


def test_doubles_of_every_size_come_back_bit_for_bit():
    generator = np.random.default_rng(0)
    mantissa = generator.uniform(1, 2, (40, 250)) * generator.choice([-1.0, 1.0], (40, 250))
    values = np.ldexp(mantissa, generator.integers(-1080, 127, mantissa.shape))  # subnormal doubles and zeros too
    assert (np.abs(values) < 2.0**-1022).any()
    assert same_bits(join_doubles(split_doubles(values)), values)


EDGES = (0.0, 0.1, 1 / 3, 1 + 2.0**-52, 1 - 2.0**-53, 2.0**-100, 3.4028234e38, 1e-60, 5e-324)
EDGES += (np.nextafter(2.0**-100, 0), np.nextafter(2.0**-100, 1), 1 + 2.0**-24, 1 + 3 * 2.0**-25, 2.0**-126)


@pytest.mark.parametrize("value", EDGES)
def test_a_double_comes_back_bit_for_bit(value):
    values = np.array([value, -value])
    assert same_bits(join_doubles(split_doubles(values)), values)


def test_the_first_block_holds_the_values_rounded_to_float():
    values = np.array([0.1, -2.5, 1 + 2.0**-30, 0.0])
    parts = split_doubles(values)
    assert parts.shape == (12,)
    assert parts.dtype == torch.float32
    assert parts[:4].tolist() == torch.tensor(values).float().tolist()
    assert parts[8:].tolist()[1:] == [0.0, 2.0**22, 0.0]  # of 52 bits behind the point the 30th from the left


def test_nearly_zero_stays_so_for_who_reads_floats_and_needs_no_subnormal_ones():
    parts = split_doubles(np.array([1e-31, -1e-31, 5e-324]))
    assert (parts[:3].abs() < 2.0**-125).all()
    assert (parts[:3].abs() >= 2.0**-126).all()
    assert parts[:3].sign().tolist() == [1, -1, 1]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e39])
def test_values_beyond_a_float_are_refused(value):
    with pytest.raises(ValueError, match="infinite, not a number, or beyond"):
        split_doubles(np.array([0.0, value]))


def test_physics_goes_on_bit_for_bit_from_a_stored_state():
    mujoco = pytest.importorskip("mujoco", reason="needs the extra metaworld")
    model = mujoco.MjModel.from_xml_string(THROWN_BOX)
    data, other = mujoco.MjData(model), mujoco.MjData(model)
    mujoco.mj_step(model, data, 150)
    assert data.ncon > 0
    stored = split_doubles(read_physics(model, data))
    other.xfrc_applied[1] = 3.0
    mujoco.mj_step(model, other, 7)
    write_physics(model, other, join_doubles(stored))
    for _ in range(100):
        mujoco.mj_step(model, data)
        mujoco.mj_step(model, other)
        assert same_bits(read_physics(model, data), read_physics(model, other))
    mujoco.mj_step(model, data)
    assert not same_bits(read_physics(model, data), read_physics(model, other))


def test_a_state_of_another_scene_is_refused():
    mujoco = pytest.importorskip("mujoco", reason="needs the extra metaworld")
    model = mujoco.MjModel.from_xml_string(THROWN_BOX)
    with pytest.raises(ValueError, match=r"states of \d+ numbers, got \[5\]"):
        write_physics(model, mujoco.MjData(model), np.zeros(5))


def test_applied_forces_are_refused():
    mujoco = pytest.importorskip("mujoco", reason="needs the extra metaworld")
    model = mujoco.MjModel.from_xml_string(THROWN_BOX)
    data = mujoco.MjData(model)
    data.xfrc_applied[1, 2] = 1.0
    with pytest.raises(ValueError, match="applied forces"):
        read_physics(model, data)
