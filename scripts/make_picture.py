"""The README's picture, from a finished run: success per iteration, and an imagined episode over the simulated one.

python scripts/make_picture.py runs/pushcube_cpu docs/loop.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from worldloop.core.randomness import make_row_keys
from worldloop.factory import checkpoints
from worldloop.sans.clips import ClipDataset
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory


def imagine(run: Path, outcome: str) -> tuple[np.ndarray, np.ndarray]:
    """(imagined, simulated) u8 [h, F w, 3]: the first held-out policy episode with that outcome, open loop."""
    state = RunDirectory(run).read_state()
    store = SansStore(run / "sans")
    world_model = checkpoints.load_world_model(run / state.world_model)
    dataset = ClipDataset(store.open_cache(store.version(state.dataset)), "validation", world_model.spec.camera)
    episode = int(dataset.episode_index(source="policy", outcome=outcome)[0])
    clip = dataset.whole_episode(episode)
    start = dataset.observation(torch.tensor([[episode, 0]]))
    world = world_model.start(start, make_row_keys(1, "picture"))
    imagined = world_model.imagine(world, clip.actions.flatten(1, 2))[1].frames[0]

    def strip(frames: torch.Tensor) -> np.ndarray:
        shown = [start.frames[0, -1].numpy(), *frames[:7].numpy()]
        shown += [np.full_like(shown[0], 255)] * (8 - len(shown))  # a shorter episode leaves white
        return np.concatenate(shown, axis=1)

    return strip(imagined), strip(clip.frames[0])


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
