"""Show the check of the critics: log lines, TensorBoard curves over iterations, and videos with the value below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from worldloop.core.images import join_views
from worldloop.core.reporting import Reporter
from worldloop.core.statistics import Estimate
from worldloop.evaluation.episode_values import CriticJudgement, EpisodeFrames
from worldloop.evaluation.events import ERRORS
from worldloop.evaluation.open_loop import SOURCES
from worldloop.evaluation.value_at_events import EventChange

NAME = "check_value"  # the stage, also its TensorBoard folder and tags
STRIP_PX, MARK_PX = 20, 4  # heights below a picture: of the values, and of the marks of events
WIDTH_PX = 64  # below narrower pictures the bars would not fit
GREEN, RED = (0, 200, 0), (230, 60, 60)  # bars so far and milestones; errors
TO_COME, NOW, NOTHING = (70, 70, 70), (240, 240, 240), (30, 30, 30)  # bars to come, the bar shown, no event


def describe_critics(judged: Mapping[str, CriticJudgement]) -> list[str]:
    """One log line per source, e.g. ``on_policy: AUC of the value 0.61 0.74 0.88 at 25, 50, 75 % of the time``."""
    return [
        f"{source}: AUC of the value {_show(j.auc)} at {', '.join(f'{100 * share:.0f}' for share in j.auc)} % of the "
        f"time, {j.num_episodes} episodes"
        for source, j in judged.items()
    ]


def _show(figures: Mapping[float, Estimate | None]) -> str:
    return " ".join("-" if figure is None else f"{figure.value:.3f}" for figure in figures.values())


def write_critics(
    reporter: Reporter,
    iteration: int,
    judged: Mapping[str, CriticJudgement],
    at_events: Mapping[str, Mapping[str, EventChange]],
) -> None:
    """TensorBoard: ``check_value/auc_at_50``, ``change_at_grasp``, ... over iterations, each source in its own run."""
    for source, judgement in judged.items():
        values: dict[str, float] = {}
        for share, figure in judgement.auc.items():
            if figure is not None:
                tag = f"{NAME}/auc_at_{100 * share:.0f}"
                values[tag] = figure.value
                if figure.has_interval:
                    values |= {f"{tag}_low": figure.low, f"{tag}_high": figure.high}
        values |= {f"{NAME}/change_at_{name}": e.above_usual.value for name, e in at_events.get(source, {}).items()}
        with reporter.writer(f"{NAME}/{source}", purge_step=iteration) as writer:
            writer.scalars(iteration, values)


def describe_events(judged: Mapping[str, Mapping[str, EventChange]]) -> list[str]:
    """One log line per source, e.g. ``on_policy: change of the value ..., at miss -0.050 (0.80 of 25)``."""
    lines = []
    for source, events in judged.items():
        parts = [
            f"{name} {e.above_usual.value:+.3f} ({e.detected.value:.2f} of {e.above_usual.n})"
            for name, e in events.items()
        ]
        if parts:
            lines.append(f"{source}: change of the value above the usual, and share noticed, at {', '.join(parts)}")
    return lines


def choose_episodes(frames: EpisodeFrames, values: np.ndarray, num_videos: int) -> dict[str, list[tuple[str, int]]]:
    """Source -> (name, position in ``frames.episodes``) of the episodes to show: half the worst valued, half the best.

    An episode is valued well if its values are near its returns, in mean squared error.
    """
    chosen = {}
    for source, names in SOURCES.items():
        own = [i for i, meta in enumerate(frames.metas) if meta.source in names]
        error = [
            float(np.mean((values - frames.returns)[frames.first[i] : frames.first[i + 1]].astype(np.float64) ** 2))
            for i in own
        ]
        order = [own[i] for i in np.argsort(error, kind="stable")[::-1]]
        num_worst = min((num_videos + 1) // 2, len(order))
        best = order[num_worst:][::-1][: num_videos - num_worst]
        chosen[source] = [(f"worst_{n}", i) for n, i in enumerate(order[:num_worst], 1)]
        chosen[source] += [(f"best_{n}", i) for n, i in enumerate(best, 1)]
    return chosen


def enlarge(pictures: Tensor) -> Tensor:
    """``pictures`` u8 [T, h, w, 3] with each pixel repeated until they are about `WIDTH_PX` wide.

    Below a picture of few pixels the bars would be as wide as a pixel, and higher than the picture.
    """
    times = max(1, WIDTH_PX // pictures.shape[2])
    return pictures.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def draw_values(pictures: Tensor, values: np.ndarray, events: Mapping[str, int]) -> Tensor:
    """``pictures`` u8 [T, h, w, 3] with their values below, u8 [T, h + STRIP_PX + MARK_PX, w, 3].

    ``values`` f [T] in [-1, 0] are bars over time, full at 0; the bar of the picture shown is white. Below each bar is
    a mark: green if a milestone of ``events`` (name -> picture) happens there, red for an error. The names are written
    into the picture.
    """
    from PIL import Image, ImageDraw

    length, height, width, _ = pictures.shape
    edges = np.linspace(0, width, length + 1).round().astype(int)
    bars = np.round((np.clip(values, -1, 0) + 1) * (STRIP_PX - 1)).astype(int) + 1
    drawn = []
    for now in range(length):
        canvas = Image.new("RGB", (width, height + STRIP_PX + MARK_PX))
        canvas.paste(Image.fromarray(pictures[now].numpy()), (0, 0))
        draw = ImageDraw.Draw(canvas)
        floor = height + STRIP_PX
        for t in range(length):
            left = int(edges[t])
            right = max(left, int(edges[t + 1]) - 2)  # a gap of a pixel, where there is room
            colour = NOW if t == now else (GREEN if t < now else TO_COME)
            draw.rectangle((left, floor - int(bars[t]), right, floor - 1), fill=colour)
            here = [name for name, frame in events.items() if frame == t]
            mark = NOTHING if not here else (RED if any(name in ERRORS for name in here) else GREEN)
            draw.rectangle((left, floor + 1, right, floor + MARK_PX - 1), fill=mark)
        happened = [name for name, frame in events.items() if frame == now]
        for line, name in enumerate(happened):
            draw.text((1, 11 * line), name, fill=RED if name in ERRORS else GREEN)
        drawn.append(torch.from_numpy(np.array(canvas)))
    return torch.stack(drawn)


def write_values(
    reporter: Reporter,
    iteration: int,
    frames: EpisodeFrames,
    values: np.ndarray,
    events: Sequence[Mapping[str, int]],
    num_videos: int,
) -> None:
    """TensorBoard: videos with the value below, ``check_value/SOURCE_worst_1_OUTCOME`` and so on."""
    with reporter.writer(NAME, purge_step=iteration) as writer:
        for source, chosen in choose_episodes(frames, values, num_videos).items():
            for name, number in chosen:
                cache, rows = frames.cache, slice(frames.first[number], frames.first[number + 1])
                episode, frame = frames.index[rows].T
                images = cache.images(frames.spec.robot.camera_names, episode, frame)
                video = draw_values(enlarge(join_views(list(images.values()))), values[rows], events[number])
                outcome = frames.metas[number].outcome
                writer.video(f"{NAME}/{source}_{name}_{outcome}", iteration, video, frames.spec.frames_per_second)
