"""What the tests of several simulators share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from black_frames import draw_black

from worldloop.simulators.libero.simulator import LiberoSimulator
from worldloop.simulators.maniskill.simulator import ManiSkillConfig, ManiSkillSimulator
from worldloop.simulators.metaworld.simulator import MetaWorldSimulator


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are black in this test, which looks at none; the motion is the same."""
    monkeypatch.setattr(ManiSkillSimulator, "_render", draw_black)
    monkeypatch.setattr(LiberoSimulator, "_render", draw_black)
    monkeypatch.setattr(MetaWorldSimulator, "_render", lambda simulator: draw_black(simulator, len(simulator._running)))


@pytest.fixture(scope="session")
def push() -> Iterator[ManiSkillSimulator]:
    """PushCube-v1. As long as one simulator lives, the next ones draw at once: the first compiles shaders, for seconds.

    So whoever draws in ManiSkill asks for it.
    """
    simulator = ManiSkillSimulator(ManiSkillConfig(backend="cpu"))
    simulator.reset(simulator.draw_initial_states("PushCube-v1", "validation", 1, seed=0))
    yield simulator
    simulator.close()
