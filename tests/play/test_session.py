"""The game itself: a world of known answers beside the toy simulator, which plays the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from counting import CountingState
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.success import Calibration
from worldloop.core.types import Observation
from worldloop.play.session import MAX_MOMENTS, PlaySession
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

CONFIG = ToyConfig(image_size=16, actions_per_frame=2, num_envs=1, max_episode_steps=10**6, success_hold_frames=10**6)
CALIBRATION = Calibration(scale=1.0, bias=0.0, threshold=0.5, psnr_bias_db=2.0, floor_db=10.0)


class _Sum:
    """Its state is the sum of all first actions so far; its success logit is that sum, its picture that number."""

    spec = ToySimulator.make_spec(CONFIG)

    def start(self, context: Observation, noise_key: Tensor) -> CountingState:
        return CountingState(torch.zeros(len(context)), noise_key, torch.zeros_like(noise_key))

    def restore(self, tensors: dict[str, Tensor]) -> CountingState:
        return CountingState(**tensors)

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        assert actions.shape[1:] == (2, 2)
        position = state.position + actions[:, :, 0].sum(1)
        frames = (100 + 10 * position).to(torch.uint8)[:, None, None, None, None].expand(-1, 1, 16, 16, 3)
        moved = replace(state, position=position, step=state.step + 1)
        return moved, ImaginedChunk(frames, torch.zeros(1, 1, 4), position[:, None], 12 - position[:, None])


def _starts(n: int) -> Observation:
    return Observation(
        frames=torch.arange(n, dtype=torch.uint8)[:, None, None, None, None].expand(n, 1, 16, 16, 3).contiguous(),
        proprio=torch.zeros(n, 4),
        instruction=("i",) * n,
        env_step=torch.zeros(n, dtype=torch.long),
    )


def make_session(with_simulator: bool = True) -> PlaySession:
    simulator = ToySimulator(CONFIG) if with_simulator else None
    return PlaySession(_Sum(), CALIBRATION, _starts(3), simulator)  # type: ignore[arg-type]


def test_a_step_is_imagined_and_simulated() -> None:
    session = make_session()
    session.step([0.5, 0.0])
    now = session.moments[session.now]
    assert now.state["position"].tolist() == [1.0]  # two actions of .5: the bounds are -1 and 1
    assert now.frame[0, 0, 0] == 110
    assert now.success_prob == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert now.expected_psnr_db == pytest.approx(12 - 1 - 2)
    first = session.moments[0].simulated
    assert now.simulated is not None
    assert first is not None
    assert now.simulated.state[0] - first.state[0] == pytest.approx(0.2)  # 2 steps of .5 x .2 units
    assert not np.array_equal(now.simulated.frame, first.frame)


def test_going_back_and_branching_restores_both_sides() -> None:
    session = make_session()
    for _ in range(3):
        session.step([0.5, 0.2])
    session.go_to(1)
    session.step([-0.5, 0.0])
    session.step([-0.5, 0.0])
    assert session.path() == [0, 1, 4, 5]
    assert session.branches() == [[0, 1, 2, 3], [4, 5]]
    assert session.moments[5].state["position"].tolist() == [-1.0]
    session.go_to(1)
    for _ in range(2):
        session.step([0.5, 0.2])
    again, first = session.moments[session.now], session.moments[3]
    assert torch.equal(again.state["position"], first.state["position"])
    assert again.simulated is not None
    assert first.simulated is not None
    assert torch.equal(again.simulated.state, first.simulated.state)
    assert np.array_equal(again.simulated.frame, first.simulated.frame)


def test_neither_success_nor_time_ends_a_game() -> None:
    """Pushed to the goal and on: the simulator keeps moving, and its success is remembered."""
    session = make_session()
    assert session.simulator is not None
    succeeded = []
    for _ in range(12):
        simulated = session.moments[session.now].simulated
        assert simulated is not None
        block, agent = simulated.state[4:6], simulated.state[0:2]
        behind = abs(float(agent[1] - block[1])) < 0.05
        aim = [0.8, 0.0] if behind else [0.0, float((block[1] - agent[1]).clamp(-0.4, 0.4) / 0.4)]
        session.step(aim)
        now = session.moments[session.now].simulated
        assert now is not None
        succeeded.append(now.success)
    assert succeeded[-1]
    first = succeeded.index(True)
    assert first < len(succeeded) - 2
    after = session.moments[first + 1].simulated
    last = session.moments[-1].simulated
    assert after is not None
    assert last is not None
    assert not torch.equal(after.state, last.state)


def test_without_a_simulator_games_begin_from_the_checkpoint_s_observations() -> None:
    session = make_session(with_simulator=False)
    assert session.num_starts == 3
    session.reset(2)
    assert session.moments[0].frame[0, 0, 0] == 2
    session.step([0.5, 0.0])
    assert session.moments[session.now].simulated is None


def test_a_failing_simulator_leaves_the_imagined_game() -> None:
    session = make_session()
    assert session.simulator is not None

    def fail(*_: object) -> None:
        raise RuntimeError("device lost")

    session.simulator.step_chunk = fail  # type: ignore[assignment, method-assign]
    session.step([0.5, 0.0])
    assert "device lost" in session.simulator_error
    session.step([0.5, 0.0])
    assert session.moments[session.now].state["position"].tolist() == [2.0]
    assert session.moments[session.now].simulated is None


def test_bad_input_is_named_and_changes_nothing() -> None:
    session = make_session()
    for action in ([0.5], [0.5, 1.5], [float("nan"), 0.0], ["x", 0.0], [True, 0.0], "left", None):
        with pytest.raises(WorldloopError, match=r"an action is 2 numbers: dx, dy|allowed: -1 to 1"):
            session.step(action)  # type: ignore[arg-type]
    for start in (-1, 16, "0"):
        with pytest.raises(WorldloopError, match="allowed: 0 to 15"):
            session.reset(start)  # type: ignore[arg-type]
    with pytest.raises(WorldloopError, match="allowed: 0 to 0"):
        session.go_to(1)
    assert len(session.moments) == 1
    session.moments *= MAX_MOMENTS
    with pytest.raises(WorldloopError, match="start a new one"):
        session.step([0.0, 0.0])
