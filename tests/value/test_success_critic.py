"""The critic of one probability, on episodes whose ends are written in their frames."""

import math
from dataclasses import replace

import pytest
import torch
from critic_rows import fit, make_normalisation, make_rows, observe
from hand_specs import make_spec

from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Observation
from worldloop.value.critic import ValueRows
from worldloop.value.success_critic import SuccessCritic


def make_critic(spec: SimulatorSpec, proprio_dim: int = 0) -> SuccessCritic:
    torch.manual_seed(0)
    return SuccessCritic(spec, make_normalisation(proprio_dim)).eval()


def make_one_camera(size: int) -> SimulatorSpec:
    """One camera, and one task of at most 20 steps."""
    spec = make_spec({"base": (size, size)}, ("push",))
    return replace(spec, tasks=(replace(spec.tasks[0], max_episode_steps=20),))


def draw(rows: torch.Tensor, with_proprio: bool = True) -> ValueRows:
    """Row r succeeds where r is even: then its frame now has a bright square at a place of its own."""
    frames = torch.full((len(rows), 3, 16, 16, 3), 90, dtype=torch.uint8)
    for i, row in enumerate(rows.tolist()):
        if row % 2 == 0:
            at = 2 + row % 11
            frames[i, -1, at : at + 3, 4:8] = 200
    proprio = torch.zeros(len(rows), 2) if with_proprio else None
    return make_rows(observe({"base": frames}, proprio, rows % 20), -(rows % 2).float())


def look_alike(rows: torch.Tensor) -> Observation:
    """Frames, proprio and time of all rows are equal."""
    frames = torch.full((len(rows), 3, 8, 8, 3), 90, dtype=torch.uint8)
    return observe({"base": frames}, None, torch.zeros_like(rows))


# --- value and loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("logit", "value"), [(0.0, -0.5), (math.log(3), -0.25), (-40.0, -1.0), (40.0, 0.0)])
def test_the_value_is_the_probability_minus_one(logit: float, value: float) -> None:
    critic = make_critic(make_one_camera(8))
    with torch.no_grad():
        critic.head[-1].weight.zero_()
        critic.head[-1].bias.fill_(logit)
    got = critic.value(look_alike(torch.arange(3)))
    assert (got.dtype, got.device.type, got.requires_grad) == (torch.float32, "cpu", False)
    torch.testing.assert_close(got, torch.full((3,), value))
    assert ((got >= -1) & (got <= 0)).all()


def test_the_loss_is_the_cross_entropy_of_the_return_plus_one() -> None:
    """With a probability of 3/4: a success costs -ln 3/4, a failure -ln 1/4, a return of -.4 a mixture of both."""
    critic = make_critic(make_one_camera(8))
    with torch.no_grad():
        critic.head[-1].weight.zero_()
        critic.head[-1].bias.fill_(math.log(3))
    rows = make_rows(look_alike(torch.arange(3)), torch.tensor([0.0, -1.0, -0.4]))
    loss, metrics = critic.compute_loss(rows, torch.Generator())
    success, failure = -math.log(0.75), -math.log(0.25)
    assert float(loss) == pytest.approx((success + failure + 0.6 * success + 0.4 * failure) / 3, rel=1e-5)
    assert metrics == {}


def test_the_value_is_the_mean_of_returns_between_the_ends_too() -> None:
    """Rows that look alike return -.8 or -.2, three to one."""
    critic = fit(
        make_critic(make_one_camera(8)),
        lambda rows: make_rows(look_alike(rows), torch.where(rows % 4 == 0, -0.2, -0.8)),
        num_steps=80,
        batch_size=64,
    )
    assert float(critic.value(look_alike(torch.arange(1)))) == pytest.approx(-0.65, abs=0.05)


# --- fitting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_proprio", [True, False])
def test_the_critic_tells_who_will_succeed(with_proprio: bool) -> None:
    critic = make_critic(make_one_camera(16), 2 if with_proprio else 0)
    fit(critic, lambda rows: draw(rows, with_proprio))
    held_out = draw(torch.arange(1000, 1100), with_proprio)
    value = critic.value(held_out.observation)
    assert value.shape == (100,)
    assert ((value >= -1) & (value <= 0)).all()
    assert ((value > -0.5) == (held_out.returns > -0.5)).float().mean() > 0.95


