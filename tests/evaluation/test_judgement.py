"""The figures of one source together, and what follows from those of all sources."""

import json
from dataclasses import replace

import pytest
import torch
from imagined import make_episodes

from worldloop.core.success import Calibration
from worldloop.evaluation import judgement
from worldloop.evaluation.fidelity import MAX_PSNR_DB
from worldloop.evaluation.horizon import judge_horizon
from worldloop.evaluation.judgement import average_fidelity, judge_episodes, judge_world_model
from worldloop.evaluation.open_loop import ImaginedEpisodes
from worldloop.evaluation.probes import FrameProbe
from worldloop.evaluation.visual_state import FittedProbe
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

SPEC = ToySimulator.make_spec(ToyConfig())
SETTINGS = {"spec": SPEC, "task": "ToyPush-v1", "probe": None, "floor_quantile": 0.05, "required_auc": 0.7}


@pytest.fixture
def episodes(truth, toy_clips) -> ImaginedEpisodes:
    outcomes = tuple(meta.outcome for meta in toy_clips.cache.metas)
    return ImaginedEpisodes(truth.best_logit.numpy(), truth.succeeds.numpy(), outcomes, truth)


def test_without_a_probe_nothing_is_said_of_states(episodes, toy_clips) -> None:
    judged = judge_episodes(
        episodes, toy_clips, Calibration(), SPEC, "ToyPush-v1", cross_fit=False, probe=None,
        horizons=(judge_horizon(5, episodes.branches, episodes),),
    )  # fmt: skip
    assert judged.alignment.auc.value == 1.0
    assert judged.fidelity.psnr_db.mean.value == MAX_PSNR_DB
    assert list(judged.metrics) == list(judged.fidelity.metrics)
    figures = judged.to_dict()
    assert figures["visual_alignment"] is figures["action_following"] is figures["uncertainty"] is None
    assert "probe_steps is 0" in figures["probe_reason"]
    assert "action_following_reason" not in figures
    assert figures["horizon"][0]["episodes"]["auc"]["value"] == 1.0
    assert "alignment" not in figures
    json.dumps(figures, allow_nan=False)


def test_with_a_probe_landmarks_and_outcomes_are_seen(episodes, toy_clips) -> None:
    """The probe has random weights: it sees the same in equal frames, wherever that is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backgrounds = {"base_camera": torch.zeros(3, 32, 32)}
        network = FrameProbe(backgrounds, ("ToyPush-v1",), torch.zeros(6), torch.ones(6)).eval()
    sure = replace(
        episodes, branches=replace(episodes.branches, expected_psnr_db=torch.full_like(episodes.branches.logit, 30.0))
    )
    probe = FittedProbe(network, {"ToyPush-v1": 0.0})
    judged = judge_episodes(sure, toy_clips, Calibration(), SPEC, "ToyPush-v1", cross_fit=True, probe=probe)
    assert list(judged.state_errors) == ["object", "goal", "effector"]
    assert judged.state_errors["object"].imagined == judged.state_errors["object"].floor
    assert judged.visual_alignment.imagined == judged.visual_alignment.simulated
    assert judged.action_following.image.ratio.value == 1.0
    assert set(judged.uncertainty.state_error_correlation) == {"object", "goal", "effector"}
    figures = judged.to_dict()
    assert {"object_error_cm", "effector_error_cm_proprio", "psnr_db"} < set(figures)
    assert "probe_reason" not in figures
    assert figures["action_following"]["num_pairs"] == 9
    json.dumps(figures, allow_nan=False)


def test_each_source_is_judged_and_the_policys_own_decide() -> None:
    scripted = make_episodes([1.0, -1.0], [1, 0], error=4)
    wrong = make_episodes([-1.0] * 8 + [1.0] * 8, [1] * 8 + [0] * 8, error=8)
    imagined = {"scripted": scripted, "on_policy": wrong}
    check = judge_world_model(imagined, {"scripted": (), "on_policy": ()}, None, **SETTINGS)  # type: ignore[arg-type]
    assert check.imagined is imagined
    assert list(check.judgements) == ["scripted", "on_policy"]
    assert not check.trust.is_trusted
    assert "AUC 0.000" in check.trust.reason
    assert check.calibration.threshold != Calibration().threshold
    assert set(check.judgements["scripted"].success.threshold) == {check.calibration.threshold}, "read as it is"


def test_no_episodes_are_no_judgement() -> None:
    check = judge_world_model({}, {}, None, **SETTINGS)  # type: ignore[arg-type]
    assert (check.judgements, check.calibration, check.trust.is_trusted) == ({}, Calibration(), False)
    reason = "no validation episodes"
    nothing = {"psnr_db": None, "ssim": None, "lpips": None, "psnr_db_reason": reason, "lpips_reason": reason}
    assert check.fidelity.to_dict() == nothing


def _judge(episodes: ImaginedEpisodes) -> judgement.Judgement:
    return judge_episodes(episodes, None, Calibration(), SPEC, "ToyPush-v1", cross_fit=False, probe=None)  # type: ignore[arg-type]


def test_fidelity_is_averaged_over_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One episode is 1 grey level off, 48.1308 dB; three are 10 off, 28.1308 dB."""
    imagined = {
        "scripted": make_episodes([0.0], [0], error=1),
        "on_policy": make_episodes([0.0] * 3, [0] * 3, error=10),
    }
    judgements = {name: _judge(episodes) for name, episodes in imagined.items()}
    monkeypatch.setattr(judgement, "compute_lpips", lambda p, t, valid: (None, "too small"))
    figures = average_fidelity(imagined, judgements).to_dict()
    assert figures["psnr_db"] == pytest.approx((48.1308 + 3 * 28.1308) / 4, abs=1e-4)
    assert (figures["lpips"], figures["lpips_reason"]) == (None, "too small")
    assert "psnr_db_reason" not in figures
    monkeypatch.setattr(judgement, "compute_lpips", lambda p, t, valid: (torch.full((len(p),), 1.0 / len(p)), None))
    figures = average_fidelity(imagined, judgements).to_dict()
    assert figures["lpips"] == 0.5  # of 1, 1/3, 1/3, 1/3
    assert "lpips_reason" not in figures


def test_lpips_is_the_mean_over_cameras_and_lacks_where_one_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of rows of pixels: 16 and 12."""
    episodes = make_episodes([0.0, 0.0], [0, 0], error=1, cameras={"base": (16, 16), "hand": (12, 20)})
    imagined, judgements = {"scripted": episodes}, {"scripted": _judge(episodes)}
    monkeypatch.setattr(
        judgement, "compute_lpips", lambda p, t, valid: (torch.full((len(p),), float(p.shape[2])), None)
    )
    assert average_fidelity(imagined, judgements).lpips == 14.0

    def refuse_small(p: torch.Tensor, t: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor | None, str | None]:
        return (None, "too small") if p.shape[2] < 16 else (torch.ones(len(p)), None)

    monkeypatch.setattr(judgement, "compute_lpips", refuse_small)
    figures = average_fidelity(imagined, judgements).to_dict()
    assert (figures["lpips"], figures["lpips_reason"]) == (None, "hand: too small")
