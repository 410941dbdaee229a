"""What GRPO starts from, what it minimises, and in which direction it moves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from worldloop.loop.session import Session
from worldloop.stages.decisions import Decisions
from worldloop.training.micro_batches import share_of

from worldloop.config.loading import load_config
from worldloop.core.randomness import make_generator, make_row_keys
from worldloop.core.types import ActionChunk, ChunkStep, Observation
from worldloop.factory import checkpoints
from worldloop.loop.run import run_loop
from worldloop.reporting.progress import SilentDisplay
from worldloop.rl.grpo import compute_kl_penalty, compute_policy_loss
from worldloop.rollout.rollout import Rollout
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import seed_dataset
from worldloop.stages.improve_policy import _History, _Improvement
from worldloop.storage.run_state import LoopState

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
SMALL = (
    "num_iterations=1",
    "fit_world_model.num_steps=8",
    "fit_world_model.num_proprio_steps=4",
    "clone_policy.num_steps=8",
    "check_world_model.probe_steps=5",
    "improve_policy.num_updates=2",
    "improve_policy.num_candidates=1",
    "improve_policy.num_imitation_steps=10",
    "improve_policy.restart_from=successes",
)
FRESH = (
    "seed_dataset.episodes={expert: 2}",
    "improve_policy.num_critic_steps=0",
    "improve_policy.clip_ratio_low=0.1",
    "improve_policy.clip_ratio_high=0.3",
    "improve_policy.kl_coefficient=0.5",
    "improve_policy.temperature=1.5",
    "improve_policy.learning_rate=0.01",
)


def test_grpo_goes_on_from_a_policy_that_imitates_every_success(tmp_path: Path) -> None:
    overrides = [f"run_root={tmp_path}", "check_world_model.required_auc=0", "improve_policy.learning_rate=1e-9"]
    directory = run_loop(load_config(DEBUG, [*overrides, *SMALL]))
    entry = directory.read_results()["iterations"][1]
    imitated, improved = (f"checkpoints/iteration_001/policy_{name}" for name in ("of_successes", "after_002"))
    assert set(entry["validation_success"]) == {imitated, improved}
    assert entry["imagined_frames"] > 0
    clone, start, end = (
        checkpoints.load_policy(directory.path / path).state_dict()
        for path in ("checkpoints/iteration_000/policy", imitated, improved)
    )
    moved = {name for name in start if (end[name].float() - start[name].float()).abs().max() > 1e-5}
    assert not moved, "with steps this small GRPO stays where it began"
    assert any((clone[name].float() - start[name].float()).abs().max() > 1e-2 for name in start)


def test_a_distrusted_model_leaves_the_imitation_to_the_gate(tmp_path: Path) -> None:
    overrides = [f"run_root={tmp_path}", "check_world_model.required_auc=1", "check_world_model.max_fits=1"]
    enough = "seed_dataset.episodes.noisy=100"  # held-out successes to judge by
    entry = run_loop(load_config(DEBUG, [*overrides, enough, *SMALL])).read_results()["iterations"][1]
    assert list(entry["validation_success"]) == ["checkpoints/iteration_001/policy_of_successes"]
    assert "below check_world_model.required_auc 1" in entry["improvement_skipped"]


@pytest.fixture
def improvement(tmp_path: Path) -> _Improvement:
    """GRPO before its first round, from a policy and a world model with fresh weights."""
    config = load_config(DEBUG, FRESH)
    context: Any = Session(config, tmp_path, "test", InlineRuntime(0, 0, SilentDisplay()), SilentDisplay())
    state = seed_dataset.run(LoopState(), config.seed_dataset, context)
    normalisation = context.store.version(state.dataset).normalisation
    context.save_policy(context.new_policy(normalisation, seed=0), "policy")
    context.save_world_model(context.new_world_model(normalisation, seed=0), "world_model")
    return _Improvement(replace(state, world_model="world_model"), config.improve_policy, "policy", context)


def _act(improvement: _Improvement) -> tuple[Observation, ActionChunk]:
    """Eight rows that begin in one state and differ in the policy's samples."""
    observation = improvement.dataset.observation(torch.zeros(8, 2, dtype=torch.long))
    return observation, improvement.policy.act(observation, make_row_keys(8, "test"))


