"""A run as one self-contained HTML file: the questions of the dashboards, answered without a server."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from worldloop import __version__
from worldloop.core.files import read_json, write_file
from worldloop.core.types import OUTCOMES
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory

COLOURS = {"success": "#2a9d5c", "near_success": "#e0a526", "failure": "#b9483f"}
LINES = {"on_policy": "#1f6fb2", "scripted": "#8c9aa8", "recorded": "#1f6fb2"}


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
    """``0.680 (0.612 to 0.741)``, or a dash."""
    if not figures or figures.get(name) is None:
        return "\u2013"
    return f"{figures[name]:{style}} ({figures['low']:{style}} to {figures['high']:{style}})"


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
    checked = [r for r in records if _sources(r)]
    if checked:
        source, figures = _sources(checked[-1])[-1]
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


def _sources(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Sources whose reward alignment was measured, the policy's own last."""
    alignment = record.get("reward_alignment") or {}
    found = [(name, figures) for name, figures in alignment.items() if isinstance(figures, dict)]
    return sorted(found, key=lambda item: item[0] == "on_policy")


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
        for source, figures in _sources(record):
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
    checked = [r for r in records if _sources(r)]
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
    for source, _ in reversed(_sources(checked[-1])):
        for video in checked[-1]["world_model_check"][source].get("videos", []):
            tag = f"check_world_model/{source}_{video['name']}"
            shown = [e for e in (events.Images(tag) if tag in tags else []) if e.step == checked[-1]["iteration"]]
            caption = f"{source}, {video['name'].split('_')[0]}: simulated {video['outcome']}, ".replace("_", "-")
            caption += f"imagined success {video['imagined_success']:.2f} (episode {video['episode']})"
            videos += [{"data": base64.b64encode(e.encoded_image_string).decode(), "caption": caption} for e in shown]
    return videos, "none were kept (check_world_model.num_videos)"


def draw(chart: Callable[[Any, Any], bool], data: Any) -> str:
    """``chart(axes, data)`` as SVG in base64; "" where it says that there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "w"}):
        figure, axes = plt.subplots(figsize=(4.6, 3.0))
        try:
            if not chart(axes, data):
                return ""
            figure.tight_layout()
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        finally:
            plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def draw_success(axes: Any, records: list[dict[str, Any]]) -> bool:
    drawn = False
    for name, label, colour in (
        ("simulated_success", "simulated", "#1f6fb2"),
        ("imagined_success", "imagined, same states", "#e07b39"),
    ):
        points = [(r["iteration"], r[name]) for r in records if r.get(name)]
        if points:
            drawn = True
            rate = np.array([p["rate"] for _, p in points])
            error = [rate - [p["low"] for _, p in points], [p["high"] for _, p in points] - rate]
            axes.errorbar([x for x, _ in points], rate, yerr=error, marker="o", capsize=3, color=colour, label=label)
    axes.set(xlabel="iteration", ylabel="success", ylim=(0, 1), xticks=[r["iteration"] for r in records])
    axes.legend(frameon=False)
    return drawn


def draw_auc(axes: Any, records: list[dict[str, Any]]) -> bool:
    points: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for record in records:
        for source, figures in _sources(record):
            if figures["auc"]:
                points.setdefault(source, []).append((record["iteration"], figures["auc"]))
    for source, values in points.items():
        auc = np.array([v["value"] for _, v in values])
        error = [auc - [v["low"] for _, v in values], [v["high"] for _, v in values] - auc]
        x = [i for i, _ in values]
        axes.errorbar(x, auc, yerr=error, marker="o", capsize=3, color=LINES[source], label=source)
    axes.axhline(0.5, color="#c8d0d8", lw=1, ls="--")
    axes.set(xlabel="iteration", ylabel="AUC of the reward head", ylim=(0.45, 1.01))
    axes.set_xticks([r["iteration"] for r in records if _sources(r)])
    axes.legend(frameon=False)
    return bool(points)


def draw_precision_recall(axes: Any, records: list[dict[str, Any]]) -> bool:
    checked = [r for r in records if _sources(r)]
    for source, figures in _sources(checked[-1]) if checked else []:
        curve = figures["precision_recall_curve"]
        if curve:
            values = [[p[k] for p in curve] for k in ("recall", "precision")]
            axes.plot(*values, marker=".", color=LINES[source], label=source)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"imagined success, iteration {checked[-1]['iteration']}" if checked else "", fontsize=9)
    axes.legend(frameon=False)
    return bool(checked)


def draw_calibration(axes: Any, records: list[dict[str, Any]]) -> bool:
    checked = [r for r in records if _sources(r)]
    drawn = False
    axes.plot([0, 1], [0, 1], color="#c8d0d8", lw=1, ls="--")
    for source, figures in _sources(checked[-1]) if checked else []:
        if bins := figures.get("reliability"):  # not in runs of earlier versions
            drawn = True
            values = [[b[k] for b in bins] for k in ("probability", "rate")]
            axes.plot(*values, marker="o", color=LINES[source], label=source)
    axes.set(
        xlabel="imagined success, mean probability", ylabel="simulated success, share", xlim=(0, 1), ylim=(0, 1.02)
    )
    if drawn:
        axes.legend(frameon=False)
    return drawn


def draw_horizon(axes: Any, records: list[dict[str, Any]]) -> bool:
    checked = [r for r in records if _sources(r)]
    for source, _ in _sources(checked[-1]) if checked else []:
        check = checked[-1]["world_model_check"][source]
        for name, style in (("psnr_db", "-"), ("psnr_db_first_frame", ":")):
            points = check[name]["by_frame"]
            label = source if style == "-" else f"{source}, first frame copied"
            axes.plot(
                [p["frame"] for p in points], [p["value"] for p in points], style, color=LINES[source], label=label
            )
    axes.set(xlabel="imagined frame", ylabel="PSNR, dB")
    axes.legend(frameon=False, fontsize=7)
    return bool(checked)


def draw_time(axes: Any, timings: list[dict[str, Any]]) -> bool:
    iterations = sorted({t["iteration"] for t in timings})
    left = np.zeros(len(iterations))
    for stage in dict.fromkeys(t["stage"] for t in timings):
        minutes = np.array(
            [sum(t["seconds"] for t in timings if (t["stage"], t["iteration"]) == (stage, i)) / 60 for i in iterations]
        )
        axes.barh(iterations, minutes, left=left, label=stage, height=0.6)
        left += minutes
    axes.set(xlabel="minutes", ylabel="iteration", yticks=iterations)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return bool(timings)


def draw_sans(axes: Any, counts: dict[str, dict[str, int]]) -> bool:
    names = list(counts)
    left = np.zeros(len(names))
    for outcome in OUTCOMES:
        values = np.array([counts[name][outcome] for name in names])
        axes.barh(names, values, left=left, color=COLOURS[outcome], label=outcome.replace("_", "-"), height=0.6)
        left += values
    axes.set(xlabel="episodes", ylabel="source, iteration")
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return bool(names)
