"""The critic on episodes whose ends are written in their frames."""

from dataclasses import replace

import pytest
import torch
from hand_specs import make_spec
from reporters import RecordingReporter

from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Observation
from worldloop.value.success_critic import Critic, LoadOutcomes, fit_critic


def make_one_camera(size: int) -> SimulatorSpec:
    """One camera, and one task of at most 20 steps."""
    spec = make_spec({"base": (size, size)}, ("push",))
    return replace(spec, tasks=(replace(spec.tasks[0], max_episode_steps=20),))


def fit(load: LoadOutcomes, spec: SimulatorSpec, num_rows: int = 400, **settings: int) -> Critic:
    return fit_critic(
        load, num_rows, spec, **({"num_steps": 60, "batch_size": 32} | settings),
        generator=torch.Generator().manual_seed(0), device=torch.device("cpu"), reporter=RecordingReporter(),
    )  # fmt: skip


def observe(frames: dict[str, torch.Tensor], proprio: torch.Tensor | None, env_step: torch.Tensor) -> Observation:
    """Rows that all do the same task."""
    B = len(env_step)
    return Observation(frames, proprio, ("push",) * B, ("i",) * B, env_step)


def draw(rows: torch.Tensor, with_proprio: bool = True) -> tuple[Observation, torch.Tensor]:
    """Row r succeeds where r is even: then its frame now has a bright square at a place of its own."""
    succeeds = rows % 2 == 0
    frames = torch.full((len(rows), 3, 16, 16, 3), 90, dtype=torch.uint8)
    for i, row in enumerate(rows.tolist()):
        if row % 2 == 0:
            at = 2 + row % 11
            frames[i, -1, at : at + 3, 4:8] = 200
    proprio = torch.zeros(len(rows), 2) if with_proprio else None
    return observe({"base": frames}, proprio, rows % 20), succeeds.float()


@pytest.mark.parametrize("with_proprio", [True, False])
def test_the_critic_tells_who_will_succeed(with_proprio: bool) -> None:
    state = torch.get_rng_state()
    reporter = RecordingReporter()
    critic = fit_critic(
        lambda rows: draw(rows, with_proprio), 400, make_one_camera(16), num_steps=60, batch_size=32,
        generator=torch.Generator().manual_seed(0), device=torch.device("cpu"), reporter=reporter,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers"
    (bar,) = reporter.bars
    assert (bar.total, bar.unit, bar.count) == (60, "critic step", 60)
    assert bar.figures[-1]["loss"] < bar.figures[0]["loss"]
    assert not critic.training
    observation, succeeds = draw(torch.arange(1000, 1100), with_proprio)
    value = critic.value(observation)
    assert value.shape == (100,)
    assert ((value >= 0) & (value <= 1)).all()
    assert ((value > 0.5) == (succeeds > 0.5)).float().mean() > 0.95


@pytest.mark.parametrize("decides", ["env_step", "proprio"])
def test_the_critic_reads_the_time_and_the_proprio(decides: str) -> None:
    """All frames are equal, and odd rows fail: they are at the time limit, or have another proprio."""

    def load(rows: torch.Tensor) -> tuple[Observation, torch.Tensor]:
        fails = rows % 2
        frames = torch.full((len(rows), 3, 8, 8, 3), 90, dtype=torch.uint8)
        late, far = (fails if decides == name else torch.zeros_like(fails) for name in ("env_step", "proprio"))
        return observe({"base": frames}, far[:, None].float(), 20 * late), 1.0 - fails

    critic = fit(load, make_one_camera(8), 40, num_steps=80, batch_size=64)
    success, failure = critic.value(load(torch.tensor([0, 1]))[0]).tolist()
    assert success > failure + 0.05, "exactly equal if it were not read"


def test_missing_proprio_is_an_error() -> None:
    critic = fit(draw, make_one_camera(16), 40, num_steps=2, batch_size=4)
    with pytest.raises(ValueError, match="proprio"):
        critic.value(draw(torch.arange(4), with_proprio=False)[0])


# --- several cameras and tasks ------------------------------------------------------------------------------------


def test_the_critic_reads_every_camera_of_its_spec_and_no_other() -> None:
    """Cameras of 16 x 16 and 8 x 12 pixels; the square is in the second one alone."""
    spec = make_spec({"base": (16, 16), "hand": (8, 12)}, ("push",))

    def load(rows: torch.Tensor) -> tuple[Observation, torch.Tensor]:
        frames = {
            "base": torch.full((len(rows), 3, 16, 16, 3), 90, dtype=torch.uint8),
            "hand": torch.full((len(rows), 3, 8, 12, 3), 90, dtype=torch.uint8),
        }
        succeeds = rows % 2 == 0
        for i, row in enumerate(rows.tolist()):
            if succeeds[i]:
                frames["hand"][i, -1, 2:5, 1 + row % 8 : 4 + row % 8] = 200
        return observe(frames, None, rows % 20), succeeds.float()

    observation, succeeds = load(torch.arange(1000, 1100))
    value = fit(load, spec).value(observation)
    assert ((value > 0.5) == (succeeds > 0.5)).float().mean() > 0.95
    blind = fit(load, spec.with_cameras(["base"]), num_steps=2)
    assert torch.equal(blind.value(observation), blind.value(observation.with_cameras(["base"])))
    with pytest.raises(ValueError, match="the observation has no camera 'base': it has hand"):
        blind.value(observation.with_cameras(["hand"]))


def test_the_instruction_says_what_is_a_success_where_two_tasks_look_alike() -> None:
    """A square moves up or down: one is what the first task wants, the other the second."""
    spec = make_spec({"base": (16, 16)}, ("push", "pull"))

    def load(rows: torch.Tensor) -> tuple[Observation, torch.Tensor]:
        frames = torch.full((len(rows), 3, 16, 16, 3), 90, dtype=torch.uint8)
        is_up, is_push = rows % 2 == 0, rows // 2 % 2 == 0
        for i, row in enumerate(rows.tolist()):
            top, left = (1 if is_up[i] else 11), 1 + row // 4 % 10
            frames[i, -1, top : top + 4, left : left + 4] = 200
        task = tuple("push" if push else "pull" for push in is_push.tolist())
        said = tuple(spec.task(t).instructions[row % 3 % 2] for t, row in zip(task, rows.tolist(), strict=True))
        observation = Observation({"base": frames}, None, task, said, torch.zeros_like(rows))
        return observation, (is_up == is_push).float()

    observation, succeeds = load(torch.arange(1000, 1100))
    value = fit(load, spec, num_steps=200).value(observation)
    assert ((value > 0.5) == (succeeds > 0.5)).float().mean() > 0.95


def test_the_time_that_has_passed_is_a_share_of_the_tasks_own_limit() -> None:
    """Step 25 is half of the first task's 50 and step 30 half of the other's 60, and nothing else tells them apart."""
    spec = make_spec({"base": (8, 8)}, ("push", "pull"))
    frames = {"base": torch.full((3, 3, 8, 8, 3), 90, dtype=torch.uint8)}
    backgrounds = {"base": torch.zeros(3, 8, 8)}
    torch.manual_seed(0)
    critic = Critic(spec, backgrounds, None).eval()
    at = Observation(frames, None, ("push", "pull", "pull"), ("i",) * 3, torch.tensor([25, 30, 25]))
    first, second, other = critic.value(at).tolist()
    assert first == second != other
