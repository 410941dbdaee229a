"""What all critics share: the rows that they learn from, the fit, and what they read."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from critic_rows import fit, make_normalisation, make_rows, observe
from hand_specs import make_spec
from reporters import RecordingReporter
from torch import Tensor

from worldloop.core.interfaces import Metrics
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Observation
from worldloop.value import CRITICS
from worldloop.value.critic import (
    BRIGHTNESS,
    SHIFT_PX,
    Critic,
    CriticObjective,
    ValueRows,
    average_value,
    fit_critic,
    value_as_return,
)

SPEC = make_spec({"base": (16, 16)}, ("push",))
TWO_VIEWS = make_spec({"base": (16, 16), "hand": (8, 12)}, ("push", "pull"))


def look(rows: Tensor) -> Observation:
    """Row r has a bright square at one of eight heights."""
    frames = torch.full((len(rows), 3, 16, 16, 3), 90, dtype=torch.uint8)
    for i, row in enumerate(rows.tolist()):
        top = 2 + row % 8
        frames[i, -1, top : top + 5, 4:9] = 200
    return observe({"base": frames}, torch.zeros(len(rows), 2), rows % 50)


def load(rows: Tensor) -> ValueRows:
    return make_rows(look(rows), -(rows % 8) / 8)


def make_critic(kind: str, spec: SimulatorSpec = SPEC, proprio_dim: int = 2, seed: int = 0) -> Critic:
    torch.manual_seed(seed)
    return CRITICS[kind](spec, make_normalisation(proprio_dim)).eval()


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outside", "message"),
    [
        (0.01, r"returns lie between -0\.5 and 0\.0\d+, allowed: -1 to 0"),
        (-1.01, r"returns lie between -1\.0\d+ and -0\.5, allowed: -1 to 0"),
        (float("nan"), "allowed: -1 to 0"),
    ],
)
def test_returns_outside_the_range_are_refused(outside: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rows(look(torch.arange(2)), torch.tensor([-0.5, outside]))
    assert len(make_rows(look(torch.arange(2)), torch.tensor([-1.0, 0.0]))) == 2


def test_rows_that_do_not_fit_together_are_refused() -> None:
    observation = look(torch.arange(2))
    with pytest.raises(ValueError, match=r"ValueRows\.returns has shape \(3,\), expected \(2,\)"):
        ValueRows(observation, torch.zeros(3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"ValueRows\.returns has shape \(2, 1\)"):
        ValueRows(observation, torch.zeros(2, 1), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"ValueRows\.future_proprio has shape \(3, 4\), expected \(2, None\)"):
        ValueRows(observation, torch.zeros(2), torch.zeros(3, 4))


def test_rows_are_selected_as_a_whole() -> None:
    rows = load(torch.arange(8))
    rows = replace(rows, future_proprio=torch.arange(16.0).reshape(8, 2)).rows([3, 3, 1])
    assert rows.returns.tolist() == [-3 / 8, -3 / 8, -1 / 8]
    assert rows.future_proprio.tolist() == [[6, 7], [6, 7], [2, 3]]
    assert rows.observation.env_step.tolist() == [3, 3, 1]


# --- the fit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CRITICS)
def test_a_fit_is_shown_and_draws_nobody_elses_random_numbers(kind: str) -> None:
    critic, reporter = make_critic(kind), RecordingReporter()
    state = torch.get_rng_state()
    fitted = fit(critic, load, 400, num_steps=25, reporter=reporter)
    assert torch.equal(torch.get_rng_state(), state)
    assert fitted is critic
    assert not fitted.training
    (bar,) = reporter.bars
    assert (bar.total, bar.unit, bar.count) == (25, "critic step", 25)
    losses = [figures["loss"] for figures in bar.figures]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert (reporter.lines, reporter.curves) == ([], {})


@pytest.mark.parametrize("kind", CRITICS)
def test_equal_generators_fit_equal_critics_whatever_was_drawn_before(kind: str) -> None:
    fitted = []
    for seed in (5, 6):
        critic = make_critic(kind)
        torch.manual_seed(seed)  # dropout draws from the global generator
        fitted.append(fit(critic, load, num_steps=3).state_dict())
    first, second = fitted
    fresh = make_critic(kind).state_dict()
    assert first.keys() == second.keys() == fresh.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], fresh[name]) for name in first)


class Noting(Critic):
    """A critic of one weight that notes what it is shown."""

    def __init__(self) -> None:
        super().__init__(SPEC, make_normalisation(2))
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.samples: list[Observation] = []
        self.rows: list[ValueRows] = []
        self.drawn: list[Tensor] = []

    def prepare(self, sample: Observation) -> None:
        self.samples.append(sample)

    def value(self, observation: Observation) -> Tensor:
        return (self.weight.detach() - 0.5).expand(len(observation))

    def compute_loss(self, rows: ValueRows, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        assert self.training
        self.rows.append(rows)
        self.drawn.append(torch.rand(1))
        return self.weight.square().sum() + 2, {"part": 1.5}


def test_batches_are_drawn_from_all_rows_and_from_no_others() -> None:
    critic, reporter, asked = Noting(), RecordingReporter(), []

    def noted(rows: Tensor) -> ValueRows:
        asked.append(rows)
        return load(rows)

    fit(critic, noted, 5, num_steps=30, batch_size=4, reporter=reporter)
    assert [len(sample) for sample in critic.samples] == [5], "before the first step"
    assert [len(rows) for rows in critic.rows] == [4] * 30
    assert torch.cat(asked).unique().tolist() == [0, 1, 2, 3, 4]
    for batch, rows in zip(asked[1:], critic.rows, strict=True):
        assert rows.returns.tolist() == (-(batch % 8) / 8).tolist()
        assert rows.observation.env_step.tolist() == batch.tolist()
    assert len(set(torch.cat(critic.drawn).tolist())) == 30, "dropout differs from step to step"
    assert {figures["loss"] for figures in reporter.bars[0].figures} == {2.0}


def test_the_sample_of_many_rows_is_small() -> None:
    critic = Noting()
    fit(critic, load, 3000, num_steps=1, batch_size=2)
    assert [len(sample) for sample in critic.samples] == [1024]


def test_frames_are_shifted_and_brightened_at_random_and_nothing_else_is_changed() -> None:
    """A square keeps its size, and moves by at most two pixels; the mean is at most 5 % brighter or darker."""
    critic = Noting()
    objective = CriticObjective(critic, load, 400, batch_size=64, generator=torch.Generator().manual_seed(0))
    rows = objective.draw(objective.generators[0])
    numbers = torch.randint(400, (64,), generator=torch.Generator().manual_seed(0))
    plain = load(numbers)
    assert torch.equal(rows.returns, plain.returns)
    assert torch.equal(rows.observation.env_step, plain.observation.env_step)
    tops, scales = [], []
    for now, before in zip(rows.observation.frames["base"], plain.observation.frames["base"], strict=True):
        square, was = (frame[-1, :, :, 0] > 130 for frame in (now, before))
        assert int(square.sum()) == int(was.sum()) == 25, "no square is near enough to the border to be cut"
        tops.append(int(square.any(1).int().argmax() - was.any(1).int().argmax()))
        scales.append(float(now[0].float().mean() / 90))
    assert set(tops) == set(range(-SHIFT_PX, SHIFT_PX + 1))
    assert max(abs(scale - 1) for scale in scales) < BRIGHTNESS + 0.01
    assert max(scales) - min(scales) > BRIGHTNESS


def test_the_objective_reads_the_cameras_of_the_critic_alone() -> None:
    critic = make_critic("categorical", TWO_VIEWS.with_cameras(["hand"]), 2)
    seen = []

    def noted(rows: Tensor) -> ValueRows:
        frames = {
            camera.name: torch.full((len(rows), 3, camera.height, camera.width, 3), 90, dtype=torch.uint8)
            for camera in TWO_VIEWS.robot.cameras
        }
        return make_rows(observe(frames, torch.zeros(len(rows), 2), rows % 50), -(rows % 2).float())

    handle = critic.register_forward_pre_hook(lambda _, given: seen.append(list(given[0].frames)))
    fit(critic, noted, 40, num_steps=2, batch_size=4)
    handle.remove()
    assert seen == [["hand"]] * 2


def test_a_critic_has_the_learning_rate_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr("worldloop.value.critic.fit_small", lambda critic, *_, **settings: given.update(settings))
    slow = Noting()
    slow.__class__ = type("Slow", (Noting,), {"learning_rate": property(lambda _: 1e-5), "WEIGHT_DECAY": 0.25})
    for critic in (Noting(), slow):
        fit_critic(
            critic, load, 4, num_steps=7, batch_size=2,
            generator=torch.Generator().manual_seed(0), reporter=RecordingReporter(),
        )  # fmt: skip
        own = (1e-5, 0.25) if critic is slow else (2e-3, 0.05)
        assert (given["learning_rate"], given["weight_decay"]) == own
        assert (given["num_steps"], given["unit"]) == (7, "critic step")


def test_the_value_of_several_critics_is_their_mean() -> None:
    """-.5 and -.5 + .4, and of one critic its own."""
    low, high = Noting(), Noting()
    torch.nn.init.constant_(high.weight, 0.4)
    observation = look(torch.arange(3))
    torch.testing.assert_close(average_value([low, high], observation), torch.full((3,), -0.3))
    torch.testing.assert_close(average_value([high], observation), torch.full((3,), -0.1))


def test_many_rows_are_valued_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of two; the values are those of one block, in order."""
    monkeypatch.setattr("worldloop.value.critic.MAX_ROWS", 2)
    critic = make_critic("success")
    observation = look(torch.arange(5))
    seen: list[int] = []

    class Counting:
        def value(self, rows: Observation) -> Tensor:
            seen.append(len(rows))
            return critic.value(rows)

    values = average_value([Counting()], observation)  # type: ignore[list-item]
    assert seen == [2, 2, 1]
    torch.testing.assert_close(values, critic.value(observation), atol=1e-3, rtol=0)


