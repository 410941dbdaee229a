"""Experiment 021: what do inverse dynamics see in a video, and which videos does EVA's reward tell from real ones?

    python experiments/021_executability/run.py measure TASK [key=value ...] [--seeds 0 1 2]
    python experiments/021_executability/run.py report [key=value ...]      # result.json, executability.png

``measure`` needs loops of experiment 016 under the same run_root, up to their first improve_policy or further. Per seed
it fits both inverse dynamics models on dataset v001 and checks them, by the loop's own stages. Then it scores
`NUM_FRAMES` frames of every held-out episode that is long enough, and what became of them:

- `exact`: the real frames; `imagined`: what the world model makes of the same actions
- `static`: the first frame repeated; `temporal_mean`: the mean frame repeated; `blurred`: by a Gaussian of 2 pixels
- `shuffled`: the frames after the first in random order; `reversed`; `wrong_clip`: another episode of the same task
- `shaken_P`: each frame is moved by up to P pixels; `random`: noise
- `cut_S`: a share S of the frames comes from another episode

The envelope is that of real training video from which the model did not learn. P0 is the mean penalty of `imagined`.
TASK: push, pull, pick. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import imagine_all, run_stage  # noqa: E402
from trust_loops import configure, measure_or_report, open_beside, read_measured  # noqa: E402

from worldloop.core import images  # noqa: E402
from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.statistics import auc, estimate_over_seeds  # noqa: E402
from worldloop.evaluation.episode_values import choose_fold  # noqa: E402
from worldloop.executability.inverse_dynamics import InverseDynamics  # noqa: E402
from worldloop.executability.reward import (  # noqa: E402
    ExecutabilityReward,
    RewardConfig,
    compute_path_length,
    measure_envelope,
    score_following,
)
from worldloop.networks.views import map_views  # noqa: E402
from worldloop.sans.clips import ClipDataset  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.stages.fit_inverse_dynamics import NAMES  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402

NUM_FRAMES = 7  # an episode lasts at most ten frame steps
SHAKEN_PX, CUT_SHARES = (1, 2, 4, 8), (0.15, 0.3, 0.6)
FOLLOWING_TEMPERATURE = 0.1
Video = dict[str, Tensor]  # camera -> float [n, T, 3, h, w] in [-1, 1]


def measure(task: str, seed: int, overrides: list[str]) -> None:
    """Write measured.json into TASK-seedN-idm beside the loop."""
    config = configure(task, seed, ["fit_inverse_dynamics.enabled=true", *overrides])
    context, state = open_beside(config, "idm", f"{task} {seed}")
    out = context.models.run_dir / "measured.json"
    if out.exists():
        return
    for name in ("fit_inverse_dynamics", "check_inverse_dynamics"):
        state = run_stage(name, state, context)
    videos, actions = make_candidates(state, context)
    measured: dict[str, Any] = {"check": state.records[1]["inverse_dynamics_check"], "probe": {}}
    for name, path in zip(NAMES, (state.inverse_dynamics, state.inverse_dynamics_judge), strict=True):
        measured["probe"][name] = probe(
            name, context.models.load_inverse_dynamics(path), videos, actions, state, context
        )
    write_file(out, to_json(measured), out.name)
    print(task, seed, json.dumps(measured["check"]), flush=True)


def make_candidates(state: LoopState, context: StageContext) -> tuple[dict[str, Video], Tensor]:
    """Candidate -> its videos of n episodes, and the episodes' actions f32 [n, T - 1, s, A]."""
    dataset = context.open_clips(state.dataset, "validation")
    exact, actions, episodes = cut_videos(dataset, "validation")
    world_model = context.models.load_world_model(state.world_model).for_imagination()
    frames: dict[int, dict[str, Tensor]] = {}
    for imagined in imagine_all(world_model, state.dataset, context).values():
        for row, episode in enumerate(imagined.branches.episode.tolist()):
            first = {c: f[row : row + 1] for c, f in imagined.branches.start_frames.items()}
            rest = {c: f[row : row + 1][0, : NUM_FRAMES - 1] for c, f in imagined.branches.frames.items()}
            frames[episode] = {c: torch.cat([first[c], rest[c]]) for c in rest}
    stored = {camera: torch.stack([frames[episode][camera] for episode in episodes]) for camera in exact}
    generator = torch.Generator().manual_seed(context.seed)
    n = len(episodes)
    other = (torch.arange(n) + 1 + torch.randint(n - 1, (n,), generator=generator)) % n
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(NUM_FRAMES - 1, generator=generator)])
    if bool((order == torch.arange(NUM_FRAMES)).all()):
        order = torch.tensor([0, *range(NUM_FRAMES - 1, 0, -1)])
    videos = {
        "exact": exact,
        "imagined": map_views(images.to_network, stored),
        "blurred": map_views(blur, exact),
        "static": map_views(lambda video: video[:, :1].expand_as(video), exact),
        "temporal_mean": map_views(lambda video: video.mean(1, keepdim=True).expand_as(video), exact),
        "shuffled": map_views(lambda video: video[:, order], exact),
        "reversed": map_views(lambda video: video.flip(1), exact),
        "wrong_clip": map_views(lambda video: video[other], exact),
        "random": map_views(lambda video: torch.rand(video.shape, generator=generator) * 2 - 1, exact),
    }
    for pixels in SHAKEN_PX:
        videos[f"shaken_{pixels}"] = map_views(lambda video, p=pixels: shake(video, p, generator), exact)
    for share in CUT_SHARES:
        is_cut = torch.rand(n, NUM_FRAMES, generator=generator) < share
        is_cut[:, 0] = False
        videos[f"cut_{share}"] = map_views(
            lambda video, cut=is_cut: torch.where(cut[..., None, None, None], video[other], video), exact
        )
    return videos, actions


