"""The headline of a check of several tasks: the mean of their figures."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from imagined import make_episodes

from worldloop.evaluation.average import average_checks
from worldloop.evaluation.by_task import find_worst
from worldloop.evaluation.fidelity import MAX_PSNR_DB
from worldloop.evaluation.horizon import judge_horizon
from worldloop.evaluation.judgement import WorldModelCheck, judge_world_model
from worldloop.evaluation.open_loop import Branches, ImaginedEpisodes
from worldloop.evaluation.probes import FrameProbe
from worldloop.evaluation.visual_state import FittedProbe
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

SPEC = ToySimulator.make_spec(ToyConfig())
PUSH = make_episodes([2.0] * 10 + [-2.0] * 10, [1] * 10 + [0] * 10, error=1)  # AUC 1, 48.1308 dB
PULL = make_episodes([-2.0] * 10 + [2.0] * 10, [1] * 10 + [0] * 10, error=[[10, 10]] * 20)  # AUC 0, 28.1308 dB


def _check(**by_source: ImaginedEpisodes) -> WorldModelCheck:
    horizons = {name: (judge_horizon(2, episodes.branches, episodes),) for name, episodes in by_source.items()}
    return judge_world_model(
        by_source, horizons, None, SPEC, "ToyPush-v1",  # type: ignore[arg-type]
        probe=None, floor_quantile=0.05, required_auc=0.7,
    )  # fmt: skip


def test_one_task_is_its_own_headline() -> None:
    check = _check(on_policy=PUSH)
    average = average_checks({"push": check})
    assert average.judgements["on_policy"] is check.judgements["on_policy"]
    assert average.fidelity is check.fidelity
    assert average.is_success["on_policy"].tolist() == PUSH.is_success.tolist()


def test_several_tasks_are_averaged_each_counting_the_same() -> None:
    checks = {"push": _check(on_policy=PUSH), "pull": _check(on_policy=PULL)}
    average = average_checks(checks)
    judgement = average.judgements["on_policy"]
    alignment = judgement.alignment
    assert (alignment.n, alignment.num_success) == (40, 20)
    assert (alignment.auc.value, alignment.auc.n) == (0.5, 40)
    assert alignment.accuracy.n == 40
    assert alignment.accuracy.k == sum(check.judgements["on_policy"].alignment.accuracy.k for check in checks.values())
    assert sum(point.n for point in alignment.reliability) == 40
    assert len(judgement.success.probability) == len(average.is_success["on_policy"]) == 40
    assert judgement.horizons[0].branches.auc.value == 0.5
    psnr_db = judgement.fidelity.psnr_db
    assert psnr_db.mean.value == pytest.approx((48.1308 + 28.1308) / 2, abs=1e-4)
    # Push has one frame and pull two.
    assert {frame: point.n for frame, point in psnr_db.by_frame.items()} == {1: 40, 2: 20}
    assert psnr_db.by_frame[2].value == pytest.approx(28.1308, abs=1e-4)
    assert psnr_db.values.shape == (40, 2)
    assert average.fidelity.psnr_db == pytest.approx((48.1308 + 28.1308) / 2, abs=1e-4)
    json.dumps(judgement.to_dict(), allow_nan=False)
    worst = find_worst({task: check.judgements["on_policy"].alignment.auc.value for task, check in checks.items()})
    assert worst == "pull"
    assert [task for task, check in checks.items() if not check.trust.is_trusted] == ["pull"], (
        "trust is each task's own"
    )


def test_a_task_without_a_source_or_an_auc_is_left_out_of_that_mean() -> None:
    alike = make_episodes([1.0, 2.0], [1, 1])
    average = average_checks({"push": _check(on_policy=PUSH), "pull": _check(scripted=PULL, on_policy=alike)})
    assert list(average.judgements) == ["on_policy", "scripted"]
    assert (average.judgements["on_policy"].alignment.auc.value, average.judgements["on_policy"].alignment.n) == (
        1.0,
        22,
    )
    assert average.judgements["scripted"].alignment.auc.value == 0.0
    assert average_checks({"push": _check(), "pull": _check()}).fidelity.psnr_db is None


def test_cameras_states_and_uncertainty_are_averaged_too(plural_clips, plural) -> None:
    """A probe of random weights sees the same in equal frames; one task is expected 2 dB and one 4 dB too good."""
    spec = ToySimulator.make_spec(plural)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backgrounds = {camera.name: torch.zeros(3, camera.height, camera.width) for camera in spec.robot.cameras}
        network = FrameProbe(backgrounds, spec.task_ids, torch.zeros(6), torch.ones(6)).eval()
    probe = FittedProbe(network, dict.fromkeys(spec.task_ids, 0.0))
    checks: dict[str, WorldModelCheck] = {}
    for task, bias_db in zip(spec.task_ids, (2.0, 4.0), strict=True):
        imagined = {"scripted": _imagine_perfectly(plural_clips, task, bias_db)}
        checks[task] = judge_world_model(
            imagined, {"scripted": ()}, plural_clips, spec, task, probe=probe, floor_quantile=0.05, required_auc=0.7
        )
    judgement = average_checks(checks).judgements["scripted"]
    assert judgement.uncertainty.bias_db.value == pytest.approx(3.0)
    assert judgement.action_following.num_pairs == 4
    assert judgement.action_following.image.ratio.value == 1.0
    assert judgement.visual_alignment.imagined.n == 8
    assert set(judgement.fidelity.by_camera) == {"base_camera", "hand_camera"}
    own = [check.judgements["scripted"].state_errors["object"].imagined.mean.value for check in checks.values()]
    assert own[0] != own[1]
    assert judgement.state_errors["object"].imagined.mean.value == pytest.approx(np.mean(own), abs=1e-4)
    figures = judgement.to_dict()
    assert {"psnr_db/hand_camera", "object_error_cm", "effector_error_cm_proprio"} < set(figures)
    json.dumps(figures, allow_nan=False)


def _imagine_perfectly(dataset: Any, task: str, bias_db: float) -> ImaginedEpisodes:
    episodes = dataset.episode_index(task=task)
    clip = dataset.load(
        torch.stack([episodes, torch.zeros_like(episodes)], 1), int(dataset.cache.num_steps[episodes.numpy()].max())
    )
    logit = torch.where(clip.success > 0.5, 3.0, -3.0)
    expected = torch.full_like(logit, MAX_PSNR_DB + bias_db)
    branches = Branches(clip.frames, clip.proprio, logit, clip, expected)
    outcomes = tuple(dataset.cache.metas[e].outcome for e in episodes.tolist())
    return ImaginedEpisodes(branches.best_logit.numpy(), branches.succeeds.numpy(), outcomes, branches)
