"""The game itself: a world of known answers beside the toy simulator, which plays the truth."""

import numpy as np
import pytest
import torch
from summing import CALIBRATIONS, CONFIG, SEVERAL, Summing, make_session

from worldloop.core.errors import WorldloopError
from worldloop.core.types import InitialStates, Observation
from worldloop.play.session import MAX_MOMENTS, NUM_STATES, PlaySession
from worldloop.simulators.toy.simulator import ToySimulator


def test_a_step_is_imagined_and_simulated() -> None:
    session = make_session()
    session.step([0.5, 0.0])
    now = session.moments[session.now]
    assert now.state["position"].tolist() == [1.0]  # two actions of .5: the bounds are -1 and 1
    assert now.frames["base_camera"][0, 0, 0] == 110
    assert now.success_prob == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert now.expected_psnr_db == pytest.approx(12 - 1 - 2)
    first = session.moments[0].simulated
    assert now.simulated is not None
    assert first is not None
    assert now.simulated.state[0] - first.state[0] == pytest.approx(0.2)  # 2 steps of .5 x .2 units
    assert not np.array_equal(now.simulated.frames["base_camera"], first.frames["base_camera"])


def test_a_critic_sees_first_previous_and_present_frame_of_the_branch_it_is_in() -> None:
    seen: list[Observation] = []

    def value(observation: Observation) -> torch.Tensor:
        seen.append(observation)
        return torch.tensor([-0.1 * len(seen)])

    world_model = Summing(ToySimulator.make_spec(CONFIG))
    session = PlaySession(world_model, CALIBRATIONS, world_model.make_starts(["ToyPush-v1"] * 3), value=value)  # type: ignore[arg-type]
    session.step([0.5, 0.0])
    session.step([0.5, 0.0])
    session.go_to(1)
    session.step([-0.5, 0.0])
    assert [moment.value for moment in session.moments] == pytest.approx([-0.1, -0.2, -0.3, -0.4])
    greys = [observation.frames["base_camera"][0, :, 0, 0, 0].tolist() for observation in seen[1:]]
    assert greys == [[0, 0, 110], [0, 110, 120], [0, 110, 100]]
    assert [int(observation.env_step) for observation in seen] == [0, 2, 4, 4]
    assert session.moments[2].value == pytest.approx(-0.3), "going back asks nobody again"
    assert make_session(with_simulator=False).moments[0].value is None


def test_a_planner_is_asked_once_a_moment_and_only_while_its_plan_is_shown() -> None:
    seen: list[Observation] = []

    def plan(observation: Observation) -> dict[str, torch.Tensor]:
        seen.append(observation)
        now = observation.frames["base_camera"][:, -1:]
        return {"base_camera": now + len(seen)}

    world_model = Summing(ToySimulator.make_spec(CONFIG))
    session = PlaySession(world_model, CALIBRATIONS, world_model.make_starts(["ToyPush-v1"] * 3), plan=plan)  # type: ignore[arg-type]
    session.step([0.5, 0.0])
    session.step([0.5, 0.0])
    assert session.plan() is None
    assert seen == []
    session.show_plan(True)
    for moment, asked in ((2, [4]), (1, [4, 2]), (2, [4, 2]), (0, [4, 2, 0])):
        session.go_to(moment)
        planned = session.plan()
        assert planned is not None
        number = 1 + [4, 2, 0].index(2 * moment)
        assert (planned["base_camera"] == session.moments[moment].frames["base_camera"] + number).all()
        assert [int(observation.env_step) for observation in seen] == asked
    session.show_plan(False)
    assert session.plan() is None
    session.show_plan(True)
    session.reset(1)
    assert session.plan() is not None
    assert [int(observation.env_step) for observation in seen] == [4, 2, 0, 0]
    with pytest.raises(WorldloopError, match="shown is 1, allowed: false, true"):
        session.show_plan(1)  # type: ignore[arg-type]
    alone = make_session(with_simulator=False)
    assert (alone.has_planner, alone.plan()) == (False, None)
    with pytest.raises(WorldloopError, match=r"shown is True, allowed: false$"):
        alone.show_plan(True)


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
    assert np.array_equal(again.simulated.frames["base_camera"], first.simulated.frames["base_camera"])


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
    assert session.starts == [("ToyPush-v1", "push the blue disc to the red goal")] * 3
    session.reset(2)
    assert session.moments[0].frames["base_camera"][0, 0, 0] == 2
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


