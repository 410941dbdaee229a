"""How the comparison of a distilled student with its teacher is shown."""

from __future__ import annotations

from worldloop.core.statistics import Estimate
from worldloop.evaluation.student import StudentComparison


def describe_accepted(comparison: StudentComparison) -> str:
    """E.g. ``accepted, AUC +0.010 (-0.020 to +0.030), PSNR -0.100 (-0.500 to +0.000) dB, n 7``."""
    auc, psnr_db = (_show(difference) for difference in (comparison.auc, comparison.psnr_db))
    return f"accepted, AUC {auc}, PSNR {psnr_db} dB, n {comparison.n}"


def describe_refused(comparison: StudentComparison, name: str, allowed: float) -> str:
    """Why the student is refused: what `StudentComparison.find_loss` found, and how much may be lost of it."""
    difference: Estimate | None = getattr(comparison, name)
    if difference is None:
        return f"refused, no held-out episodes to compare its {name} on"
    return f"refused, {name} {_show(difference)} against the teacher's, n {comparison.n}, allowed: down to {-allowed}"


def _show(difference: Estimate | None) -> str:
    if difference is None:
        return "-"
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
