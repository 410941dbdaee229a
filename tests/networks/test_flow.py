import math

import pytest
import torch
from torch import Tensor

from worldloop.networks import flow


@pytest.fixture
def path() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise, data = torch.randn(2, 5, 3, 4, 4, generator=generator)
    return noise, data, torch.tensor([0.0, 0.1, 0.5, 0.9, 0.99])


def test_interpolate_by_hand() -> None:
    noise, data = torch.tensor([[2.0]]), torch.tensor([[10.0]])
    assert flow.interpolate(noise, data, torch.tensor([0.25])).item() == 4.0
    assert flow.velocity_from_data(torch.tensor([[4.0]]), data, torch.tensor([0.25])).item() == 8.0


def test_velocity_is_data_minus_noise_everywhere(path: tuple[torch.Tensor, ...]) -> None:
    noise, data, t = path
    noisy = flow.interpolate(noise, data, t)
    torch.testing.assert_close(flow.velocity_from_data(noisy, data, t), data - noise, atol=1e-4, rtol=1e-4)


def test_round_trip_data_velocity_data_and_noise(path: tuple[torch.Tensor, ...]) -> None:
    noise, data, t = path
    noisy = flow.interpolate(noise, data, t)
    velocity = flow.velocity_from_data(noisy, data, t)
    torch.testing.assert_close(flow.data_from_velocity(noisy, velocity, t), data, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flow.noise_from_data(noisy, data, t), noise, atol=1e-4, rtol=1e-4)


def test_euler_step_stays_on_the_path_and_ends_in_the_data(path: tuple[torch.Tensor, ...]) -> None:
    noise, data, t = path
    noisy = flow.interpolate(noise, data, t)
    t_next = t + (1 - t) / 2
    expected = flow.interpolate(noise, data, t_next)
    torch.testing.assert_close(flow.euler_step(noisy, data, t, t_next), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(flow.euler_step(noisy, data, t, torch.ones(5)), data)


def test_sample_times_has_the_share_of_exact_zeros() -> None:
    t = flow.sample_times(4000, 0.6, torch.Generator().manual_seed(0))
    assert abs((t == 0).float().mean().item() - 0.6) < 0.03
    assert t.min() >= 0
    assert t.max() < 1
    assert abs(t[t > 0].mean().item() - 0.5) < 0.03
    assert (flow.sample_times(50, 1.0, torch.Generator().manual_seed(0)) == 0).all()


def integrate_gaussian(num_steps: int, level: float, num_rows: int = 20_000) -> Tensor:
    """Samples f64 [rows] of N(2, .3^2), by the exact prediction of the data; the first step is the ODE's."""
    mean, variance = 2.0, 0.09
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 1, dtype=torch.float64, generator=generator)
    times = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    for i in range(num_steps):
        t, t_next = (times[i + k].expand(num_rows) for k in (0, 1))
        time = float(times[i])
        data = mean + variance * time / (time**2 * variance + (1 - time) ** 2) * (x - time * mean)
        if 0 < i < num_steps - 1 and level:
            expected, std = flow.sde_step(x, data, t, t_next, level)
            x = expected + std * torch.randn(x.shape, dtype=x.dtype, generator=generator)
        else:
            x = flow.euler_step(x, data, t, t_next)
    return x[:, 0]


def test_random_steps_keep_the_marginal_once_steps_are_small() -> None:
    """The ODE and the SDE end in the same Gaussian at 256 steps; with four random steps the SDE is far off."""
    for level in (0.0, 0.7):
        samples = integrate_gaussian(256, level)
        assert float(samples.mean()) == pytest.approx(2.0, abs=0.01)
        assert float(samples.std()) == pytest.approx(0.3, abs=0.01)
    assert abs(float(integrate_gaussian(4, 0.7).std()) - float(integrate_gaussian(4, 0.0).std())) > 0.03


def test_a_random_step_by_hand() -> None:
    """At t = .25, dt = .25, level 1: s^2 = 3, velocity (3 - 1) / .75, noise (1 - .75) / .75; drift 8/3 - 2 / 3."""
    noisy, data = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    mean, std = flow.sde_step(noisy, data, torch.tensor([0.25]), torch.tensor([0.5]), 1.0)
    assert float(mean) == pytest.approx(1 + 0.25 * (8 / 3 - 2 * (1 / 3)))
    assert float(std) == pytest.approx(math.sqrt(3 * 0.25))


def test_log_probabilities_are_means_over_dimensions() -> None:
    reached, mean, std = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0]])
    normal = torch.distributions.Normal(mean, std).log_prob(reached)
    assert float(flow.compute_log_prob(reached, mean, std)) == pytest.approx(float(normal.mean()))
