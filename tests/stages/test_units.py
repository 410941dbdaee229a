"""The small parts of stages: calibration, promotion, what is compared and shown."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from reporters import RecordingReporter
from scipy.special import expit
from worldloop.evaluation.held_out import OpenLoop

from worldloop.core.errors import WorldloopError
from worldloop.core.statistics import best_threshold, fit_temperature
from worldloop.core.success import Calibration
from worldloop.core.types import Clip
from worldloop.evaluation.calibration import calibrate, find_distrust, fit_calibration, is_calibrated_on
from worldloop.evaluation.fidelity import compute_psnr
from worldloop.evaluation.open_loop import Branches
from worldloop.stages import promote_policy
from worldloop.stages.check_world_model import align, choose_videos
from worldloop.stages.evaluate_policy import compare_outcomes
from worldloop.storage.run_state import LoopState


def _open_loop(logit: list[float], success: list[int]) -> OpenLoop:
    n = len(logit)
    frames = torch.zeros(n, 1, 2, 2, 3, dtype=torch.uint8)
    clip = Clip(
        context=frames,
        context_proprio=torch.zeros(n, 1),
        actions=torch.zeros(n, 1, 1, 1),
        frames=frames,
        proprio=torch.zeros(n, 1, 1),
        success=torch.tensor(success)[:, None].float(),
        valid=torch.ones(n, 1, dtype=torch.bool),
        instruction=("i",) * n,
        index=torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.long)], dim=1),
        is_on_policy=torch.ones(n, dtype=torch.bool),
    )
    branches = Branches(frames, torch.zeros(n, 1, 1), torch.tensor(logit)[:, None], clip)
    outcomes = tuple("success" if s else "failure" for s in success)
    return OpenLoop(branches.best_logit.numpy(), branches.succeeds.numpy(), outcomes, branches)


def test_calibration_trusts_the_policys_own_episodes_when_there_are_enough() -> None:
    scripted = _open_loop([-4.0] * 10 + [4.0] * 10, [0] * 10 + [1] * 10)
    shifted = _open_loop([1.0] * 10 + [5.0] * 10, [0] * 10 + [1] * 10)  # flattered: failures reach 1
    few = _open_loop([1.0] * 10 + [5.0] * 3, [0] * 10 + [1] * 3)
    own = calibrate({"scripted": scripted, "on_policy": shifted})
    failure, success = own.probability(torch.tensor([1.0, 5.0])).tolist()
    assert failure < own.threshold <= success
    pooled = calibrate({"scripted": scripted, "on_policy": few})
    assert pooled != own
    assert calibrate({}).scale == 1.0


@pytest.mark.parametrize(("num_failures", "num_successes", "is_enough"), [(8, 8, True), (7, 9, False), (9, 7, False)])
def test_eight_episodes_of_each_outcome_are_enough(num_failures: int, num_successes: int, is_enough: bool) -> None:
    wrong = _open_loop([4.0] * num_failures + [-4.0] * num_successes, [0] * num_failures + [1] * num_successes)
    scripted = _open_loop([-4.0] * 10 + [4.0] * 10, [0] * 10 + [1] * 10)
    by_source = {"scripted": scripted, "on_policy": wrong}
    assert is_calibrated_on(wrong, by_source)
    assert is_calibrated_on(scripted, by_source) != is_enough
    assert bool(find_distrust({"on_policy": wrong}, 0.7)) == is_enough


def test_a_threshold_stays_between_a_fifth_and_four_fifths() -> None:
    """Where 2 of 12 succeed and none of 90 others, it is half of 1 in 6; in the mirror as far below 1."""
    logit, label = np.repeat([0.0, 1.0], [90, 12]), np.arange(102) >= 100
    assert fit_calibration(logit, label).threshold == 0.2
    assert fit_calibration(-logit, ~label).threshold == 0.8
    scale, bias = fit_temperature(logit, label)
    assert best_threshold(expit(scale * logit + bias), label) < 0.15, "else this shows nothing"


def test_the_floor_is_a_quantile_of_the_unbiased_estimate() -> None:
    result = _open_loop([-4.0] * 10 + [4.0] * 10, [0] * 10 + [1] * 10)
    actual = compute_psnr(result.branches.frames, result.branches.truth.frames)
    expected = actual + 3.0 + torch.linspace(-1, 1, 20)[:, None]
    result = replace(result, branches=replace(result.branches, expected_psnr_db=expected.float()))
    calibration = calibrate({"on_policy": result}, floor_quantile=0.5)
    assert calibration.psnr_bias_db == pytest.approx(3.0, abs=1e-3)
    assert calibration.floor_db == pytest.approx(float(actual[0]), abs=1e-3)
    assert calibrate({"on_policy": _open_loop([0.0, 1.0], [0, 1])}).floor_db == 0.0, "no estimate, no floor"


def test_cross_fitting_judges_no_episode_by_its_own_calibration() -> None:
    # Even rows say "success" from logit 2 on, odd rows from logit 12 on: each half is judged by the other's threshold.
    result = _open_loop([0.0, 10.0, 4.0, 14.0] * 10, [0, 0, 1, 1] * 10)
    fitted = calibrate({"on_policy": result})
    own, other = align(result, fitted), align(result, fitted, cross_fit=True)
    assert own["auc"]["value"] == other["auc"]["value"] == pytest.approx(0.75), "no calibration changes the order"
    assert other["true_positive_rate"]["rate"] == pytest.approx(0.5)  # even successes lie below the odd threshold
    assert other["false_positive_rate"]["rate"] == pytest.approx(0.5)  # odd failures above the even one
    # A calibration that was fitted elsewhere is used as it is.
    assert not is_calibrated_on(_open_loop([0.0], [0]), {"on_policy": result})
    assert is_calibrated_on(result, {"on_policy": result})


def test_distrust_names_the_figure_and_needs_enough_episodes() -> None:
    wrong = _open_loop([4.0] * 10 + [-4.0] * 10, [0] * 10 + [1] * 10)  # AUC 0
    right = _open_loop([-4.0] * 10 + [4.0] * 10, [0] * 10 + [1] * 10)
    assert "AUC 0.000 is below check_world_model.required_auc 0.7" in find_distrust({"on_policy": wrong}, 0.7)
    assert find_distrust({"scripted": wrong, "on_policy": right}, 0.7) == ""  # the policy's own episodes decide
    assert find_distrust({"on_policy": _open_loop([4.0] * 3 + [-4.0] * 3, [0] * 3 + [1] * 3)}, 0.7) == ""
    assert find_distrust({}, 0.7) == ""


class _Validation:
    """What each policy achieves on four validation states; ``measured`` are those that were asked for."""

    outcomes: ClassVar = {"old": (1, 0, 0, 1), "a": (1, 1, 0, 1), "b": (1, 1, 1, 0), "bad": (0, 0, 0, 1)}

    def __init__(self) -> None:
        self.measured: list[str] = []
        self.reporter = RecordingReporter()
        self.simulation = self

    def evaluate(self, split: str, num_states: int, block_size: int, policy: str, iteration: int) -> list[Any]:
        assert (split, num_states) == ("validation", 4)
        self.measured.append(policy)
        return [SimpleNamespace(is_success=bool(k)) for k in self.outcomes[policy]]


def _promote(state: LoopState, validation: _Validation, gate: bool = True) -> LoopState:
    context: Any = validation
    return promote_policy.run(state, promote_policy.Config(num_states=4, gate=gate), context)


def test_the_best_candidate_is_promoted_the_earliest_of_equals() -> None:
    validation = _Validation()
    after = _promote(LoopState(policy="old", candidates=("bad", "a", "b")), validation)
    assert (after.policy, after.candidates, after.validation_success) == ("a", (), (True, True, False, True))
    assert after.records[0]["promoted"]
    assert after.records[0]["promotion_gain"]["gain"] == 0.25
    assert after.records[0]["validation_success"]["b"]["k"] == 3
    assert validation.measured == ["old", "bad", "a", "b"]


def test_a_worse_candidate_is_rolled_back_and_the_gate_can_be_off() -> None:
    state = LoopState(policy="old", candidates=("bad",), validation_success=(True, False, False, True))
    validation = _Validation()
    kept = _promote(state, validation)
    assert (kept.policy, kept.candidates, kept.records[0]["promoted"]) == ("old", (), False)
    assert "rolled back" in validation.reporter.lines[-1]
    assert kept.validation_success == state.validation_success
    assert validation.measured == ["bad"]  # the policy in force is not measured twice
    forced = _promote(LoopState(policy="old", candidates=("a", "bad")), validation, gate=False)
    assert (forced.policy, forced.validation_success) == ("bad", ())
    assert validation.measured == ["bad"]


def test_state_survives_json_and_refuses_other_things() -> None:
    import json

    state = LoopState(candidates=("a",), evaluation_success=((True, False),), validation_success=(True,)).record(x=1)
    assert LoopState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    with pytest.raises(WorldloopError, match="not a worldloop state"):
        LoopState.from_dict({"schema_version": 1, "stage": 3})


def test_imagined_and_simulated_outcomes_of_the_same_states() -> None:
    imagined = np.array([True, True, True, False, False, False])
    simulated = np.array([True, True, False, True, True, False])
    record = compare_outcomes(imagined, simulated)
    assert [record["imagined_success_precision"][k] for k in ("k", "n")] == [2, 3]  # of 3 imagined, 2 are simulated
    assert [record["imagined_success_recall"][k] for k in ("k", "n")] == [2, 4]  # of 4 simulated, 2 are imagined
    assert record["imagined_success"]["k"] == 3
    assert record["imagined_minus_simulated"]["gain"] == pytest.approx(3 / 6 - 4 / 6, abs=1e-6)
    never = compare_outcomes(np.zeros(6, dtype=bool), simulated)
    assert never["imagined_success_precision"] is None
    assert never["imagined_success_precision_reason"] == "no such success"
    assert never["imagined_success_recall"]["rate"] == 0


def test_the_worst_judged_episodes_are_shown_and_some_of_the_best() -> None:
    """Wrong by .1, .9, .3, .7, .02 and .05, in this order; the last is a failure."""
    probability = np.array([0.9, 0.1, 0.7, 0.7, 0.98, 0.05])
    success = [True, True, True, False, True, False]
    logit = np.log(probability / (1 - probability)).tolist()
    shown = choose_videos(_open_loop(logit, success), Calibration(), 4)
    assert [(v["name"], v["episode"], v["outcome"]) for v in shown] == [
        ("worst_1", 1, "success"),
        ("worst_2", 3, "failure"),
        ("best_1", 4, "success"),
        ("best_2", 5, "failure"),
    ]
    assert [v["imagined_success"] for v in shown] == [0.1, 0.7, 0.98, 0.05]
    assert choose_videos(_open_loop(logit, success), Calibration(), 0) == []
    assert len(choose_videos(_open_loop(logit[:1], success[:1]), Calibration(), 4)) == 1
