"""What improves a policy: where GRPO starts, which candidates it leaves, and when there are none."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_rollouts import make_chunk, make_rollout, make_step
from hand_specs import make_spec
from reporters import RecordingReporter

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import Calibration, Calibrations, Trust
from worldloop.factory import checkpoints
from worldloop.loop.run import make_context, run_loop
from worldloop.loop.schedule import advance
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.sans.imitation import EVERY_SUCCESS
from worldloop.stages import clone_policy, improve_policy, seed_dataset
from worldloop.stages.context import StageContext
from worldloop.stages.improvement import config as improvement_config
from worldloop.stages.improvement import grpo, imagined
from worldloop.stages.improvement.rounds import run_round
from worldloop.storage.run_state import LoopState
from worldloop.value.categorical import CategoricalCritic

TASK = "ToyPush-v1"
DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
SMALL = (
    "num_iterations=1",
    "fit_world_model.num_steps=8",
    "fit_world_model.num_proprio_steps=4",
    "clone_policy.num_steps=8",
    "check_world_model.probe_steps=0",
    "check_world_model.reset_every=[]",
    "check_world_model.num_videos=0",
    "check_closed_loop.num_states=0",
    "improve_policy.bootstraps=false",
    "evaluate_policy.num_states=10",
    "improve_policy.num_updates=2",
    "improve_policy.num_candidates=1",
    "improve_policy.num_imitation_steps=10",
    "improve_policy.restart_from=successes",
)
FRESH = (
    "check_closed_loop.num_states=0",
    "seed_dataset.episodes={expert: 6, far: 6}",
    "improve_policy.restart_from=policy",
    "improve_policy.bootstraps=false",
    "improve_policy.temperature=1.5",
    "improve_policy.learning_rate=0.01",
    "improve_policy.min_group_std=0",
    "improve_policy.require_success=false",
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
    entry = run_loop(load_config(DEBUG, [*overrides, *SMALL])).read_results()["iterations"][1]
    assert entry["tested_candidate"] == "checkpoints/iteration_001/policy_of_successes"
    assert "validation_success" not in entry, "there is nothing to choose from"
    assert "too few held-out episodes of the policy" in entry["improvement_skipped"]


CRITICS = ("critic_0", "critic_1")


class Improvement:
    """The stage before its first round, with a policy and a world model of fresh weights; ``run(overrides)``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        config = load_config(DEBUG, FRESH)
        context = self.make_context(config)
        state = seed_dataset.run(LoopState(), config.section(seed_dataset.Config), context)
        normalisation = context.store.version(state.dataset).normalisation
        for path in ("policy", "clone"):
            context.models.save_policy(context.models.new_policy(normalisation, seed=0), path)
        context.models.save_world_model(context.models.new_world_model(normalisation, seed=0), "world_model")
        for seed, path in enumerate(CRITICS):
            critic = context.models.new_critic(normalisation, "world_model", seed)
            assert isinstance(critic, CategoricalCritic)
            with torch.no_grad():
                critic.head[-1].bias[150:] += 3.0  # returns above -.25, unlike a fresh success head
            context.models.save_critic(critic, path)
        # No row succeeds, so that returns differ by their probabilities.
        unsure = Calibrations({TASK: Calibration(threshold=0.999)})
        self.state = replace(
            state, iteration=1, world_model="world_model", policy="policy", clone="clone", calibrations=unsure
        )

    def make_context(self, config: LoopConfig) -> StageContext:
        runtime = InlineRuntime(0, 0, SilentDisplay())
        context = make_context("improve_policy", config, self.root, runtime, SilentDisplay())
        return replace(context, reporter=RecordingReporter())

    def run(self, *overrides: str, spec: SimulatorSpec | None = None, **changes: Any) -> LoopState:
        """Run the stage as often as the loop does."""
        config = load_config(DEBUG, [*FRESH, *overrides])
        context = self.make_context(config)
        self.context = replace(context, spec=spec or context.spec)
        state = replace(self.state, next_stage="improve_policy", **changes)
        while state.next_stage == "improve_policy":
            state = improve_policy.run(state, config.section(improve_policy.Config), self.context)
            state = advance(config, state)
        return state

    @property
    def reporter(self) -> RecordingReporter:
        assert isinstance(self.context.reporter, RecordingReporter)
        return self.context.reporter

    def weights(self, path: str) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.context.models.load_policy(path).parameters()])


@pytest.fixture(scope="module")
def improvement(tmp_path_factory: pytest.TempPathFactory) -> Improvement:
    return Improvement(tmp_path_factory.mktemp("improvement"))


