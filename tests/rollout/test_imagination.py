"""The imagined simulator over a world model whose every answer is known."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from counting import SPEC, CountingState
from torch import Tensor

from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.specs import CameraSpec, SimulatorSpec
from worldloop.core.success import Calibration, Calibrations, find_highest_confirmed
from worldloop.core.types import ActionChunk, InitialStates, Observation
from worldloop.rollout.imagination import ImaginedSimulator, imagine_rollout

CONFIRMED = replace(SPEC, success_hold_frames=1, success_confirm_frames=1)


class _Counting:
    """Its position is the sum of all actions; the frame shows it; success is certain from position 4 on."""

    def __init__(self, spec: SimulatorSpec = SPEC) -> None:
        self.spec = spec
        self.imagined_rows = 0

    def start(self, context: Observation, noise_key: Tensor) -> CountingState:
        assert context.proprio is not None
        return CountingState(context.proprio[:, 0].clone(), noise_key, torch.zeros_like(noise_key))

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        self.imagined_rows += len(actions)
        per_frame = actions.reshape(len(actions), -1, 2).sum(-1)
        positions = state.position[:, None] + per_frame.cumsum(1)
        value = positions.round().to(torch.uint8)[:, :, None, None, None]
        frames = {c.name: value.expand(-1, -1, c.height, c.width, 3) for c in self.spec.robot.cameras}
        logit = torch.where(positions >= 4, 10.0, -10.0)
        state = CountingState(positions[:, -1], state.noise_key, state.step + per_frame.shape[1])
        return state, ImaginedChunk(frames, positions[..., None], logit)


def _observation(positions: list[float]) -> Observation:
    B = len(positions)
    return Observation(
        frames={"cam": torch.zeros(B, 3, 2, 2, 3, dtype=torch.uint8)},
        proprio=torch.tensor(positions)[:, None],
        task=("t",) * B,
        instruction=("i",) * B,
        env_step=torch.zeros(B, dtype=torch.long),
    )


def _simulator(model: _Counting, positions: list[float]) -> ImaginedSimulator:
    simulator = ImaginedSimulator(model, Calibrations(), num_envs=4)  # type: ignore[arg-type]
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
    assert torch.equal(second.observation.frames["cam"][0], first.observation.frames["cam"][0])
    assert second.observation.env_step.tolist() == [2, 4]


def test_time_limit_truncates_without_success() -> None:
    simulator = _simulator(_Counting(), [0.0])
    ends = [simulator.step_chunk(torch.zeros(1, 4, 1)) for _ in range(2)]
    assert [e.truncated.tolist() for e in ends] == [[False], [True]]
    assert not ends[-1].terminated.any()


def test_what_lies_past_the_time_limit_does_not_count() -> None:
    simulator = ImaginedSimulator(_Counting(), Calibrations(), num_envs=4)  # type: ignore[arg-type]
    simulator.reset(replace(_observation([2.5]), env_step=torch.tensor([SPEC.max_episode_steps - 2])))
    step = simulator.step_chunk(torch.full((1, 4, 1), 0.5))  # the second frame would show a success
    assert step.valid.tolist() == [[True, True, False, False]]
    assert not step.success.any()
    assert not step.rewards.any()
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([False], [True])


def test_context_is_first_previous_now() -> None:
    simulator = _simulator(_Counting(), [0.0])
    step = simulator.step_chunk(torch.full((1, 4, 1), 0.5))
    assert step.observation.frames["cam"][0, :, 0, 0, 0].tolist() == [0, 1, 2]
    step = simulator.step_chunk(torch.full((1, 2, 1), 0.5))
    assert step.observation.frames["cam"][0, :, 0, 0, 0].tolist() == [0, 2, 3]


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
        _simulator(_Counting(), [0.0]).reset(InitialStates("train", ("t/0",), ("t",), torch.zeros(1, 3)))


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
    simulator = ImaginedSimulator(_Scripted(CONFIRMED), Calibrations(), num_envs=2)  # type: ignore[arg-type]
    simulator.reset(_observation([0.0, 0.0]))
    moves = ([0.5, 0.5], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.0])
    steps = [simulator.step_chunk(torch.tensor(m)[:, None, None].expand(2, 2, 1)) for m in moves]
    assert [s.terminated.tolist() for s in steps] == [[False, False], [False, True], [False, True], [True, True]]
    assert [s.rewards.sum(1).tolist() for s in steps] == [[0, 0], [0, 1], [0, 0], [1, 0]]
    assert [s.valid.any(1).tolist() for s in steps] == [[True, True], [True, True], [True, False], [True, False]]
    assert not steps[-1].truncated.any()


def test_rows_can_go_on_past_a_success() -> None:
    simulator = ImaginedSimulator(
        _Scripted(CONFIRMED), Calibrations(), num_envs=1, ends_at_success=False  # type: ignore[arg-type]
    )  # fmt: skip
    simulator.reset(_observation([0.0]))
    steps = [simulator.step_chunk(torch.tensor(m)[:, None, None].expand(1, 2, 1)) for m in ([0.5], [0.0], [0.0], [0.0])]
    assert all((step.success_prob > 0.5).all() for step in steps)
    assert not any(step.success.any() or step.terminated.any() or step.rewards.any() for step in steps)
    assert [bool(step.truncated) for step in steps] == [False, False, False, True], "the time limit ends it"
    assert all(step.valid.all() for step in steps)


def test_what_confirms_a_success_is_forgotten_where_a_row_starts_anew() -> None:
    simulator = ImaginedSimulator(_Scripted(CONFIRMED), Calibrations(), num_envs=2)  # type: ignore[arg-type]
    simulator.reset(_observation([0.0, 0.0]))
    simulator.step_chunk(torch.full((2, 2, 1), 0.5))
    simulator.reset(_observation([0.0]), rows=torch.tensor([0]))
    assert simulator.step_chunk(torch.full((2, 2, 1), 0.5)).terminated.tolist() == [False, True]


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
    calibrations = Calibrations({"t": Calibration(psnr_bias_db=-9.0, floor_db=19.5)})
    model: Any = _Unsure()
    simulator = ImaginedSimulator(model, calibrations, num_envs=2, truncates_uncertain=truncates)
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
    assert torch.equal(actual.frames["cam"], expected.frames["cam"])
    for name in ("proprio", "success_prob", "valid", "terminated", "truncated"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    assert torch.equal(small.save().state.position, whole.save().state.position)

    class Tiny(_Counting):
        def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        _simulator(Tiny(), [0.0, 2.0, 1.0]).step_chunk(actions[:3])


# --- several tasks, several cameras ---------------------------------------------------------------------------------

LONGER = replace(SPEC.tasks[0], id="u", instructions=("j",), max_episode_steps=12)
TWO_TASKS = replace(SPEC, tasks=(SPEC.tasks[0], LONGER))


def _of_both_tasks(positions: list[float]) -> Observation:
    return replace(_observation(positions), task=("t", "u"), instruction=("i", "j"))


def test_each_row_has_the_time_limit_of_its_task() -> None:
    simulator = _simulator(_Counting(TWO_TASKS), [0.0, 0.0])
    simulator.reset(_of_both_tasks([0.0, 0.0]))
    steps = [simulator.step_chunk(torch.zeros(2, 4, 1)) for _ in range(3)]
    assert [step.truncated.tolist() for step in steps] == [[False, False], [True, False], [True, True]]
    assert [step.valid[:, 0].tolist() for step in steps] == [[True, True], [True, True], [False, True]]
    assert steps[-1].observation.env_step.tolist() == [8, 12]
    assert (steps[-1].observation.task, steps[-1].observation.instruction) == (("t", "u"), ("i", "j"))


def test_a_single_frame_declares_a_success_at_the_limit_of_its_own_task() -> None:
    """The last frame before the limit of task t shows a success, and both rows show it there."""
    simulator = ImaginedSimulator(
        _Scripted(replace(TWO_TASKS, success_hold_frames=1, success_confirm_frames=1)), Calibrations(), num_envs=2
    )  # type: ignore[arg-type]
    simulator.reset(replace(_of_both_tasks([-1.0, -1.0]), env_step=torch.tensor([6, 6])))
    assert simulator.step_chunk(torch.full((2, 2, 1), 1.0)).terminated.tolist() == [True, False]
    assert simulator.step_chunk(torch.full((2, 2, 1), 1.0)).terminated.tolist() == [True, True]


def test_success_and_certainty_are_read_by_each_task_s_own_calibration() -> None:
    """Both rows stand at 3 with an expected 0 dB: solved where -2 is added to the logit of 5, but not where -8 is."""
    of_t = Calibration(bias=-2.0, threshold=0.9, psnr_bias_db=1.0, floor_db=-5.0)
    of_u = Calibration(bias=-8.0, threshold=0.9, psnr_bias_db=2.0, floor_db=-1.5)
    model: Any = _Unsure(TWO_TASKS)
    simulator = ImaginedSimulator(model, Calibrations({"t": of_t, "u": of_u}), 2, truncates_uncertain=True)
    simulator.reset(_of_both_tasks([3.0, 3.0]))
    step = simulator.step_chunk(torch.zeros(2, 2, 1))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]
    assert step.expected_psnr_db is not None
    assert step.expected_psnr_db.tolist() == [[-1.0], [-2.0]]
    assert step.success_prob[0].item() == pytest.approx(1 / (1 + math.exp(-3)))
    lenient = replace(of_u, bias=-2.0, floor_db=-3.0)
    simulator = ImaginedSimulator(model, Calibrations({"t": of_t, "u": lenient}), 2, truncates_uncertain=True)
    simulator.reset(_of_both_tasks([3.0, 3.0]))
    assert simulator.step_chunk(torch.zeros(2, 2, 1)).terminated.tolist() == [True, True]
    strict = replace(lenient, threshold=0.96)
    simulator = ImaginedSimulator(model, Calibrations({"t": of_t, "u": strict}), 2)
    simulator.reset(_of_both_tasks([3.0, 3.0]))
    assert simulator.step_chunk(torch.zeros(2, 2, 1)).terminated.tolist() == [True, False]


def test_rows_that_go_on_alone_keep_their_own_task() -> None:
    """Once the first row has ended, the one row that runs is of task u."""
    calibrations = Calibrations({"u": Calibration(bias=-20.0)})
    simulator = ImaginedSimulator(_Counting(TWO_TASKS), calibrations, 2)  # type: ignore[arg-type]
    simulator.reset(_of_both_tasks([3.0, 3.0]))
    for _ in range(2):
        assert simulator.step_chunk(torch.full((2, 2, 1), 0.5)).terminated.tolist() == [True, False]


def test_a_task_that_the_world_model_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="task 'w' is not one of t"):
        _simulator(_Counting(), [0.0]).reset(replace(_observation([0.0]), task=("w",)))


def test_every_camera_of_the_world_model_is_shown_and_no_other() -> None:
    cameras = (CameraSpec("cam", 2, 2), CameraSpec("hand", 3, 4))
    model = _Counting(replace(SPEC, robot=replace(SPEC.robot, cameras=cameras)))
    sizes = {"hand": (3, 4), "cam": (2, 2), "unread": (5, 5)}
    frames = {name: torch.full((2, 3, *size, 3), 9, dtype=torch.uint8) for name, size in sizes.items()}
    simulator = ImaginedSimulator(model, Calibrations(), num_envs=2)  # type: ignore[arg-type]
    start = simulator.reset(replace(_observation([3.5, 0.0]), frames=frames))
    assert list(start.frames) == ["cam", "hand"]
    simulator.step_chunk(torch.full((2, 2, 1), 0.5))
    step = simulator.step_chunk(torch.full((2, 2, 1), 0.5))
    for name, size in (("cam", (2, 2)), ("hand", (3, 4))):
        assert step.frames[name].shape == (2, 1, *size, 3)
        assert step.observation.frames[name].shape == (2, 3, *size, 3)
        # row 0 has ended at 4.5, row 1 is at 2 after 1
        assert step.observation.frames[name][:, :, 0, 0, 0].tolist() == [[9, 9, 4], [9, 1, 2]], name
    with pytest.raises(ValueError, match="no camera 'hand'"):
        simulator.reset(_observation([0.0]))


class _Steady:
    """Acts 0.5 everywhere."""

    version = "steady"

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        self.noise_key = noise_key
        return ActionChunk(torch.full((len(observation), 2, 1), 0.5))


def test_an_imagined_rollout_of_groups_begins_from_each_group_s_start() -> None:
    policy, model = _Steady(), _Counting()
    groups = torch.tensor([0, 0, 1])
    rollout = imagine_rollout(
        policy,
        model,  # type: ignore[arg-type]
        Calibrations(),
        _observation([0.0, 2.5]),
        noise_key=torch.tensor([7, 8, 9]),
        world_key=torch.tensor([1, 2]),
        initial_state_id=("a", "a", "b"),
        group_id=groups,
        max_chunks=2,
    )
    assert rollout.origin == "imagined"
    assert rollout.group_id.tolist() == [0, 0, 1]
    assert rollout.success.tolist() == [False, False, True]
    assert [step.proprio[:, 0, 0].tolist() for step in rollout.steps if step.proprio is not None] == [
        [1.0, 1.0, 3.5],
        [2.0, 2.0, 4.5],
    ]
    assert policy.noise_key is not None
    assert policy.noise_key.tolist() == [7, 8, 9]


def test_an_imagined_rollout_without_groups_has_a_row_for_every_start() -> None:
    policy = _Steady()
    chunks: list[int] = []
    rollout = imagine_rollout(
        policy,
        _Counting(),  # type: ignore[arg-type]
        Calibrations(),
        _observation([0.0, 2.5]),
        noise_key=None,
        world_key=torch.tensor([1, 2]),
        initial_state_id=("a", "b"),
        on_chunk=lambda: chunks.append(1),
    )
    assert policy.noise_key is None
    assert rollout.group_id.tolist() == [0, 1]
    assert (len(rollout.steps), len(chunks)) == (4, 4)
    assert rollout.success.tolist() == [True, True]
