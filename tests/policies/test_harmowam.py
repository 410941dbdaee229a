"""HarmoWAM on dots: what each expert and the gate learn, who acts, and what is kept of plans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from planner_toy import HARMOWAM, make_planner
from torch import Tensor
from world_model_toy import S_PER_FRAME, TWO_CAMERAS, ToyEpisodes

from worldloop.core import images
from worldloop.core.errors import WorldloopError
from worldloop.core.types import ImitationBatch, Observation
from worldloop.policies.harmowam.policy import HarmoWAM
from worldloop.training.optimizer import Optimizer

CHUNK = 2 * S_PER_FRAME  # two planned frames


class Dots:
    """Every action is a function of what is seen: go left if the dot is above, and down by as much as it is right."""

    def __init__(self, num_rows: int = 64) -> None:
        data = ToyEpisodes(num_rows, seed=3, cameras=TWO_CAMERAS, tasks=("Dot", "LeftDot"))
        frames = {camera: stored[:, [0, 1, 1]] for camera, stored in data.frames.items()}
        self.observation = replace(data.first_observation(num_rows), frames=frames, proprio=data.proprio[:, 1])
        x, y = data.proprio[:, 1].T
        self.is_above = (y > 0).long()
        action = torch.stack([0.8 - 1.6 * self.is_above, x], dim=1)
        self.actions = action[:, None].expand(-1, CHUNK, -1).contiguous()

    def batch(self, is_interaction: Tensor | None = None) -> ImitationBatch:
        valid = torch.ones(self.actions.shape[:2], dtype=torch.bool)
        labels = self.is_above if is_interaction is None else is_interaction
        return ImitationBatch(self.observation, self.actions, valid, labels)

    def images(self) -> dict[str, Tensor]:
        return {camera: stored[:, -1] for camera, stored in self.observation.frames.items()}

    def observations(self, block_size: int) -> Iterator[Observation]:
        for first in range(0, len(self.actions), block_size):
            yield self.observation.rows(list(range(first, min(first + block_size, len(self.actions)))))

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        return self.batch().rows(torch.randint(len(self.actions), (batch_size,), generator=generator))


def make_policy(**changes: Any) -> HarmoWAM:
    planner = make_planner()
    torch.manual_seed(1)
    return HarmoWAM(replace(HARMOWAM, **changes), planner, CHUNK)


def train(policy: HarmoWAM, dots: Dots, num_steps: int, is_good: int = -1) -> dict[str, float]:
    policy.prepare(dots)
    policy.train()
    optimizer = Optimizer(policy.parameters(), learning_rate=3e-3, num_steps=None, warmup_steps=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        batch = dots.sample(generator, 32, CHUNK)
        loss, metrics = policy.compute_conditioned_loss(batch, torch.full((32,), is_good), generator)
        optimizer.backward(loss)
        optimizer.step()
    policy.eval()
    return metrics


@pytest.fixture(scope="module")
def learned() -> tuple[HarmoWAM, Dots]:
    policy, dots = make_policy(), Dots()
    train(policy, dots, 100)
    return policy, dots


def test_both_experts_and_the_gate_learn(learned) -> None:
    policy, dots = learned
    for name in ("predictive", "reactive"):
        alone = make_policy(acts_by=name)
        alone.load_state_dict(policy.state_dict())
        acted = alone.eval().act(dots.observation, None).actions
        error = (acted - dots.actions).abs().mean()
        floor = (dots.actions.mean(0) - dots.actions).abs().mean()
        assert error < 0.4 * floor, f"{name}: {error:.3f}, the mean action {floor:.3f}"
    word = policy.act(dots.observation, None).trace["interaction"]
    assert ((word > 0.5).long() == dots.is_above).float().mean() > 0.9


def test_the_gate_chooses_the_expert_of_each_row(learned) -> None:
    policy, dots = learned
    acted = {}
    for name in ("gate", "predictive", "reactive", "average"):
        one = make_policy(acts_by=name)
        one.load_state_dict(policy.state_dict())
        acted[name] = one.eval().act(dots.observation, torch.arange(64))
    chosen = acted["gate"].trace["interaction"] >= 0.5
    assert 10 < chosen.sum() < 54
    expected = torch.where(chosen[:, None, None], acted["predictive"].actions, acted["reactive"].actions)
    assert torch.allclose(acted["gate"].actions, expected, atol=1e-6)
    assert acted["gate"].log_probs is None
    assert not torch.allclose(acted["predictive"].actions, acted["reactive"].actions, atol=1e-2)


def test_frames_are_planned_only_for_the_reactive_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name, expected in (("predictive", 0), ("reactive", 1), ("average", 1)):
        policy, dots = make_policy(acts_by=name).eval(), Dots(4)
        plan = policy.planner.plan
        monkeypatch.setattr(policy.planner, "plan", lambda *a, plan=plan: calls.append(a[2]) or plan(*a))
        calls.clear()
        policy.act(dots.observation, None)
        assert calls == [2] * expected, name


def test_only_rows_in_transit_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, dots = make_policy().eval(), Dots(5)
    plan, planned = policy.planner.plan, []
    monkeypatch.setattr(policy.planner, "plan", lambda o, *a: planned.append(len(o)) or plan(o, *a))
    monkeypatch.setattr(policy, "choose", lambda *_: torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]))
    policy.act(dots.observation, torch.arange(5))
    assert planned == [2]


def test_samples_follow_the_key_and_none_is_greedy() -> None:
    policy, dots = make_policy(acts_by="predictive").eval(), Dots(3)
    keys = torch.tensor([5, 6, 7])
    a, b, other = (policy.act(dots.observation, key).actions for key in (keys, keys, keys + 9))
    assert torch.equal(a, b)
    assert not torch.allclose(a, other)
    assert torch.equal(*(policy.act(dots.observation, None).actions for _ in range(2)))
    later = replace(dots.observation, env_step=dots.observation.env_step + CHUNK)
    assert not torch.allclose(a, policy.act(later, keys).actions)


def test_euler_steps_reach_the_data_of_a_constant_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """With velocity = c everywhere, noise x ends at x + c whatever the number of steps; guidance is u + b (c - u)."""
    policy, dots = make_policy(acts_by="predictive").eval(), Dots(2)
    seen: list[int] = []

    def velocity(noisy: Tensor, t: Tensor, memory: Tensor) -> Tensor:
        seen.append(round(float(t[0]) * 5))
        return torch.full_like(noisy, 0.3 if memory.mean() > 0 else 0.1)

    monkeypatch.setattr(policy.predictive, "forward", velocity)
    good, unknown = torch.full((2, 1, 1), 1.0), torch.full((2, 1, 1), -1.0)
    monkeypatch.setattr(
        policy, "_remember", lambda observation, tokens, plan, is_good: good if is_good[0] == 1 else unknown
    )
    for guidance, expected in ((0.0, 0.1), (1.0, 0.3), (2.0, 0.5)):
        policy.guidance = guidance
        seen.clear()
        acted = policy.act(dots.observation, None).actions
        assert torch.allclose(acted, torch.full_like(acted, expected), atol=1e-6), guidance
        assert sorted(set(seen)) == [0, 1, 2, 3, 4]


def test_plans_are_made_before_cloning_and_kept_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldloop.policies.harmowam.policy.PLANS_AT_ONCE", 3)
    policy, dots = make_policy(num_cached_plans=6), Dots(8)
    plan, planned = policy.planner.plan, []
    monkeypatch.setattr(policy.planner, "plan", lambda o, *a: planned.append(len(o)) or plan(o, *a))
    policy.prepare(dots)
    assert planned == [3, 3], "the third block is beyond what is kept"
    policy.train()
    generator = torch.Generator()
    for rows, expected in (([0, 5, 2], []), ([6, 0, 7], [1, 1]), ([6], [1])):
        planned.clear()
        policy.compute_imitation_loss(dots.batch().rows(rows), generator)
        assert planned == expected, "one that is not kept is planned alone"
    policy.eval()
    assert not policy._plans


def test_a_resumed_training_has_the_same_plans() -> None:
    """The plans are made anew, in the same blocks, so that the same batches give the same loss, bit for bit."""
    dots, losses = Dots(24), []
    for rows in ([0, 1, 2, 3], [3, 9, 20]):
        policy = make_policy()
        policy.prepare(dots)
        policy.train()
        policy.compute_imitation_loss(dots.batch().rows(rows), torch.Generator().manual_seed(0))  # what came before
        batch = dots.batch().rows([3, 11, 20, 23])
        losses.append(policy.compute_imitation_loss(batch, torch.Generator().manual_seed(1))[0])
    assert torch.equal(*losses)


def test_a_plan_has_the_planners_precision_also_where_the_experts_train_in_another() -> None:
    policy, dots = make_policy().eval(), Dots(4)
    plain = policy._plan(dots.observation, needs_frames=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = policy._plan(dots.observation, needs_frames=True)
    assert torch.equal(plain.features, cast.features)
    assert all(torch.equal(plain.frames[c], cast.frames[c]) for c in plain.frames)


def test_the_reactive_expert_learns_from_good_chunks_alone_where_there_are_labels() -> None:
    dots = Dots(8)
    for is_good, rows in (([1, 1, 0, 0, -1, 1, 0, -1], [0, 1, 5]), ([-1] * 8, list(range(8)))):
        policy = make_policy()
        policy.prepare(dots)
        policy.train()
        generator = torch.Generator().manual_seed(0)
        _, metrics = policy.compute_conditioned_loss(dots.batch(), torch.tensor(is_good), generator)
        _, alone = policy.compute_imitation_loss(dots.batch().rows(rows), torch.Generator().manual_seed(0))
        assert metrics["loss_reactive"] == pytest.approx(alone["loss_reactive"], rel=1e-5)


def test_the_loss_is_the_weighted_sum_and_the_planner_stays() -> None:
    dots, weights = Dots(16), {"reactive_weight": 0.5, "gate_weight": 0.25}
    policy = make_policy(**weights)
    before = {name: value.clone() for name, value in policy.planner.state_dict().items()}
    loss, metrics = policy.compute_imitation_loss(dots.batch(), torch.Generator().manual_seed(0))
    parts = metrics["loss_predictive"], 0.5 * metrics["loss_reactive"], 0.25 * metrics["loss_gate"]
    assert loss.item() == pytest.approx(sum(parts), rel=1e-5)
    assert min(parts) > 0
    train(policy, dots, 3)
    assert all(torch.equal(value, before[name]) for name, value in policy.planner.state_dict().items())
    assert not any(parameter.requires_grad for parameter in policy.planner.parameters())


def test_unknown_labels_do_not_teach_the_gate() -> None:
    policy, dots = make_policy(), Dots(8)
    _, metrics = policy.compute_imitation_loss(dots.batch(torch.full((8,), -1)), torch.Generator())
    assert metrics["loss_gate"] == 0
    with pytest.raises(WorldloopError, match="gate needs labels"):
        policy.compute_imitation_loss(replace(dots.batch(), is_interaction=None), torch.Generator())


def test_without_features_no_token_of_the_planner_reaches_an_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    for uses_features in (True, False):
        policy, dots = make_policy(uses_features=uses_features, acts_by="average").eval(), Dots(4)
        acted = policy.act(dots.observation, None).actions
        features = policy.planner.features
        monkeypatch.setattr(policy.planner, "features", lambda o, features=features: -3 * features(o))
        changed = not torch.allclose(acted, policy.act(dots.observation, None).actions, atol=1e-5)
        assert changed == uses_features


def test_the_reactive_expert_sees_the_plan_and_the_predictive_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("reactive", True), ("predictive", False)):
        policy, dots = make_policy(acts_by=name).eval(), Dots(4)
        acted = policy.act(dots.observation, None).actions
        black = {c: torch.zeros_like(f[:, -1:]).expand(-1, 2, -1, -1, -1) for c, f in dots.observation.frames.items()}
        monkeypatch.setattr(policy.planner, "plan", lambda *_, black=black: black)
        assert (not torch.allclose(acted, policy.act(dots.observation, None).actions)) == expected


def test_instruction_and_indicator_change_the_predictive_expert_alone() -> None:
    policy, dots = make_policy(acts_by="predictive").eval(), Dots(4)
    plain = policy.act(dots.observation, None).actions
    policy.guidance = 1.0
    assert not torch.allclose(policy.act(dots.observation, None).actions, plain)
    policy.guidance = 0.0
    told: Observation = replace(dots.observation, instruction=("move up",) * 4)
    assert not torch.allclose(policy.act(told, None).actions, plain)


def test_backgrounds_are_those_of_the_demonstrations() -> None:
    policy, dots = make_policy(), Dots(8)
    policy.prepare(dots)
    for camera, stored in dots.images().items():
        mean = images.to_network(stored).mean(0)
        assert torch.allclose(dict(policy.stems.items())[camera].background, mean, atol=1e-6)
        assert torch.allclose(dict(policy.reactive.encoders.items())[camera].background, mean, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acts_by": "both"}, "acts_by"),
        ({"gate_signs": ("smell",)}, "gate_signs"),
        ({"gate_signs": ()}, "nothing that the gate could learn"),
        ({"num_denoising_steps": 0}, "num_denoising_steps"),
        ({"width": 33}, "width"),
        ({"action_low": 1.0}, "action_low"),
        ({"augment_brightness": 1.0}, "augment_brightness"),
        ({"stem_channels": ()}, "stem_channels"),
    ],
)
def test_bad_settings_are_named(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(HARMOWAM, **changes)
