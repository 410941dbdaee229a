"""Returns, N-step advantages and the threshold, on values computed by hand."""

import numpy as np
import pytest

from worldloop.value.returns import TARGETS, choose_threshold, compute_advantages, compute_returns

# --- returns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "is_success", "expected"),
    [
        ("recap", True, [-0.3, -0.1, 0.0]),  # 3, 1 and 0 steps are left, over 2 x 5
        ("recap", False, [-0.8, -0.6, -0.5]),  # and 5 more
        ("progress", True, [-1.0, -1 / 3, 0.0]),
        ("progress", False, [-1.0, -1.0, -1.0]),
        ("outcome", True, [0.0, 0.0, 0.0]),
        ("outcome", False, [-1.0, -1.0, -1.0]),
    ],
)
def test_the_return_counts_the_steps_that_are_left(target: str, is_success: bool, expected: list[float]) -> None:
    """Three steps of a limit of five, two a frame: the last frame step is half executed."""
    returns = compute_returns(3, 2, 2, is_success, 5, target)
    assert returns.dtype == np.float32
    np.testing.assert_allclose(returns, expected, atol=1e-7)
    assert not np.signbit(returns[returns == 0]).any(), "no -0.0"


def test_recap_is_the_default() -> None:
    np.testing.assert_array_equal(compute_returns(3, 2, 2, False, 5), compute_returns(3, 2, 2, False, 5, "recap"))


def test_frames_after_the_success_are_worth_what_it_is_worth() -> None:
    """The episode goes on for two frames."""
    np.testing.assert_allclose(compute_returns(4, 4, 2, True, 8), [-0.25, -0.125, 0, 0, 0])
    np.testing.assert_allclose(compute_returns(4, 4, 2, True, 8, "progress"), [-1, -0.5, 0, 0, 0])
    np.testing.assert_array_equal(compute_returns(4, 4, 2, True, 8, "outcome"), [0, 0, 0, 0, 0])


@pytest.mark.parametrize("num_env_steps", [1, 7, 50])
def test_every_success_is_above_every_failure(num_env_steps: int) -> None:
    num_frames = -(-num_env_steps // 5)
    success, failure = (compute_returns(num_env_steps, num_frames, 5, won, 50) for won in (True, False))
    assert success.min() >= -0.5 >= failure.max()
    assert success.max() == 0
    assert failure.min() >= -1
    np.testing.assert_allclose(success - failure, 0.5, atol=1e-7)
    np.testing.assert_allclose(success[0], -num_env_steps / 100, atol=1e-7)


def test_only_an_episode_beyond_the_limit_is_clipped() -> None:
    """Six steps of a limit of four: 6, 4, 2 and 0 are left, over 8; a failure has 4 more."""
    np.testing.assert_allclose(compute_returns(6, 3, 2, False, 4), [-1, -1, -0.75, -0.5])
    np.testing.assert_allclose(compute_returns(6, 3, 2, True, 4), [-0.75, -0.5, -0.25, 0])
    assert compute_returns(4, 2, 2, False, 4)[0] == -1, "reached, not clipped"
    np.testing.assert_array_equal(compute_returns(6, 3, 2, False, 4, "outcome"), [-1, -1, -1, -1])


def test_an_unknown_target_is_an_error() -> None:
    assert TARGETS == ("recap", "progress", "outcome")
    with pytest.raises(ValueError, match="target is 'value', allowed: recap, progress, outcome"):
        compute_returns(3, 2, 2, True, 5, "value")


@pytest.mark.parametrize("name", ["num_env_steps", "num_frames", "actions_per_frame", "max_episode_steps"])
@pytest.mark.parametrize("count", [0, -1])
def test_counts_are_positive(name: str, count: int) -> None:
    counts = {"num_env_steps": 3, "num_frames": 2, "actions_per_frame": 2, "max_episode_steps": 5} | {name: count}
    with pytest.raises(ValueError, match=name):
        compute_returns(**counts, is_success=True)


def test_more_steps_than_the_frames_hold_are_an_error() -> None:
    compute_returns(4, 2, 2, True, 5)
    with pytest.raises(ValueError, match="5 steps do not fit in 2 frame steps of 2"):
        compute_returns(5, 2, 2, True, 5)


# --- advantages ---------------------------------------------------------------------------------------------------

RETURNS = np.array([-0.4, -0.3, -0.2, -0.1, 0.0])
VALUES = np.array([-0.5, -0.25, -0.4, -0.1, -0.75])  # the last one is never read


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        # (returns[f] - returns[f + 1]) + values[f + 1] - values[f]; at the end -.1 + .1
        (1, [-0.1 - 0.25 + 0.5, -0.1 - 0.4 + 0.25, -0.1 - 0.1 + 0.4, 0.0]),
        (2, [-0.2 - 0.4 + 0.5, -0.2 - 0.1 + 0.25, -0.2 + 0.4, 0.0]),
        (3, [-0.3 - 0.1 + 0.5, -0.3 + 0.25, -0.2 + 0.4, 0.0]),
        (4, [-0.4 + 0.5, -0.3 + 0.25, -0.2 + 0.4, 0.0]),
        (99, [-0.4 + 0.5, -0.3 + 0.25, -0.2 + 0.4, 0.0]),
    ],
)
def test_n_steps_of_reward_then_the_value(num_frames: int, expected: list[float]) -> None:
    values = VALUES.copy()
    advantages = compute_advantages(values, RETURNS, num_frames)
    assert advantages.dtype == np.float32
    np.testing.assert_allclose(advantages, expected, atol=1e-7)
    np.testing.assert_array_equal(values, VALUES, "not written to")


