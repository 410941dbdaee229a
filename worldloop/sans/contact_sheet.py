"""One image of many episodes: first, middle and last frame of each camera, with the episode's number and label."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from worldloop.core.files import write_file

_PICTURES = 9  # images in a row of the sheet; an episode has 3 per camera
_CAPTION, _MARGIN = 14, 8  # pixels
_COLOURS = {True: (30, 130, 60), False: (190, 40, 40), None: (90, 90, 90)}
_NAMES = {True: "success", False: "failure", None: "no label"}


def draw_contact_sheet(path: Path, episodes: Iterable[np.ndarray], labels: dict[int, bool]) -> None:
    """Write the contact sheet of ``episodes`` to the PNG file ``path``.

    - ``episodes``: images u8 [k, h, w, 3] of each episode, all of one shape; episodes are numbered from 0
    - ``labels``: episode number -> whether it succeeds; an episode may have none
    """
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
