"""Recordings as a robot's recorder leaves them: written by LeRobot's own writer, with a video per camera."""

from pathlib import Path
from typing import Any

import numpy as np


def record(root: Path, episodes: list[dict[str, Any]], *, use_videos: bool = True, fps: int = 30) -> Path:
    """Each of ``episodes``: ``images`` u8 [n, h, w, 3], ``state`` f32 [n, S], ``action`` f32 [n, A], ``success`` bool
    [n], ``task`` str. One camera, ``observation.images.front``.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    first = episodes[0]
    joints = [f"joint_{i}.pos" for i in range(first["state"].shape[1])]
    kind = "video" if use_videos else "image"
    dataset = LeRobotDataset.create(
        "local/recording",
        fps=fps,
        root=root,
        robot_type="so101_follower",
        use_videos=use_videos,
        features={
            "observation.images.front": {
                "dtype": kind,
                "shape": first["images"].shape[1:],
                "names": ["height", "width", "channels"],
            },
            "observation.state": {"dtype": "float32", "shape": first["state"].shape[1:], "names": joints},
            "action": {"dtype": "float32", "shape": first["action"].shape[1:], "names": None},
            "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        },
    )
    for episode in episodes:
        for row in range(len(episode["state"])):
            dataset.add_frame(
                {
                    "observation.images.front": episode["images"][row],
                    "observation.state": episode["state"][row],
                    "action": episode["action"][row],
                    "next.success": np.array([episode["success"][row]]),
                    "task": episode["task"],
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root