# --- what is read, and weights ------------------------------------------------------------------------------------


def draw_noise(num_rows: int) -> Observation:
    """Rows of random frames of two cameras, of both tasks in turn, with five values of proprio."""
    generator = torch.Generator().manual_seed(3)
    frames = {
        camera.name: torch.randint(
            256, (num_rows, 3, camera.height, camera.width, 3), dtype=torch.uint8, generator=generator
        )
        for camera in TWO_VIEWS.robot.cameras
    }
    proprio = torch.randn(num_rows, 5, generator=generator) * 3 + 1
    task = tuple("push" if row % 2 else "pull" for row in range(num_rows))
    return Observation(frames, proprio, task, tuple(f"do {t}" for t in task), torch.arange(num_rows) % 50)


@pytest.mark.parametrize("kind", CRITICS)
def test_weights_load_into_a_fresh_critic(kind: str) -> None:
    """Cameras of different sizes, two tasks and proprio; the values are bit-equal."""
    observation = draw_noise(20)
    rows = make_rows(observation, -(torch.arange(20) % 2).float())
    critic = fit(make_critic(kind, TWO_VIEWS, 5), rows.rows, 20, num_steps=3)
    fresh = make_critic(kind, TWO_VIEWS, 5, seed=1)
    assert not torch.equal(fresh.value(observation), critic.value(observation))
    assert critic.trained_state().keys() == critic.state_dict().keys()
    assert critic.frozen == frozenset()
    fresh.load_state_dict(critic.trained_state())
    assert torch.equal(fresh.value(observation), critic.value(observation))
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_critic(kind, TWO_VIEWS, 4).load_state_dict(critic.state_dict())


