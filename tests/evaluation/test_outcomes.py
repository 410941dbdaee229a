import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.success import Calibration, Calibrations
from worldloop.core.types import ActionChunk, Observation
from worldloop.evaluation import outcomes
from worldloop.evaluation.outcomes import compare_outcomes, imagine_outcomes, measure_success, observe_start
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

SPEC = ToySimulator.make_spec(
    ToyConfig(
        tasks=("ToyPush-v1", "ToyReach-v1"), cameras=("base_camera", "hand_camera"), image_sizes={"hand_camera": 12}
    )
)


def _push(*success: int) -> dict[str, tuple[bool, ...]]:
    return {"push": tuple(bool(s) for s in success)}


def test_imagined_and_simulated_outcomes_of_the_same_states() -> None:
    comparison = compare_outcomes(_push(1, 1, 1, 0, 0, 0), _push(1, 1, 0, 1, 1, 0)).overall
    assert (comparison.precision.k, comparison.precision.n) == (2, 3)  # of 3 imagined, 2 are simulated
    assert (comparison.recall.k, comparison.recall.n) == (2, 4)  # of 4 simulated, 2 are imagined
    assert comparison.imagined.k == 3
    assert comparison.imagined_minus_simulated.gain == pytest.approx(3 / 6 - 4 / 6, abs=1e-6)
    record = compare_outcomes(_push(1, 1, 1, 0, 0, 0), _push(1, 1, 0, 1, 1, 0)).to_record()
    assert set(record) == {
        "imagined_success", "imagined_minus_simulated", "imagined_success_precision", "imagined_success_recall",
    }  # fmt: skip
    assert record["imagined_success_precision"]["k"] == 2
    json.dumps(record, allow_nan=False)


def test_what_never_succeeds_has_no_precision_and_says_why() -> None:
    record = compare_outcomes(_push(0, 0, 0), _push(1, 0, 1)).to_record()
    assert record["imagined_success_precision"] is None
    assert record["imagined_success_precision_reason"] == "no such success"
    assert record["imagined_success_recall"]["rate"] == 0


def test_success_over_the_clones_is_pooled_over_tasks_and_kept_for_each() -> None:
    clone = _push(1, 0, 0, 0) | {"pull": (False,) * 4}
    success = measure_success(clone, _push(1, 1, 1, 0) | {"pull": (False, False, False, True)})
    record = success.to_record()
    assert (record["simulated_success"]["k"], record["simulated_success"]["n"]) == (4, 8)
    assert (record["paired_gain"]["gain"], record["paired_gain"]["n"]) == (3 / 8, 8)
    assert {task: own["paired_gain"]["gain"] for task, own in record["tasks"].items()} == {"push": 0.5, "pull": 0.25}
    assert record["tasks"]["pull"]["simulated_success"]["k"] == 1
    assert set(measure_success(_push(1), _push(1)).to_record()) == {"simulated_success", "paired_gain"}


def test_imagination_is_compared_task_by_task() -> None:
    """Of push all is imagined solved, of pull nothing; the other way round in the simulator."""
    comparison = compare_outcomes(_push(1, 1) | {"pull": (False, False)}, _push(0, 0) | {"pull": (True, True)})
    assert comparison.overall.imagined_minus_simulated.gain == 0.0
    assert comparison.tasks["push"].imagined_minus_simulated.gain == 1.0
    assert comparison.tasks["pull"].imagined_minus_simulated.gain == -1.0
    assert comparison.tasks["pull"].precision is None


def test_a_gain_does_not_depend_on_the_order_of_tasks_in_a_dictionary() -> None:
    """A state that was read back from JSON has its tasks in another order: the bootstrap must not see it."""
    generator = np.random.default_rng(0)
    before, after = ({task: tuple(generator.random(30) < 0.5) for task in ("push", "lift", "pull")} for _ in range(2))
    stored = dict(sorted(before.items()))
    assert measure_success(before, after).overall == measure_success(stored, after).overall


def _episodes(brightness: list[int]) -> list[Any]:
    return [
        SimpleNamespace(
            frames={
                camera.name: np.full((4, camera.height, camera.width, 3), level, dtype=np.uint8)
                for camera in SPEC.robot.cameras
            },
            proprio=np.full((4, SPEC.robot.proprio_dim), level / 10, dtype=np.float32),
            meta=SimpleNamespace(
                initial_state_id=str(level), instruction="go", task="ToyReach-v1" if level == 150 else "ToyPush-v1"
            ),
        )
        for level in brightness
    ]


def test_an_episode_is_imagined_from_its_first_observation() -> None:
    start = observe_start(_episodes([10, 150]), ("hand_camera", "base_camera"))
    assert {camera: frames.shape for camera, frames in start.frames.items()} == {
        "hand_camera": (2, 3, 12, 12, 3), "base_camera": (2, 3, 16, 16, 3),
    }  # fmt: skip
    assert start.frames["hand_camera"][:, :, 0, 0, 0].tolist() == [[10] * 3, [150] * 3]
    assert start.proprio[:, 0].tolist() == [1.0, 15.0]
    assert start.env_step.tolist() == [0, 0]
    assert start.task == ("ToyPush-v1", "ToyReach-v1")


class _BrightSucceeds:
    """A world model that stands still and is sure of success where frames are brighter than 100."""

    spec = SPEC

    def start(self, context: Observation, noise_key: torch.Tensor) -> Any:
        frames = {camera: images[:, -1:] for camera, images in context.frames.items()}
        return SimpleNamespace(frames=frames, noise_key=noise_key)

    def imagine(self, state: Any, actions: torch.Tensor) -> tuple[Any, ImaginedChunk]:
        M = actions.shape[1] // self.spec.actions_per_frame
        frames = {camera: images.repeat(1, M, 1, 1, 1) for camera, images in state.frames.items()}
        logit = torch.where(frames["hand_camera"][..., 0, 0, 0] > 100, 9.0, -9.0)
        return state, ImaginedChunk(frames, torch.zeros(len(logit), M, self.spec.robot.proprio_dim), logit)


class _Still:
    version = "still"

    def act(self, observation: Observation, noise_key: torch.Tensor | None) -> ActionChunk:
        assert noise_key is None, "greedy"
        return ActionChunk(torch.zeros(len(observation), 80, 2))


def test_success_is_imagined_in_the_order_of_the_episodes_of_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "EPISODES_AT_ONCE", 2)

    def imagine(calibrations: Calibrations) -> dict[str, tuple[bool, ...]]:
        return imagine_outcomes(
            _Still(), _BrightSucceeds(), calibrations, _episodes([50, 150, 200]), key=(0, "test")  # type: ignore[arg-type]
        )  # fmt: skip

    assert imagine(Calibrations()) == {"ToyPush-v1": (False, True), "ToyReach-v1": (True,)}
    strict = Calibrations({"ToyReach-v1": Calibration(bias=-20.0)})
    assert imagine(strict) == {"ToyPush-v1": (False, True), "ToyReach-v1": (False,)}, "read by its own calibration"
