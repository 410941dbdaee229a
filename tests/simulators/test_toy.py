"""The chunk rules every simulator of ours shares, shown on the toy, and the toy itself."""

import pytest
import torch

from worldloop.core.interfaces import InitialStateSource, Simulator
from worldloop.core.randomness import make_row_keys
from worldloop.core.types import ChunkStep, InitialStates
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator


def play(sim: ToySimulator, states: torch.Tensor, variants: tuple[str, ...], keys: torch.Tensor, chunk: int = 4):
    policy, observation, steps = sim.make_scripted_policy(variants, keys, chunk), sim.reset(states), []
    for _ in range(-(-sim.spec.max_episode_steps // chunk)):
        steps.append(sim.step_chunk(policy.act(observation, None).actions))
        observation = steps[-1].observation
    return steps


def one_step_from_success(sim: ToySimulator) -> torch.Tensor:
    """A state whose block needs exactly two steps of +0.5 (0.1 units each) to enter the goal region."""
    state = torch.zeros(1, 11)
    state[0, 0] = -0.34  # agent touches the block at x = 0
    state[0, 6] = 0.3 + 0.15  # goal region begins at 0.15
    return state


def test_protocols() -> None:
    sim = ToySimulator(ToyConfig())
    assert isinstance(sim, Simulator)
    assert isinstance(sim, InitialStateSource)


@pytest.mark.parametrize(
    ("key", "value"), [("image_size", 4), ("num_envs", 0), ("actions_per_frame", 0), ("success_hold_frames", -1)]
)
def test_config_names_the_bad_key(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=key):
        ToyConfig(**{key: value})


def test_initial_states_do_not_depend_on_how_many_are_drawn() -> None:
    sim = ToySimulator(ToyConfig())
    few, many = sim.draw_initial_states("train", 3, 1), sim.draw_initial_states("train", 9, 1)
    assert torch.equal(few.states, many.states[:3])
    assert few.ids == many.ids[:3]
    assert len(set(many.ids)) == 9
    assert not torch.equal(few.states, sim.draw_initial_states("evaluation", 3, 1).states)
    rest = sim.draw_initial_states("train", 6, 1, first=3)
    assert InitialStates.cat([few, rest]).ids == many.ids
    assert torch.equal(InitialStates.cat([few, rest]).states, many.states)


def test_success_inside_a_chunk() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2))
    sim.reset(one_step_from_success(sim))
    step = sim.step_chunk(torch.tensor([[[0.5, 0.0]] * 4]))
    assert step.success.tolist() == [[False, True, True, True]]
    assert step.valid.tolist() == [[True, True, False, False]]
    assert step.rewards.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert step.success_prob.tolist() == [[1.0, 1.0]]
    assert step.distances_m is not None
    assert step.distances_m[0, 0].item() == pytest.approx(0.005, abs=1e-6)  # 0.05 units
    assert step.distances_m[0, 1:].tolist() == [0.0, 0.0, 0.0]
    assert step.terminated.tolist() == [True]
    assert step.truncated.tolist() == [False]
    # the steps after the success were executed: four moves of 0.1 units
    assert step.observation.proprio is not None
    assert step.observation.proprio[0, 0].item() == pytest.approx(0.06, abs=1e-6)
    assert step.observation.env_step.tolist() == [4]


def test_a_row_goes_on_after_its_success() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2, success_hold_frames=2))
    sim.reset(one_step_from_success(sim))
    push, hold = torch.tensor([[[0.5, 0.0]] * 2]), torch.zeros(1, 2, 2)
    steps = [sim.step_chunk(push), sim.step_chunk(push), sim.step_chunk(hold), sim.step_chunk(push)]
    assert [s.terminated.item() for s in steps] == [False, False, True, True]
    assert [s.valid[0].tolist() for s in steps] == [[True, True], [False, False], [False, False], [False, False]]
    assert [s.rewards.sum().item() for s in steps] == [1.0, 0.0, 0.0, 0.0]
    assert not torch.equal(steps[1].frames[:, -1], steps[0].frames[:, -1]), "still pushing"
    assert torch.equal(steps[3].frames[:, -1], steps[2].frames[:, -1]), "ended"
    assert [s.observation.env_step.item() for s in steps] == [2, 4, 6, 6]


def test_the_time_limit_ends_a_row_that_has_succeeded() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2, success_hold_frames=5, max_episode_steps=4))
    sim.reset(one_step_from_success(sim))
    steps = [sim.step_chunk(torch.tensor([[[0.5, 0.0]] * 2])) for _ in range(2)]
    assert [s.terminated.item() for s in steps] == [False, True]
    assert not steps[1].truncated.item()


