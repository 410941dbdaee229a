"""AUC of a critic over the frames of held-out episodes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worldloop.evaluation.critic import score_critic


def _held_out(label: list[bool], task: list[str]) -> Any:
    """One frame per episode; a critic is shown its number."""
    index = torch.stack([torch.arange(len(label)), torch.zeros(len(label), dtype=torch.long)], dim=1)
    solved = torch.tensor(label)
    return SimpleNamespace(
        index=index,
        label=solved,
        has_both_outcomes=bool(solved.any()) and not bool(solved.all()),
        dataset=SimpleNamespace(cache=SimpleNamespace(metas=[SimpleNamespace(task=t) for t in task])),
        load=lambda rows: (rows, solved[rows].float()),
    )


def test_the_score_is_the_auc_over_frames() -> None:
    """Of 2 x 2 pairs of a success and a failure one is the wrong way round."""
    held_out = _held_out([False, True, False, True], ["push"] * 4)
    score = score_critic(lambda rows: rows.float(), held_out)  # type: ignore[arg-type]
    assert score is not None
    assert (score.auc.value, score.auc.n) == (0.75, 4)
    assert str(score).startswith("AUC 0.750 (")
    assert str(score).endswith(" over 4 held-out frames")
    assert set(score.to_record()) == {"value", "low", "high"}


def test_tasks_are_scored_apart() -> None:
    """Every value of push lies below those of pull; within each the critic is right, and lift ended alike."""
    held_out = _held_out([False, True, False, True, True], ["push", "push", "pull", "pull", "lift"])
    values = torch.tensor([0.0, 0.1, 0.8, 0.9, 0.0])
    score = score_critic(lambda rows: values[rows], held_out)  # type: ignore[arg-type,index]
    assert score is not None
    assert score.auc.value == pytest.approx(1.0)
    assert score_critic(lambda rows: values[rows], _held_out([True, False], ["push", "pull"])) is None  # type: ignore[arg-type,index]
