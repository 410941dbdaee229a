"""Show the check of a gate: log lines, TensorBoard curves over iterations, and videos with the gate's word below."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worldloop.core.images import join_views
from worldloop.core.reporting import Reporter
from worldloop.evaluation.gate import GatedEpisodes, GateJudgement
from worldloop.reporting.value import draw_values, enlarge
from worldloop.sans.cache import VersionCache

NAME = "check_gate"  # the stage, also its TensorBoard folder and tags


def describe_gate(judged: Mapping[str, GateJudgement]) -> list[str]:
    """One log line per source."""
    return [
        f"{source}: the gate agrees with the labels on {j.accuracy.value:.3f} of the frames (always the same: "
        f"{j.floor:.3f}), calls {j.interaction.value:.2f} an interaction, and switches {j.switches.value:.1f} times an "
        f"episode, {j.num_episodes} episodes"
        for source, j in judged.items()
    ]


def write_gate(reporter: Reporter, iteration: int, judged: Mapping[str, GateJudgement]) -> None:
    """TensorBoard: ``check_gate/accuracy``, ... over iterations, each source in its own run."""
    for source, judgement in judged.items():
        figures = {name: judgement.to_dict()[name] for name in ("accuracy", "auc", "interaction", "switches")}
        values = {f"{NAME}/{name}": figure["value"] for name, figure in figures.items() if figure is not None}
        with reporter.writer(f"{NAME}/{source}", purge_step=iteration) as writer:
            writer.scalars(iteration, values)


def write_gated_videos(
    reporter: Reporter,
    iteration: int,
    gated: Mapping[str, GatedEpisodes],
    cache: VersionCache,
    cameras: tuple[str, ...],
    frames_per_second: float,
    num_videos: int,
) -> None:
    """TensorBoard: the first episodes of each source; a bar is the gate's probability of an interaction.

    Below it a mark says where the labels begin ("in") or end ("out") one.
    """
    with reporter.writer(NAME, purge_step=iteration) as writer:
        for source, own in gated.items():
            for number, episode in enumerate(own.episodes[:num_videos], 1):
                probability, label = own.probability[number - 1], own.label[number - 1]
                frames = np.arange(len(label))
                images = cache.images(cameras, np.full(len(frames), episode), frames)
                changes = np.flatnonzero(np.diff(label, prepend=False))
                events = {f"{'in' if label[t] else 'out'} {i}": int(t) for i, t in enumerate(changes, 1)}
                video = draw_values(enlarge(join_views(list(images.values()))), probability - 1, events)
                outcome = cache.metas[episode].outcome
                writer.video(f"{NAME}/{source}_{number}_{outcome}", iteration, video, frames_per_second)