def test_an_ended_row_stays_as_it_is() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2))
    sim.reset(one_step_from_success(sim))
    first = sim.step_chunk(torch.tensor([[[0.5, 0.0]] * 4]))
    second = sim.step_chunk(torch.tensor([[[-1.0, 0.3]] * 4]))
    assert not second.valid.any()
    assert second.rewards.sum() == 0
    assert second.terminated.all()
    assert torch.equal(second.observation.frames, first.observation.frames)
    assert torch.equal(second.observation.sim_state, first.observation.sim_state)
    assert torch.equal(second.frames[:, 0], first.frames[:, -1])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_time_limit_not_divisible_by_the_chunk(stride: int) -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=stride, max_episode_steps=6))
    sim.reset(sim.draw_initial_states("train", 1, 0).states)
    action = torch.tensor([[[0.0, 0.1]] * 4])
    first, second = sim.step_chunk(action), sim.step_chunk(action)
    assert first.valid.all()
    assert not first.done.any()
    assert second.valid.tolist() == [[True, True, False, False]]
    assert second.truncated.tolist() == [True]
    assert second.terminated.tolist() == [False]
    assert second.observation.env_step.tolist() == [6]
    moved = second.observation.proprio[0, 1] - first.observation.proprio[0, 1]
    assert moved.item() == pytest.approx(2 * 0.1 * 0.2, abs=1e-6)  # two of the four actions


def test_rows_that_stop_early_keep_their_own_image() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=4, max_episode_steps=6))
    states = sim.draw_initial_states("train", 2, 0).states
    late = states.clone()
    late[0, -1] = 4  # row 0 has two steps left, row 1 has six
    action = torch.tensor([[[0.3, 0.5]] * 4] * 2)
    sim.reset(late)
    together = sim.step_chunk(action)
    sim.reset(late[:1])
    alone = sim.step_chunk(action[:1])
    assert together.valid.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(together.frames[:1], alone.frames)
    assert torch.equal(together.observation.sim_state[:1], alone.observation.sim_state)


def test_context_frames() -> None:
    sim = ToySimulator(ToyConfig(actions_per_frame=2))
    start = sim.reset(sim.draw_initial_states("train", 2, 0).states).frames
    assert start.shape == (2, 3, 16, 16, 3)
    assert torch.equal(start[:, 0], start[:, 2])
    assert torch.equal(start[:, 1], start[:, 2])
    step = sim.step_chunk(torch.full((2, 4, 2), 0.5))
    context = step.observation.frames
    assert torch.equal(context[:, 0], start[:, 0])
    assert torch.equal(context[:, 1], step.frames[:, 0])
    assert torch.equal(context[:, 2], step.frames[:, 1])
    assert not torch.equal(step.frames[:, 0], step.frames[:, 1])


def test_restart_from_an_observation_keeps_its_context() -> None:
    sim = ToySimulator(ToyConfig())
    sim.reset(sim.draw_initial_states("train", 2, 0).states)
    middle = sim.step_chunk(torch.full((2, 4, 2), 0.5)).observation
    expected = sim.step_chunk(torch.full((2, 4, 2), -0.2))
    again = sim.reset(middle)
    assert torch.equal(again.frames, middle.frames)
    assert again.env_step.tolist() == [4, 4]
    actual = sim.step_chunk(torch.full((2, 4, 2), -0.2))
    assert torch.equal(actual.frames, expected.frames)
    assert torch.equal(actual.observation.frames, expected.observation.frames)


def test_reset_of_some_rows() -> None:
    sim = ToySimulator(ToyConfig())
    states = sim.draw_initial_states("train", 3, 0).states
    sim.reset(states)
    before = sim.step_chunk(torch.full((3, 4, 2), 0.5)).observation
    after = sim.reset(states[:1], rows=torch.tensor([1]))
    assert after.env_step.tolist() == [4, 0, 4]
    assert torch.equal(after.frames[[0, 2]], before.frames[[0, 2]])
    assert torch.equal(after.frames[1], sim.reset(states[:1]).frames[0])


def test_a_row_does_not_depend_on_its_batch() -> None:
    sim = ToySimulator(ToyConfig())
    states = sim.draw_initial_states("train", 8, 0).states
    keys, variants = make_row_keys(8, "keys"), SCRIPTED_VARIANTS
    together = play(sim, states, variants, keys)
    for row in (0, 3, 5):
        alone = play(sim, states[row : row + 1], variants[row : row + 1], keys[row : row + 1])
        for a, b in zip(together, alone, strict=True):
            for name in ("frames", "proprio", "rewards", "valid", "success", "distances_m", "sim_states"):
                assert torch.equal(getattr(a, name)[row : row + 1], getattr(b, name)), (row, name)


def _margins(steps: list[ChunkStep]) -> torch.Tensor:
    return torch.cat([s.distances_m for s in steps if s.distances_m is not None], dim=1).min(dim=1).values


def test_variants_give_success_near_success_and_failure() -> None:
    sim = ToySimulator(ToyConfig())
    states, keys = sim.draw_initial_states("train", 64, 0).states, make_row_keys(64, 0)
    success = {}
    for variant in SCRIPTED_VARIANTS:
        steps = play(sim, states, (variant,) * 64, keys)
        success[variant] = int(steps[-1].terminated.sum())
        if variant == "stops_short":
            margins = _margins(steps)
            assert (margins > 0).all()
            assert (margins < 0.045).all()
        if variant == "far":
            assert (_margins(steps) > 0.045).all()
    assert success["expert"] >= 63
    assert success["stops_short"] == success["far"] == 0
    assert 0 < success["late"] < 64


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match="sideways"):
        ToySimulator(ToyConfig()).make_scripted_policy(("sideways",), make_row_keys(1), 4)
