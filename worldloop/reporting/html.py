"""A run as one self-contained HTML file: the questions of the dashboards, answered without a server."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from worldloop.core.files import read_json, write_file
from worldloop.core.types import OUTCOMES
from worldloop.core.version import __version__
from worldloop.reporting.charts import (
    draw,
    draw_auc,
    draw_calibration,
    draw_horizon,
    draw_precision_recall,
    draw_sans,
    draw_success,
    draw_time,
    list_judged_sources,
)
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory


def write_html_report(run_dir: Path, out: Path) -> None:
    """Write ``out``; raises `WorldloopError` where ``run_dir`` has no results, or ``out`` cannot be written."""
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
        task=OmegaConf.select(config, f"{section}.task") or source,
        state="finished" if not state.next_stage else f"next: {state.next_stage} of iteration {state.iteration}",
        version=__version__,
        commit=commit,
        cards=make_cards(records, timings),
        charts={
            "success": draw(draw_success, records),
            "auc": draw(draw_auc, records),
            "precision_recall": draw(draw_precision_recall, records),
            "calibration": draw(draw_calibration, records),
            "horizon": draw(draw_horizon, records),
            "time": draw(draw_time, timings),
            "sans": draw(draw_sans, counts),
        },
        success=tabulate_success(records),
        trust=tabulate_trust(records),
        cost=tabulate_cost(records, timings),
        stages=tabulate_stages(timings),
        sans=[["source, iteration", *OUTCOMES], *([name, *(row[o] for o in OUTCOMES)] for name, row in counts.items())],
        videos=videos,
        no_videos=no_videos,
        config=config_yaml,
        environment=environment.read_text() if environment.is_file() else "",
    )
    write_file(out, html.encode(), str(out))


def show(figures: dict[str, Any] | None, name: str, style: str = ".3f") -> str:
    """``0.680 (0.612 to 0.741)``, without bounds that are null, or a dash."""
    if not figures or figures.get(name) is None:
        return "\u2013"
    value = f"{figures[name]:{style}}"
    return value if figures["low"] is None else f"{value} ({figures['low']:{style}} to {figures['high']:{style}})"


def make_cards(records: list[dict[str, Any]], timings: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What to know first, each ``{title, value, note}``; what was not measured is left out."""
    cards = []
    evaluated = [r for r in records if r.get("simulated_success")]
    if evaluated:
        success, gain = evaluated[-1]["simulated_success"], evaluated[-1]["paired_gain"]
        cards.append(("success in the simulator", f"{success['rate']:.1%}", f"{success['k']} of {success['n']} states"))
        if gain and evaluated[-1]["iteration"]:
            note = f"95 %: {gain['low']:+.3f} to {gain['high']:+.3f}"
            cards.append(("gain over the clone", f"{gain['gain']:+.3f}", note))
    checked = [r for r in records if list_judged_sources(r)]
    if checked:
        source, figures = list_judged_sources(checked[-1])[-1]
        if figures["auc"]:
            note = f"{source}, {show(figures['auc'], 'value')}, n {figures['n']}"
            cards.append(("the reward head's AUC", f"{figures['auc']['value']:.3f}", note))
    optimism = [r["imagined_minus_simulated"] for r in records if r.get("imagined_minus_simulated")]
    if optimism:
        note = f"95 %: {optimism[-1]['low']:+.3f} to {optimism[-1]['high']:+.3f}"
        cards.append(("imagined minus simulated", f"{optimism[-1]['gain']:+.3f}", note))
    if timings:
        steps = f"{records[-1].get('env_steps') or 0:,} simulator steps recorded"
        cards.append(("time in stages", f"{sum(t['seconds'] for t in timings) / 60:.0f} min", steps))
    return [dict(zip(("title", "value", "note"), card, strict=True)) for card in cards]


def tabulate_success(records: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["iteration", "simulated success", "", "gain over the clone", "imagined success", "promoted"]]
    for record in records:
        success = record.get("simulated_success")
        promoted = {True: "yes", False: "rolled back", None: "\u2013"}[record.get("promoted")]
        rows.append(
            [
                str(record["iteration"]),
                show(success, "rate"),
                f"{success['k']}/{success['n']}" if success else "",
                show(record.get("paired_gain"), "gain", "+.3f") if record["iteration"] else "\u2013",
                show(record.get("imagined_success"), "rate"),
                promoted,
            ]
        )
    return rows


