"""DiffusionNFT's loss, by hand, and where its gradient points."""

import pytest
import torch
from torch import Tensor

from worldloop.rl.nft import compute_nft_loss


def loss_of(predicted: float, old: float, data: float, advantage: float, strength: float = 1.0) -> Tensor:
    def view(value: float) -> dict[str, Tensor]:
        return {"base": torch.full((1, 1, 1, 2), value)}

    return compute_nft_loss(
        view(predicted), view(old), view(data), torch.tensor([advantage]), strength=strength, max_advantage=5.0
    )


def test_by_hand() -> None:
    """old 0, predicted 1, sample 3: x+ = 1 (error 2), x- = -1 (error 4); squares over means 2 and 4; r = .7."""
    assert float(loss_of(1.0, 0.0, 3.0, 2.0)) == pytest.approx(5 * (0.7 * 2 + 0.3 * 4))
    # strength 2: x+ = 2 (error 1), x- = -2 (error 5)
    assert float(loss_of(1.0, 0.0, 3.0, 2.0, strength=2.0)) == pytest.approx(2.5 * (0.7 * 1 + 0.3 * 5))


def test_advantages_are_clipped() -> None:
    assert float(loss_of(1.0, 0.0, 3.0, 50.0)) == float(loss_of(1.0, 0.0, 3.0, 5.0)) == pytest.approx(5 * 2)


@pytest.mark.parametrize(("advantage", "sign"), [(1.0, 1), (0.0, 0), (-1.0, -1)])
def test_the_prediction_moves_to_good_samples_and_away_from_bad_ones(advantage: float, sign: int) -> None:
    """At the old prediction; one of two cameras alone differs from the sample."""
    old = {"base": torch.zeros(2, 1, 2, 2), "wrist": torch.zeros(2, 1, 2, 2)}
    predicted = {camera: latents.clone().requires_grad_(True) for camera, latents in old.items()}
    data = {"base": torch.full((2, 1, 2, 2), 0.5), "wrist": torch.zeros(2, 1, 2, 2)}
    by_row = compute_nft_loss(predicted, old, data, torch.tensor([advantage, 0.0]), strength=1.0, max_advantage=5.0)
    by_row.sum().backward()  # type: ignore[no-untyped-call]
    gradient = predicted["base"].grad
    assert gradient is not None
    assert torch.sign(-gradient[0]).unique().tolist() == [sign]
    assert gradient[1].abs().max() < 1e-7, "without an advantage nothing moves"
    assert predicted["wrist"].grad is not None
    assert float(predicted["wrist"].grad.abs().max()) == 0
