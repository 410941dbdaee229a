"""A run's report as one self-contained HTML file, which answers the questions of the dashboards without a server."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
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
from worldloop.reporting.event_files import find_images
from worldloop.reporting.html_tables import (
    DASH,
    count,
    count_episodes,
    list_cameras,
    show_bounds,
    tabulate_changes,
    tabulate_closed_loop,
    tabulate_cost,
    tabulate_critics,
    tabulate_events,
    tabulate_gates,
    tabulate_inverse_dynamics,
    tabulate_plans,
    tabulate_stages,
    tabulate_success,
    tabulate_trust,
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
    source = "recording" if config.get("source", "simulator") != "simulator" else config.simulator.kind
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
        critics=tabulate_critics(records),
        events=tabulate_events(records),
        inverse_dynamics=tabulate_inverse_dynamics(records),
        plans=tabulate_plans(records),
        gates=tabulate_gates(records),
        value_videos=find_strip_videos(run_dir / "tensorboard", records, "value_check", "check_value"),
        gate_videos=find_strip_videos(run_dir / "tensorboard", records, "gate_check", "check_gate"),
        changes=tabulate_changes(records),
        config=config_yaml,
        environment=environment.read_text() if environment.is_file() else "",
    )
    write_file(out, html.encode(), str(out))


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
        note = checkpoint.rsplit("/", 1)[-1] + show_bounds(figures["within_group_auc"])
        value = read_within_group_auc(figures)
        cards.append(("closed-loop AUC within groups", DASH if value is None else f"{value:.3f}", note))
    checked = [r for r in records if list_judged_sources(r)]
    if checked:
        source, figures = list_judged_sources(checked[-1])[-1]
        if figures["auc"]:
            note = f"{source}{show_bounds(figures['auc'])}, {figures['n']} episodes"
            note += _name_worst(checked[-1], partial(read_auc, source=source), ".3f")
            cards.append(("open-loop AUC", f"{figures['auc']['value']:.3f}", note))
    optimism = [r["imagined_minus_simulated"] for r in records if r.get("imagined_minus_simulated")]
    if optimism:
        note = f"95 %: {optimism[-1]['low']:+.3f} to {optimism[-1]['high']:+.3f}"
        cards.append(("imagined minus simulated", f"{optimism[-1]['gain']:+.3f}", note))
    if timings:
        steps = f"{count(records[-1], 'simulator_steps')} simulator steps"
        cards.append(("time in stages", f"{sum(t['seconds'] for t in timings) / 60:.0f} min", steps))
    return [dict(zip(("title", "value", "note"), card, strict=True)) for card in cards]


def _name_worst(record: Record, read: Callable[[Record], float | None], style: str) -> str:
    """E.g. ``; worst: PullCube-v1, 30.0%``; "" if no task is worse than another."""
    worst = find_worst_task(record, read)
    return "" if worst is None else f"; worst: {worst}, {read(list_tasks(record)[worst]):{style}}"


def find_videos(log_dir: Path, records: list[Record]) -> tuple[list[dict[str, str]], str]:
    """The GIFs of the last check as ``{data (base64), caption}``, and the reason to show if there are none."""
    checked = [r for r in records if list_judged_sources(r)]
    if not checked:
        return [], "no world model has been checked yet"
    videos = []
    iteration, tasks = checked[-1]["iteration"], list_tasks(checked[-1])
    for task, record in tasks.items() or (("", checked[-1]),):
        images = read_images(log_dir / "check_world_model" / task, iteration)
        if images is None:
            return [], "tensorboard is not installed (pip install -e '.[dashboard]' in the clone)"
        videos += list(_caption_videos(images, record, task))
    return videos, "none were kept (check_world_model.num_videos)"


def find_strip_videos(log_dir: Path, records: list[Record], figure: str, stage: str) -> list[dict[str, str]]:
    """The GIFs of the last check by ``stage`` as ``{data (base64), caption}``, the policy's own episodes first.

    A record has ``figure`` if the stage ran in its iteration.
    """
    checked = [r for r in records if r.get(figure)]
    images = read_images(log_dir / stage, checked[-1]["iteration"]) if checked else {}
    names = sorted(name for name in images or {} if name.startswith(f"{stage}/"))
    names.sort(key=lambda name: not name.startswith(f"{stage}/on_policy"))
    return [{"data": (images or {})[name], "caption": _caption_strip(name.removeprefix(f"{stage}/"))} for name in names]


def _caption_strip(tag: str) -> str:
    """E.g. ``on-policy, worst 1: near-success`` of ``on_policy_worst_1_near_success``."""
    found = re.fullmatch(rf"(.+?)_((?:best_|worst_)?\d+)_({'|'.join(OUTCOMES)})", tag)
    if found is None:
        return tag.replace("_", " ")
    source, number, outcome = found.groups()
    return f"{source.replace('_', '-')}, {number.replace('_', ' ')}: {outcome.replace('_', '-')}"


def read_images(folder: Path, iteration: int) -> dict[str, str] | None:
    """Tag -> its image of ``iteration`` in base64, of a TensorBoard folder; ``None`` without TensorBoard."""
    if find_spec("tensorboard") is None:
        return None
    return {tag: base64.b64encode(image).decode() for tag, image in find_images(folder, iteration).items()}


def _caption_videos(images: dict[str, str], record: Record, task: str) -> Iterator[dict[str, str]]:
    """The GIFs of ``record`` among ``images``; with several tasks ``task`` goes into the captions, else it is ""."""
    for source, _ in reversed(list_judged_sources(record)):
        for video in record["world_model_check"][source].get("videos", []):
            data = images.get(f"check_world_model/{source}_{video['name']}")
            caption = f"{source}, {video['name'].split('_')[0]}: simulated {video['outcome']}, ".replace("_", "-")
            caption += f"imagined success {video['imagined_success']:.2f} (episode {video['episode']})"
            if data is not None:
                yield {"data": data, "caption": f"{task}, {caption}" if task else caption}
