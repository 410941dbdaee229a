"""Whole toy episodes, imagined perfectly, and what a perfect probe sees in them."""

from collections.abc import Callable

import pytest
import torch

from worldloop.core.specs import SimulatorSpec
from worldloop.evaluation.open_loop import Branches
from worldloop.evaluation.visual_state import Seen, locate_landmarks
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator


@pytest.fixture
def spec() -> SimulatorSpec:
    return ToySimulator.make_spec(ToyConfig(image_size=32))


@pytest.fixture
def truth(toy_clips) -> Branches:
    """Nine episodes from three states; the logit is 3 from the success on, else -3."""
    episodes = toy_clips.episode_index()
    clip = toy_clips.load(
        torch.stack([episodes, torch.zeros_like(episodes)], dim=1), int(toy_clips.cache.num_steps.max())
    )
    return Branches(clip.frames, clip.proprio, torch.where(clip.success > 0.5, 3.0, -3.0), clip)


@pytest.fixture
def see_truth(truth, toy_clips, spec) -> Callable[..., Seen]:
    """The simulated positions, wrong by ``offset_m`` along x, and outcomes by ``logit`` (else the truth's)."""

    def see(offset_m: float = 0.0, logit: torch.Tensor | None = None) -> Seen:
        answer_m = locate_landmarks(truth, toy_clips, spec)
        answer_m[..., 0] += offset_m
        return Seen(answer_m, truth.logit if logit is None else logit)

    return see
