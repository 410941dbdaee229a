"""A run's report as one self-contained HTML file, which answers the questions of the dashboards without a server."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from worldloop.core.files import read_json, write_file
from worldloop.core.types import OUTCOMES
from worldloop.core.version import __version__
from worldloop.reporting.charts import (
    draw,
    draw_auc,
    draw_auc_by_task,
    draw_calibration,
    draw_horizon,
    draw_precision_recall,
    draw_sans,
    draw_success,
    draw_success_by_task,
    draw_time,
)
from worldloop.reporting.records import (
    Record,
    find_worst_task,
    list_judged_sources,
    list_tasks,
    name_tasks,
    read_auc,
    read_closed_loop,
    read_success,
    read_within_group_auc,
)
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory

DASH = "\u2013"
INDENT = "\u2003"


def write_html_report(run_dir: Path, out: Path) -> None:
    """Write the report to ``out``; `WorldloopError` if ``run_dir`` has no results or ``out`` cannot be written."""
    from jinja2 import Environment, select_autoescape

    directory = RunDirectory(run_dir)
    records = directory.read_results()["iterations"]
    state, timings = directory.read_state(), directory.read_timings()
    store = SansStore(run_dir / "sans")
    counts = count_episodes(store, state.dataset)
    videos, no_videos = find_videos(run_dir / "tensorboard", records)
    config_yaml = directory.read_config()
    config: Any = OmegaConf.create(config_yaml)
    source = "recording" if config.get("source") == "recording" else config.simulator.kind
    section = source if source == "recording" else f"simulator.{source}"
    environment = run_dir / "environment.json"
    commit = read_json(environment, "environment.json", 1, "delete it")["git_commit"] if environment.is_file() else ""
    page = (Path(__file__).parent / "report.html").read_text()
    template = Environment(autoescape=select_autoescape(default=True)).from_string(page)
    html = template.render(
        name=run_dir.resolve().name,
        task=", ".join(OmegaConf.select(config, f"{section}.tasks") or [])
        or OmegaConf.select(config, f"{section}.task")  # in runs of earlier versions, which had one task
        or source,
        state="finished" if not state.next_stage else f"next: {state.next_stage} of iteration {state.iteration}",
        version=__version__,
        commit=commit,
        cards=make_cards(records, timings),
        charts={
            "success": draw(draw_success, records),
            "success_by_task": draw(draw_success_by_task, records),
            "auc": draw(draw_auc, records),
            "auc_by_task": draw(draw_auc_by_task, records),
            "precision_recall": draw(draw_precision_recall, records),
            "calibration": draw(draw_calibration, records),
            "horizon": draw(draw_horizon, records),
            "time": draw(draw_time, timings),
            "sans": draw(draw_sans, counts),
        },
        success=tabulate_success(records),
        closed_loop=tabulate_closed_loop(records),
        trust=tabulate_trust(records),
        cost=tabulate_cost(records, timings),
        stages=tabulate_stages(timings),
        sans=[["source, iteration", *OUTCOMES], *([name, *(row[o] for o in OUTCOMES)] for name, row in counts.items())],
        videos=videos,
        cameras=list_cameras(records),
        is_plural=bool(name_tasks(records)),
        no_videos=no_videos,
        config=config_yaml,
        environment=environment.read_text() if environment.is_file() else "",
    )
    write_file(out, html.encode(), str(out))


def show(figures: dict[str, Any] | None, name: str, style: str = ".3f") -> str:
    """E.g. ``0.680 (0.612 to 0.741)``; the value alone if the bounds are null, a dash if the value is missing."""
    if not figures or figures.get(name) is None:
        return DASH
    value = f"{figures[name]:{style}}"
    return value if figures["low"] is None else f"{value} ({figures['low']:{style}} to {figures['high']:{style}})"


def make_cards(records: list[Record], timings: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The headline figures as ``{title, value, note}``; figures that were not measured are left out."""
    cards = []
    evaluated = [r for r in records if r.get("simulated_success")]
    if evaluated:
        success, gain = evaluated[-1]["simulated_success"], evaluated[-1]["paired_gain"]
        note = f"{success['k']} of {success['n']} states" + _name_worst(evaluated[-1], read_success, ".1%")
        cards.append(("success in the simulator", f"{success['rate']:.1%}", note))
        if gain and evaluated[-1]["iteration"]:
            note = f"95 %: {gain['low']:+.3f} to {gain['high']:+.3f}"
            cards.append(("gain over the clone", f"{gain['gain']:+.3f}", note))
    closed = [found for r in records if (found := read_closed_loop(r))]
    if closed:
        checkpoint, figures = closed[-1]
        note = f"{checkpoint.rsplit('/', 1)[-1]}, {show(figures['within_group_auc'], 'value')}"
        value = read_within_group_auc(figures)
        cards.append(("closed-loop AUC within groups", DASH if value is None else f"{value:.3f}", note))
    checked = [r for r in records if list_judged_sources(r)]
    if checked:
        source, figures = list_judged_sources(checked[-1])[-1]
        if figures["auc"]:
            note = f"{source}, {show(figures['auc'], 'value')}, n {figures['n']}"
            note += _name_worst(checked[-1], partial(read_auc, source=source), ".3f")
            cards.append(("open-loop AUC", f"{figures['auc']['value']:.3f}", note))
    optimism = [r["imagined_minus_simulated"] for r in records if r.get("imagined_minus_simulated")]
    if optimism:
        note = f"95 %: {optimism[-1]['low']:+.3f} to {optimism[-1]['high']:+.3f}"
        cards.append(("imagined minus simulated", f"{optimism[-1]['gain']:+.3f}", note))
    if timings:
        steps = f"{_count(records[-1], 'simulator_steps')} simulator steps"
        cards.append(("time in stages", f"{sum(t['seconds'] for t in timings) / 60:.0f} min", steps))
    return [dict(zip(("title", "value", "note"), card, strict=True)) for card in cards]


