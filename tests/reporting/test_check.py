"""How a check is shown: in the log, in TensorBoard, in the card, in results.json."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from imagined import make_episodes

from worldloop.core.success import Calibration
from worldloop.evaluation.horizon import judge_horizon
from worldloop.evaluation.judgement import WorldModelCheck, judge_world_model
from worldloop.reporting.check import (
    choose_all_videos,
    choose_videos,
    describe_check,
    draw_video,
    list_scalars,
    make_record,
    summarise_for_card,
    write_check,
)


@pytest.fixture
def check() -> WorldModelCheck:
    """The policy's own episodes alone, 10 grey levels off; two of sixteen are judged the wrong way round."""
    logit, success = [2.0] * 7 + [-2.0] * 8 + [3.0], [1] * 7 + [0] * 7 + [1, 0]
    episodes = make_episodes(logit, success, error=10)
    return judge_world_model(
        {"on_policy": episodes}, {"on_policy": (judge_horizon(2, episodes.branches, episodes),)}, None,  # type: ignore[arg-type]
        probe=None, landmarks=(), floor_quantile=0.05, required_auc=0.9,
    )  # fmt: skip


def test_the_log_names_the_figures_and_why_the_model_is_not_trusted(check: WorldModelCheck) -> None:
    alignment, fidelity, trust = describe_check(check)
    # Of 64 pairs, a success at 2 beats seven failures (49); that at -2 ties with seven (3.5).
    assert alignment.startswith("on_policy: auc 0.820 (")
    assert alignment.endswith(", n 16")
    assert ", balanced accuracy 0." in alignment
    assert fidelity == "on_policy: psnr_db 28.1"  # nothing moves, so that there is no moving PSNR
    assert trust == "not good enough: AUC 0.820 is below check_world_model.required_auc 0.9"


def test_what_cannot_be_had_is_a_dash() -> None:
    one_outcome = make_episodes([1.0, 2.0], [1, 1])
    check = judge_world_model(
        {"scripted": one_outcome}, {"scripted": ()}, None,  # type: ignore[arg-type]
        probe=None, landmarks=(), floor_quantile=0.05, required_auc=0.9,
    )  # fmt: skip
    assert describe_check(check)[0] == "scripted: auc -, balanced accuracy -, n 2"


def test_scalars_leave_out_what_is_not_defined(check: WorldModelCheck) -> None:
    scalars = list_scalars(check.judgements["on_policy"])
    assert scalars["psnr_db"] == scalars["psnr_db"] == pytest.approx(28.1308, abs=1e-4)
    assert scalars["psnr_db_first_frame"] == 100.0
    assert scalars["auc_episodes_2_chunks"] == pytest.approx(0.820312)
    assert scalars["auc_branches_2_chunks"] == pytest.approx(0.8203)
    assert set(scalars) == {
        "psnr_db", "ssim", "psnr_db_first_frame", "ssim_first_frame", "auc_episodes_2_chunks", "auc_branches_2_chunks",
    }  # fmt: skip


def test_the_card_has_the_headline_figures(check: WorldModelCheck) -> None:
    summary = summarise_for_card(check)["on_policy"]
    assert (summary["n"], summary["auc"]["value"]) == (16, pytest.approx(0.820312))
    assert summary["psnr_db"] == pytest.approx(28.1308, abs=1e-4)
    assert {"balanced_accuracy", "expected_calibration_error"} < set(summary)


def test_a_source_without_episodes_is_null_with_a_reason(check: WorldModelCheck) -> None:
    record = make_record(check, choose_all_videos(check, 2))
    for name in ("reward_alignment", "world_model_check"):
        assert record[name]["scripted"] is None
        assert record[name]["scripted_reason"] == "no validation episodes of this source"
        assert "recorded" not in record[name]
    assert record["reward_alignment"]["on_policy"]["auc"]["value"] == pytest.approx(0.820312)
    figures = record["world_model_check"]["on_policy"]
    assert [video["name"] for video in figures["videos"]] == ["worst_1", "best_1"]
    assert set(figures["videos"][0]) == {"name", "row", "episode", "outcome", "imagined_success"}
    assert record["psnr_db"] == pytest.approx(28.1308, abs=1e-4)
    json.dumps(record, allow_nan=False)


def test_the_worst_judged_episodes_are_shown_and_some_of_the_best() -> None:
    """Wrong by .1, .9, .3, .7, .02 and .05, in this order; the last is a failure."""
    probability = np.array([0.9, 0.1, 0.7, 0.7, 0.98, 0.05])
    success = [True, True, True, False, True, False]
    logit = np.log(probability / (1 - probability)).tolist()
    shown = choose_videos(make_episodes(logit, success), Calibration(), 4)
    assert [(v.name, v.episode, v.outcome) for v in shown] == [
        ("worst_1", 1, "success"),
        ("worst_2", 3, "failure"),
        ("best_1", 4, "success"),
        ("best_2", 5, "failure"),
    ]
    assert [v.imagined_success for v in shown] == [0.1, 0.7, 0.98, 0.05]
    assert choose_videos(make_episodes(logit, success), Calibration(), 0) == ()
    assert len(choose_videos(make_episodes(logit[:1], success[:1]), Calibration(), 4)) == 1


def test_a_video_shows_both_side_by_side_up_to_the_end() -> None:
    """Three of four frames are valid; the success head is sure, where the simulated episode fails."""
    episodes = make_episodes([9.0], [0], error=[[50] * 4], valid=[[True, True, True, False]])
    video = draw_video(episodes, 0, Calibration())
    assert video.shape == (3, 8, 16, 3)
    assert video.dtype == torch.uint8
    imagined, simulated = video.split(8, dim=2)
    assert (imagined[:, -1] == 50).all()
    assert (simulated[:, -1] == 0).all()
    bar = imagined[0, 0, 0].tolist()
    assert bar[1] > bar[0], "a declared success is green"
    doubtful = draw_video(make_episodes([-0.1], [0], error=50), 0, Calibration())[0, 0, 0].tolist()
    assert doubtful[0] > doubtful[1], "what does not count is red"


class _Recorder:
    def __init__(self) -> None:
        self.written: list[tuple[Any, ...]] = []

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.written.append(("scalars", step, set(values)))

    def judgement(self, tag: str, step: int, probability: np.ndarray, is_success: np.ndarray) -> None:
        self.written.append(("judgement", step, tag, len(probability)))

    def video(self, tag: str, step: int, frames: torch.Tensor, fps: float) -> None:
        self.written.append(("video", step, tag, tuple(frames.shape), fps))


def test_tensorboard_gets_scalars_curves_and_videos_of_each_source(check: WorldModelCheck) -> None:
    writer = _Recorder()
    write_check(writer, 3, check, choose_all_videos(check, 2), fps=10.0)
    scalars, judgement, *videos = writer.written
    assert scalars[:2] == ("scalars", 3)
    assert {"check_world_model/on_policy_psnr_db", "check_world_model/on_policy_auc_branches_2_chunks"} < scalars[2]
    assert judgement == ("judgement", 3, "check_world_model/on_policy", 16)
    assert videos == [
        ("video", 3, f"check_world_model/on_policy_{name}", (1, 8, 16, 3), 10.0) for name in ("worst_1", "best_1")
    ]
