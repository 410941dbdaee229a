"""The categorical critic on frames in which the return can be read off."""

import numpy as np
import pytest
import torch
from critic_rows import fit, make_normalisation, make_rows, observe
from hand_specs import make_spec

from worldloop.core.statistics import rank_correlation
from worldloop.core.types import Observation
from worldloop.value.categorical import NUM_BINS, CategoricalCritic, hl_gauss_targets
from worldloop.value.critic import ValueRows

ONE_CAMERA = make_spec({"base": (16, 16)}, ("push",))
# A normal distribution of sigma .75 in bins of width 1 around the centre of one: its own, the next, the one after.
# Phi(2/3) = .747507, Phi(2) = .977250, Phi(10/3) = .999571
OWN, NEXT, AFTER = 0.495015, 0.229743, 0.022321

# --- targets ------------------------------------------------------------------------------------------------------


def test_the_mass_lies_around_the_returns_bin() -> None:
    """-.3 is the centre of bin 140."""
    (target,) = hl_gauss_targets(torch.tensor([-0.3]))
    assert target.shape == (NUM_BINS,) == (201,)
    expected = torch.tensor([AFTER, NEXT, OWN, NEXT, AFTER])
    torch.testing.assert_close(target[138:143], expected, atol=2e-5, rtol=0)
    assert target[:136].sum() == 0
    assert target[145:].sum() < 1e-6


