import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.success import Calibration
from worldloop.core.types import ActionChunk, Observation
from worldloop.evaluation import outcomes
from worldloop.evaluation.outcomes import compare_outcomes, imagine_outcomes, observe_start
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator


def test_imagined_and_simulated_outcomes_of_the_same_states() -> None:
    imagined = np.array([True, True, True, False, False, False])
    simulated = np.array([True, True, False, True, True, False])
    comparison = compare_outcomes(imagined, simulated)
    assert (comparison.precision.k, comparison.precision.n) == (2, 3)  # of 3 imagined, 2 are simulated
    assert (comparison.recall.k, comparison.recall.n) == (2, 4)  # of 4 simulated, 2 are imagined
    assert comparison.imagined.k == 3
    assert comparison.imagined_minus_simulated.gain == pytest.approx(3 / 6 - 4 / 6, abs=1e-6)
    record = comparison.to_dict()
    assert set(record) == {
        "imagined_success", "imagined_minus_simulated", "imagined_success_precision", "imagined_success_recall",
    }  # fmt: skip
    assert record["imagined_success_precision"]["k"] == 2
    json.dumps(record, allow_nan=False)


def test_what_never_succeeds_has_no_precision_and_says_why() -> None:
    record = compare_outcomes(np.zeros(3, dtype=bool), np.array([True, False, True])).to_dict()
    assert record["imagined_success_precision"] is None
    assert record["imagined_success_precision_reason"] == "no such success"
    assert record["imagined_success_recall"]["rate"] == 0


def _episodes(brightness: list[int]) -> list[Any]:
    spec = ToySimulator.make_spec(ToyConfig())
    return [
        SimpleNamespace(
            frames={spec.camera: np.full((4, 8, 8, 3), level, dtype=np.uint8)},
            proprio=np.full((4, spec.proprio_dim), level / 10, dtype=np.float32),
            meta=SimpleNamespace(initial_state_id=str(level), instruction="go"),
        )
        for level in brightness
    ]


def test_an_episode_is_imagined_from_its_first_observation() -> None:
    start = observe_start(_episodes([10, 20]), ToySimulator.make_spec(ToyConfig()).camera)
    assert start.frames.shape == (2, 3, 8, 8, 3)
    assert start.frames[:, :, 0, 0, 0].tolist() == [[10] * 3, [20] * 3]
    assert start.proprio[:, 0].tolist() == [1.0, 2.0]
    assert start.env_step.tolist() == [0, 0]


class _BrightSucceeds:
    """A world model that stands still and is sure of success where frames are brighter than 100."""

    spec = ToySimulator.make_spec(ToyConfig())

    def start(self, context: Observation, noise_key: torch.Tensor) -> Any:
        return SimpleNamespace(frames=context.frames[:, -1:], noise_key=noise_key)

    def imagine(self, state: Any, actions: torch.Tensor) -> tuple[Any, ImaginedChunk]:
        M = actions.shape[1] // self.spec.actions_per_frame
        frames = state.frames.repeat(1, M, 1, 1, 1)
        logit = torch.where(frames[..., 0, 0, 0] > 100, 9.0, -9.0)
        return state, ImaginedChunk(frames, torch.zeros(len(frames), M, self.spec.proprio_dim), logit)


class _Still:
    version = "still"

    def act(self, observation: Observation, noise_key: torch.Tensor | None) -> ActionChunk:
        assert noise_key is None, "greedy"
        return ActionChunk(torch.zeros(len(observation), 80, 2))


def test_success_is_imagined_in_the_order_of_the_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "EPISODES_AT_ONCE", 2)
    success = imagine_outcomes(
        _Still(), _BrightSucceeds(), Calibration(), _episodes([50, 150, 200]), key=(0, "test")  # type: ignore[arg-type]
    )  # fmt: skip
    assert success.tolist() == [False, True, True]
