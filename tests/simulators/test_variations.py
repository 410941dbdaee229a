"""What each variation changes in a real ManiSkill scene, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from black_frames import draw_black
from torch import Tensor

from worldloop.core.randomness import make_row_keys
from worldloop.factory.build import list_variations, vary_simulator
from worldloop.factory.config import SimulatorConfig
from worldloop.simulators.maniskill.family import CameraPose
from worldloop.simulators.maniskill.simulator import ManiSkillConfig, ManiSkillSimulator
from worldloop.simulators.maniskill.variations import VARIATIONS, move_camera

TASK, BASE, HAND = "StackCube-v1", "base_camera", "hand_camera"


def make(variation: str) -> ManiSkillSimulator:
    config = ManiSkillConfig(tasks=(TASK,), cameras=(BASE, HAND), backend="cpu", variation=variation)
    return ManiSkillSimulator(config)


def play(simulator: ManiSkillSimulator) -> tuple[dict[str, Tensor], Tensor, bool]:
    """First frames, first state, and whether the expert succeeds from a validation state."""
    start = simulator.draw_initial_states(TASK, "validation", 1, seed=0, first=3)
    policy = simulator.make_scripted_policy((TASK,), ("expert",), make_row_keys(1, 3), chunk_length=5)
    first = observation = simulator.reset(start)
    simulator._render = lambda: draw_black(simulator)  # type: ignore[method-assign]
    while True:
        step = simulator.step_chunk(policy.act(observation, None).actions)
        observation = step.observation
        if (step.terminated | step.truncated).all():
            return first.frames, start.states, bool(step.terminated.all())


@pytest.fixture(scope="module")
def plain(push: ManiSkillSimulator) -> Iterator[tuple[dict[str, Tensor], Tensor, bool]]:
    simulator = make("")
    yield play(simulator)
    simulator.close()


@pytest.mark.parametrize("name", VARIATIONS)
def test_a_variation_is_seen_and_the_expert_still_succeeds(name: str, plain) -> None:
    simulator = make(name)
    frames, state, succeeds = play(simulator)
    simulator.close()
    assert torch.equal(state, plain[1]), "episodes begin in the same states"
    assert succeeds
    differs = {c: (images.float() - plain[0][c].float()).abs().mean().item() for c, images in frames.items()}
    if name in ("size", "shape"):
        assert 0 < differs[BASE] < 3, "nothing but the cube changes"
    elif name == "camera":
        assert differs[BASE] > 2
        assert differs[HAND] == 0
    elif name == "colour":
        changed = (frames[BASE] != plain[0][BASE])[0, -1].any(-1)
        assert 4 < changed.sum() < 60
    else:
        assert min(differs.values()) > 10


def test_a_variation_is_a_setting_of_the_simulator() -> None:
    config = SimulatorConfig("maniskill", maniskill=ManiSkillConfig(tasks=(TASK,), image_size=32))  # type: ignore[call-arg]
    assert list_variations(config) == tuple(VARIATIONS)
    varied = vary_simulator(config, "colour").chosen_section()
    assert (varied.variation, varied.tasks, varied.image_size) == ("colour", (TASK,), 32)
    assert vary_simulator(config, "") == config
    own = SimulatorConfig("my.module:Sim", options={"size": 3})
    assert vary_simulator(own, "fog").options == {"size": 3, "variation": "fog"}
    with pytest.raises(ValueError, match="variation"):
        ManiSkillConfig(variation="fog")
    view = CameraPose((0.1, 0.2, 0.3), (0.0, 0.0, 0.0), 0.5)
    assert move_camera("", view) == view
    assert move_camera("camera", view).eye_m == pytest.approx((0.13, 0.15, 0.34))