@pytest.mark.parametrize("num_frames", [1, 3, 10])
def test_a_critic_that_knows_the_return_sees_no_advantage(num_frames: int) -> None:
    returns = compute_returns(37, 8, 5, False, 50)
    np.testing.assert_array_equal(compute_advantages(returns, returns, num_frames), np.zeros(8, dtype=np.float32))


def test_of_an_outcome_the_advantage_is_what_the_critic_learns_in_between() -> None:
    """No step costs anything: values[f + 2] - values[f], and at the end the outcome is known."""
    returns, values = compute_returns(4, 4, 1, True, 6, "outcome"), np.array([-0.5, -0.25, -0.375, -0.125, -0.75])
    np.testing.assert_allclose(compute_advantages(values, returns, 2), [0.125, 0.125, 0.375, 0.125])


def test_a_slip_is_a_disadvantage_of_the_frames_whose_horizon_sees_it() -> None:
    """The critic expects a success, until between frames 3 and 4 something breaks; N = 2."""
    returns = compute_returns(6, 6, 1, False, 6)
    values = np.where(np.arange(7) < 4, -0.25, -0.75)
    advantages = compute_advantages(values, returns, 2)
    # two steps cost 2/12; frames 4 and 5 are measured by the known end
    np.testing.assert_allclose(
        advantages, [-1 / 6, -1 / 6, -1 / 6 - 0.5, -1 / 6 - 0.5, -8 / 12 + 0.75, -7 / 12 + 0.75], atol=1e-7
    )


def test_advantages_need_equal_shapes_two_frames_and_a_horizon() -> None:
    with pytest.raises(ValueError, match="returns has shape"):
        compute_advantages(VALUES, RETURNS[:-1], 1)
    with pytest.raises(ValueError, match="values has shape"):
        compute_advantages(VALUES[None], RETURNS[None], 1)
    with pytest.raises(ValueError, match="two or more stored frames, got 1"):
        compute_advantages(VALUES[:1], RETURNS[:1], 1)
    with pytest.raises(ValueError, match="num_frames is 0"):
        compute_advantages(VALUES, RETURNS, 0)


# --- threshold ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantages", "positive_share", "threshold", "num_positive"),
    [
        ([4, 3, 2, 1], 0.5, 2, 2),
        ([1, 3, 4, 2], 0.5, 2, 2),
        ([4, 3, 2, 1], 0.7, 2, 2),  # three would exceed .7, although they are nearer
        ([4, 3, 2, 1], 0.2, 4, 0),
        ([5, 4, 4, 4, 1], 0.4, 4, 1),  # one or four, for two
        ([5, 4, 4, 4, 1], 0.6, 1, 4),  # one or four, for three
        ([4, 2, 2, 1], 0.5, 2, 1),  # one or three, for two: as near
        ([5, 4, 4, 4, 1], 0.8, 1, 4),  # the tie ends where the share does
        ([5, 4, 4, 4, 1], 0.2, 4, 1),  # and begins there
        ([0, 0, 0], 0.4, 0, 0),
    ],
)
def test_the_share_above_the_threshold(
    advantages: list[float], positive_share: float, threshold: float, num_positive: int
) -> None:
    for dtype in (np.float32, np.float64):
        given = np.array(advantages, dtype=dtype)
        eps = choose_threshold(given, positive_share)
        assert eps == threshold
        assert (given > eps).sum() == num_positive


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_are_positive_if_that_is_nearest(dtype: type[np.floating]) -> None:
    """The threshold is still below them in their own precision."""
    advantages = np.full(5, -0.1, dtype=dtype)
    eps = choose_threshold(advantages, 0.6)
    assert (advantages > dtype(eps)).all()
    assert eps == pytest.approx(-0.1, abs=1e-6)


def test_the_share_is_met_to_the_element_whatever_rounding_does() -> None:
    """.29 * 100 is below 29, and .07 * 100 above 7."""
    advantages = np.random.default_rng(0).permutation(100).astype(np.float32)
    for percent in range(1, 100):
        assert (advantages > choose_threshold(advantages, percent / 100)).sum() == percent
    six_eight = np.repeat([2.0, 1.0, 0.0], [6, 2, 92])
    assert (six_eight > choose_threshold(six_eight, 0.07)).sum() == 6, "as near as eight"


def test_a_share_that_leaves_no_row_out_or_in_is_an_error() -> None:
    for share in (0.0, 1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="positive_share"):
            choose_threshold(np.zeros(3), share)
    assert choose_threshold(np.array([2.0, 1.0]), 1 - 1e-12) == 1.0
    with pytest.raises(ValueError, match="no advantages"):
        choose_threshold(np.zeros(0), 0.5)
    with pytest.raises(ValueError, match="not finite"):
        choose_threshold(np.array([0.0, np.nan]), 0.5)
