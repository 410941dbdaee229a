"""Small recordings made without LeRobot, so that tests can break them in many ways within seconds."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from worldloop.sans.lerobot_format import LeRobotWriter, image_feature, vector_feature

FPS, NUM_ROWS, SIZE = 10, 6, 16
FRONT = "observation.images.front"


def grey(episode: int, row: int) -> int:
    """The grey of all pixels of this row: another one for each."""
    return 20 + 40 * episode + 6 * row


def write_recording(root: Path, num_episodes: int = 4, *, video: bool = False) -> Path:
    """Episodes of `NUM_ROWS` rows: the state is (episode, row), the action (10 * episode + row, 1 + row / 10).

    Odd episodes succeed, in their last row but one. With ``video`` the camera is one video file of all episodes.
    """
    features = {
        FRONT: image_feature(SIZE, SIZE),
        "observation.state": vector_feature("float32", 2),
        "action": vector_feature("float32", 2),
        "next.success": vector_feature("bool", 1),
    }
    writer = LeRobotWriter(root, FPS, features, "arm")
    row = np.arange(NUM_ROWS)
    for e in range(num_episodes):
        images = np.stack([np.full((SIZE, SIZE, 3), grey(e, r), np.uint8) for r in row])
        vectors = {
            "observation.state": np.stack([np.full(NUM_ROWS, e), row], 1).astype(np.float32),
            "action": np.stack([10 * e + row, 1 + row / 10], 1).astype(np.float32),
            "next.success": (row >= (NUM_ROWS - 2 if e % 2 else NUM_ROWS))[:, None],
        }
        writer.add_episode("push the cube", {FRONT: images}, vectors, {})
    writer.finish()
    if video:
        _move_to_video(root, num_episodes)
    return root


def _move_to_video(root: Path, num_episodes: int) -> None:
    import av

    path = root / f"videos/{FRONT}/chunk-000/file-000.mp4"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for e in range(num_episodes):
            for r in range(NUM_ROWS):
                image = np.full((SIZE, SIZE, 3), grey(e, r), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())

    def describe(info: dict[str, Any]) -> None:
        info["features"][FRONT]["dtype"] = "video"
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

    def place(table: pd.DataFrame) -> None:
        table[f"videos/{FRONT}/chunk_index"] = table[f"videos/{FRONT}/file_index"] = 0
        table[f"videos/{FRONT}/from_timestamp"] = table["dataset_from_index"] / FPS

    edit_info(root, describe)
    edit_table(root, "meta/episodes", place)
    edit_table(root, "data", lambda table: table.drop(columns=FRONT, inplace=True))


def edit_info(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def edit_table(root: Path, folder: str, change: Callable[[pd.DataFrame], object]) -> None:
    """Change, in place, the rows of the only parquet file below ``folder``."""
    (path,) = (root / folder).rglob("*.parquet")
    table = pq.read_table(path).to_pandas()
    change(table)
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)


def encode(image: np.ndarray) -> bytes:
    """A PNG of any mode that Pillow makes of ``image``."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
