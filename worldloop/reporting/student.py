"""Show the comparison of a distilled student with its teacher."""

from __future__ import annotations

from typing import Any

from worldloop.core.statistics import Estimate
from worldloop.evaluation.by_task import ByTask, make_record_by_task
from worldloop.evaluation.student import Loss, StudentComparison


def make_student_record(compared: ByTask[StudentComparison], accepted: bool, num_sampler_steps: int) -> dict[str, Any]:
    """The record for results.json: ``distillation`` over all tasks, and with several tasks for each."""
    outcome = {"accepted": accepted, "num_sampler_steps": num_sampler_steps}
    tasks = {task: {"distillation": comparison.to_dict()} for task, comparison in compared.tasks.items()}
    return make_record_by_task({"distillation": compared.overall.to_dict() | outcome}, tasks)


def describe_accepted(comparison: StudentComparison) -> str:
    """E.g. ``accepted, AUC +0.010 (-0.020 to +0.030), PSNR -0.100 (-0.500 to +0.000) dB, n 7``."""
    auc, psnr_db = (_show(difference) for difference in (comparison.auc, comparison.psnr_db))
    return f"accepted, AUC {auc}, PSNR {psnr_db} dB, n {comparison.n}"


def describe_refused(compared: ByTask[StudentComparison], loss: Loss, allowed: float) -> str:
    """Why the student is refused: the ``loss`` from `find_loss`, and how much loss is ``allowed``."""
    comparison = compared.tasks[loss.task] if loss.task else compared.overall
    difference: Estimate | None = getattr(comparison, loss.figure)
    if difference is None:
        return f"refused, no held-out episodes to compare its {loss.figure} on"
    what = f"{loss.figure} {_show(difference)}" + (f" in {loss.task}" if loss.task else "")
    return f"refused, {what} against the teacher's, n {comparison.n}, allowed: down to {-allowed}"


def _show(difference: Estimate | None) -> str:
    if difference is None:
        return "-"
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
