"""Read an iteration's record, for tables, charts and TensorBoard. Records of earlier versions have no tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worldloop.evaluation.by_task import find_worst

Record = dict[str, Any]


def list_tasks(record: Record) -> dict[str, Record]:
    """Task -> its own figures; empty with one task."""
    tasks: dict[str, Record] = record.get("tasks") or {}
    return tasks


def name_tasks(records: list[Record]) -> list[str]:
    """The tasks in ``records``; empty with one task."""
    return list(dict.fromkeys(task for record in records for task in list_tasks(record)))


def list_judged_sources(record: Record) -> list[tuple[str, Record]]:
    """The sources with a measured reward alignment, and their figures; ``on_policy`` is the last."""
    alignment = record.get("reward_alignment") or {}
    found = [(name, figures) for name, figures in alignment.items() if isinstance(figures, dict)]
    return sorted(found, key=lambda item: item[0] == "on_policy")


def find_worst_task(record: Record, read: Callable[[Record], float | None]) -> str | None:
    """The task with the lowest figure ``read(record)``; ``None`` if no task is worse than another."""
    return find_worst({task: read(own) for task, own in list_tasks(record).items()})


def read_success(record: Record) -> float | None:
    """The rate of success in the simulator."""
    return record["simulated_success"]["rate"] if record.get("simulated_success") else None


def read_auc(record: Record, source: str) -> float | None:
    """The AUC of the success head over whole episodes of ``source``."""
    figures = (record.get("reward_alignment") or {}).get(source)
    return figures["auc"]["value"] if figures and figures["auc"] else None


def read_psnr(record: Record) -> float | None:
    """The mean PSNR of whole imagined episodes, in dB."""
    return record.get("psnr_db")


def read_closed_loop(record: Record) -> tuple[str, Record] | None:
    """(checkpoint, figures) of the last policy that was checked in the closed loop; ``None`` without a check.

    It is the last candidate if a round has made one. With several tasks the figures are means, and have those of each
    under ``tasks``.
    """
    checked = (record.get("closed_loop") or {}).get("checkpoints") or []
    return (checked[-1]["checkpoint"], checked[-1]) if checked else None


def read_within_group_auc(figures: Record) -> float | None:
    """The AUC within groups of the figures of one check in the closed loop."""
    return figures["within_group_auc"]["value"] if figures.get("within_group_auc") else None


def list_changes(records: list[Record]) -> list[tuple[int, str, str, Any, Any]]:
    """(iteration, stage from which it holds, setting, old, new) of each setting that changed while the run went on."""
    return [
        (record["iteration"], stage, key, old, new)
        for record in records
        for stage, changes in record.get("changed_settings", {}).items()
        for key, (old, new) in changes.items()
    ]
