"""What GRPO minimises: by hand."""

from __future__ import annotations

import math

import pytest
import torch

from worldloop.core.randomness import make_generator
from worldloop.rl.advantages import compute_group_advantages
from worldloop.rl.grpo import compute_kl_penalty, compute_policy_loss

ALL = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clip_fraction"),
    [
        (1.0, 2.0, -2.0, -2.0, 0.0),  # on policy: loss -A, d loss / d log pi = -A r
        (1.1, 1.0, -1.1, -1.1, 0.0),  # inside the range
        (1.5, 1.0, -1.28, 0.0, 1.0),  # above 1 + high, already likelier: no gradient
        (1.25, 1.0, -1.25, -1.25, 0.0),  # clip-higher: would be clipped at 1.2
        (0.5, 1.0, -0.5, -0.5, 0.0),  # unlikely but good: keeps its gradient
        (0.5, -1.0, 0.8, 0.0, 1.0),  # below 1 - low, already unlikelier: no gradient
        (1.5, -1.0, 1.5, 1.5, 0.0),  # likely but bad: keeps its gradient, unclipped
    ],
)
def test_clipped_loss_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float, clip_fraction: float
) -> None:
    old = torch.tensor([[-2.0]])
    log_probs = (old + math.log(ratio)).requires_grad_()
    value, metrics = compute_policy_loss(log_probs, old, torch.tensor([advantage]), ALL, 0.2, 0.28)
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-5)
    assert log_probs.grad.item() == pytest.approx(gradient, abs=1e-5)
    assert metrics["clip_fraction"] == clip_fraction
    assert metrics["ratio_max"] == pytest.approx(ratio, abs=1e-5)
    assert metrics["approx_kl"] == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-5)
    assert metrics["loss_policy"] == value.item()


def test_metrics_by_hand() -> None:
    """Two rows of two actions, of which the last is not valid: everything is over three."""
    ratio = torch.tensor([[1.5, 0.9], [0.5, 3.0]])
    valid = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    loss, metrics = compute_policy_loss(old + ratio.log(), old, torch.tensor([1.0, -1.0]), valid, 0.2, 0.28)
    expected = {
        "loss_policy": (-1.28 - 0.9 + 0.8) / 3,  # 1.5 is clipped to 1.28, and 0.5 to 0.8
        "clip_fraction": 2 / 3,
        "approx_kl": ((1.5 + 0.9 + 0.5) - 3 - math.log(1.5 * 0.9 * 0.5)) / 3,
        "ratio_mean": (1.5 + 0.9 + 0.5) / 3,
        "ratio_max": 1.5,
        "ratio_min": 0.5,
    }
    assert metrics == pytest.approx(expected, abs=1e-6)
    assert loss.item() == metrics["loss_policy"]


def test_masked_actions_count_for_nothing() -> None:
    valid = torch.tensor([[True, True, False], [True, False, False]])
    old = torch.zeros(2, 3)
    log_probs = torch.zeros(2, 3)
    log_probs[~valid] = 200.0  # exp overflows: NaN would leak without masking before the exponential
    log_probs.requires_grad_()
    loss, metrics = compute_policy_loss(log_probs, old, torch.tensor([1.0, -2.0]), valid, 0.2, 0.28)
    loss.backward()
    assert loss.item() == pytest.approx((-1 - 1 + 2) / 3)
    expected = torch.tensor([[-1 / 3, -1 / 3, 0.0], [2 / 3, 0.0, 0.0]])
    assert torch.allclose(log_probs.grad, expected)
    assert metrics["ratio_max"] == 1.0


def test_every_action_weighs_the_same_whatever_its_rows_length() -> None:
    valid = torch.tensor([[True, False, False, False], [True, True, True, True]])
    zeros = torch.zeros(2, 4)
    loss, _ = compute_policy_loss(zeros, zeros, torch.tensor([1.0, -1.0]), valid, 0.2, 0.2)
    assert loss.item() == pytest.approx((-1 + 4) / 5)


