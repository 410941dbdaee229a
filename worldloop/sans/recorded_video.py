"""Decode single frames of a video file with PyAV, whose wheels bring their own decoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldloop.core.errors import WorldloopError

_SEEK_S = 1.0  # a gap from which it pays to seek instead of decoding all frames in between


def find_frames(path: Path, times_s: Sequence[float]) -> Iterator[tuple[np.ndarray, float]]:
    """For each of the increasing ``times_s``, the nearest frame u8 [h, w, 3] and the time of that frame, in seconds.

    One frame is held at a time. Raises ``ValueError`` if the file has no frames, and PyAV's errors, which are
    ``OSError`` or ``ValueError``, if it is broken.
    """
    try:
        import av
    except ImportError as error:
        raise WorldloopError(
            "reading the videos of a recording needs av, which is not installed: pip install -e '.[data]' in the clone"
        ) from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames: Iterator[Any] = iter(())
            before = after = None
            for time_s in times_s:
                if after is None or time_s - after.time > _SEEK_S:
                    container.seek(max(int(time_s / (stream.time_base or 1)) - 1, 0), stream=stream)
                    frames, before, after = (f for f in container.decode(stream) if f.pts is not None), None, None
                while after is None or after.time < time_s:
                    frame = next(frames, None)
                    if frame is None:
                        break
                    before, after = after, frame
                near = [frame for frame in (before, after) if frame is not None]
                if not near:
                    raise ValueError("it has no frames")
                nearest = min(near, key=lambda frame: abs(frame.time - time_s))
                yield nearest.to_ndarray(format="rgb24"), float(nearest.time)
    except av.FFmpegError as error:
        raise ValueError(error.strerror or str(error)) from error
