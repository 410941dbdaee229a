"""How a check is shown: in the log, in TensorBoard, in the card, in results.json."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from imagined import make_episodes

from worldloop.core.reporting import SilentWriter
from worldloop.core.success import Calibration
from worldloop.evaluation.horizon import judge_horizon
from worldloop.evaluation.judgement import WorldModelCheck, judge_world_model
from worldloop.evaluation.open_loop import ImaginedEpisodes
from worldloop.reporting.check import (
    choose_all_videos,
    choose_videos,
    describe_checks,
    draw_video,
    list_scalars,
    make_record,
    summarise_for_card,
    write_check,
)
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

SPEC = ToySimulator.make_spec(ToyConfig())
CAMERAS = {"base": (8, 8), "hand": (6, 10)}
Checks = dict[str, WorldModelCheck]


def _check(horizons: bool = True, **by_source: ImaginedEpisodes) -> WorldModelCheck:
    judged = {name: (judge_horizon(2, e.branches, e),) if horizons else () for name, e in by_source.items()}
    return judge_world_model(
        by_source, judged, None, SPEC, "ToyPush-v1",  # type: ignore[arg-type]
        probe=None, floor_quantile=0.05, required_auc=0.9,
    )  # fmt: skip


@pytest.fixture
def checks() -> Checks:
    """The policy's own episodes alone, 10 grey levels off; two of sixteen are judged the wrong way round."""
    logit, success = [2.0] * 7 + [-2.0] * 8 + [3.0], [1] * 7 + [0] * 7 + [1, 0]
    return {"push": _check(on_policy=make_episodes(logit, success, error=10))}


@pytest.fixture
def both(checks: Checks) -> Checks:
    """Pull is imagined 1 grey level off, and judged without a fault."""
    return checks | {"pull": _check(on_policy=make_episodes([2.0] * 8 + [-2.0] * 8, [1] * 8 + [0] * 8, error=1))}


def test_the_log_names_the_figures_and_why_the_model_is_not_trusted(checks: Checks) -> None:
    alignment, fidelity, trust = describe_checks(checks)
    # Of 64 pairs, a success at 2 beats seven failures (49); that at -2 ties with seven (3.5).
    assert alignment.startswith("on_policy: auc 0.820 (")
    assert alignment.endswith(", n 16")
    assert ", balanced accuracy 0." in alignment
    assert fidelity == "on_policy: psnr_db 28.1"  # nothing moves, so that there is no moving PSNR
    assert trust == "not good enough: AUC 0.820 is below check_world_model.required_auc 0.9"


def test_what_cannot_be_had_is_a_dash() -> None:
    check = _check(horizons=False, scripted=make_episodes([1.0, 2.0], [1, 1]))
    assert describe_checks({"push": check})[0] == "scripted: auc -, balanced accuracy -, n 2"


def test_scalars_leave_out_what_is_not_defined(checks: Checks) -> None:
    scalars = list_scalars(checks["push"].judgements["on_policy"])
    assert scalars["psnr_db"] == scalars["psnr_db"] == pytest.approx(28.1308, abs=1e-4)
    assert scalars["psnr_db_first_frame"] == 100.0
    assert scalars["auc_episodes_2_chunks"] == pytest.approx(0.820312)
    assert scalars["auc_branches_2_chunks"] == pytest.approx(0.8203)
    assert set(scalars) == {
        "psnr_db", "ssim", "psnr_db_first_frame", "ssim_first_frame", "auc_episodes_2_chunks", "auc_branches_2_chunks",
    }  # fmt: skip


def test_the_card_has_the_headline_figures(checks: Checks) -> None:
    summary = summarise_for_card(checks)["on_policy"]
    assert (summary["n"], summary["auc"]["value"]) == (16, pytest.approx(0.820312))
    assert summary["psnr_db"] == pytest.approx(28.1308, abs=1e-4)
    assert {"balanced_accuracy", "expected_calibration_error"} < set(summary)


def test_a_source_without_episodes_is_null_with_a_reason(checks: Checks) -> None:
    record = make_record(checks, choose_all_videos(checks, 2))
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


def test_views_of_several_cameras_are_side_by_side_and_imagination_above() -> None:
    """Every camera is 50 grey levels off, the second twice as far; it is lower and wider."""
    episodes = make_episodes([9.0], [0], error=[[50] * 4], valid=[[True, True, True, False]], cameras=CAMERAS)
    video = draw_video(episodes, 0, Calibration())
    assert video.shape == (3, 16, 18, 3)
    imagined, simulated = video.split(8, dim=1)
    assert (imagined[:, 3, :8] == 50).all()
    assert (imagined[:, 3, 8:] == 100).all()
    assert (imagined[:, 6:, 8:] == 0).all(), "black below the lower view"
    assert (simulated[:, 3:] == 0).all()
    assert (imagined[0, 0, :, 1] > imagined[0, 0, :, 0]).all(), "one bar over all views"


