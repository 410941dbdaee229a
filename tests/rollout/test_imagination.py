"""The imagined simulator over a world model whose every answer is known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from counting import SPEC, CountingState
from torch import Tensor

from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.success import Calibration, confirm, find_highest_confirmed
from worldloop.core.types import Observation
from worldloop.rollout.imagination import ImaginedSimulator


class _Counting:
    """Its position is the sum of all actions; the frame shows it; success is certain from position 4 on."""

    def __init__(self) -> None:
        self.imagined_rows = 0

    def start(self, context: Observation, noise_key: Tensor) -> CountingState:
        assert context.proprio is not None
        return CountingState(context.proprio[:, 0].clone(), noise_key, torch.zeros_like(noise_key))

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        self.imagined_rows += len(actions)
        per_frame = actions.reshape(len(actions), -1, 2).sum(-1)
        positions = state.position[:, None] + per_frame.cumsum(1)
        frames = positions.round().to(torch.uint8)[:, :, None, None, None].expand(-1, -1, 2, 2, 3)
        logit = torch.where(positions >= 4, 10.0, -10.0)
        state = CountingState(positions[:, -1], state.noise_key, state.step + per_frame.shape[1])
        return state, ImaginedChunk(frames, positions[..., None], logit)


def _observation(positions: list[float]) -> Observation:
    B = len(positions)
    return Observation(
        frames=torch.zeros(B, 3, 2, 2, 3, dtype=torch.uint8),
        proprio=torch.tensor(positions)[:, None],
        instruction=("i",) * B,
        env_step=torch.zeros(B, dtype=torch.long),
    )


def _simulator(model: _Counting, positions: list[float]) -> ImaginedSimulator:
    simulator = ImaginedSimulator(model, SPEC, Calibration(), num_envs=4)  # type: ignore[arg-type]
    simulator.reset(_observation(positions))
    return simulator


def test_success_inside_a_chunk_ends_the_row_at_its_frame() -> None:
    simulator = _simulator(_Counting(), [0.0, 2.0])
    step = simulator.step_chunk(torch.ones(2, 4, 1))
    assert step.valid.tolist() == [[True] * 4, [True, True, False, False]]
    assert step.rewards.tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    assert step.success.tolist() == [[False, False, True, True], [True] * 4]
    assert step.terminated.tolist() == [True, True]
    assert step.truncated.tolist() == [False, False]


def test_rows_that_ended_cost_nothing_and_stay_as_they_are() -> None:
    model = _Counting()
    simulator = _simulator(model, [3.0, 0.0])
    first = simulator.step_chunk(torch.full((2, 2, 1), 0.5))
    assert first.terminated.tolist() == [True, False]
    second = simulator.step_chunk(torch.full((2, 2, 1), 0.5))
    assert model.imagined_rows == 3
    assert not second.valid[0].any()
    assert second.rewards[0].sum() == 0
    assert torch.equal(second.observation.frames[0], first.observation.frames[0])
    assert second.observation.env_step.tolist() == [2, 4]


def test_time_limit_truncates_without_success() -> None:
    simulator = _simulator(_Counting(), [0.0])
    ends = [simulator.step_chunk(torch.zeros(1, 4, 1)) for _ in range(2)]
    assert [e.truncated.tolist() for e in ends] == [[False], [True]]
    assert not ends[-1].terminated.any()


def test_what_lies_past_the_time_limit_does_not_count() -> None:
    simulator = ImaginedSimulator(_Counting(), SPEC, Calibration(), num_envs=4)  # type: ignore[arg-type]
    simulator.reset(replace(_observation([2.5]), env_step=torch.tensor([SPEC.max_episode_steps - 2])))
    step = simulator.step_chunk(torch.full((1, 4, 1), 0.5))  # the second frame would show a success
    assert step.valid.tolist() == [[True, True, False, False]]
    assert not step.success.any()
    assert not step.rewards.any()
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([False], [True])


def test_context_is_first_previous_now() -> None:
    simulator = _simulator(_Counting(), [0.0])
    step = simulator.step_chunk(torch.full((1, 4, 1), 0.5))
    assert step.observation.frames[0, :, 0, 0, 0].tolist() == [0, 1, 2]
    step = simulator.step_chunk(torch.full((1, 2, 1), 0.5))
    assert step.observation.frames[0, :, 0, 0, 0].tolist() == [0, 2, 3]


def test_single_rows_restart_without_touching_others() -> None:
    simulator = _simulator(_Counting(), [3.5, 0.0])
    simulator.step_chunk(torch.full((2, 2, 1), 0.5))
    simulator.reset(_observation([1.0]), rows=torch.tensor([0]))
    step = simulator.step_chunk(torch.full((2, 2, 1), 0.5))
    assert step.proprio is not None
    assert step.proprio[:, 0, 0].tolist() == [2.0, 2.0]
    assert step.observation.env_step.tolist() == [2, 4]
    assert not step.terminated.any()


def test_calibration_moves_the_threshold() -> None:
    calibration = Calibration(scale=0.5, bias=-1.0, threshold=0.5)
    probability = calibration.probability(torch.tensor([1.9, 2.1]))
    assert (probability >= calibration.threshold).tolist() == [False, True]
    with pytest.raises(ValueError, match="scale"):
        Calibration(scale=-1.0)


def test_a_simulator_state_is_no_start() -> None:
    with pytest.raises(TypeError, match="Observation"):
        _simulator(_Counting(), [0.0]).reset(torch.zeros(1, 3))


def test_chunks_must_hold_whole_frames() -> None:
    with pytest.raises(ValueError, match="multiple of 2"):
        _simulator(_Counting(), [0.0]).step_chunk(torch.zeros(1, 3, 1))


class _Scripted(_Counting):
    """The logit of a frame is its position."""

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        state, chunk = super().imagine(state, actions)
        assert chunk.proprio is not None
        return state, replace(chunk, success_logit=chunk.proprio[..., 0])


def test_a_single_false_frame_ends_nothing() -> None:
    """Positions of row 0: 1, -1, -1, 1 (the time limit); of row 1: 1, 1, then it has ended."""
    spec = replace(SPEC, success_hold_frames=1, success_confirm_frames=1)
    simulator = ImaginedSimulator(_Scripted(), spec, Calibration(), num_envs=2)  # type: ignore[arg-type]
    simulator.reset(_observation([0.0, 0.0]))
    moves = ([0.5, 0.5], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.0])
    steps = [simulator.step_chunk(torch.tensor(m)[:, None, None].expand(2, 2, 1)) for m in moves]
    assert [s.terminated.tolist() for s in steps] == [[False, False], [False, True], [False, True], [True, True]]
    assert [s.rewards.sum(1).tolist() for s in steps] == [[0, 0], [0, 1], [0, 0], [1, 0]]
    assert [s.valid.any(1).tolist() for s in steps] == [[True, True], [True, True], [True, False], [True, False]]
    assert not steps[-1].truncated.any()


def test_a_streak_ends_where_a_row_starts_anew() -> None:
    spec = replace(SPEC, success_hold_frames=1, success_confirm_frames=1)
    simulator = ImaginedSimulator(_Scripted(), spec, Calibration(), num_envs=2)  # type: ignore[arg-type]
    simulator.reset(_observation([0.0, 0.0]))
    simulator.step_chunk(torch.full((2, 2, 1), 0.5))
    simulator.reset(_observation([0.0]), rows=torch.tensor([0]))
    assert simulator.step_chunk(torch.full((2, 2, 1), 0.5)).terminated.tolist() == [False, True]


def test_confirm_by_hand() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 5.0]])
    assert torch.equal(confirm(values, 0), values)
    assert confirm(values, 1).tolist() == [[1.0, 1.0, 2.0, 5.0]]
    assert confirm(values, 2).tolist() == [[1.0, 1.0, 2.0, 5.0]]
    assert confirm(values, 9).tolist() == [[1.0, 1.0, 2.0, 5.0]]


class _Unsure(_Counting):
    """Expects 30 dB minus ten times its position, and believes in success everywhere."""

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        state, chunk = super().imagine(state, actions)
        assert chunk.proprio is not None
        logit = torch.where(chunk.proprio[..., 0] >= 2, 5.0, -5.0)
        return state, replace(chunk, success_logit=logit, expected_psnr_db=30 - 10 * chunk.proprio[..., 0])


@pytest.mark.parametrize("truncates", [True, False])
def test_an_uncertain_row_ends_without_success(truncates: bool) -> None:
    """Row 0 reaches 19 dB after the bias, below the floor of 19.5, in the frame that shows a success; row 1 stays."""
    calibration = Calibration(psnr_bias_db=-9.0, floor_db=19.5)
    model: Any = _Unsure()
    simulator = ImaginedSimulator(model, SPEC, calibration, num_envs=2, truncates_uncertain=truncates)
    simulator.reset(_observation([0.0, 0.0]))
    step = simulator.step_chunk(torch.tensor([[0.5] * 4, [0.0] * 4])[:, :, None])
    assert step.expected_psnr_db is not None
    assert step.expected_psnr_db.tolist() == [[29.0, 19.0], [39.0, 39.0]]
    assert step.truncated.tolist() == [truncates, False]
    assert step.terminated.tolist() == [not truncates, False]
    assert step.valid.all(), "the actions that led there count"
    later = simulator.step_chunk(torch.zeros(2, 4, 1))
    assert later.expected_psnr_db is not None
    assert later.expected_psnr_db.tolist() == [[torch.inf, torch.inf], [39.0, 39.0]]
    assert later.done.tolist() == [True, True]


def test_the_best_value_needs_its_neighbour() -> None:
    values = torch.tensor([[0.0, 9.0, 1.0, 2.0], [0.0, 5.0, 4.0, 9.0], [3.0, 1.0, 9.0, 9.0], [1.0, 1.0, 1.0, 1.0]])
    valid = torch.tensor([[True] * 4, [True, True, True, False], [True, False, False, False], [False] * 4])
    assert find_highest_confirmed(values, valid, 0).tolist() == [9.0, 5.0, 3.0, -torch.inf]
    # a single high frame counts no more than the lower of its pair; the last valid one stands alone
    assert find_highest_confirmed(values, valid, 1).tolist() == [2.0, 4.0, 3.0, -torch.inf]


class _Small(_Counting):
    """A model on a device that holds no more than two rows."""

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        if len(actions) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().imagine(state, actions)


def test_starts_go_in_parts_where_memory_is_short() -> None:
    class Small(_Counting):
        def start(self, context: Observation, noise_key: Tensor) -> CountingState:
            if len(noise_key) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().start(context, noise_key)

    small = _simulator(Small(), [0.0, 2.0, 1.0])
    assert small.max_batch == 1
    assert small.save().state.position.tolist() == [0.0, 2.0, 1.0]


def test_rows_go_in_parts_where_memory_is_short() -> None:
    actions = torch.arange(16, dtype=torch.float32).reshape(4, 4, 1) / 20
    whole, small = _simulator(_Counting(), [0.0, 2.0, 1.0, 3.5]), _simulator(_Small(), [0.0, 2.0, 1.0, 3.5])
    expected, actual = whole.step_chunk(actions), small.step_chunk(actions)
    assert small.max_batch == 2
    for name in ("frames", "proprio", "success_prob", "valid", "terminated", "truncated"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    assert torch.equal(small.save().state.position, whole.save().state.position)

    class Tiny(_Counting):
        def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        _simulator(Tiny(), [0.0, 2.0, 1.0]).step_chunk(actions[:3])