def cut_videos(dataset: ClipDataset, split: Any, half: int | None = None) -> tuple[Video, Tensor, list[int]]:
    """The first `NUM_FRAMES` frames of the long enough episodes of ``split``, their actions, and the episodes.

    Without those of the initial states from which the model number ``half`` learned.
    """
    cache = dataset.cache
    episodes = [
        e
        for e in cache.select(split=split).tolist()
        if cache.num_steps[e] >= NUM_FRAMES - 1 and choose_fold(cache.metas[e].initial_state_id, len(NAMES)) != half
    ]
    if len(episodes) < 2:
        raise SystemExit(f"fewer than two {split} episodes have {NUM_FRAMES} frames")
    steps = np.arange(NUM_FRAMES)
    column = np.array(episodes)[:, None]
    frames = cache.images(dataset.cameras, column, np.broadcast_to(steps, (len(episodes), NUM_FRAMES)))
    actions = torch.from_numpy(cache.steps("actions", column, steps[:-1]))
    return map_views(images.to_network, frames), actions, episodes


def blur(video: Tensor) -> Tensor:
    x = torch.arange(-5, 6).float()
    kernel = torch.exp(-(x**2) / (2 * 2.0**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    flat = video.flatten(0, 1)
    for weight, pad in ((kernel, (5, 5, 0, 0)), (kernel.mT, (0, 0, 5, 5))):
        flat = torch.nn.functional.conv2d(torch.nn.functional.pad(flat, pad, "replicate"), weight, groups=3)
    return flat.unflatten(0, video.shape[:2])


def shake(video: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each frame but the first, moved by up to ``pixels`` along each axis."""
    n, T = video.shape[:2]
    shaken = video.clone()
    shift = torch.randint(-pixels, pixels + 1, (n, T, 2), generator=generator)
    for row in range(n):
        for t in range(1, T):
            shaken[row, t] = torch.roll(video[row, t], shift[row, t].tolist(), dims=(1, 2))
    return shaken


def probe(
    name: str,
    model: InverseDynamics,
    videos: Mapping[str, Video],
    actions: Tensor,
    state: LoopState,
    context: StageContext,
) -> dict[str, Any]:
    """Candidate -> mean R without and with the guard, mean following, and the AUC of each against `exact`."""
    dt_s = 1 / context.spec.frames_per_second
    robot = model.spec.robot
    columns = [robot.proprio_names.index(joint.name) for joint in robot.joints]

    def read(video: Video) -> tuple[Tensor, Tensor]:
        """Joints f32 [n, T, J] and actions f32 [n, T - 1, s, A]."""
        parts = [model.infer({c: v[rows] for c, v in video.items()}) for rows in torch.arange(n_of(video)).split(32)]
        return torch.cat([p.proprio[..., columns] for p in parts]), torch.cat([p.actions for p in parts])

    with torch.no_grad():
        real, _, _ = cut_videos(context.open_clips(state.dataset, "train"), "train", NAMES.index(name))
        joints, _ = read(real)
        envelope = measure_envelope(joints, is_valid(joints), dt_s)
        reward = ExecutabilityReward(robot, dt_s, RewardConfig(), envelope)
        read_videos = {candidate: read(video) for candidate, video in videos.items()}
        imagined = read_videos["imagined"]
        reward = reward.calibrate(reward.compute_penalty(*imagined, is_valid(imagined[0])))
        real_path = compute_path_length(read_videos["exact"][0], is_valid(read_videos["exact"][0]))
        scores: dict[str, dict[str, Tensor]] = {}
        terms: dict[str, dict[str, float]] = {}
        for candidate, (joints, inferred) in read_videos.items():
            valid = is_valid(joints)
            guarded, breakdown = reward.score(joints, inferred, valid, real_path)
            pair = (scale(inferred, model), scale(actions, model))
            followed = score_following(*pair, valid[:, 1:], FOLLOWING_TEMPERATURE)
            scores[candidate] = {"reward": breakdown["executability"], "guarded": guarded, "following": followed}
            terms[candidate] = {term: float(value.mean()) for term, value in breakdown.items()}
    figures: dict[str, Any] = {"num_episodes": len(actions), "candidates": {}}
    for candidate, by_score in scores.items():
        figures["candidates"][candidate] = {"terms": terms[candidate]} | {
            score: {"mean": float(values.mean()), "auc": tell_apart(scores["exact"][score], values)}
            for score, values in by_score.items()
        }
    return figures


def scale(actions: Tensor, model: InverseDynamics) -> Tensor:
    """From environment units to -1 to 1."""
    return 2 * (actions - model.action_low) / (model.action_high - model.action_low) - 1


def n_of(video: Video) -> int:
    return len(next(iter(video.values())))


def is_valid(joints: Tensor) -> Tensor:
    return torch.ones(joints.shape[:2], dtype=torch.bool)


def tell_apart(exact: Tensor, changed: Tensor) -> float:
    """AUC of a score: how often an exact video has the higher one than a changed one; .5 for the same videos."""
    labels = np.concatenate([np.ones(len(exact), dtype=bool), np.zeros(len(changed), dtype=bool)])
    return auc(torch.cat([exact, changed]).double().numpy(), labels)


def report(overrides: list[str]) -> None:
    """Write result.json and executability.png from the loops that have been measured."""
    tasks: dict[str, Any] = {}
    for task, seeds in read_measured(overrides, "idm").items():
        tasks[task] = {"seeds": seeds, "probe": {name: summarise(name, seeds) for name in NAMES}, "followed": {}}
        for name in NAMES:
            rates = [m["check"][name]["followed"]["rate"] for m in seeds.values() if m["check"][name]["followed"]]
            tasks[task]["followed"][name] = estimate_over_seeds(rates).to_dict() | {"by_seed": rates}
            print(task, name, "followed", rates)
            for candidate, scores in tasks[task]["probe"][name].items():
                shown = {s: f"{f['mean']['value']:.3f} (AUC {f['auc']['value']:.3f})" for s, f in scores.items()}
                print(f"  {candidate:<14}", shown)
    if not tasks:
        raise SystemExit("nothing has been measured yet")
    write_file(HERE / "result.json", to_json({"num_frames": NUM_FRAMES, "tasks": tasks}), "result.json")
    plot(tasks, HERE / "executability.png")


def summarise(name: str, seeds: Mapping[int, Any]) -> dict[str, Any]:
    """Candidate -> score -> mean and AUC, each over seeds."""
    probes = [measured["probe"][name]["candidates"] for measured in seeds.values()]
    over: Callable[[str, str, str], Any] = lambda candidate, score, figure: estimate_over_seeds(  # noqa: E731
        [probe[candidate][score][figure] for probe in probes]
    ).to_dict()
    return {
        candidate: {
            score: {figure: over(candidate, score, figure) for figure in ("mean", "auc")}
            for score in ("reward", "guarded", "following")
        }
        for candidate in probes[0]
    }


def plot(tasks: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tasks), figsize=(8 * len(tasks), 4), squeeze=False)
    for axis, (task, found) in zip(axes[0], tasks.items(), strict=True):
        candidates = list(found["probe"][NAMES[0]])
        for offset, score in enumerate(("reward", "guarded", "following")):
            means = [found["probe"][NAMES[0]][candidate][score]["mean"]["value"] for candidate in candidates]
            axis.bar(np.arange(len(candidates)) + 0.27 * (offset - 1), means, width=0.27, label=score)
        axis.set_xticks(range(len(candidates)), candidates, rotation=45, ha="right")
        axis.set(ylim=(0, 1), ylabel=f"mean score, {task}")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report)
