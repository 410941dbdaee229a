"""What tables, charts and TensorBoard read in an iteration's record; records of before there were tasks have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worldloop.evaluation.by_task import find_worst

Record = dict[str, Any]


def list_tasks(record: Record) -> dict[str, Record]:
    """Task -> its own figures, where there are several."""
    tasks: dict[str, Record] = record.get("tasks") or {}
    return tasks


def name_tasks(records: list[Record]) -> list[str]:
    """The tasks of all ``records``, where there are several."""
    return list(dict.fromkeys(task for record in records for task in list_tasks(record)))


def list_judged_sources(record: Record) -> list[tuple[str, Record]]:
    """Sources whose reward alignment was measured, the policy's own last."""
    alignment = record.get("reward_alignment") or {}
    found = [(name, figures) for name, figures in alignment.items() if isinstance(figures, dict)]
    return sorted(found, key=lambda item: item[0] == "on_policy")


def find_worst_task(record: Record, read: Callable[[Record], float | None]) -> str | None:
    """The task whose own figure, as ``read`` finds it, is lowest; ``None`` where no task is worse than another."""
    return find_worst({task: read(own) for task, own in list_tasks(record).items()})


def read_success(record: Record) -> float | None:
    """The rate of success in the simulator."""
    return record["simulated_success"]["rate"] if record.get("simulated_success") else None


def read_auc(record: Record, source: str) -> float | None:
    """The AUC of the success head over whole episodes of ``source``."""
    figures = (record.get("reward_alignment") or {}).get(source)
    return figures["auc"]["value"] if figures and figures["auc"] else None


def read_psnr(record: Record) -> float | None:
    """PSNR of whole imagined episodes in dB."""
    return record.get("psnr_db")
