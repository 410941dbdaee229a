"""Recordings as a robot's recorder leaves them: written by LeRobot's own writer, with a video per camera."""

from pathlib import Path
from typing import Any

import numpy as np


def record(root: Path, episodes: list[dict[str, Any]], *, use_videos: bool = True, fps: int = 30) -> Path:
    """Each of ``episodes``: ``images`` u8 [n, h, w, 3], ``state`` f32 [n, S], ``action`` f32 [n, A], ``success`` bool
    [n], ``task`` str. ``images`` are of the camera ``front``, or a dict of several cameras by name.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    first = episodes[0]
    joints = [f"joint_{i}.pos" for i in range(first["state"].shape[1])]
    cameras = {
        f"observation.images.{name}": {
            "dtype": "video" if use_videos else "image",
            "shape": images.shape[1:],
            "names": ["height", "width", "channels"],
        }
        for name, images in _by_camera(first).items()
    }
    dataset = LeRobotDataset.create(
        "local/recording",
        fps=fps,
        root=root,
        robot_type="so101_follower",
        use_videos=use_videos,
        features=cameras
        | {
            "observation.state": {"dtype": "float32", "shape": first["state"].shape[1:], "names": joints},
            "action": {"dtype": "float32", "shape": first["action"].shape[1:], "names": None},
            "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        },
    )
    for episode in episodes:
        for row in range(len(episode["state"])):
            dataset.add_frame(
                {f"observation.images.{name}": images[row] for name, images in _by_camera(episode).items()}
                | {
                    "observation.state": episode["state"][row],
                    "action": episode["action"][row],
                    "next.success": np.array([episode["success"][row]]),
                    "task": episode["task"],
                }
            )
        dataset.save_episode(parallel_encoding=False)  # in parallel it forks a process that has threads
    dataset.finalize()
    return root


def _by_camera(episode: dict[str, Any]) -> dict[str, np.ndarray]:
    images = episode["images"]
    return images if isinstance(images, dict) else {"front": images}
