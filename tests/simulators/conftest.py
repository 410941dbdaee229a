"""What the tests of several simulators share."""

from __future__ import annotations

import pytest
from black_frames import draw_black

from worldloop.simulators.libero.simulator import LiberoSimulator
from worldloop.simulators.maniskill.simulator import ManiSkillSimulator
from worldloop.simulators.metaworld.simulator import MetaWorldSimulator


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are black in this test, which looks at none; the motion is the same."""
    monkeypatch.setattr(ManiSkillSimulator, "_render", draw_black)
    monkeypatch.setattr(LiberoSimulator, "_render", draw_black)
    monkeypatch.setattr(MetaWorldSimulator, "_render", lambda simulator: draw_black(simulator, len(simulator._running)))
