"""The README's picture, from a finished run: success per iteration, and an imagined episode over the simulated one.

python scripts/make_picture.py runs/pushcube_cpu docs/loop.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from worldloop.core.images import join_views
from worldloop.core.randomness import make_row_keys
from worldloop.factory import checkpoints
from worldloop.sans.clips import ClipDataset
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory

NUM_FRAMES = 8  # of an episode, the real first one among them


def imagine(run: Path, outcome: str) -> tuple[np.ndarray, np.ndarray]:
    """(imagined, simulated) u8 [h, F w, 3]: the first held-out policy episode with that outcome, open loop.

    Views of several cameras stand side by side.
    """
    state = RunDirectory(run).read_state()
    store = SansStore(run / "sans")
    world_model = checkpoints.load_world_model(run / state.world_model)
    cameras = world_model.spec.robot.camera_names
    dataset = ClipDataset(store.open_cache(store.version(state.dataset)), "validation", cameras)
    episodes = dataset.episode_index(source="policy", outcome=outcome)
    if len(episodes) == 0:
        raise SystemExit(f"{run} has no held-out policy episode that is a {outcome}")
    episode = int(episodes[0])
    clip = dataset.whole_episode(episode)
    start = dataset.observation(torch.tensor([[episode, 0]]))
    world = world_model.start(start, make_row_keys(1, "picture"))
    imagined = world_model.imagine(world, clip.actions.flatten(1, 2))[1]

    def strip(frames: dict[str, torch.Tensor]) -> np.ndarray:
        first = {camera: start.frames[camera][0, -1:] for camera in cameras}
        views = [torch.cat([first[camera], frames[camera][0, : NUM_FRAMES - 1]]) for camera in cameras]
        shown = list(join_views(views).numpy())
        shown += [np.full_like(shown[0], 255)] * (NUM_FRAMES - len(shown))  # a shorter episode leaves white
        return np.concatenate(shown, axis=1)

    return strip(imagined.frames), strip(clip.frames)


def main(run: Path, target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = RunDirectory(run).read_results()["iterations"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 2.9), width_ratios=[1, 2.6])
    for name, colour in (("simulated_success", "tab:blue"), ("imagined_success", "tab:orange")):
        known = [(r["iteration"], r[name]) for r in results if r[name]]
        rate = [v["rate"] for _, v in known]
        error = [[v["rate"] - v["low"] for _, v in known], [v["high"] - v["rate"] for _, v in known]]
        label = name.split("_")[0]
        axes[0].errorbar([i for i, _ in known], rate, yerr=error, marker="o", capsize=3, color=colour, label=label)
    axes[0].set(xlabel="iteration", ylabel="success", ylim=(0, 1), xticks=range(len(results)))
    axes[0].set_title(f"evaluation states, n = {results[0]['simulated_success']['n']}, 95 %", fontsize=9)
    axes[0].legend(loc="lower right", fontsize=8)
    rows = [row for outcome in ("success", "near_success") for row in imagine(run, outcome)]
    axes[1].imshow(np.concatenate(rows, axis=0))
    height = rows[0].shape[0]
    labels = ["imagined", "simulated"] * 2
    axes[1].set_yticks([height * (i + 0.5) for i in range(4)], labels, fontsize=8)
    axes[1].set_xticks([])
    axes[1].set_title("the same actions, open loop: a success and a near-success of the policy", fontsize=9)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
