"""Records of an iteration with made-up figures: with two tasks, and of critics."""

from __future__ import annotations

from typing import Any

from worldloop.core.statistics import Rate


def make_figures(k: int, n: int, auc: float, psnr_db: float) -> dict[str, Any]:
    """Of a record with two cameras, the second of them 2 dB worse than the mean."""
    estimate = {"value": auc, "low": None, "high": None}
    alignment = {"n": n, "auc": estimate, "balanced_accuracy": estimate, "expected_calibration_error": None}
    metric = {name: {"mean": {"value": psnr_db + d, "low": None, "high": None}, "by_frame": []} for name, d in (
        ("psnr_db", 0), ("psnr_db/base", 2), ("psnr_db/hand", -2))}  # fmt: skip
    return {
        "simulated_success": Rate.from_counts(k, n).to_dict(),
        "paired_gain": {"gain": 0.1, "low": 0.0, "high": 0.2},
        "reward_alignment": {"on_policy": alignment},
        "world_model_check": {"on_policy": metric},
    }


RECORD = {
    "iteration": 1,
    "promoted": True,
    **make_figures(4, 8, 0.75, 24.0),
    "tasks": {"push": make_figures(3, 4, 0.9, 25.0), "pull": make_figures(1, 4, 0.6, 23.0)},
}


CRITICS: dict[str, Any] = {
    "value_check": {
        "on_policy": {
            "num_episodes": 90,
            "auc": {"0.25": {"value": 0.77, "low": 0.65, "high": 0.88, "n": 88}, "0.50": None},
        }
    },
    "value_at_events": {
        "on_policy": {
            "contact": {
                "change": {"value": 0.1, "low": 0.05, "high": 0.15, "n": 12},
                "above_usual": {"value": 0.02, "low": -0.01, "high": 0.05},
                "detected": {"value": 0.75, "low": 0.5, "high": 0.9},
            }
        }
    },
}
