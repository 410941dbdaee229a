"""The headline figures of a check: means over tasks.

In a mean every task has the same weight; errors are taken as independent (`average_estimates`). Rates are pooled, so
every episode has the same weight. Counts are summed. A task without a figure, e.g. an AUC when all its episodes ended
alike, is left out of that figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from worldloop.core.statistics import Estimate, Rate, average_estimates, compute_reliability
from worldloop.evaluation.action_following import ActionFollowing, Separation
from worldloop.evaluation.alignment import DIGITS, Alignment, trace_precision_recall
from worldloop.evaluation.calibration import CalibratedSuccess
from worldloop.evaluation.fidelity import Fidelity, FrameMetric
from worldloop.evaluation.horizon import BranchAlignment, Horizon
from worldloop.evaluation.judgement import Judgement, OverallFidelity, WorldModelCheck
from worldloop.evaluation.uncertainty import Uncertainty
from worldloop.evaluation.visual_state import StateError, VisualAlignment


@dataclass(frozen=True)
class AverageCheck:
    """Means over tasks: the judgement of each source, and the outcomes of its episodes, ``is_success`` bool [n]."""

    judgements: dict[str, Judgement]
    is_success: dict[str, np.ndarray]
    fidelity: OverallFidelity


def average_checks(checks: Mapping[str, WorldModelCheck]) -> AverageCheck:
    """Average the checks of one or more tasks; with one task the result is its own figures.

    A source that some tasks lack is averaged over the others.
    """
    sources = list(dict.fromkeys(source for check in checks.values() for source in check.judgements))
    judgements: dict[str, Judgement] = {}
    is_success: dict[str, np.ndarray] = {}
    for source in sources:
        judged = [check for check in checks.values() if source in check.judgements]
        is_success[source] = np.concatenate([check.imagined[source].is_success for check in judged])
        judgements[source] = average_judgements([check.judgements[source] for check in judged], is_success[source])
    return AverageCheck(judgements, is_success, _average_overall([check.fidelity for check in checks.values()]))


def average_judgements(judgements: Sequence[Judgement], is_success: np.ndarray) -> Judgement:
    """Average one source over several tasks; ``is_success`` bool [n] of their episodes, task by task."""
    if len(judgements) == 1:
        return judgements[0]
    success = CalibratedSuccess(
        np.concatenate([judgement.success.probability for judgement in judgements]),
        np.concatenate([judgement.success.threshold for judgement in judgements]),
    )
    alignment = replace(
        average_alignments([judgement.alignment for judgement in judgements]),
        reliability=compute_reliability(success.probability, is_success),
        precision_recall_curve=trace_precision_recall(success.probability, is_success),
    )
    return Judgement(
        success=success,
        alignment=alignment,
        fidelity=_average_fidelity([judgement.fidelity for judgement in judgements]),
        state_errors=_average_state_errors([judgement.state_errors for judgement in judgements]),
        visual_alignment=_average_known(_average_visual, [judgement.visual_alignment for judgement in judgements]),
        action_following=_average_known(_average_following, [judgement.action_following for judgement in judgements]),
        uncertainty=_average_known(_average_uncertainty, [judgement.uncertainty for judgement in judgements]),
        horizons=tuple(_average_horizons(horizons) for horizons in zip(*(j.horizons for j in judgements), strict=True)),
    )


def average_alignments(alignments: Sequence[Alignment]) -> Alignment:
    """Average over tasks, without reliability and precision-recall curve: those need the scores of episodes."""
    return Alignment(
        n=sum(a.n for a in alignments),
        num_success=sum(a.num_success for a in alignments),
        threshold=round(float(np.mean([a.threshold for a in alignments])), DIGITS),
        balanced_accuracy=average_estimates([a.balanced_accuracy for a in alignments]),
        auc=average_estimates([a.auc for a in alignments]),
        accuracy=_pool([a.accuracy for a in alignments]),
        true_positive_rate=_pool([a.true_positive_rate for a in alignments]),
        false_positive_rate=_pool([a.false_positive_rate for a in alignments]),
        by_outcome={
            outcome: _pool([a.by_outcome[outcome] for a in alignments]) for outcome in alignments[0].by_outcome
        },
        precision=_pool([a.precision for a in alignments]),
        expected_calibration_error=average_estimates([a.expected_calibration_error for a in alignments]),
        reliability=(),
        precision_recall_curve=None,
        actions_only_auc=average_estimates([a.actions_only_auc for a in alignments]),
    )


def _average_known[T](average: Callable[[list[T]], T], values: Sequence[T | None]) -> T | None:
    known = [value for value in values if value is not None]
    return average(known) if known else None


def _average_certainly(estimates: Sequence[Estimate]) -> Estimate:
    average = average_estimates(estimates)
    assert average is not None
    return average


def _pool(rates: Sequence[Rate | None]) -> Rate | None:
    return _average_known(Rate.pool, rates)


def _average_metrics(metrics: Sequence[FrameMetric]) -> FrameMetric:
    """Average over tasks; each frame number is averaged over the tasks with episodes of that length."""
    num_frames = max(metric.values.shape[1] for metric in metrics)
    padded = [
        functional.pad(metric.values, (0, num_frames - metric.values.shape[1]), value=torch.nan) for metric in metrics
    ]
    by_frame = {}
    for frame in sorted({frame for metric in metrics for frame in metric.by_frame}):
        by_frame[frame] = _average_certainly([m.by_frame[frame] for m in metrics if frame in m.by_frame])
    return FrameMetric(
        mean=average_estimates([metric.mean for metric in metrics]),
        end=average_estimates([metric.end for metric in metrics]),
        by_frame=by_frame,
        values=torch.cat(padded),
    )


def _average_fidelity(fidelities: Sequence[Fidelity]) -> Fidelity:
    return Fidelity(
        psnr_db=_average_metrics([f.psnr_db for f in fidelities]),
        ssim=_average_metrics([f.ssim for f in fidelities]),
        moving_psnr_db=_average_metrics([f.moving_psnr_db for f in fidelities]),
        psnr_db_first_frame=_average_metrics([f.psnr_db_first_frame for f in fidelities]),
        ssim_first_frame=_average_metrics([f.ssim_first_frame for f in fidelities]),
        moving_psnr_db_first_frame=_average_metrics([f.moving_psnr_db_first_frame for f in fidelities]),
        by_camera={
            camera: _average_fidelity([f.by_camera[camera] for f in fidelities]) for camera in fidelities[0].by_camera
        },
    )


def _average_state_errors(by_landmark: Sequence[Mapping[str, StateError]]) -> dict[str, StateError]:
    return {
        landmark: StateError(
            imagined=_average_metrics([errors[landmark].imagined for errors in by_landmark]),
            floor=_average_metrics([errors[landmark].floor for errors in by_landmark]),
            proprio=_average_known(_average_metrics, [errors[landmark].proprio for errors in by_landmark]),
        )
        for landmark in by_landmark[0]
    }


def _average_visual(alignments: Sequence[VisualAlignment]) -> VisualAlignment:
    return VisualAlignment(
        average_alignments([a.imagined for a in alignments]), average_alignments([a.simulated for a in alignments])
    )


def _average_following(following: Sequence[ActionFollowing]) -> ActionFollowing:
    def average(separations: Sequence[Separation]) -> Separation:
        return Separation(
            imagined=round(float(np.mean([s.imagined for s in separations])), 4),
            simulated=round(float(np.mean([s.simulated for s in separations])), 4),
            ratio=_average_certainly([s.ratio for s in separations]),
            correlation=_average_certainly([s.correlation for s in separations]),
        )

    return ActionFollowing(
        num_pairs=sum(f.num_pairs for f in following),
        num_states=sum(f.num_states for f in following),
        image=average([f.image for f in following]),
        landmarks={
            name: average([f.landmarks[name] for f in following])
            for name in following[0].landmarks
            if all(name in f.landmarks for f in following)
        },
    )


def _average_uncertainty(uncertainties: Sequence[Uncertainty]) -> Uncertainty:
    correlations = [u.state_error_correlation for u in uncertainties]
    return Uncertainty(
        num_frames=sum(u.num_frames for u in uncertainties),
        bias_db=_average_certainly([u.bias_db for u in uncertainties]),
        rank_correlation=_average_certainly([u.rank_correlation for u in uncertainties]),
        state_error_correlation={
            name: _average_certainly([by_name[name] for by_name in correlations]) for name in correlations[0]
        },
        auc_certain=average_estimates([u.auc_certain for u in uncertainties]),
        auc_uncertain=average_estimates([u.auc_uncertain for u in uncertainties]),
    )


def _average_horizons(horizons: Sequence[Horizon]) -> Horizon:
    return Horizon(
        chunks=horizons[0].chunks,
        episodes_auc=average_estimates([h.episodes_auc for h in horizons]),
        branches=BranchAlignment(
            n=sum(h.branches.n for h in horizons),
            num_success=sum(h.branches.num_success for h in horizons),
            auc=average_estimates([h.branches.auc for h in horizons]),
        ),
    )


def _average_overall(fidelities: Sequence[OverallFidelity]) -> OverallFidelity:
    if len(fidelities) == 1:
        return fidelities[0]

    def average(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return round(float(np.mean(known)), 4) if known else None

    return OverallFidelity(
        psnr_db=average([f.psnr_db for f in fidelities]),
        ssim=average([f.ssim for f in fidelities]),
        lpips=average([f.lpips for f in fidelities]),
        reason=next((f.reason for f in fidelities if f.reason), ""),
    )