def test_games_after_a_failure_begin_from_the_checkpoint_s_observations() -> None:
    session = make_session()
    assert session.simulator is not None
    session.simulator.step_chunk = None  # type: ignore[assignment, method-assign]
    session.step([0.5, 0.0])
    assert len(session.starts) == 3
    session.reset(2)
    assert session.moments[0].frames["base_camera"][0, 0, 0] == 2
    assert session.moments[0].simulated is None


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


def test_every_camera_is_imagined_and_simulated() -> None:
    session = make_session(SEVERAL)
    session.step([0.5, 0.0])
    now = session.moments[session.now]
    assert now.simulated is not None
    shapes = {"base_camera": (16, 16, 3), "hand_camera": (12, 12, 3)}
    assert {name: frame.shape for name, frame in now.frames.items()} == shapes
    assert {name: frame.shape for name, frame in now.simulated.frames.items()} == shapes
    assert [frame[0, 0, 0] for frame in now.frames.values()] == [110, 130]


def test_a_world_model_of_one_camera_plays_beside_a_simulator_of_two() -> None:
    world_model = Summing(ToySimulator.make_spec(SEVERAL).with_cameras(["hand_camera"]))
    starts = world_model.make_starts(["ToyPush-v1"])
    session = PlaySession(world_model, CALIBRATIONS, starts, ToySimulator(SEVERAL))  # type: ignore[arg-type]
    session.step([0.5, 0.0])
    now = session.moments[session.now]
    assert now.simulated is not None
    assert list(now.frames) == list(now.simulated.frames) == ["hand_camera"]


def test_starts_are_of_every_task_and_say_what_to_do() -> None:
    session = make_session(SEVERAL)
    assert [task for task, _ in session.starts] == ["ToyPush-v1"] * NUM_STATES + ["ToyReach-v1"] * NUM_STATES
    for start in (0, 1, NUM_STATES, NUM_STATES + 3):
        session.reset(start)
        assert (session.task, session.instruction) == session.starts[start]
    assert len({instruction for _, instruction in session.starts}) == 6, "three paraphrases of each"
    alone = make_session(SEVERAL, with_simulator=False)
    assert [task for task, _ in alone.starts] == ["ToyPush-v1", "ToyReach-v1", "ToyPush-v1"]
    alone.reset(1)
    assert alone.task == "ToyReach-v1"


def test_a_game_is_read_and_simulated_by_its_task() -> None:
    session = make_session(SEVERAL)
    session.reset(NUM_STATES)
    assert session.calibration.threshold == 0.7
    session.step([0.5, 0.0])
    assert session.moments[1].success_prob == pytest.approx(1 / (1 + np.exp(-2.0)))
    state = session.sim_state(1)
    assert isinstance(state, InitialStates)
    assert (state.tasks, state.ids) == (("ToyReach-v1",), ("ToyReach-v1/train/0-000000",))
    assert torch.equal(state.states[0], session.moments[1].simulated.state)  # type: ignore[union-attr]
    given = []
    assert session.simulator is not None
    reset = session.simulator.reset
    session.simulator.reset = lambda states, rows=None: (given.append(states), reset(states, rows))[1]  # type: ignore[method-assign]
    session.step([0.0, 0.1])
    session.go_to(1)
    session.step([0.0, -0.1])
    assert [states.tasks for states in given] == [("ToyReach-v1",)]
    session.reset(0)
    assert session.calibration.threshold == 0.5


def test_the_simulator_s_success_is_that_of_the_game_s_task() -> None:
    """The white disc goes straight to the goal: that reaches it, and pushes nothing there."""
    session = make_session(SEVERAL)
    ends = []
    for start in (2, NUM_STATES + 2):
        session.reset(start)
        now = session.moments[0].simulated
        while now is not None and session.now < 12 and not now.success:
            way = _go_round(now.state)
            session.step([float(x) for x in way])
            now = session.moments[session.now].simulated
        assert now is not None
        ends.append(now.success)
    assert ends == [False, True]


def _go_round(state: torch.Tensor) -> torch.Tensor:
    """Above or below the blue disc to the goal behind it, in shares of the bounds."""
    agent, block, goal = state[0:2], state[4:6], state[6:8]
    side = 1.0 if agent[1] >= block[1] else -1.0
    beside = torch.stack([goal[0], block[1] + 0.45 * side])
    past_block = agent[0] > block[0] + 0.2
    clear = (agent[1] - block[1]).abs() > 0.4
    target = goal if past_block else beside if clear else torch.stack([agent[0], beside[1]])
    return ((target - agent) / 0.4).clamp(-1, 1)