def test_candidates_are_saved_after_evenly_spaced_rounds(improvement: Improvement) -> None:
    state = improvement.run("improve_policy.num_updates=5", "improve_policy.num_candidates=2")
    paths = tuple(f"checkpoints/iteration_001/policy_after_00{update}" for update in (2, 5))
    assert state.candidates == paths
    start, first, last = (improvement.weights(path) for path in ("policy", *paths))
    assert not torch.equal(start, first)
    assert not torch.equal(first, last)
    # 5 rounds of 8 groups of 4 rows, each of at most 8 chunks of one frame
    assert 0 < state.records[1]["imagined_frames"] <= 5 * 8 * 4 * 8
    assert set(state.records[1]["imagined_success_in_training"]) == {"first_update", "last_update"}
    assert [(bar.total, bar.unit) for bar in improvement.reporter.bars] == [(2, "update"), (3, "update")]
    assert list(improvement.reporter.curves["improve_policy"]) == [0, 1, 2, 3, 4]
    assert not improvement.context.setup.has_checkpoint("improve_policy")


def test_candidates_are_moving_averages(improvement: Improvement) -> None:
    """The first average is a tenth of what it began with: the decay is warmed up, see `EmaWeights`."""
    one = ("improve_policy.num_updates=1", "improve_policy.num_candidates=1", "improve_policy.minibatch_size=100000")
    (plain,) = improvement.run(*one, "improve_policy.ema_decay=0").candidates
    start, stepped = improvement.weights("policy"), improvement.weights(plain)
    assert (stepped - start).abs().max() > 1e-3
    (averaged,) = improvement.run(*one, "improve_policy.ema_decay=0.98").candidates
    torch.testing.assert_close(improvement.weights(averaged), 0.1 * start + 0.9 * stepped, atol=1e-6, rtol=0)


def test_policies_explore_at_the_stages_temperature(improvement: Improvement) -> None:
    config = load_config(DEBUG, FRESH)
    context = improvement.make_context(config)
    policy = grpo.load_likelihood_policy("policy", config.section(improve_policy.Config), context)
    assert policy.temperature == 1.5


def test_a_policy_without_likelihoods_is_sent_to_imitation(
    improvement: Improvement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "worldloop.factory.models.checkpoints.load_policy", lambda directory, **_: torch.nn.Linear(1, 1)
    )
    with pytest.raises(WorldloopError, match=r"Linear is no LikelihoodPolicy: use .*method=imitate_imagined"):
        improvement.run()


# --- critics ------------------------------------------------------------------------------------------------------


ONE_ROUND = ("improve_policy.num_updates=2", "improve_policy.num_candidates=1")