class _Recorder(SilentWriter):
    """A reporter whose writers note the folder beside what is written."""

    def __init__(self) -> None:
        self.written: list[tuple[Any, ...]] = []
        self.folder = ""

    @contextmanager
    def writer(self, name: str, purge_step: int) -> Iterator["_Recorder"]:
        self.folder = f"{name} from {purge_step}"
        yield self

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.written.append((self.folder, "scalars", step, dict(values)))

    def judgement(self, tag: str, step: int, probability: np.ndarray, is_success: np.ndarray) -> None:
        self.written.append((self.folder, "judgement", step, tag, len(probability), int(is_success.sum())))

    def video(self, tag: str, step: int, frames: torch.Tensor, fps: float) -> None:
        self.written.append((self.folder, "video", step, tag, tuple(frames.shape), fps))


def _write(checks: Checks) -> list[tuple[Any, ...]]:
    reporter: Any = _Recorder()
    write_check(reporter, 3, checks, choose_all_videos(checks, 2), fps=10.0)
    return reporter.written


def test_tensorboard_gets_scalars_curves_and_videos_of_each_source(checks: Checks) -> None:
    scalars, judgement, *videos = _write(checks)
    folder = "check_world_model from 3"
    assert scalars[:3] == (folder, "scalars", 3)
    assert {"check_world_model/on_policy_psnr_db", "check_world_model/on_policy_auc_branches_2_chunks"} < set(
        scalars[3]
    )
    assert judgement == (folder, "judgement", 3, "check_world_model/on_policy", 16, 8)
    assert videos == [
        (folder, "video", 3, f"check_world_model/on_policy_{name}", (1, 8, 16, 3), 10.0)
        for name in ("worst_1", "best_1")
    ]


def test_tensorboard_gets_the_mean_and_the_same_of_each_task_in_its_own_folder(both: Checks) -> None:
    mean, curve, push, push_curve, *rest = _write(both)
    tag = "check_world_model/on_policy_psnr_db"
    assert mean[0] == curve[0] == "check_world_model from 3"
    assert mean[3][tag] == pytest.approx((28.1308 + 48.1308) / 2, abs=1e-4)
    assert curve[4:] == (32, 16)
    assert push[0] == push_curve[0] == "check_world_model/push from 3"
    assert push[3][tag] == pytest.approx(28.1308, abs=1e-4)
    assert set(push[3]) == set(mean[3])
    assert [entry[0] for entry in rest] == ["check_world_model/push from 3"] * 2 + ["check_world_model/pull from 3"] * 4


def test_the_log_has_the_mean_first_then_a_line_for_each_task(both: Checks) -> None:
    alignment, fidelity, push, pull, trust = describe_checks(both)
    assert alignment.startswith("on_policy: auc 0.910 (")
    assert alignment.endswith(", n 32")
    assert fidelity == "on_policy: psnr_db 38.1"
    assert push.startswith("on_policy, push: auc 0.820 (")
    assert push.endswith("), psnr_db 28.1, the worst")
    assert pull == "on_policy, pull: auc 1.000 (1.000-1.000), psnr_db 48.1"
    assert trust == "not good enough for push: AUC 0.820 is below check_world_model.required_auc 0.9"


def test_the_record_and_the_card_have_the_mean_and_each_task(checks: Checks, both: Checks) -> None:
    record = make_record(both, choose_all_videos(both, 2))
    assert record["reward_alignment"]["on_policy"]["auc"]["value"] == pytest.approx((0.820312 + 1) / 2, abs=1e-5)
    assert record["psnr_db"] == pytest.approx((28.1308 + 48.1308) / 2, abs=1e-4)
    assert record["tasks"]["push"] == make_record(checks, choose_all_videos(checks, 2)), "as if it were alone"
    assert record["tasks"]["pull"]["world_model_check"]["on_policy"]["videos"][0]["name"] == "worst_1"
    assert record["tasks"]["pull"]["world_model_check"]["scripted"] is None
    json.dumps(record, allow_nan=False)
    summary = summarise_for_card(both)
    assert summary["on_policy"]["psnr_db"] == pytest.approx((28.1308 + 48.1308) / 2, abs=1e-4)
    assert summary["tasks"]["push"] == summarise_for_card(checks)
    assert "tasks" not in make_record(checks, choose_all_videos(checks, 2))
