"""The executability reward: terms, envelope, guard and score, on values computed by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import CameraSpec, JointSpec, RobotSpec
from worldloop.executability.reward import (
    STILL_PATH,
    TERMS,
    Envelope,
    ExecutabilityReward,
    RewardConfig,
    compute_guard,
    compute_path_length,
    compute_terms,
    measure_envelope,
    require_joints,
    score_following,
)

DT_S = 0.5
ROBOT = RobotSpec(
    name="arm",
    proprio_names=("shoulder", "elbow"),
    action_names=("dx", "dy", "grip"),
    action_low=(-1.0, -1.0, 0.0),
    action_high=(1.0, 1.0, 4.0),
    control_mode="pd_joint_delta_pos",
    hz=4.0,
    cameras=(CameraSpec("base", 8, 8),),
    joints=(JointSpec("shoulder", -2.0, 2.0, 3.0, 100.0), JointSpec("elbow", 0.0, 2.0, 100.0, 10.0)),
)
ENVELOPE = Envelope(torch.tensor([4.0, 2.0]), torch.tensor([8.0, 16.0]), torch.tensor([32.0, 16.0]))
NO_ENVELOPE = Envelope(*(torch.full((2,), 1e6) for _ in range(3)))
REST = (0.5, 1.0)  # both joints within their range


def make_reward(config: RewardConfig | None = None, penalty: float | None = 0.1) -> ExecutabilityReward:
    return ExecutabilityReward(ROBOT, DT_S, config or RewardConfig(), ENVELOPE, penalty)


def make_joints(shoulder: list[float], elbow: list[float] | None = None) -> Tensor:
    """f64 [1, T, 2]; the elbow rests unless it is given."""
    return torch.tensor([shoulder, elbow or [REST[1]] * len(shoulder)], dtype=torch.float64).T[None]


def make_actions(num_frames: int, batch: int = 1) -> Tensor:
    """Actions [B, T - 1, 2, 3] that the controller accepts."""
    return torch.ones(batch, num_frames - 1, 2, 3, dtype=torch.float64)


def all_valid(joints: Tensor) -> Tensor:
    return torch.ones(joints.shape[:2], dtype=torch.bool)


def terms_of(joints: Tensor, actions: Tensor | None = None, envelope: Envelope = ENVELOPE) -> dict[str, float]:
    """The terms of one row without padding."""
    given = make_actions(joints.shape[1]) if actions is None else actions
    terms = compute_terms(joints, given, all_valid(joints), ROBOT, DT_S, envelope)
    assert tuple(terms) == TERMS
    return {name: term.item() for name, term in terms.items()}


def score(joints: Tensor, real_path: Tensor | None = None, reward: ExecutabilityReward | None = None) -> Tensor:
    actions = make_actions(joints.shape[1], len(joints))
    return (reward or make_reward()).score(joints, actions, all_valid(joints), real_path)[0]


def make_wave(num_frames: int = 20, batch: int = 1) -> Tensor:
    """A smooth motion of both joints, f64 [B, T, 2], within all limits."""
    time = torch.arange(num_frames, dtype=torch.float64) * DT_S
    wave = torch.stack([0.5 * torch.sin(time), 1 + 0.5 * torch.cos(time)], dim=-1)
    return wave.expand(batch, -1, -1).clone()


# --- terms --------------------------------------------------------------------------------------------------------


def test_differences_are_scaled_by_the_envelope() -> None:
    """The shoulder's positions 0, 0, 1, 1: v = 0, 2, 0; a = 4, -4; jerk = -16. The elbow rests."""
    terms = terms_of(make_joints([0, 0, 1, 1]))
    assert terms["jerk"] == pytest.approx((0.5 * (16 / 32) ** 2) / 2)  # one value of two joints
    assert terms["acceleration"] == pytest.approx(2 * (0.5 * (4 / 8) ** 2) / 4)
    assert all(terms[name] == 0 for name in TERMS[2:])


def test_huber_is_a_line_beyond_delta() -> None:
    """The jerk of the elbow is 4 envelopes: delta (4 - delta / 2)."""
    joints = make_joints([REST[0]] * 4, [0, 0, 4, 4])
    for delta, expected in ((1.0, 3.5), (2.0, 6.0), (8.0, 8.0)):
        terms = compute_terms(joints, make_actions(4), all_valid(joints), ROBOT, DT_S, ENVELOPE, delta)
        assert terms["jerk"].item() == pytest.approx(expected / 2)