def _count(record: Record, name: str) -> str:
    """The figure ``name`` of ``record``; a dash in runs of versions that did not count it."""
    value = record.get(name)
    return DASH if value is None else f"{value:,}"


def _name_worst(record: Record, read: Callable[[Record], float | None], style: str) -> str:
    """E.g. ``; worst: PullCube-v1, 30.0%``; "" if no task is worse than another."""
    worst = find_worst_task(record, read)
    return "" if worst is None else f"; worst: {worst}, {read(list_tasks(record)[worst]):{style}}"


def tabulate_success(records: list[Record]) -> list[list[str]]:
    """Table of success; with several tasks the mean, then each. Success under a swapped instruction, if measured."""
    swaps = any(record.get("swapped_success") for record in records)
    header = ["iteration", "simulated success", "", "gain over the clone", "imagined success", "promoted"]
    rows = [[*header, *(["told to do another task"] if swaps else [])]]

    def show_success(record: Record, iteration: int, promoted: str) -> list[str]:
        success = record.get("simulated_success")
        cells = [
            show(success, "rate"),
            f"{success['k']}/{success['n']}" if success else "",
            show(record.get("paired_gain"), "gain", "+.3f") if iteration else DASH,
            show(record.get("imagined_success"), "rate"),
            promoted,
        ]
        return cells + ([show(record.get("swapped_success"), "rate")] if swaps else [])

    for record in records:
        iteration, worst = record["iteration"], find_worst_task(record, read_success)
        promoted = {True: "yes", False: "rolled back", None: DASH}[record.get("promoted")]
        rows.append([str(iteration), *show_success(record, iteration, promoted)])
        for task, own in list_tasks(record).items():
            rows.append([_name(task, worst), *show_success(own, iteration, "")])
    return rows


def tabulate_closed_loop(records: list[Record]) -> list[list[str]]:
    """Table of the checks in the closed loop, one row per policy; with several tasks the mean, then each."""
    rates = ("own", "replay", "declared")
    alignments = ("within_group_auc", "auc", "start_only_auc", "true_negative_rate")
    header = ["iteration", "policy", "n", *rates, "AUC within groups", "AUC", "AUC, start only", "true negatives"]

    def show_figures(figures: Record) -> list[str]:
        return [
            str(figures["n"]),
            *(show(figures[name], "value", ".2f").split(" ")[0] for name in rates),
            *(show(figures[name], "value") for name in alignments),
        ]

    rows = []
    for record in records:
        for entry in (record.get("closed_loop") or {}).get("checkpoints", []):
            name = entry["checkpoint"].rsplit("/", 1)[-1]
            rows.append([str(record["iteration"]), name, *show_figures(entry)])
            worst = find_worst_task(entry, read_within_group_auc)
            rows += [[_name(task, worst), "", *show_figures(own)] for task, own in list_tasks(entry).items()]
    return [header, *rows] if rows else []


def tabulate_trust(records: list[Record]) -> list[list[str]]:
    """Table of the checks; with several tasks the mean, then each; with several cameras also the PSNR of each."""
    cameras = list_cameras(records)
    header = [
        "iteration",
        "episodes",
        "n",
        "AUC",
        "AUC, actions only",
        "balanced accuracy",
        "calibration error",
        "PSNR, dB",
    ]
    rows = [[*header, *(f"{camera}, dB" for camera in cameras)]]

    def show_trust(record: Record, source: str, figures: Record) -> list[str]:
        check = record["world_model_check"][source]
        psnr = [check.get(name) or {} for name in ("psnr_db", *(f"psnr_db/{camera}" for camera in cameras))]
        return [
            source,
            str(figures["n"]),
            show(figures["auc"], "value"),
            show(figures.get("actions_only_auc"), "value"),
            show(figures["balanced_accuracy"], "value"),
            show(figures["expected_calibration_error"], "value"),
            *(show(metric.get("mean"), "value", ".1f") for metric in psnr),
        ]

    for record in records:
        for source, figures in list_judged_sources(record):
            rows.append([str(record["iteration"]), *show_trust(record, source, figures)])
            worst = find_worst_task(record, partial(read_auc, source=source))
            for task, own in list_tasks(record).items():
                if source in (judged := dict(list_judged_sources(own))):
                    rows.append([_name(task, worst), *show_trust(own, source, judged[source])])
    return rows