def test_the_loss_is_the_clipped_surrogate_and_the_distance_to_the_start(improvement: _Improvement) -> None:
    assert improvement.policy.temperature == improvement.reference.temperature == 1.5
    observation, chunk = _act(improvement)
    generator = make_generator(0)
    with torch.no_grad():
        for parameter in improvement.reference.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        log_probs, reference = (
            model.log_prob(observation, chunk) for model in (improvement.policy, improvement.reference)
        )
    old = log_probs - torch.linspace(-0.4, 0.4, 16).reshape(8, 2)  # ratios from .67 to 1.49, on both sides of the clip
    valid = torch.arange(16).reshape(8, 2) % 5 != 0
    decisions = Decisions(observation, chunk, old, valid, torch.linspace(-1, 2, 8))
    rows = torch.tensor([6, 1, 3, 0])
    surrogate, _ = compute_policy_loss(log_probs[rows], old[rows], decisions.advantages[rows], valid[rows], 0.1, 0.3)
    kl = compute_kl_penalty(log_probs[rows], reference[rows], valid[rows])
    assert abs(surrogate) > 0.05
    assert kl > 0.05
    loss, figures = improvement._compute_loss(decisions, rows)
    assert loss.item() == pytest.approx(surrogate.item() + 0.5 * kl.item(), abs=1e-5)
    assert figures["loss"] == pytest.approx(loss.item())
    assert figures["loss_policy"] == pytest.approx(surrogate.item(), abs=1e-5)
    assert figures["kl_to_start"] == pytest.approx(kl.item(), abs=1e-5)


def test_chunks_that_succeeded_become_likelier_than_those_that_failed(improvement: _Improvement) -> None:
    observation, chunk = _act(improvement)
    succeeds = torch.arange(8) % 2 == 0
    frames = observation.frames[:, -1:]
    step = ChunkStep(
        observation=observation,
        frames=frames,
        proprio=None,
        rewards=succeeds[:, None] * torch.tensor([0.0, 1.0]),
        success_prob=torch.where(succeeds, 0.9, 0.1)[:, None],
        valid=torch.ones(8, 2, dtype=torch.bool),
        success=succeeds[:, None].repeat(1, 2),
        terminated=succeeds,
        truncated=~succeeds,
    )
    group = torch.zeros(8, dtype=torch.long)
    rollout = Rollout("imagined", group, ("0/0",) * 8, (observation,), (chunk,), (step,), "p", "w")
    metrics = improvement.improve([rollout])
    assert metrics["groups_dropped"] == 0
    assert metrics["return_mean"] == pytest.approx((4 * 1.0 + 4 * 0.1) / 8)
    with torch.no_grad():
        gain = (improvement.policy.log_prob(observation, chunk) - chunk.log_probs).sum(1)
    assert gain[succeeds].min() > 0 > gain[~succeeds].max()


def test_what_a_group_has_in_common_is_computed_once(
    improvement: _Improvement, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start = improvement.world_model.start

    def count(context: Observation, noise_key: torch.Tensor) -> Any:
        started.append(len(noise_key))
        return start(context, noise_key)

    monkeypatch.setattr(improvement.world_model, "start", count)
    rollout = improvement.imagine(update=0, number=0)
    config = improvement.config
    assert started == [config.groups_per_update]
    assert len(rollout.group_id) == config.groups_per_update * config.group_size
    first = rollout.steps[0].frames[:, 0].reshape(config.groups_per_update, config.group_size, -1)
    assert (first != first[:, :1]).any(), "members act differently"


def test_what_is_kept_of_past_rounds_is_kept_to_the_last_bit() -> None:
    history = _History()
    for success in (1 / 3, 0.1 + 0.2):
        history.add(success, 2.0**24 + 1)
    again = _History()
    again.load_state_dict({name: value.clone() for name, value in history.state_dict().items()})
    assert (again.success, again.num_frames) == (history.success, history.num_frames)


def test_kinds_of_rows_have_their_share_of_many_small_parts_too() -> None:
    for parts in (1, 2, 4, 8, 12, 24):
        drawn = [share_of(24 // parts, 0.25, number) for number in range(parts)]
        assert sum(drawn) == 6
        assert max(drawn) <= 24 // parts
