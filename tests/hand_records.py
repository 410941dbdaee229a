"""Records of an iteration with made-up figures: with two tasks, of critics, and of plans."""

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

_PLANS: dict[str, Any] = {
    "n": 52,
    "penalty_ratio": {"value": 1.3, "low": 1.1, "high": 1.6},
    "path_ratio": None,
    "psnr_db": {"value": 19.0, "low": 18.0, "high": 20.0},
    "still_psnr_db": {"value": 19.8, "low": 19.0, "high": 20.5},
}

PLANS: dict[str, Any] = {
    "inverse_dynamics_check": {
        "inverse_dynamics": {
            "num_episodes": 90,
            "explained": {"joints": {"value": 0.7, "low": 0.6, "high": 0.8}},
            "followed": {"rate": 0.47, "low": 0.4, "high": 0.54, "k": 47, "n": 100},
        }
    },
    "alignment": {"mode": "plan", "accepted": False, "kept": False, "reason": "worse", "before": _PLANS, "after": None},
    "planner_check": {"plans": _PLANS, "success": {"rate": 0.34, "low": 0.28, "high": 0.41, "k": 68, "n": 200}},
}

GATE: dict[str, Any] = {
    "gate_check": {
        "scripted": {
            "num_episodes": 12,
            "accuracy": {"value": 0.9, "low": 0.85, "high": 0.94},
            "floor": 0.7,
            "auc": None,
            "interaction": {"value": 0.31, "low": 0.25, "high": 0.38},
            "labelled": {"value": 0.3, "low": 0.25, "high": 0.35},
            "switches": {"value": 2.1, "low": 1.8, "high": 2.4},
        }
    }
}
