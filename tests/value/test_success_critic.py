"""The critic on episodes whose ends are written in their frames."""

import pytest
import torch
from reporters import RecordingReporter

from worldloop.core.types import Observation
from worldloop.value.success_critic import fit_critic


def draw(rows: torch.Tensor, with_proprio: bool = True) -> tuple[Observation, torch.Tensor]:
    """Row r succeeds where r is even: then its frame now has a bright square at a place of its own."""
    succeeds = rows % 2 == 0
    frames = torch.full((len(rows), 3, 16, 16, 3), 90, dtype=torch.uint8)
    for i, row in enumerate(rows.tolist()):
        if row % 2 == 0:
            at = 2 + row % 11
            frames[i, -1, at : at + 3, 4:8] = 200
    proprio = torch.zeros(len(rows), 2) if with_proprio else None
    return Observation(frames, proprio, ("i",) * len(rows), rows % 20), succeeds.float()


@pytest.mark.parametrize("with_proprio", [True, False])
def test_the_critic_tells_who_will_succeed(with_proprio: bool) -> None:
    state = torch.get_rng_state()
    reporter = RecordingReporter()
    critic = fit_critic(
        lambda rows: draw(rows, with_proprio), 400, num_steps=60, batch_size=32, max_episode_steps=20,
        generator=torch.Generator().manual_seed(0), device=torch.device("cpu"), reporter=reporter,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers"
    (bar,) = reporter.bars
    assert (bar.total, bar.unit, bar.count) == (60, "critic step", 60)
    assert bar.figures[-1]["loss"] < bar.figures[0]["loss"]
    assert not critic.training
    observation, succeeds = draw(torch.arange(1000, 1100), with_proprio)
    value = critic.value(observation)
    assert value.shape == (100,)
    assert ((value >= 0) & (value <= 1)).all()
    assert ((value > 0.5) == (succeeds > 0.5)).float().mean() > 0.95


@pytest.mark.parametrize("decides", ["env_step", "proprio"])
def test_the_critic_reads_the_time_and_the_proprio(decides: str) -> None:
    """All frames are equal, and odd rows fail: they are at the time limit, or have another proprio."""

    def load(rows: torch.Tensor) -> tuple[Observation, torch.Tensor]:
        fails = rows % 2
        frames = torch.full((len(rows), 3, 8, 8, 3), 90, dtype=torch.uint8)
        late, far = (fails if decides == name else torch.zeros_like(fails) for name in ("env_step", "proprio"))
        return Observation(frames, far[:, None].float(), ("i",) * len(rows), 20 * late), 1.0 - fails

    critic = fit_critic(
        load, 40, num_steps=80, batch_size=64, max_episode_steps=20,
        generator=torch.Generator().manual_seed(0), device=torch.device("cpu"), reporter=RecordingReporter(),
    )  # fmt: skip
    success, failure = critic.value(load(torch.tensor([0, 1]))[0]).tolist()
    assert success > failure + 0.05, "exactly equal if it were not read"


def test_missing_proprio_is_an_error() -> None:
    critic = fit_critic(
        draw, 40, num_steps=2, batch_size=4, max_episode_steps=20,
        generator=torch.Generator().manual_seed(0), device=torch.device("cpu"), reporter=RecordingReporter(),
    )  # fmt: skip
    with pytest.raises(ValueError, match="proprio"):
        critic.value(draw(torch.arange(4), with_proprio=False)[0])
