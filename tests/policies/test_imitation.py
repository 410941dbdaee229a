"""Behaviour cloning of any policy from any source of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from counting import SPEC
from reporters import RecordingReporter
from torch import Tensor, nn

from worldloop.core.interfaces import ImitationSource, Metrics, Policy
from worldloop.core.types import ActionChunk, ImitationBatch, Normalisation, Observation
from worldloop.policies.imitation import ImitationConfig, ImitationObjective, fit_by_imitation
from worldloop.training.resume import TrainingSetup

CONFIG = ImitationConfig(num_steps=60, batch_size=8, learning_rate=0.1, weight_decay=0.0, precision="fp32")


class Doubling:
    """An `ImitationSource` in which every action is twice the position. Batches are noted as they are drawn."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def images(self) -> dict[str, Tensor]:
        return {"cam": torch.zeros(5, 2, 2, 3, dtype=torch.uint8)}

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        self.sizes.append(batch_size)
        position = torch.rand(batch_size, 1, generator=generator) - 0.5
        frames = {"cam": torch.zeros(batch_size, 1, 2, 2, 3, dtype=torch.uint8)}
        start = torch.zeros(batch_size, dtype=torch.long)
        observation = Observation(frames, position, ("t",) * batch_size, ("i",) * batch_size, start)
        valid = torch.ones(batch_size, chunk_length, dtype=torch.bool)
        valid[0, 1:] = False
        return ImitationBatch(observation, 2 * position[:, None].expand(-1, chunk_length, -1), valid)


class Line(Policy):
    """Every action of a chunk is ``slope`` times the position."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.normalisation = SPEC, Normalisation(torch.zeros(1), torch.ones(1))
        self.chunk_length, self.temperature, self.version = 3, 1.0, ""
        self.slope = nn.Parameter(torch.zeros(1, 1))
        self.prepared: list[tuple[int, bool]] = []
        self.dtypes: set[torch.dtype] = set()

    def prepare(self, dataset: ImitationSource) -> None:
        self.prepared.append((len(dataset.images()["cam"]), bool(self.slope != 0)))

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        raise AssertionError("nobody acts")

    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        assert self.training
        assert batch.observation.proprio is not None
        predicted = batch.observation.proprio @ self.slope
        self.dtypes.add(predicted.dtype)
        error = (predicted[:, None] - batch.actions).square()[..., 0]
        loss = (error * batch.valid).sum() / batch.valid.sum()
        return loss, {"noise": float(torch.rand(1, generator=generator))}


def imitate(policy: Line, dataset: Doubling, reporter: RecordingReporter | None = None, **settings: Any) -> Policy:
    setup = TrainingSetup(**settings)
    return fit_by_imitation(
        policy, dataset, CONFIG, setup.make_generators("test"), setup, reporter or RecordingReporter(),
        name="clone_policy", first_step=120,
    )  # fmt: skip


def test_a_policy_learns_to_do_what_is_done() -> None:
    policy, dataset, reporter = Line(), Doubling(), RecordingReporter()
    policy.eval()
    assert imitate(policy, dataset, reporter) is policy
    assert float(policy.slope) == pytest.approx(2.0, abs=0.15)
    assert policy.prepared == [(5, False)], "once, before its first step"
    assert dataset.sizes == [8] * 60
    assert reporter.bars[0].total == 60
    curve = reporter.curves["clone_policy"]
    assert list(curve) == [120, 140, 160]
    assert set(curve[120]) == {"clone_policy/loss", "clone_policy/noise", "clone_policy/grad_norm"}
    assert curve[160]["clone_policy/loss"] < 0.1 * curve[120]["clone_policy/loss"]


def test_microbatches_share_a_batch_and_weigh_by_their_valid_actions() -> None:
    dataset = Doubling()
    imitate(Line(), dataset, num_microbatches=4)
    assert dataset.sizes == [2] * (4 * 60)
    setup = TrainingSetup()
    objective = ImitationObjective(
        Line(), dataset, setup.make_generators("test"), setup.device, batch_size=2, precision="fp32"
    )
    (batch,) = next(iter(objective.batches(0))).values()
    assert int(objective.count(batch)) == 2 * 3 - 2


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_losses_are_computed_in_the_precision_that_is_asked_for(precision: str, dtype: torch.dtype) -> None:
    policy, setup = Line(), TrainingSetup()
    objective = ImitationObjective(
        policy, Doubling(), setup.make_generators("test"), setup.device, batch_size=2, precision=precision
    )
    (batch,) = next(iter(objective.batches(0))).values()
    loss, metrics = objective.compute_loss(batch, 0)
    assert policy.dtypes == {dtype}
    assert metrics["loss"] == float(loss.detach())


def test_the_checkpoint_stays_until_the_result_is_saved(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"checkpoint_root": tmp_path, "checkpoint_every_s": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        imitate(Line(), Doubling(), RecordingReporter(cut=40), **settings)
    dataset, resumed, whole = Doubling(), Line(), Line()
    imitate(resumed, dataset, **settings)
    assert len(dataset.sizes) == 20
    imitate(whole, Doubling())
    assert torch.equal(resumed.slope, whole.slope)
    assert TrainingSetup(**settings).has_checkpoint("clone_policy")


@pytest.mark.parametrize(
    ("key", "value"), [("num_steps", 0), ("batch_size", 0), ("learning_rate", 0.0), ("precision", "fp8")]
)
def test_the_config_names_the_bad_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"clone_policy\.{key}"):
        ImitationConfig(**{key: value})  # type: ignore[arg-type]
