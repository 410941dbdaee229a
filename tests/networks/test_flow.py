import pytest
import torch

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