@pytest.mark.parametrize(
    ("shoulder", "elbow", "envelope", "expected"),
    [
        # the shoulder's own limit of 3 rad/s is below its envelope; it moves at 3 and 6 rad/s
        ([-1.5, 0, 3], None, ENVELOPE, (0 + 1**2) / 4),
        ([3, 0, -1.5], None, ENVELOPE, (1**2 + 0) / 4),
        # the elbow's envelope of 2 rad/s is below its own limit; it moves at 3 rad/s
        ([0, 0, 0], [0, 1.5, 3], ENVELOPE, (0.5**2 + 0.5**2) / 4),
        ([0, 0, 0], [0, 1.5, 3], NO_ENVELOPE, 0),
    ],
)
def test_velocity_limit(shoulder: list[float], elbow: list[float] | None, envelope: Envelope, expected: float) -> None:
    assert terms_of(make_joints(shoulder, elbow), envelope=envelope)["velocity_limit"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shoulder", "elbow", "envelope", "expected"),
    [
        # the shoulder's envelope of 8 rad/s^2 is below its own limit; a = 12
        ([0, 0, 3], None, ENVELOPE, 0.5**2 / 2),
        ([0, 0, -3], None, ENVELOPE, 0.5**2 / 2),
        ([0, 0, 3], None, NO_ENVELOPE, 0),
        # the elbow's own limit of 10 rad/s^2 is below its envelope; a = 15
        ([0, 0, 0], [0, 0, 3.75], ENVELOPE, 0.5**2 / 2),
        ([0, 0, 0], [0, 0, 3.75], NO_ENVELOPE, 0.5**2 / 2),
    ],
)
def test_acceleration_limit(
    shoulder: list[float], elbow: list[float] | None, envelope: Envelope, expected: float
) -> None:
    assert terms_of(make_joints(shoulder, elbow), envelope=envelope)["acceleration_limit"] == pytest.approx(expected)


def test_joint_range() -> None:
    """The shoulder's range is 4 rad wide, the elbow's 2; excesses of 1, .4 and .5 rad in two frames."""
    assert terms_of(make_joints([3, -2.4], [2, -0.5]))["joint_range"] == pytest.approx(
        ((1 / 4) ** 2 + (0.4 / 4) ** 2 + (0.5 / 2) ** 2) / 4
    )
    assert terms_of(make_joints([-2, 2], [0, 2]))["joint_range"] == 0, "the bounds are within the range"


def test_controller_range() -> None:
    """Two steps of three dimensions; half widths 1, 1 and 2."""
    actions = torch.tensor([[[[1.5, -1, 0], [-3, 1, 4]]]], dtype=torch.float64)
    assert terms_of(make_joints([0, 0]), actions)["controller_range"] == pytest.approx((0.5**2 + 2**2) / 6)
    actions = torch.tensor([[[[0, 0, 5], [0, 0, -1]]]], dtype=torch.float64)
    assert terms_of(make_joints([0, 0]), actions)["controller_range"] == pytest.approx((0.5**2 + 0.5**2) / 6)


def test_too_few_frames_for_a_difference_cost_nothing() -> None:
    """Two valid frames have a velocity, but no acceleration."""
    joints = make_joints([-1.5, 1.5, 9, -9])
    valid = torch.tensor([[True, True, False, False]])
    terms = compute_terms(joints, make_actions(4), valid, ROBOT, DT_S, ENVELOPE)
    assert terms["velocity_limit"].item() == pytest.approx(1 / 2)
    assert terms["acceleration"].item() == terms["acceleration_limit"].item() == terms["jerk"].item() == 0
    nothing = compute_terms(joints, make_actions(4), torch.zeros_like(valid), ROBOT, DT_S, ENVELOPE)
    assert all(term.item() == 0 for term in nothing.values())
    assert terms_of(make_joints([9]))["joint_range"] == pytest.approx((7 / 4) ** 2 / 2), "a single frame has a position"


def test_a_gap_is_not_a_difference() -> None:
    """Frames 0 and 2 do not count, so only one velocity does: from frame 3 to frame 4, at 4 rad/s of 3."""
    joints = make_joints([9, 0, 9, 0, 2])
    valid = torch.tensor([[False, True, False, True, True]])
    terms = compute_terms(joints, make_actions(5), valid, ROBOT, DT_S, ENVELOPE)
    assert terms["velocity_limit"].item() == pytest.approx((1 / 3) ** 2 / 2)
    assert terms["joint_range"].item() == terms["acceleration"].item() == 0
    assert compute_path_length(joints, valid).item() == 2