@pytest.mark.parametrize("kind", CRITICS)
def test_missing_proprio_is_an_error(kind: str) -> None:
    critic, observation = make_critic(kind, TWO_VIEWS, 5), draw_noise(4)
    with pytest.raises(ValueError, match="proprio"):
        critic.value(replace(observation, proprio=None))
    blind = make_critic(kind, TWO_VIEWS, 0)
    assert torch.equal(blind.value(observation), blind.value(replace(observation, proprio=None)))


@pytest.mark.parametrize("kind", CRITICS)
def test_proprio_is_read_in_the_units_of_the_data(kind: str) -> None:
    """Raw values of 1 + 3 x are to a critic of mean 1 and standard deviation 3 what x is to one of 0 and 1."""
    observation = draw_noise(6)
    assert observation.proprio is not None
    plain, scaled = make_critic(kind, TWO_VIEWS, 5), make_critic(kind, TWO_VIEWS, 5)
    scaled.encoder.normalisation = replace(  # type: ignore[union-attr]
        plain.normalisation, proprio_mean=torch.full((5,), 1.0), proprio_std=torch.full((5,), 3.0)
    )
    raw = replace(observation, proprio=observation.proprio * 3 + 1)
    torch.testing.assert_close(scaled.value(raw), plain.value(observation))
    assert not torch.allclose(plain.value(raw), plain.value(observation), atol=1e-4)


@pytest.mark.parametrize("kind", CRITICS)
def test_the_mean_frame_of_the_sample_is_the_background(kind: str) -> None:
    """Frames of 30 and 90 now, whatever the first ones are: the background is 60, between -1 and 1."""
    critic = make_critic(kind)
    frames = torch.full((2, 3, 16, 16, 3), 250, dtype=torch.uint8)
    frames[0, -1], frames[1, -1] = 30, 90
    critic.prepare(observe({"base": frames}, torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)))
    ((_, encoder),) = critic.encoder.encoders.items()  # type: ignore[union-attr]
    torch.testing.assert_close(encoder.background, torch.full((3, 16, 16), 60 / 127.5 - 1))


class Says:
    """A critic whose values are these."""

    def __init__(self, *values: float) -> None:
        self.values = torch.tensor(values)

    def value(self, observation: Any) -> torch.Tensor:
        return self.values


def test_the_expected_return_is_one_plus_the_mean_of_the_critics() -> None:
    """On the scale on which a success is 1: (-.2 - .6) / 2 + 1, (-1 - 0) / 2 + 1, 0 + 1, -1 + 1."""
    critics: list[Any] = [Says(-0.2, -1.0, 0.0, -1.0), Says(-0.6, 0.0, 0.0, -1.0)]
    frames = {"cam": torch.zeros(4, 1, 2, 2, 3, dtype=torch.uint8)}
    observation = Observation(frames, None, ("t",) * 4, ("i",) * 4, torch.zeros(4, dtype=torch.long))
    got = value_as_return(critics, observation)
    torch.testing.assert_close(got, torch.tensor([0.6, 0.5, 1.0, 0.0]))
    one = value_as_return(critics[:1], observation)
    torch.testing.assert_close(one, torch.tensor([0.8, 0.0, 1.0, 0.0]))