@pytest.mark.parametrize("decides", ["env_step", "proprio"])
def test_the_critic_reads_the_time_and_the_proprio(decides: str) -> None:
    """All frames are equal, and odd rows fail: they are at the time limit, or have another proprio."""

    def load(rows: torch.Tensor) -> ValueRows:
        fails = rows % 2
        frames = torch.full((len(rows), 3, 8, 8, 3), 90, dtype=torch.uint8)
        late, far = (fails if decides == name else torch.zeros_like(fails) for name in ("env_step", "proprio"))
        return make_rows(observe({"base": frames}, far[:, None].float(), 20 * late), -fails.float())

    critic = fit(make_critic(make_one_camera(8), 1), load, 40, num_steps=80, batch_size=64)
    success, failure = critic.value(load(torch.tensor([0, 1])).observation).tolist()
    assert success > failure + 0.05, "exactly equal if it were not read"


# --- several cameras and tasks ------------------------------------------------------------------------------------


def test_the_critic_reads_every_camera_of_its_spec_and_no_other() -> None:
    """Cameras of 16 x 16 and 8 x 12 pixels; the square is in the second one alone."""
    spec = make_spec({"base": (16, 16), "hand": (8, 12)}, ("push",))

    def load(rows: torch.Tensor) -> ValueRows:
        frames = {
            "base": torch.full((len(rows), 3, 16, 16, 3), 90, dtype=torch.uint8),
            "hand": torch.full((len(rows), 3, 8, 12, 3), 90, dtype=torch.uint8),
        }
        succeeds = rows % 2 == 0
        for i, row in enumerate(rows.tolist()):
            if succeeds[i]:
                frames["hand"][i, -1, 2:5, 1 + row % 8 : 4 + row % 8] = 200
        return make_rows(observe(frames, None, rows % 20), succeeds.float() - 1)

    held_out = load(torch.arange(1000, 1100))
    observation = held_out.observation
    value = fit(make_critic(spec), load).value(observation)
    assert ((value > -0.5) == (held_out.returns > -0.5)).float().mean() > 0.95
    blind = fit(make_critic(spec.with_cameras(["base"])), load, num_steps=2)
    assert torch.equal(blind.value(observation), blind.value(observation.with_cameras(["base"])))
    with pytest.raises(ValueError, match="the observation has no camera 'base': it has hand"):
        blind.value(observation.with_cameras(["hand"]))


def test_the_instruction_says_what_is_a_success_where_two_tasks_look_alike() -> None:
    """A square moves up or down: one is what the first task wants, the other the second."""
    spec = make_spec({"base": (16, 16)}, ("push", "pull"))

    def load(rows: torch.Tensor) -> ValueRows:
        frames = torch.full((len(rows), 3, 16, 16, 3), 90, dtype=torch.uint8)
        is_up, is_push = rows % 2 == 0, rows // 2 % 2 == 0
        for i, row in enumerate(rows.tolist()):
            top, left = (1 if is_up[i] else 11), 1 + row // 4 % 10
            frames[i, -1, top : top + 4, left : left + 4] = 200
        task = tuple("push" if push else "pull" for push in is_push.tolist())
        said = tuple(spec.task(t).instructions[row % 3 % 2] for t, row in zip(task, rows.tolist(), strict=True))
        observation = Observation({"base": frames}, None, task, said, torch.zeros_like(rows))
        return make_rows(observation, (is_up == is_push).float() - 1)

    held_out = load(torch.arange(1000, 1100))
    value = fit(make_critic(spec), load, num_steps=200).value(held_out.observation)
    assert ((value > -0.5) == (held_out.returns > -0.5)).float().mean() > 0.95


def test_the_time_that_has_passed_is_a_share_of_the_tasks_own_limit() -> None:
    """Step 25 is half of the first task's 50 and step 30 half of the other's 60, and nothing else tells them apart."""
    spec = make_spec({"base": (8, 8)}, ("push", "pull"))
    frames = {"base": torch.full((3, 3, 8, 8, 3), 90, dtype=torch.uint8)}
    at = Observation(frames, None, ("push", "pull", "pull"), ("i",) * 3, torch.tensor([25, 30, 25]))
    first, second, other = make_critic(spec).value(at).tolist()
    assert first == second != other
