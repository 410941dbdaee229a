"""A picture of many episodes at once: first, middle and last frame of each camera, with number and label."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from worldloop.core.files import write_file

_PICTURES = 9  # side by side; an episode of one camera has 3 of them
_CAPTION, _MARGIN = 14, 8  # pixels
_COLOURS = {True: (30, 130, 60), False: (190, 40, 40), None: (90, 90, 90)}
_NAMES = {True: "success", False: "failure", None: "no label"}


def draw_contact_sheet(path: Path, episodes: Iterable[np.ndarray], labels: dict[int, bool]) -> None:
    """Write a PNG; ``episodes`` are u8 [k, h, w, 3] each, numbered from 0, all of one shape."""
    from PIL import Image, ImageDraw

    episodes = list(episodes)
    num_columns = max(_PICTURES // len(episodes[0]), 1)
    strips = [np.concatenate(list(frames), axis=1) for frames in episodes]
    height, width = strips[0].shape[:2]
    rows = -(-len(strips) // num_columns)
    size = (num_columns * (width + _MARGIN) + _MARGIN, rows * (height + _CAPTION + _MARGIN) + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, strip in enumerate(strips):
        row, column = divmod(number, num_columns)
        x, y = _MARGIN + column * (width + _MARGIN), _MARGIN + row * (height + _CAPTION + _MARGIN)
        label = labels.get(number)
        draw.text((x, y), f"{number}  {_NAMES[label]}", fill=_COLOURS[label])
        sheet.paste(Image.fromarray(strip), (x, y + _CAPTION))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_file(path, buffer.getvalue(), f"contact sheet {path}")