def tabulate_trust(records: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["iteration", "episodes", "n", "AUC", "balanced accuracy", "calibration error", "PSNR, dB"]]
    for record in records:
        for source, figures in list_judged_sources(record):
            psnr = (record["world_model_check"][source]["psnr_db"] or {}).get("mean")
            rows.append(
                [
                    str(record["iteration"]),
                    source,
                    str(figures["n"]),
                    show(figures["auc"], "value"),
                    show(figures["balanced_accuracy"], "value"),
                    show(figures["expected_calibration_error"], "value"),
                    show(psnr, "value", ".1f"),
                ]
            )
    return rows


def tabulate_cost(records: list[dict[str, Any]], timings: list[dict[str, Any]]) -> list[list[str]]:
    rows = [
        ["iteration", "minutes", "simulator steps so far", "imagined frames", "imagined frames/s", "peak memory, MiB"]
    ]
    for record in records:
        mine = [t for t in timings if t["iteration"] == record["iteration"]]
        frames = record.get("imagined_frames")
        seconds = sum(t["seconds"] for t in mine if t["stage"] == "improve_policy")
        rows.append(
            [
                str(record["iteration"]),
                f"{sum(t['seconds'] for t in mine) / 60:.1f}",
                f"{record.get('env_steps') or 0:,}",
                f"{frames:,}" if frames else "\u2013",
                f"{frames / seconds:,.0f}" if frames and seconds else "\u2013",
                f"{max((t['peak_memory_mib'] for t in mine), default=0):,}",
            ]
        )
    return rows


def tabulate_stages(timings: list[dict[str, Any]]) -> list[list[str]]:
    """Every stage over all iterations: how long it took altogether, and the most memory that it held."""
    rows = [["stage", "minutes", "peak memory, MiB", "peak GPU memory, MiB"]]
    for stage in dict.fromkeys(t["stage"] for t in timings):
        mine = [t for t in timings if t["stage"] == stage]
        gpu = max(t["peak_gpu_memory_mib"] for t in mine)
        rows.append(
            [
                stage,
                f"{sum(t['seconds'] for t in mine) / 60:.1f}",
                f"{max(t['peak_memory_mib'] for t in mine):,}",
                f"{gpu:,}" if gpu else "\u2013",
            ]
        )
    return rows


def count_episodes(store: SansStore, version: str) -> dict[str, dict[str, int]]:
    """``source, iteration`` -> outcome -> episodes of the SANS version called ``version``, in order of collection."""
    counts: dict[str, dict[str, int]] = {}
    for meta in store.metas(store.version(version)) if version else []:
        row = counts.setdefault(f"{meta.source}, {meta.iteration}", dict.fromkeys(OUTCOMES, 0))
        row[meta.outcome] += 1
    return counts


def find_videos(log_dir: Path, records: list[dict[str, Any]]) -> tuple[list[dict[str, str]], str]:
    """GIFs of the last check, as ``{data (base64), caption}``, and why there are none."""
    checked = [r for r in records if list_judged_sources(r)]
    if not checked:
        return [], "no world model has been checked yet"
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        return [], "tensorboard is not installed (pip install 'worldloop[dashboard]')"
    events = EventAccumulator(str(log_dir / "check_world_model"), size_guidance={"images": 0})
    events.Reload()
    tags = set(events.Tags()["images"])
    videos = []
    for source, _ in reversed(list_judged_sources(checked[-1])):
        for video in checked[-1]["world_model_check"][source].get("videos", []):
            tag = f"check_world_model/{source}_{video['name']}"
            shown = [e for e in (events.Images(tag) if tag in tags else []) if e.step == checked[-1]["iteration"]]
            caption = f"{source}, {video['name'].split('_')[0]}: simulated {video['outcome']}, ".replace("_", "-")
            caption += f"imagined success {video['imagined_success']:.2f} (episode {video['episode']})"
            videos += [{"data": base64.b64encode(e.encoded_image_string).decode(), "caption": caption} for e in shown]
    return videos, "none were kept (check_world_model.num_videos)"