def test_microbatches_that_weigh_by_their_valid_actions_add_up() -> None:
    g = make_generator(0, "shards")
    old, new = torch.randn(6, 5, generator=g), torch.randn(6, 5, generator=g)
    advantages, valid = torch.randn(6, generator=g), torch.rand(6, 5, generator=g) > 0.4
    valid[:, 0] = True
    parts = [(slice(0, 1), valid[:1].sum() / valid.sum()), (slice(1, 6), valid[1:].sum() / valid.sum())]
    whole, _ = compute_policy_loss(new, old, advantages, valid, 0.2, 0.28)
    losses = [w * compute_policy_loss(new[s], old[s], advantages[s], valid[s], 0.2, 0.28)[0] for s, w in parts]
    assert torch.allclose(sum(losses), whole, atol=1e-5)
    penalties = [w * compute_kl_penalty(new[s], old[s], valid[s]) for s, w in parts]
    assert torch.allclose(sum(penalties), compute_kl_penalty(new, old, valid), rtol=1e-5)


def test_nothing_valid_gives_zero_loss_and_gradient() -> None:
    log_probs = torch.zeros(2, 2, requires_grad=True)
    none = torch.zeros(2, 2, dtype=torch.bool)
    loss, metrics = compute_policy_loss(log_probs, torch.ones(2, 2), torch.ones(2), none, 0.2, 0.2)
    (loss + compute_kl_penalty(log_probs, torch.ones(2, 2), none)).backward()
    assert loss.item() == 0
    assert torch.equal(log_probs.grad, torch.zeros(2, 2))
    assert metrics["ratio_mean"] == 1.0


def test_kl_penalty_by_hand_and_unbiased() -> None:
    valid = torch.tensor([[True, True, False]])
    log_probs = torch.tensor([[-1.0, -2.0, -3.0]])
    reference = torch.tensor([[-1.0, -1.5, 50.0]])
    assert compute_kl_penalty(log_probs, reference, valid).item() == pytest.approx((math.exp(0.5) - 0.5 - 1) / 2)
    # Weighted by the policy's own probabilities, the k3 terms sum to the exact KL.
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    terms = [compute_kl_penalty(p[i].log().reshape(1, 1), q[i].log().reshape(1, 1), ALL) for i in range(3)]
    estimate = sum(p[i] * terms[i] for i in range(3))
    assert estimate.item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)


def test_the_gradient_of_the_penalty_is_that_of_the_kl_from_the_reference() -> None:
    """Expected over the policy's own actions; its value estimates KL(policy || reference)."""
    logits = torch.tensor([0.4, -0.3, 0.1], requires_grad=True)
    reference = torch.tensor([0.2, 0.2, 0.6])
    sampled = torch.softmax(logits, 0).detach()
    log_p = torch.log_softmax(logits, 0)
    penalties = [compute_kl_penalty(log_p[i].reshape(1, 1), reference[i].log().reshape(1, 1), ALL) for i in range(3)]
    (found,) = torch.autograd.grad(sum(sampled[i] * penalties[i] for i in range(3)), logits, retain_graph=True)
    reverse = (reference * (reference.log() - log_p)).sum()
    forward = (log_p.exp() * (log_p - reference.log())).sum()
    (of_reverse,) = torch.autograd.grad(reverse, logits, retain_graph=True)
    (of_forward,) = torch.autograd.grad(forward, logits)
    assert torch.allclose(found, of_reverse, atol=1e-6)
    assert not torch.allclose(found, of_forward, atol=1e-2)


def test_policy_gradient_raises_the_probability_of_good_actions() -> None:
    logits = torch.zeros(2, requires_grad=True)
    actions = torch.tensor([0, 1, 0, 1])
    advantages = compute_group_advantages(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.zeros(4).long()).advantages
    old = torch.log_softmax(logits, 0)[actions][:, None].detach()
    for _ in range(5):
        log_probs = torch.log_softmax(logits, 0)[actions][:, None]
        loss, _ = compute_policy_loss(log_probs, old, advantages, torch.ones(4, 1).bool(), 0.2, 0.28)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 0.5 * gradient).detach().requires_grad_()
    probability = torch.softmax(logits, 0)[0].item()
    assert 0.55 < probability < 0.75  # up, and held back by the clip at ratio 1.28
