"""TensorBoard's event files, read event by event: a long run's videos never fill the memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldloop.core.files import disk_errors

_GIF = b"GIF8"


def read_events(path: Path) -> Iterator[Any]:
    """The events of one file, in order; what a killed writer has left of its last one is skipped."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for record in RawEventFileLoader(str(path)).Load():
        yield Event.FromString(record)


def list_event_files(folder: Path) -> list[Path]:
    """Those of one TensorBoard run, the oldest first."""
    return sorted(path for path in folder.glob("*tfevents*") if path.is_file())


def find_images(folder: Path, step: int) -> dict[str, bytes]:
    """Tag -> its image of ``step`` in the TensorBoard run ``folder``. Of a stage that ran again the last one counts."""
    from tensorboard.compat.proto.event_pb2 import SessionLog

    images: dict[str, bytes] = {}
    for path in list_event_files(folder):
        for event in read_events(path):
            if event.session_log.status == SessionLog.START and event.step <= step:
                images.clear()
            elif event.step == step:
                found = {v.tag: v.image.encoded_image_string for v in event.summary.value if v.HasField("image")}
                images |= found
    return images


def measure_videos(path: Path) -> Counter[int]:
    """Step -> bytes of its videos in the event file ``path``."""
    sizes: Counter[int] = Counter()
    for event in read_events(path):
        for value in _videos(event):
            sizes[event.step] += len(value.image.encoded_image_string)
    return sizes


def remove_videos(path: Path, before: int) -> None:
    """Write the event file ``path`` anew, without the videos of steps below ``before``; all else stays."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    partial = path.with_name(f".partial-{path.name}")
    with disk_errors(f"TensorBoard's events in {path.parent}"):
        try:
            with open(partial, "wb") as file:
                writer = RecordWriter(file)
                for event in read_events(path):
                    for value in _videos(event) if event.step < before else []:
                        event.summary.value.remove(value)
                    writer.write(event.SerializeToString())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _videos(event: Any) -> list[Any]:
    values = [value for value in event.summary.value if value.HasField("image")]
    return [value for value in values if value.image.encoded_image_string.startswith(_GIF)]
