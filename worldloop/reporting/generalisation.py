"""Show how a policy does where it has not learned: a table of 80 columns, and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PARTS = ("success", "transit", "interaction", "expert")
DASH = "-"


def format_conditions(result: dict[str, Any]) -> str:
    """The table of ``result``, which `worldloop.loop.benchmark.run_benchmark` has stored; 95 % Wilson intervals."""
    lines = [f"{result['policy']}, {result['num_states']} states of each task, 95 % intervals"]
    lines.append(f"{'condition':<16}" + "".join(f"{part:<16}" for part in PARTS).rstrip())
    for name, score in result["conditions"].items():
        cells = [DASH if score[p] is None else _show(score[p]) for p in PARTS]
        lines.append(f"{name:<16}" + "".join(f"{cell:<16}" for cell in cells).rstrip())
        if len(score["by_task"]) > 1:
            lines += [f"  {task:<14}{_show(rate)}" for task, rate in score["by_task"].items()]
    if result["held_out_side"]:
        lines.append(
            f"training has {result['held_out_successes']} successes that begin {result['held_out_side']}, where "
            "position is tested"
        )
    else:
        lines.append("position: not tested, since seed_dataset.held_out_side held no side out")
    lines.append("transit: the hand comes to the object. interaction: success from where it is")
    lines.append("about to. expert: the scripted expert, which knows all positions")
    return "\n".join(lines)


def _show(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.2f} {rate['low']:.2f}-{rate['high']:.2f}"


def plot_conditions(result: dict[str, Any], out: Path) -> Path | None:
    """Draw bars of each part by condition into ``out``; ``None`` where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    conditions = result["conditions"]
    figure, axis = plt.subplots(figsize=(1.6 + 1.1 * len(conditions), 3.2))
    width = 0.8 / len(PARTS)
    for number, part in enumerate(PARTS):
        rates = [(x, score[part]) for x, score in enumerate(conditions.values()) if score[part] is not None]
        if not rates:
            continue
        places = [x + (number - 1.5) * width for x, _ in rates]
        values = [rate["rate"] for _, rate in rates]
        bounds = [[r["rate"] - r["low"] for _, r in rates], [r["high"] - r["rate"] for _, r in rates]]
        axis.bar(places, values, width, yerr=bounds, label=part, error_kw={"lw": 0.8})
    axis.set_xticks(range(len(conditions)), list(conditions), rotation=30, ha="right")
    axis.set(ylim=(0, 1), title=result["policy"])
    axis.legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    plt.close(figure)
    return out
