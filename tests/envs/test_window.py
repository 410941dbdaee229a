"""The window of render_mode="human", on SDL's dummy display: what it shows, and that closing it is harmless."""

import os
import subprocess
import sys

import numpy as np
import pytest

from worldloop.envs.window import FrameWindow, tile


def test_tile_lays_rows_out_in_a_grid() -> None:
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 3), dtype=np.uint8)
    grid = tile(frames)
    assert grid.shape == (4, 9, 3)
    assert grid[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 0]]
    assert (tile(frames[:1]) == frames[0]).all()


@pytest.fixture
def pygame(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    return pytest.importorskip("pygame")


def test_shows_magnified_frames_until_it_is_closed(pygame) -> None:
    window = FrameWindow("title", fps=1000)
    frame = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    frame[0, 10, 20] = (250, 120, 7)
    window.show(frame)
    surface = pygame.display.get_surface()
    assert surface.get_size() == (768, 768)
    assert tuple(surface.get_at((20 * 12 + 6, 10 * 12 + 6)))[:3] == (250, 120, 7)
    assert tuple(surface.get_at((20 * 12 - 1, 10 * 12 + 6)))[:3] == (0, 0, 0)
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    window.show(frame)
    assert window.is_closed
    window.show(frame)
    window.close()


def test_no_display_and_no_pygame_are_one_clear_error() -> None:
    code = """
import sys
import numpy as np
from worldloop.core.errors import WorldloopError
from worldloop.envs.window import FrameWindow
if sys.argv[1] == "no pygame":
    sys.modules["pygame"] = None
try:
    FrameWindow("t", 10.0).show(np.zeros((1, 8, 8, 3), dtype=np.uint8))
except WorldloopError as error:
    print(error)
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["SDL_VIDEODRIVER"] = "x11"
    for case, text in (("no display", "finds no display"), ("no pygame", "pip install -e '.[human]' in the clone")):
        ran = subprocess.run([sys.executable, "-c", code, case], env=environment, capture_output=True, text=True)
        assert text in ran.stdout, ran.stderr