def test_other_shapes_are_an_error() -> None:
    joints, actions = make_wave(6), make_actions(6)
    valid = all_valid(joints)
    compute_terms(joints, actions, valid, ROBOT, DT_S, ENVELOPE)
    with pytest.raises(ValueError, match="joints has shape"):
        compute_terms(joints[..., :1], actions, valid, ROBOT, DT_S, ENVELOPE)
    with pytest.raises(ValueError, match="actions has shape"):
        compute_terms(joints, actions[:, 1:], valid, ROBOT, DT_S, ENVELOPE)
    with pytest.raises(ValueError, match="valid has shape"):
        compute_terms(joints, actions, valid[:, 1:], ROBOT, DT_S, ENVELOPE)
    with pytest.raises(ValueError, match=r"envelope\.jerk has shape"):
        compute_terms(joints, actions, valid, ROBOT, DT_S, replace(ENVELOPE, jerk=torch.ones(3)))


# --- envelope -----------------------------------------------------------------------------------------------------


def test_the_envelope_is_above_the_percentile_of_each_joint() -> None:
    """201 frames give 200 velocities: 2, 4 ... 400 rad/s of the shoulder, in random order and sign; the elbow rests.

    The 99.5th percentile of 200 values lies at .995 x 199 = 198.005 from the smallest one.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(200, generator=generator)
    steps = (order + 1) * torch.where(torch.rand(200, generator=generator) < 0.5, -1.0, 1.0).double()
    shoulder = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
    joints = torch.stack([shoulder, torch.ones_like(shoulder)], dim=-1)[None]
    envelope = measure_envelope(joints, all_valid(joints), DT_S)
    assert envelope.velocity[0].item() == pytest.approx(1.1 * 2 * 199.005, rel=1e-6)
    assert envelope.velocity.dtype == torch.float32
    # the elbow gets the floor: a thousandth of a radian a frame
    assert envelope.velocity[1].item() == pytest.approx(1e-3 / 0.5)
    assert envelope.acceleration[1].item() == pytest.approx(1e-3 / 0.25)
    assert envelope.jerk[1].item() == pytest.approx(1e-3 / 0.125)


def test_the_envelope_of_constant_differences() -> None:
    """Positions t^3 / 6 at t = 0, 1 ... 5 steps: the jerk is 1 a step cubed, the accelerations are 1, 2, 3, 4."""
    joints = make_joints([t**3 / 6 for t in range(6)])
    envelope = measure_envelope(joints, all_valid(joints), DT_S)
    assert envelope.jerk[0].item() == pytest.approx(1.1 * 8)
    assert envelope.acceleration[0].item() == pytest.approx(1.1 * 4 * (1 + 0.995 * 3))


def test_the_envelope_does_not_see_padding() -> None:
    joints = make_wave(10, batch=2)
    expected = measure_envelope(joints, all_valid(joints), DT_S)
    padded = torch.cat([joints, torch.full((2, 3, 2), torch.nan, dtype=torch.float64)], dim=1)
    valid = (torch.arange(13) < 10).expand(2, -1)
    for name in ("velocity", "acceleration", "jerk"):
        assert torch.equal(getattr(measure_envelope(padded, valid, DT_S), name), getattr(expected, name))


def test_an_envelope_needs_four_finite_frames() -> None:
    with pytest.raises(WorldloopError, match="no real video has four valid frames"):
        measure_envelope(make_wave(3), torch.ones(1, 3, dtype=torch.bool), DT_S)
    with pytest.raises(ValueError, match="not finite"):
        measure_envelope(make_joints([0, 1, math.nan, 1, 0]), torch.ones(1, 5, dtype=torch.bool), DT_S)
    with pytest.raises(ValueError, match="dt_s is 0"):
        measure_envelope(make_wave(5), torch.ones(1, 5, dtype=torch.bool), 0)


# --- score --------------------------------------------------------------------------------------------------------


def test_a_robot_at_rest_scores_1() -> None:
    assert score(make_joints([REST[0]] * 10)).item() == 1


def test_a_slow_ramp_scores_almost_1() -> None:
    ramp = [0.0, 0.0, *(0.1 * step for step in range(1, 9)), 0.8, 0.8]
    assert 0.9 <= score(make_joints(ramp)).item() < 1


def test_the_reward_falls_with_the_amplitude_of_jitter() -> None:
    noise = torch.randn(1, 20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards = [score(make_wave() + amplitude * noise).item() for amplitude in (0, 0.01, 0.03, 0.1, 0.3, 1, 10)]
    assert rewards == sorted(rewards, reverse=True)
    assert len(set(rewards)) == len(rewards)
    assert rewards[0] > 0.9
    assert rewards[-1] < 0.1


def test_one_teleport_lowers_the_reward() -> None:
    """The shoulder jumps by a radian in the middle of a smooth motion, and stays within its range.

    The envelope is that of smooth motions, P0 that of the same with a jitter of three hundredths of a radian.
    """
    smooth = make_wave()
    noise = torch.randn(8, 20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jittery = smooth + 0.03 * noise
    reward = replace(make_reward(penalty=None), envelope=measure_envelope(smooth, all_valid(smooth), DT_S))
    reward = reward.calibrate(reward.compute_penalty(jittery, make_actions(20, batch=8), all_valid(jittery)))
    teleporting = smooth.clone()
    teleporting[:, 10:, 0] += 1
    assert terms_of(teleporting)["joint_range"] == 0
    assert score(smooth, reward=reward).item() > score(jittery, reward=reward).max().item()
    assert score(teleporting, reward=reward).item() < 0.5 < score(jittery, reward=reward).min().item()


def test_the_reward_is_a_power_of_the_penalty() -> None:
    """A controller range of .125 alone, weighted by 8: P = 1, P0 = 1/3, so R = 4^-gamma."""
    joints, actions = make_joints([REST[0]] * 3), make_actions(3)
    actions[..., 0] = 1 + math.sqrt(3 / 8)
    for gamma, expected in ((0.5, 0.5), (1.0, 0.25), (2.0, 1 / 16)):
        reward = make_reward(RewardConfig(controller_range=8, gamma=gamma), penalty=1 / 3)
        value, breakdown = reward.score(joints, actions, all_valid(joints))
        assert value.item() == pytest.approx(expected)
        assert breakdown["controller_range"].item() == pytest.approx(1)
        assert breakdown["penalty"].item() == pytest.approx(1)


def test_the_breakdown_tells_every_weighted_term() -> None:
    joints = 3 * make_wave(batch=2)
    actions, valid = 2 * make_actions(20, batch=2), all_valid(joints)
    config = RewardConfig(jerk=3, acceleration=0)
    value, breakdown = make_reward(config).score(joints.requires_grad_(), actions, valid)
    terms = compute_terms(joints, actions, valid, ROBOT, DT_S, ENVELOPE)
    assert set(breakdown) == {*TERMS, "penalty", "executability"} - {"acceleration"}
    assert torch.equal(breakdown["jerk"], 3 * terms["jerk"])
    assert torch.equal(breakdown["joint_range"], terms["joint_range"])
    weighted = sum(config.weights[name] * terms[name] for name in TERMS)
    torch.testing.assert_close(breakdown["penalty"], weighted)
    assert torch.equal(breakdown["executability"], value)
    assert value.requires_grad
    assert not any(item.requires_grad for item in breakdown.values())
    assert all(item.shape == (2,) for item in breakdown.values())


def test_f32_stays_f32() -> None:
    value, _ = make_reward().score(make_wave().float(), make_actions(20), torch.ones(1, 20, dtype=torch.bool))
    assert value.dtype == torch.float32


def test_calibration_gives_the_mean_penalty() -> None:
    joints = torch.cat([make_wave(), 2 * make_wave(), 3 * make_wave()])
    reward = make_reward(penalty=None)
    penalties = reward.compute_penalty(joints, make_actions(20, batch=3), all_valid(joints))
    calibrated = reward.calibrate(penalties)
    assert calibrated.reference_penalty == pytest.approx(penalties.mean().item())
    average = reward.calibrate(penalties[1:2])
    assert score(joints[1:2], reward=average).item() == pytest.approx(2**-0.5)
    with pytest.raises(ValueError, match="calibrate it first"):
        score(joints, reward=reward)
    for useless in (torch.zeros(3), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf]), torch.zeros(0)):
        with pytest.raises(WorldloopError, match="mean penalty of"):
            reward.calibrate(useless)


@pytest.mark.parametrize("garbage", [1e6, -3.0, math.nan, math.inf])
def test_padding_does_not_matter(garbage: float) -> None:
    """Not for the score, and it gets no gradient."""
    joints, actions = 2 * make_wave(8), 2 * make_actions(8)
    real_path = compute_path_length(joints, all_valid(joints)) / 1.3
    expected, parts = make_reward().score(joints, actions, all_valid(joints), real_path)
    padded = torch.cat([joints, torch.full((1, 4, 2), garbage, dtype=torch.float64)], dim=1).requires_grad_()
    padded_actions = torch.cat([actions, torch.full((1, 4, 2, 3), garbage, dtype=torch.float64)], dim=1)
    valid = (torch.arange(12) < 8)[None]
    value, padded_parts = make_reward().score(padded, padded_actions.requires_grad_(), valid, real_path)
    torch.testing.assert_close(value, expected)
    for name, part in parts.items():
        torch.testing.assert_close(padded_parts[name], part)
    value.sum().backward()
    assert padded.grad is not None
    assert padded.grad.isfinite().all()
    assert padded.grad[:, :8].any()
    assert not padded.grad[:, 8:].any()


def test_gradients_are_those_of_finite_differences() -> None:
    """Every term and the guard are active; the last frame of the second row is padding."""
    generator = torch.Generator().manual_seed(0)
    joints = (2 * torch.randn(2, 6, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    actions = (3 * torch.randn(2, 5, 2, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    valid = torch.tensor([[True] * 6, [True] * 5 + [False]])
    real_path = compute_path_length(joints, valid).detach() / torch.tensor([1.3, 0.7])
    reward = make_reward(penalty=1.0)
    _, breakdown = reward.score(joints, actions, valid, real_path)
    assert all((breakdown[name] > 0).all() for name in TERMS)
    assert (breakdown["guard"] < 1).all()

    def run(q: Tensor, u: Tensor) -> Tensor:
        return reward.score(q, u, valid, real_path)[0]

    assert torch.autograd.gradcheck(run, (joints, actions))


# --- guard --------------------------------------------------------------------------------------------------------


def test_path_length_adds_all_joints() -> None:
    joints = make_joints([0, 1, 0.5, 9], [0, 0, 2, 9])
    assert compute_path_length(joints, torch.tensor([[True, True, True, False]])).item() == pytest.approx(1.5 + 2)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0, math.exp(-16)),
        (0.6, math.exp(-1)),
        (0.7, math.exp(-0.25)),
        (0.8, 1),
        (1, 1),
        (1.2, 1),
        (1.4, math.exp(-1)),
        (2, math.exp(-16)),
    ],
)
def test_the_guard_falls_outside_its_edges(ratio: float, expected: float) -> None:
    real_path = torch.tensor([2.0, 10.0], dtype=torch.float64)
    guard, told = compute_guard(ratio * real_path, real_path)
    torch.testing.assert_close(guard, torch.full_like(guard, expected))
    torch.testing.assert_close(told, torch.full_like(guard, ratio))


def test_the_guard_falls_monotonically() -> None:
    ratios = torch.linspace(0, 3, 301, dtype=torch.float64)
    guard, _ = compute_guard(ratios, torch.ones_like(ratios))
    assert (guard[:101].diff() >= 0).all()
    assert (guard[100:].diff() <= 0).all()


def test_if_the_real_robot_rests_the_video_must() -> None:
    path = torch.tensor([0.0, 0.1 * STILL_PATH, STILL_PATH, 1.0])
    guard, _ = compute_guard(path, torch.zeros(4))
    torch.testing.assert_close(guard, torch.tensor([1.0, math.exp(-0.25), math.exp(-25), 0.0]))


def test_standing_still_while_the_real_robot_moves_scores_almost_0() -> None:
    wave, still = make_wave(), make_joints([REST[0]] * 20)
    real_path = compute_path_length(wave, all_valid(wave))
    value, breakdown = make_reward().score(still, make_actions(20), all_valid(still), real_path)
    assert breakdown["executability"].item() == 1
    assert breakdown["path_ratio"].item() == 0
    assert value.item() == pytest.approx(math.exp(-16))
    assert score(wave, real_path).item() == score(wave).item() > 0.9
    with pytest.raises(ValueError, match="real_path has shape"):
        score(wave, real_path[None])


# --- following ----------------------------------------------------------------------------------------------------


def test_following_is_measured_by_row_over_valid_steps() -> None:
    """Two frames of two steps of two dimensions: errors of 1 in the first step, of .5 in the fourth."""
    actions = torch.zeros(3, 2, 2, 2)
    inferred = actions.clone()
    inferred[1:, 0, 0] = 1.0
    inferred[1:, 1, 1] = 0.5
    valid = torch.tensor([[True, True], [True, True], [True, False]])
    rewards = score_following(inferred, actions, valid, temperature=0.5)
    torch.testing.assert_close(rewards, torch.tensor([1.0, math.exp(-(1.25 / 4) / 0.5), math.exp(-(1 / 2) / 0.5)]))
    by_step = torch.tensor([[[True, True], [True, True]], [[True, False], [False, False]], [[False] * 2] * 2])
    rewards = score_following(inferred, actions, by_step, temperature=2.0)
    torch.testing.assert_close(rewards, torch.tensor([1.0, math.exp(-1 / 2), 1.0]))


def test_following_does_not_see_padding() -> None:
    inferred = torch.tensor([[[[0.5]], [[math.nan]]]], requires_grad=True)
    reward = score_following(inferred, torch.zeros(1, 2, 1, 1), torch.tensor([[True, False]]), temperature=1.0)
    assert reward.item() == pytest.approx(math.exp(-0.25))
    reward.sum().backward()
    assert inferred.grad is not None
    torch.testing.assert_close(inferred.grad.flatten(), torch.tensor([-math.exp(-0.25), 0.0]))


def test_gradients_of_following() -> None:
    generator = torch.Generator().manual_seed(0)
    inferred = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    actions = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda u: score_following(u, actions, valid, 0.5), (inferred,))


def test_following_needs_equal_shapes_and_a_temperature() -> None:
    actions, valid = torch.zeros(1, 2, 2, 3), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="temperature is 0"):
        score_following(actions, actions, valid, 0)
    with pytest.raises(ValueError, match="actions has shape"):
        score_following(actions, actions[..., :1], valid, 1)
    with pytest.raises(ValueError, match="valid has shape"):
        score_following(actions, actions, valid[:, :1], 1)


# --- settings -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_public_weights() -> None:
    config = RewardConfig()
    assert list(config.weights.values()) == [0.5, 0.25, 2, 1, 1, 1]
    assert tuple(config.weights) == TERMS
    assert config.gamma == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[({term: -0.1}, rf"reward\.{term} is -0\.1, allowed: 0 to 1000") for term in TERMS],
        ({"jerk": math.nan}, r"reward\.jerk is nan"),
        (dict.fromkeys(TERMS, 0.0), r"reward has no term, allowed: weights of jerk, "),
        ({"huber_delta": 0}, r"reward\.huber_delta is 0"),
        ({"gamma": 0}, r"reward\.gamma is 0"),
        ({"guard_low": 1.1}, r"reward\.guard_low is 1\.1, allowed: 0 to 1"),
        ({"guard_high": 0.9}, r"reward\.guard_high is 0\.9, allowed: 1 to 1000"),
    ],
)
def test_a_wrong_setting_is_one_error_that_names_the_key(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        RewardConfig(**settings)
    assert "\n" not in str(error.value)


def test_a_robot_without_joints_is_one_error() -> None:
    robot = replace(ROBOT, joints=())
    message = r"^robot 'arm' tells no joint limits, so no motion of it can be judged: give RobotSpec\.joints$"
    require_joints(ROBOT)
    with pytest.raises(WorldloopError, match=message):
        require_joints(robot)
    with pytest.raises(WorldloopError, match=message):
        ExecutabilityReward(robot, DT_S, RewardConfig(), ENVELOPE)
    with pytest.raises(WorldloopError, match=message):
        compute_terms(torch.zeros(1, 4, 0), make_actions(4), torch.ones(1, 4) > 0, robot, DT_S, ENVELOPE)


def test_numbers_that_divide_are_positive() -> None:
    with pytest.raises(ValueError, match="dt_s is 0"):
        ExecutabilityReward(ROBOT, 0, RewardConfig(), ENVELOPE)
    with pytest.raises(ValueError, match="reference_penalty is 0"):
        make_reward(penalty=0)