def list_cameras(records: list[Record]) -> list[str]:
    """The cameras with their own PSNR in the last check; empty with one camera."""
    checked = [r for r in records if list_judged_sources(r)]
    if not checked:
        return []
    metrics = checked[-1]["world_model_check"][list_judged_sources(checked[-1])[0][0]]
    return [name.removeprefix("psnr_db/") for name in metrics if name.startswith("psnr_db/")]


def _name(task: str, worst: str | None) -> str:
    """The first cell of a task's row, below the row of all tasks."""
    return f"{INDENT}{task}" + (" (worst)" if task == worst else "")


def tabulate_cost(records: list[Record], timings: list[dict[str, Any]]) -> list[list[str]]:
    rows = [
        [
            "iteration",
            "minutes",
            "steps in SANS",
            "simulator steps",
            "imagined frames",
            "imagined frames/s",
            "peak memory, MiB",
        ]
    ]
    for record in records:
        mine = [t for t in timings if t["iteration"] == record["iteration"]]
        frames = record.get("imagined_frames")
        seconds = sum(t["seconds"] for t in mine if t["stage"] == "improve_policy")
        rows.append(
            [
                str(record["iteration"]),
                f"{sum(t['seconds'] for t in mine) / 60:.1f}",
                _count(record, "env_steps"),
                _count(record, "simulator_steps"),
                f"{frames:,}" if frames else DASH,
                f"{frames / seconds:,.0f}" if frames and seconds else DASH,
                f"{max((t['peak_memory_mib'] for t in mine), default=0):,}",
            ]
        )
    return rows


def tabulate_stages(timings: list[dict[str, Any]]) -> list[list[str]]:
    """Table of stages over all iterations: total time and peak memory."""
    rows = [["stage", "minutes", "peak memory, MiB", "peak GPU memory, MiB"]]
    for stage in dict.fromkeys(t["stage"] for t in timings):
        mine = [t for t in timings if t["stage"] == stage]
        gpu = max(t["peak_gpu_memory_mib"] for t in mine)
        rows.append(
            [
                stage,
                f"{sum(t['seconds'] for t in mine) / 60:.1f}",
                f"{max(t['peak_memory_mib'] for t in mine):,}",
                f"{gpu:,}" if gpu else DASH,
            ]
        )
    return rows


def count_episodes(store: SansStore, version: str) -> dict[str, dict[str, int]]:
    """``source, iteration`` -> outcome -> number of episodes in SANS version ``version``, in order of collection.

    With several tasks the key is ``task, source, iteration``.
    """
    metas = store.metas(store.version(version)) if version else []
    is_plural = len({meta.task for meta in metas}) > 1
    counts: dict[str, dict[str, int]] = {}
    for meta in metas:
        name = f"{meta.source}, {meta.iteration}"
        row = counts.setdefault(f"{meta.task}, {name}" if is_plural else name, dict.fromkeys(OUTCOMES, 0))
        row[meta.outcome] += 1
    return counts


def find_videos(log_dir: Path, records: list[Record]) -> tuple[list[dict[str, str]], str]:
    """The GIFs of the last check as ``{data (base64), caption}``, and the reason to show if there are none."""
    checked = [r for r in records if list_judged_sources(r)]
    if not checked:
        return [], "no world model has been checked yet"
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        return [], "tensorboard is not installed (pip install 'worldloop[dashboard]')"
    videos = []
    iteration, tasks = checked[-1]["iteration"], list_tasks(checked[-1])
    for task, record in tasks.items() or (("", checked[-1]),):
        folder = log_dir / "check_world_model" / task
        if folder.is_dir():
            videos += _read_videos(EventAccumulator(str(folder), size_guidance={"images": 0}), record, iteration, task)
    return videos, "none were kept (check_world_model.num_videos)"


def _read_videos(events: Any, record: Record, iteration: int, task: str) -> list[dict[str, str]]:
    """The GIFs of ``record``; with several tasks ``task`` goes into the captions, else it is ""."""
    events.Reload()
    tags = set(events.Tags()["images"])
    videos = []
    for source, _ in reversed(list_judged_sources(record)):
        for video in record["world_model_check"][source].get("videos", []):
            tag = f"check_world_model/{source}_{video['name']}"
            shown = [e for e in (events.Images(tag) if tag in tags else []) if e.step == iteration]
            caption = f"{source}, {video['name'].split('_')[0]}: simulated {video['outcome']}, ".replace("_", "-")
            caption += f"imagined success {video['imagined_success']:.2f} (episode {video['episode']})"
            caption = f"{task}, {caption}" if task else caption
            videos += [{"data": base64.b64encode(e.encoded_image_string).decode(), "caption": caption} for e in shown]
    return videos