def test_the_critics_of_fit_value_say_what_a_row_that_is_cut_off_returns(
    improvement: Improvement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are cut off, since none succeeds: the mean return is what the critics say, and else a probability."""
    judged: list[torch.Tensor] = []
    predict = grpo.value_as_return

    def note(critics: Any, observation: Any) -> torch.Tensor:
        assert [type(critic) for critic in critics] == [CategoricalCritic] * 2
        assert not any(critic.training for critic in critics)
        first, second = (critic.value(observation) for critic in critics)
        assert not torch.equal(first, second)
        judged.append(predict(critics, observation))
        return judged[-1]

    def run(bootstraps: bool) -> float:
        # of the other terms nothing is left, so that the return is the one of `success`
        changes = (*ONE_ROUND, f"improve_policy.bootstraps={bootstraps}", "improve_policy.reward.certainty=0")
        improvement.run(*changes, critics=CRITICS)
        assert [bar.unit for bar in improvement.reporter.bars] == ["update"], "no critic is fitted here"
        return improvement.reporter.curves["improve_policy"][0]["improve_policy/return_mean"]

    monkeypatch.setattr(grpo, "value_as_return", note)
    without = run(bootstraps=False)
    assert judged == []
    expected = run(bootstraps=True)
    assert expected == pytest.approx(float(judged[0].mean()), abs=1e-5)
    assert expected > without + 0.1
    assert [len(values) for values in judged] == [8 * 4] * 2, "the last states of both updates"
    assert all(((values >= 0) & (values <= 1)).all() for values in judged)


def test_viva_values_imagined_rollouts_too(improvement: Improvement) -> None:
    """Its critics load without the run's config, and read the frames that the world model imagines."""
    context = improvement.make_context(load_config(DEBUG, [*FRESH, "value.kind=viva"]))
    normalisation = context.store.version(improvement.state.dataset).normalisation
    paths = ("viva_0", "viva_1")
    for seed, path in enumerate(paths):
        context.models.save_critic(context.models.new_critic(normalisation, "world_model", seed), path)
    state = improvement.run(*ONE_ROUND, "improve_policy.bootstraps=true", critics=paths)
    assert state.records[1]["imagined_frames"] > 0
    assert not torch.equal(improvement.weights(state.newest), improvement.weights("policy"))


# --- imitation of what succeeds in imagination ---------------------------------------------------------------------


IMAGINED = (
    "improve_policy.method=imitate_imagined",
    "improve_policy.num_imagined_groups=16",
    "improve_policy.num_imitation_steps=3",
    "improve_policy.imagined_share=1",
)
EASY = Calibrations({TASK: Calibration(threshold=0.5)})  # some of what a model of fresh weights imagines succeeds


def test_each_round_imitates_what_succeeds_in_imagination(improvement: Improvement) -> None:
    state = improvement.run(*IMAGINED, "improve_policy.num_candidates=2", calibrations=EASY)
    paths = tuple(f"checkpoints/iteration_001/policy_after_00{steps}" for steps in (3, 6))
    assert state.candidates == paths
    start, first, last = (improvement.weights(path) for path in ("policy", *paths))
    assert not torch.equal(start, first)
    assert not torch.equal(first, last)
    imagining, training = [(16, "imagined group"), (3, "step")] * 2, improvement.reporter.bars
    assert [(bar.total, bar.unit) for bar in training] == imagining
    assert list(improvement.reporter.curves["improve_policy"]) == [0, 3]
    rates = state.records[1]["imagined_success_in_training"]
    assert 0 < rates["first_update"] < 1
    assert 0 < state.records[1]["imagined_frames"] <= 2 * 16 * 4 * 8
    assert not improvement.context.setup.has_checkpoint("improve_policy")


def test_where_nothing_succeeds_real_successes_alone_are_imitated(improvement: Improvement) -> None:
    """With no imagined chunk in a batch it does not matter how large their share would be."""
    one = (*IMAGINED, "improve_policy.num_candidates=1")
    (path,) = improvement.run(*one).candidates
    weights = improvement.weights(path)
    assert improvement.reporter.lines[0] == "imagined success 0.000, at least one in 0 of 16 starts"
    (path,) = improvement.run(*one, "improve_policy.imagined_share=0", calibrations=EASY).candidates
    assert torch.equal(improvement.weights(path), weights)


def test_a_success_is_cut_into_chunks_as_long_as_the_policy_imitates() -> None:
    """Two chunks of two actions; row 1 ends after its first action, row 2 is not kept, row 3 is cut off."""
    on, off = [True, True], [False, False]
    rollout = make_rollout(
        make_step([[0.1]] * 4, [on, [True, False], on, on]),
        make_step([[0.1]] * 4, [on, off, on, on]),
        chunks=[make_chunk(0), make_chunk(1)],
    )
    keep = torch.tensor([True, True, False, True])
    (first, rows), (second, later) = imagined.cut_chunks(rollout, keep, 3, ("cam",))
    assert rows.tolist() == [0, 1, 3]
    assert later.tolist() == [0, 3]
    assert first.actions[..., 0].tolist() == [[0, 1, 100], [10, 11, 110], [30, 31, 130]]
    assert first.valid.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert second.actions[..., 0].tolist() == [[100, 101, 101], [130, 131, 131]]
    assert second.valid.tolist() == [[True, True, False]] * 2
    assert second.observation.env_step.tolist() == [2, 2]


def test_starts_count_equally_however_many_of_their_rollouts_succeed() -> None:
    weights = imagined.weigh_starts_equally(torch.tensor([7, 2, 7, 7, 7, 3]), [*["push"] * 5, "pull"])
    assert weights.tolist() == [0.125, 0.5, 0.125, 0.125, 0.125, 1.0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the stage would imitate and improve, instead of doing so."""
    calls: list[tuple[Any, ...]] = []

    def imitate(state: LoopState, config: Any, context: StageContext, select: Any, path: str) -> None:
        assert config == replace(context.config_of(clone_policy.Config), num_steps=100)
        calls.append(("imitate", select, path))

    def improve(state: LoopState, config: Any, context: StageContext, tasks: Any, path: str) -> LoopState:
        calls.append(("improve", state.newest, path, *(tasks if len(context.spec.tasks) > 1 else ())))
        return state

    monkeypatch.setattr(clone_policy, "imitate", imitate)
    method = replace(improve_policy.METHODS["grpo"], run=partial(run_round, improve=improve))
    monkeypatch.setitem(improve_policy.METHODS, "grpo", method)
    return calls


NAME = "checkpoints/iteration_001/policy"


@pytest.mark.parametrize("start", ["policy", "clone"])
def test_grpo_starts_from_an_earlier_policy_and_each_round_from_the_newest_candidate(
    improvement: Improvement, calls: list[Any], start: str
) -> None:
    state = improvement.run(f"improve_policy.restart_from={start}")
    first, last = f"{NAME}_after_002", f"{NAME}_after_004"
    assert calls == [("improve", start, first), ("improve", first, last)]
    assert (state.start, state.newest, state.candidates) == (start, last, (first, last))
    assert (state.num_rounds, state.next_stage) == (2, "promote_policy")


def test_grpo_starts_from_an_imitation_of_all_successes(improvement: Improvement, calls: list[Any]) -> None:
    state = improvement.run("improve_policy.restart_from=successes", "improve_policy.num_candidates=1")
    start, last = f"{NAME}_of_successes", f"{NAME}_after_004"
    assert calls == [("imitate", EVERY_SUCCESS, start), ("improve", start, last)]
    assert (state.start, state.candidates) == (start, (start, last))


def test_the_reference_of_every_round_is_the_start(improvement: Improvement, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = grpo.load_likelihood_policy

    def note(path: str, config: Any, context: Any) -> Any:
        loaded.append(path)
        return load(path, config, context)

    monkeypatch.setattr(grpo, "load_likelihood_policy", note)
    improvement.run("improve_policy.num_updates=2")
    assert loaded == ["policy", "policy", f"{NAME}_after_001", "policy"]


def test_the_control_imitates_and_imagines_nothing(improvement: Improvement, calls: list[Any]) -> None:
    state = improvement.run("improve_policy.method=imitate_successes")
    assert state.candidates == (NAME,)
    assert calls == [("imitate", EVERY_SUCCESS, NAME)]


@pytest.mark.parametrize(
    ("start", "candidates", "line"),
    [
        ("policy", (), "no round in the world model, the policy stays: too low"),
        (
            "successes",
            (f"{NAME}_of_successes",),
            "no round in the world model, the only candidate is policy_of_successes: too low",
        ),
    ],
)
def test_nothing_is_imagined_in_a_model_that_is_not_trusted(
    improvement: Improvement, calls: list[Any], start: str, candidates: tuple[str, ...], line: str
) -> None:
    state = improvement.run(f"improve_policy.restart_from={start}", trust={TASK: Trust(False, "too low")})
    assert state.candidates == candidates
    assert state.records[1]["improvement_skipped"] == "too low"
    assert not any(name == "improve" for name, *_ in calls)
    assert improvement.reporter.lines == [line]


def test_only_tasks_in_which_the_model_is_trusted_are_imagined(improvement: Improvement, calls: list[Any]) -> None:
    spec = make_spec(tasks=("push", "pull", "lift"))
    trust = {"push": Trust(True), "pull": Trust(False, "too low"), "lift": Trust(True)}
    state = improvement.run("improve_policy.num_candidates=1", spec=spec, trust=trust)
    assert calls == [("improve", "policy", f"{NAME}_after_004", "push", "lift")]
    assert state.records[1]["improvement_skipped"] == "pull: too low"
    assert improvement.reporter.lines == ["improved without: pull: too low"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "ppo"},
            "method is 'ppo', allowed: grpo, imitate_imagined, recap, recap_imagined, imitate_successes",
        ),
        ({"restart_from": "scratch"}, "restart_from is 'scratch', allowed: policy, clone, successes"),
        ({"imagination_horizon": 0}, "imagination_horizon must be at least 1"),
        ({"num_imitation_steps": 0}, "num_imitation_steps must be at least 1"),
        ({"num_candidates": 5, "num_updates": 4}, r"num_candidates must be in 1\.\.num_updates = 4, got 5"),
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        ({"mid_episode_share": 1.5}, "mid_episode_share is 1.5"),
        ({"group_size": 1}, "group_size must be at least 2"),
    ],
)
def test_the_config_names_the_bad_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"improve_policy\.{message}"):
        improve_policy.Config(**changes)


def test_rounds_without_updates_may_be_more_than_these() -> None:
    assert improve_policy.Config(method="imitate_imagined", num_candidates=5, num_updates=4).num_candidates == 5


def test_each_method_in_the_config_has_its_code() -> None:
    assert tuple(improve_policy.METHODS) == improvement_config.METHODS
