"""Behaviour cloning of any policy from any source of episodes, with and without advantage labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import SPEC
from reporters import RecordingReporter
from torch import Tensor, nn

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import AdvantageConditionedPolicy, ImitationSource, Metrics, Policy
from worldloop.core.types import ActionChunk, ImitationBatch, Normalisation, Observation
from worldloop.policies.imitation import (
    ConditionedImitationObjective,
    ImitationConfig,
    ImitationObjective,
    LabelledWithImagined,
    WithImagined,
    fit_by_conditioned_imitation,
    fit_by_imitation,
)
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


def test_a_policy_that_goes_on_keeps_its_statistics() -> None:
    policy, setup = Line(), TrainingSetup()
    fit_by_imitation(
        policy, Doubling(), CONFIG, setup.make_generators("test"), setup, RecordingReporter(),
        name="improve_policy", first_step=0, is_new=False,
    )  # fmt: skip
    assert policy.prepared == []
    assert float(policy.slope) == pytest.approx(2.0, abs=0.15)


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
    ("key", "value"), [("num_steps", -1), ("batch_size", 0), ("learning_rate", 0.0), ("precision", "fp8")]
)
def test_the_config_names_the_bad_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"clone_policy\.{key}"):
        ImitationConfig(**{key: value})  # type: ignore[arg-type]


GOOD, BAD, UNKNOWN = 1, 0, -1


class Labelled:
    """A `LabelledImitationSource`: a good action is twice the position, a bad one its opposite; some are unknown."""

    def __init__(self) -> None:
        self.doubling = Doubling()

    def images(self) -> dict[str, Tensor]:
        return self.doubling.images()

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> tuple[ImitationBatch, Tensor]:
        batch = self.doubling.sample(generator, batch_size, chunk_length)
        is_good = torch.randint(-1, 2, (batch_size,), generator=generator)
        sign = torch.where(is_good == BAD, -0.5, 1.0)[:, None, None]
        return replace(batch, actions=batch.actions * sign), is_good


class Lines(AdvantageConditionedPolicy):
    """Every action of a chunk is the position times one of three slopes: of bad, good and unknown chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.normalisation = SPEC, Normalisation(torch.zeros(1), torch.ones(1))
        self.chunk_length, self.temperature, self.version = 3, 1.0, ""
        self.slopes = nn.Parameter(torch.zeros(3))  # -1 is the last one
        self.prepared: list[tuple[int, tuple[int, ...]]] = []
        self.indicators: list[Tensor] = []

    def prepare(self, dataset: ImitationSource) -> None:
        actions = dataset.sample(torch.Generator(), 4, 3).actions
        self.prepared.append((len(dataset.images()["cam"]), tuple(actions.shape)))

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        raise AssertionError("nobody acts")

    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        raise AssertionError("the loss is conditioned")

    def compute_conditioned_loss(
        self, batch: ImitationBatch, is_good: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        assert self.training
        assert batch.observation.proprio is not None
        self.indicators.append(is_good)
        predicted = batch.observation.proprio * self.slopes[is_good][:, None]
        error = (predicted[:, None] - batch.actions).square()[..., 0]
        loss = (error * batch.valid).sum() / batch.valid.sum()
        return loss, {"noise": float(torch.rand(1, generator=generator))}


def imitate_labelled(
    policy: Lines,
    dataset: Labelled,
    reporter: RecordingReporter | None = None,
    *,
    dropout: float = 0.3,
    num_steps: int = 200,
    **settings: Any,
) -> AdvantageConditionedPolicy:
    setup = TrainingSetup(**settings)
    return fit_by_conditioned_imitation(
        policy, dataset, replace(CONFIG, num_steps=num_steps, batch_size=32), setup.make_generators("test"), setup,
        reporter or RecordingReporter(), name="improve_policy", first_step=120, indicator_dropout=dropout,
    )  # fmt: skip


def make_conditioned(dropout: float, batch_size: int = 4000, seed: int = 0) -> ConditionedImitationObjective:
    generators = {0: torch.Generator().manual_seed(seed)}
    return ConditionedImitationObjective(
        Lines(), Labelled(), generators, torch.device("cpu"), batch_size=batch_size, precision="fp32",
        indicator_dropout=dropout,
    )  # fmt: skip


def test_a_policy_learns_what_is_done_well_what_is_done_badly_and_what_is_done() -> None:
    policy, dataset, reporter = Lines(), Labelled(), RecordingReporter()
    policy.eval()
    assert imitate_labelled(policy, dataset, reporter) is policy
    bad, good, unknown = policy.slopes.tolist()
    # A third of the chunks is bad, a third good, a third unknown, with the slopes -1, 2 and 2. 30 % of the first two
    # become unknown too, 0.1 each: the mean slope of the unknown is (-0.1 + 0.2 + 2 / 3) / (0.2 + 1 / 3).
    assert (bad, good) == pytest.approx((-1.0, 2.0), abs=0.1)
    assert unknown == pytest.approx((-0.1 + 0.2 + 2 / 3) / (0.2 + 1 / 3), abs=0.15)
    assert policy.prepared == [(5, (4, 3, 1))], "once, by a source without labels"
    assert dataset.doubling.sizes == [4] + [32] * 200
    curve = reporter.curves["improve_policy"]
    assert list(curve) == list(range(120, 320, 20))
    assert set(curve[120]) == {"improve_policy/loss", "improve_policy/noise", "improve_policy/grad_norm"}


def imagine(num_rows: int) -> tuple[ImitationBatch, Tensor]:
    """Imagined chunks: row r has the actions 100 + r, and is good where r is even."""
    batch = Doubling().sample(torch.Generator().manual_seed(1), max(num_rows, 1), 3).rows(list(range(num_rows)))
    rows = torch.arange(num_rows)
    return replace(batch, actions=(100.0 + rows)[:, None, None].expand(-1, 3, 1)), (rows % 2 == 0).long()


@pytest.mark.parametrize(("share", "expected"), [(0.25, 2), (0.01, 1), (0.0, 0), (1.0, 8)])
def test_a_share_of_every_batch_is_imagined(share: float, expected: int) -> None:
    chunks, is_good = imagine(6)
    real = Labelled()
    source = LabelledWithImagined(real, chunks, torch.ones(6), share, is_good)
    seen = set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        batch, indicator = source.sample(generator, 8, 3)
        imagined = batch.actions[:, 0, 0] >= 100
        assert (len(batch.actions), len(indicator), int(imagined.sum())) == (8, 8, expected)
        rows = (batch.actions[imagined, 0, 0] - 100).long()
        assert torch.equal(indicator[imagined], is_good[rows]), "each keeps its own indicator"
        seen |= set(rows.tolist())
    assert seen == (set(range(6)) if expected else set())
    assert real.doubling.sizes == [8 - expected] * 30 * (expected < 8)
    assert torch.equal(source.images()["cam"], real.images()["cam"])


def test_imagined_chunks_are_drawn_by_their_weights() -> None:
    chunks, _ = imagine(4)
    source = WithImagined(Doubling(), chunks, torch.tensor([1.0, 0.0, 2.0, 1.0]), share=0.5)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([source.sample(generator, 80, 3).actions[40:, 0, 0] for _ in range(50)]) - 100
    counts = torch.bincount(drawn.long(), minlength=4) / len(drawn)
    assert counts.tolist() == pytest.approx([0.25, 0.0, 0.5, 0.25], abs=0.03)


def test_where_nothing_was_imagined_all_is_real() -> None:
    real = Labelled()
    chunks, no_labels = imagine(0)
    source = LabelledWithImagined(real, chunks, torch.zeros(0), 0.5, no_labels)
    batch, is_good = source.sample(torch.Generator().manual_seed(0), 8, 3)
    expected, labels = Labelled().sample(torch.Generator().manual_seed(0), 8, 3)
    assert torch.equal(batch.actions, expected.actions)
    assert torch.equal(is_good, labels)


def test_indicators_are_dropped_by_the_generator_of_the_microbatch() -> None:
    objective = make_conditioned(dropout=0.3)
    twin = torch.Generator().manual_seed(0)
    for _ in range(2):
        (batch,) = next(iter(objective.batches(0))).values()
        chunks, is_good = Labelled().sample(twin, 4000, 3)
        expected = torch.where(torch.rand(4000, generator=twin) < 0.3, UNKNOWN, is_good)
        assert torch.equal(batch[0].actions, chunks.actions)
        assert torch.equal(batch[1], expected)
        for label in (GOOD, BAD):
            assert float((batch[1][is_good == label] == UNKNOWN).float().mean()) == pytest.approx(0.3, abs=0.04)
        assert (batch[1][is_good == UNKNOWN] == UNKNOWN).all()
    assert int(objective.count(batch)) == 4000 * 3 - 2
    loss, metrics = objective.compute_loss(batch, 0)
    assert torch.equal(objective.policy.indicators[0], batch[1])  # type: ignore[attr-defined]
    assert metrics == {"loss": float(loss.detach()), "noise": float(torch.rand(1, generator=twin))}


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_no_indicator_or_every_indicator_is_dropped(dropout: float) -> None:
    objective = make_conditioned(dropout)
    chunks, is_good = Labelled().sample(torch.Generator().manual_seed(0), 4000, 3)
    batch, indicators = objective.draw(objective.generators[0])
    assert torch.equal(batch.actions, chunks.actions), "the dropout does not change which chunks are drawn"
    assert torch.equal(indicators, torch.full_like(is_good, UNKNOWN) if dropout else is_good)


@pytest.mark.parametrize("dropout", [-0.1, 1.5, float("nan")])
def test_a_dropout_that_is_no_probability_is_named(dropout: float) -> None:
    policy = Lines()
    with pytest.raises(ValueError, match=rf"indicator_dropout is {dropout}, allowed: 0\.0 to 1\.0"):
        imitate_labelled(policy, Labelled(), dropout=dropout)
    assert policy.prepared == []


def test_an_interrupted_conditioned_fit_ends_in_the_same_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"checkpoint_root": tmp_path, "checkpoint_every_s": 1e-9}
    short: dict[str, Any] = {"num_steps": 30, "num_microbatches": 2}
    with pytest.raises(KeyboardInterrupt):
        imitate_labelled(Lines(), Labelled(), RecordingReporter(cut=20), **short, **settings)
    resumed, whole = Lines(), Lines()
    imitate_labelled(resumed, Labelled(), **short, **settings)
    assert len(resumed.indicators) == 2 * 10
    imitate_labelled(whole, Labelled(), **short)
    assert torch.equal(resumed.slopes, whole.slopes)
    assert {len(indicators) for indicators in whole.indicators} == {16}


def test_imagined_chunks_are_as_long_as_those_to_imitate() -> None:
    chunks, is_good = imagine(6)
    source = LabelledWithImagined(Labelled(), chunks, torch.ones(6), 0.5, is_good)
    with pytest.raises(WorldloopError, match="imitates chunks of 6 actions, and imagined ones have 3"):
        source.sample(torch.Generator().manual_seed(0), 8, 6)