def test_between_two_centres_both_bins_have_the_same_mass() -> None:
    """-.4975 lies between bins 100 and 101: Phi(4/3) - Phi(0) = .408789 each."""
    (target,) = hl_gauss_targets(torch.tensor([-0.4975]))
    torch.testing.assert_close(target[100:102], torch.tensor([0.408789, 0.408789]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("end", [-1.0, 0.0])
def test_the_ends_are_renormalised(end: float) -> None:
    """Of the mass Phi(2/3) remains: the tail beyond the outer bin is cut off."""
    (target,) = hl_gauss_targets(torch.tensor([end]))
    inwards = target if end == -1 else target.flip(0)
    expected = torch.tensor([OWN, NEXT, AFTER]) / 0.747507
    torch.testing.assert_close(inwards[:3], expected, atol=2e-5, rtol=0)
    mean = float(target @ torch.linspace(-1, 0, NUM_BINS))
    assert abs(mean - end) == pytest.approx(0.37 / 200, rel=0.01), "as the docstring says"


def test_few_bins_and_another_smoothing() -> None:
    """Three bins around -1, -.5 and 0, sigma 1 bin: Phi(.5) = .691462, Phi(1.5) = .933193."""
    target = hl_gauss_targets(torch.tensor([-0.5, 0.0]), num_bins=3, smoothing=1.0)
    side, middle = 0.933193 - 0.691462, 2 * 0.691462 - 1
    centred = torch.tensor([side, middle, side]) / (2 * 0.933193 - 1)
    # from 0 the edges lie at -2.5, -1.5, -.5 and .5; Phi(-2.5) = .006210
    at_end = torch.tensor([0.066807 - 0.006210, 0.308538 - 0.066807, 0.382925]) / (0.691462 - 0.006210)
    torch.testing.assert_close(target, torch.stack([centred, at_end]), atol=1e-5, rtol=0)


def test_rows_sum_to_one_and_keep_the_mean() -> None:
    returns = torch.linspace(-1, 0, 1001)
    targets = hl_gauss_targets(returns)
    torch.testing.assert_close(targets.sum(1), torch.ones(1001), atol=1e-5, rtol=0)
    assert (targets >= 0).all()
    mean = targets @ torch.linspace(-1, 0, NUM_BINS)
    inner = (returns > -0.98) & (returns < -0.02)
    torch.testing.assert_close(mean[inner], returns[inner], atol=1e-4, rtol=0)


@pytest.mark.parametrize("outside", [0.01, -1.01, float("nan")])
def test_a_return_outside_the_range_is_an_error(outside: float) -> None:
    with pytest.raises(ValueError, match="allowed: -1 to 0"):
        hl_gauss_targets(torch.tensor([-0.5, outside]))
    with pytest.raises(ValueError, match="returns has shape"):
        hl_gauss_targets(torch.zeros(2, 1))


# --- value and loss -----------------------------------------------------------------------------------------------


def make_critic(seed: int = 0) -> CategoricalCritic:
    torch.manual_seed(seed)
    return CategoricalCritic(ONE_CAMERA, make_normalisation(2)).eval()


def look(rows: torch.Tensor) -> Observation:
    """Row r has a bright square at height r % 12, at one of twelve places across."""
    frames = torch.full((len(rows), 3, 16, 16, 3), 90, dtype=torch.uint8)
    for i, row in enumerate(rows.tolist()):
        top, left = 1 + row % 12, 1 + row // 12 % 12
        frames[i, -1, top : top + 3, left : left + 3] = 200
    return observe({"base": frames}, torch.zeros(len(rows), 2), rows * 7 % 50)


def answer(critic: CategoricalCritic, logits: torch.Tensor) -> None:
    """Let ``critic`` give these ``logits`` [NUM_BINS] to every row."""
    with torch.no_grad():
        last = critic.head[-1]
        last.weight.zero_()
        last.bias.copy_(logits)


def test_the_value_is_the_mean_of_the_distribution() -> None:
    """Half of the mass at -1, a quarter each at -.5 and 0."""
    critic, observation = make_critic(), look(torch.arange(3))
    logits = critic(observation)
    assert (logits.shape, logits.dtype) == ((3, NUM_BINS), torch.float32)
    given = torch.full((NUM_BINS,), -1e4)
    given[[0, 100, 200]] = torch.tensor([0.5, 0.25, 0.25]).log()
    answer(critic, given)
    value = critic.value(observation)
    assert (value.dtype, value.device.type, value.requires_grad) == (torch.float32, "cpu", False)
    torch.testing.assert_close(value, torch.full((3,), -0.625))


def test_the_loss_is_the_cross_entropy_and_is_smallest_at_the_targets() -> None:
    critic, generator = make_critic(), torch.Generator()

    def compute(returns: list[float]) -> float:
        loss, metrics = critic.compute_loss(
            make_rows(look(torch.arange(len(returns))), torch.tensor(returns)), generator
        )
        assert metrics == {}
        return float(loss)

    answer(critic, torch.zeros(NUM_BINS))
    assert compute([-0.3, -0.8]) == pytest.approx(np.log(201), abs=1e-5), "the mean over rows"
    answer(critic, hl_gauss_targets(torch.tensor([-0.3]))[0].clamp_min(1e-9).log())
    entropy = -2 * (NEXT * np.log(NEXT) + AFTER * np.log(AFTER)) - OWN * np.log(OWN)
    assert compute([-0.3]) == pytest.approx(entropy, abs=0.01)
    assert compute([-0.3]) < compute([-0.305])
    assert compute([-0.3, -0.305]) == pytest.approx((compute([-0.3]) + compute([-0.305])) / 2, rel=1e-5)


# --- fitting ------------------------------------------------------------------------------------------------------


def read_return(rows: torch.Tensor) -> torch.Tensor:
    """The lower the square, the nearer the success: -11/12 to 0."""
    return (rows % 12 - 11) / 12


def explain_variance(critic: CategoricalCritic) -> tuple[float, float]:
    """The share of the variance of new rows' returns that the values explain, and the rank correlation."""
    rows = torch.arange(1000, 1144)
    value, returns = critic.value(look(rows)), read_return(rows)
    share = 1 - (value - returns).square().mean() / returns.var(correction=0)
    return float(share), rank_correlation(value.numpy(), returns.numpy())


def test_the_critic_learns_the_order_of_returns() -> None:
    critic = fit(make_critic(), lambda rows: make_rows(look(rows), read_return(rows)), num_steps=120)
    share, correlation = explain_variance(critic)
    assert share > 0.8
    assert correlation > 0.9


def test_from_shuffled_returns_the_critic_learns_no_order() -> None:
    """The same returns, each at another row's frames: nothing that holds for new rows can be learnt."""
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    critic = fit(make_critic(), lambda rows: make_rows(look(rows), read_return(order[rows])), num_steps=120)
    share, _ = explain_variance(critic)
    assert share < 0.2


def test_the_distribution_keeps_two_outcomes_apart() -> None:
    """Frames that look alike end well (-.1) or badly (-.9), half of the time each."""
    still = torch.zeros(1, dtype=torch.long)

    def load(rows: torch.Tensor) -> ValueRows:
        return make_rows(look(still.expand(len(rows))), torch.where(rows % 2 == 0, -0.1, -0.9))

    critic = fit(make_critic(), load, num_steps=120)
    probability = critic(look(still)).softmax(1)[0].detach()
    bad, between, good = (float(part.sum()) for part in probability.split([41, 119, 41]))
    assert bad == pytest.approx(0.5, abs=0.1)
    assert good == pytest.approx(0.5, abs=0.1)
    assert between < 0.1
    assert float(critic.value(look(still))) == pytest.approx(-0.5, abs=0.08)
