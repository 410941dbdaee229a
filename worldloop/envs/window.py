"""The window of ``render_mode="human"``, which shows all rows of an environment. Needs pygame and a display."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldloop.core.errors import WorldloopError

_LONGEST_SIDE = 768  # pixels, of the whole window


class FrameWindow:
    """A window that opens at the first `show`. If the user closes it, the program goes on without it.

    Raises `WorldloopError` if pygame is not installed or there is no display.
    """

    def __init__(self, title: str, fps: float) -> None:
        try:
            import pygame
        except ImportError as error:
            raise WorldloopError(
                "render_mode 'human' needs pygame, which is not installed: pip install -e '.[human]' in the clone"
            ) from error
        self._pygame: Any = pygame
        self._title, self._fps = title, fps
        self._screen: Any = None
        self._clock = pygame.time.Clock()
        self.is_closed = False

    def show(self, frames: np.ndarray) -> None:
        """Draw ``frames`` u8 [n, h, w, 3] as a grid, scaled by a whole number, then wait as ``fps`` demands."""
        if self.is_closed:
            return
        pygame = self._pygame
        grid = tile(frames)
        height, width = grid.shape[:2]
        scale = max(1, _LONGEST_SIDE // max(height, width))
        size = (width * scale, height * scale)
        if self._screen is None:
            self._open(size)
        surface = pygame.surfarray.make_surface(grid.swapaxes(0, 1))
        self._screen.blit(pygame.transform.scale(surface, size), (0, 0))
        pygame.display.flip()
        self._clock.tick(self._fps)
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            self.close()

    def close(self) -> None:
        self.is_closed = True
        if self._screen is not None:
            self._pygame.display.quit()
            self._screen = None

    def _open(self, size: tuple[int, int]) -> None:
        pygame = self._pygame
        try:
            pygame.display.init()
            self._screen = pygame.display.set_mode(size)
        except pygame.error as error:
            raise WorldloopError(
                f"render_mode 'human' finds no display ({error}): use 'rgb_array', or run where there is a screen"
            ) from error
        pygame.display.set_caption(self._title)


def tile(frames: np.ndarray) -> np.ndarray:
    """u8 [n, h, w, 3] -> one image [rows * h, columns * w, 3], about as many columns as rows; empty cells are black."""
    n, h, w, _ = frames.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, h, w, 3), dtype=np.uint8)
    cells[:n] = frames
    return cells.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)
