"""Which stages an iteration has, as README and docs/architecture.md list them, and what comes next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.success import Trust
from worldloop.loop.schedule import advance, assume_done, list_remaining_stages, list_stages
from worldloop.stages import STAGES
from worldloop.stages.context import Schedule
from worldloop.storage.run_state import LoopState

ROOT = Path(__file__).resolve().parents[2]
FIRST = ("seed_dataset", "clone_policy", "evaluate_policy", "collect_episodes")
FITTING = ("fit_world_model", "check_world_model")
VALUE = ("fit_value", "check_value")  # critics value where imagined rollouts are cut off
POLICY = ("improve_policy", "check_closed_loop", "promote_policy", "evaluate_policy", "collect_episodes")
IMITATION = ("improve_policy", "promote_policy", "evaluate_policy", "collect_episodes")
PLANNING = ("fit_inverse_dynamics", "fit_world_model", "fit_planner")
PLAN_CHECKS = ("check_world_model", "check_planner")
CONTROL = ["improve_policy.method=imitate_successes"]
STUDENT = ["distil_world_model.num_steps=5", "world_model.num_sampler_steps=4"]


def load(*overrides: str) -> LoopConfig:
    """The debug loop: iterations 0, 1 and 2."""
    return load_config(ROOT / "configs/debug.yaml", overrides)


def without_collecting(stages: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in stages if name != "collect_episodes")


# --- which take part ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (FIRST, (*FITTING, *VALUE, *POLICY), without_collecting((*FITTING, *VALUE, *POLICY)))),
        (
            ["improve_policy.bootstraps=false"],
            (FIRST, (*FITTING, *POLICY), without_collecting((*FITTING, *POLICY))),
        ),
        (
            STUDENT,
            (
                FIRST,
                ("fit_world_model", "distil_world_model", "check_world_model", *VALUE, *POLICY),
                without_collecting(("fit_world_model", "distil_world_model", "check_world_model", *VALUE, *POLICY)),
            ),
        ),
        (CONTROL, (FIRST, IMITATION, without_collecting(IMITATION))),
        (
            ["improve_policy.method=imitate_imagined"],  # critics are GRPO's
            (FIRST, (*FITTING, *POLICY), without_collecting((*FITTING, *POLICY))),
        ),
        ([*CONTROL, *STUDENT], (FIRST, IMITATION, without_collecting(IMITATION))),  # nothing to distil
        (
            ["policy.kind=harmowam", "improve_policy.method=imitate_successes", "num_iterations=1"],
            (
                ("seed_dataset", *PLANNING, "clone_policy", "check_gate", *FIRST[2:]),
                (
                    "fit_inverse_dynamics",
                    "check_inverse_dynamics",
                    *PLANNING[1:],
                    *PLAN_CHECKS,
                    *IMITATION[:2],
                    "check_gate",
                    "evaluate_policy",
                ),
            ),
        ),
        (["num_iterations=0"], (without_collecting(FIRST),)),
        (["num_iterations=1"], (FIRST, without_collecting((*FITTING, *VALUE, *POLICY)))),
    ],
)
def test_the_stages_of_every_iteration(overrides: list[str], expected: tuple[tuple[str, ...], ...]) -> None:
    config = load(*overrides)
    assert tuple(list_stages(config, iteration) for iteration in range(config.num_iterations + 1)) == expected


@pytest.mark.parametrize("control", [[], CONTROL])
def test_a_recording_is_imported_and_modelled_once(control: list[str]) -> None:
    """There is no policy, so that it does not matter how one would improve."""
    config = load_config(ROOT / "configs/recorded_cpu.yaml", control)
    assert config.num_iterations == 1
    assert list_stages(config, 0) == ("import_dataset",)
    assert list_stages(config, 1) == FITTING
    student = load_config(ROOT / "configs/recorded_cpu.yaml", [*control, *STUDENT])
    assert list_stages(student, 1) == ("fit_world_model", "distil_world_model", "check_world_model")


# Of iterations 0, 1 and 2, the last: with a simulator and a world model (GRPO), the same with critics, with a simulator
# and without a world model (the control that imitates), with labelled advantages (recap), the same with critics built
# on a world model (viva), of a recording, which has iterations 0 and 1, with inverse dynamics models and a planner, and
# the fifth again with a policy that builds on the planner.
TAKES_PART = {
    "import_dataset": ("...", "...", "...", "...", "...", "0.", "..."),
    "seed_dataset": ("0..", "0..", "0..", "0..", "0..", "..", "0.."),
    "clone_policy": ("0..", "0..", "0..", "0..", "0..", "..", "0.."),
    "fit_inverse_dynamics": ("...", "...", "...", "...", "...", ".1", "012"),
    "check_inverse_dynamics": ("...", "...", "...", "...", "...", ".1", ".12"),
    "fit_world_model": (".12", ".12", "...", "...", ".12", ".1", "012"),
    "distil_world_model": (".12", ".12", "...", "...", ".12", ".1", ".12"),
    "fit_planner": ("...", "...", "...", "...", "...", ".1", "012"),
    "align_world_model": ("...", "...", "...", "...", "...", ".1", ".12"),
    "check_world_model": (".12", ".12", "...", "...", ".12", ".1", ".12"),
    "check_planner": ("...", "...", "...", "...", "...", ".1", ".12"),
    "fit_value": ("...", ".12", "...", ".12", ".12", "..", ".12"),
    "check_value": ("...", ".12", "...", ".12", ".12", "..", ".12"),
    "label_advantages": ("...", "...", "...", ".12", ".12", "..", ".12"),
    "improve_policy": (".12", ".12", ".12", ".12", ".12", "..", ".12"),
    "check_closed_loop": (".12", ".12", "...", "...", "...", "..", "..."),
    "refit_world_model": (".12", ".12", "...", "...", "...", "..", "..."),
    "promote_policy": (".12", ".12", ".12", ".12", ".12", "..", ".12"),
    "check_gate": ("...", "...", "...", "...", "...", "..", "012"),
    "evaluate_policy": ("012", "012", "012", "012", "012", "..", "012"),
    "collect_episodes": ("01.", "01.", "01.", "01.", "01.", "..", "01."),
}


OFF_UNLESS: dict[str, dict[str, Any]] = {
    "distil_world_model": {"num_steps": 1},
    "refit_world_model": {"num_steps": 1},
    "align_world_model": {"enabled": True},
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_knows_its_iterations(name: str) -> None:
    loop: dict[str, Any] = {"num_iterations": 2, "has_simulator": True}
    recap = {"in_rounds": False, "uses_value": True, "uses_advantages": True}
    kinds: list[dict[str, Any]] = [
        loop | {"uses_world_model": True},
        loop | {"uses_world_model": True, "uses_value": True},
        loop | {"uses_world_model": False, "in_rounds": False},
        loop | {"uses_world_model": False} | recap,
        loop | {"uses_world_model": True} | recap,
        {"num_iterations": 1, "has_simulator": False, "uses_world_model": True}
        | {"uses_inverse_dynamics": True, "uses_planner": True},
        loop
        | {
            "uses_world_model": True,
            "uses_inverse_dynamics": True,
            "uses_planner": True,
            "policy_is_planned": True,
            "policy_is_gated": True,
        }
        | recap,
    ]
    stage = STAGES[name]
    config = stage.Config(**OFF_UNLESS.get(name, {}))
    for kind, expected in zip(kinds, TAKES_PART[name], strict=True):
        iterations = range(kind["num_iterations"] + 1)
        got = "".join(str(i) if stage.takes_part(config, Schedule(iteration=i, **kind)) else "." for i in iterations)
        assert got == expected, kind


@pytest.mark.parametrize("name", OFF_UNLESS)
def test_a_student_a_refit_and_an_alignment_are_off_by_default(name: str) -> None:
    stage = STAGES[name]
    schedule = Schedule(1, 2, has_simulator=True, uses_world_model=True, uses_inverse_dynamics=True)
    assert not stage.takes_part(stage.Config(), schedule)


# --- what comes next ----------------------------------------------------------------------------------------------


ROUND = ("improve_policy", "check_closed_loop")


def unfold(stages: tuple[str, ...], num_rounds: int = 2) -> list[str]:
    """``stages`` in the order in which they run: the policy that GRPO starts from is made and checked, then rounds."""
    first = stages.index("improve_policy")
    round_ = [name for name in stages if name in ROUND]
    return [*stages[:first], *round_ * (1 + num_rounds), *stages[first + len(round_) :]]


@pytest.mark.parametrize("overrides", [[], ["check_closed_loop.num_states=0"]])
def test_the_loop_goes_through_all_stages_and_ends(overrides: list[str]) -> None:
    """The debug loop has two rounds of GRPO in each iteration."""
    config, state, seen = load(*overrides), LoopState(), []
    assert ("check_closed_loop" in list_stages(config, 1)) == (not overrides)
    while state.next_stage:
        seen.append((state.iteration, state.next_stage))
        left = list_remaining_stages(config, state)
        state = advance(config, assume_done(state))
        assert left[:1] == ([state.next_stage] if state.next_stage else [])
    expected = [(0, name) for name in list_stages(config, 0)]
    expected += [(i, name) for i in (1, 2) for name in unfold(list_stages(config, i))]
    assert seen == expected
    assert list_remaining_stages(config, LoopState()) == [name for _, name in expected[1:]]
    assert seen[-1] == (2, "evaluate_policy")


def test_the_world_model_is_refitted_before_every_round_but_the_first() -> None:
    config = load("refit_world_model.num_steps=1", "improve_policy.num_candidates=3")
    state, seen = LoopState(iteration=1, next_stage="improve_policy"), []
    while state.next_stage != "promote_policy":
        seen.append(state.next_stage)
        state = advance(config, assume_done(state))
    refit = ("refit_world_model", *ROUND)
    assert seen == [*ROUND, *ROUND, *refit, *refit]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["check_closed_loop.num_training_states=0"], "refit_world_model learns from replays"),
        (["check_closed_loop.num_states=0"], "refit_world_model learns from replays"),
        (STUDENT, "would leave the student behind"),
    ],
)
def test_a_refit_that_cannot_work_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(WorldloopError, match=message):
        load("refit_world_model.num_steps=1", *overrides)


def test_rounds_end_where_the_closed_loop_is_trusted_in_no_task() -> None:
    config = load()
    trust = {"a": Trust(False, "AUC too low"), "b": Trust(True)}
    checked = LoopState(iteration=1, next_stage="check_closed_loop", start="start", num_rounds=1, trust=trust)
    assert advance(config, checked).next_stage == "improve_policy", "task b goes on"
    nowhere = replace(checked, trust=trust | {"b": Trust(False, "AUC too low")})
    assert advance(config, nowhere).next_stage == "promote_policy"
    made = replace(nowhere, next_stage="improve_policy", num_rounds=0)
    assert advance(config, made).next_stage == "promote_policy", "without trust nothing is checked in the closed loop"


def test_the_control_that_imitates_has_one_round() -> None:
    config = load(*CONTROL)
    state = assume_done(LoopState(iteration=1, next_stage="improve_policy"))
    assert advance(config, state).next_stage == "promote_policy"
    assert list_remaining_stages(config, LoopState(iteration=2, next_stage="improve_policy")) == [
        "promote_policy", "evaluate_policy",
    ]  # fmt: skip


def test_a_model_that_is_not_good_enough_is_fitted_on_and_then_passed_over() -> None:
    config = load("check_world_model.max_fits=3")
    state, seen = LoopState(iteration=1, next_stage="fit_world_model"), []
    while state.iteration == 1:
        seen.append(state.next_stage)
        assert list_remaining_stages(config, state)[-1] == "evaluate_policy", "also before a further fit"
        if state.next_stage == "check_world_model":
            state = replace(state, trust={"a": Trust(True), "b": Trust(False, "too low", can_improve=True)})
        state = advance(config, assume_done(state))
    assert seen == [*["fit_world_model", "check_world_model"] * 3, *unfold(list_stages(config, 1))[2:]]
    assert state.num_fits == 0  # a new iteration has fits of its own


@pytest.mark.parametrize("trust", [Trust(True), Trust(False, "too few episodes to judge")])
def test_a_model_that_is_good_enough_or_cannot_be_judged_is_fitted_once(trust: Trust) -> None:
    config = load("check_world_model.max_fits=3")
    state = LoopState(iteration=1, next_stage="check_world_model", num_fits=1, trust={"a": trust})
    assert advance(config, state).next_stage == "fit_value"
    without = load("check_world_model.max_fits=3", "improve_policy.bootstraps=false")
    assert advance(without, state).next_stage == "improve_policy"


def test_a_robots_loop_has_no_stage_that_needs_a_simulator() -> None:
    """It also collects in the last iteration, since what the robot did is the only evaluation."""
    config = load("source=robot", "recording.actions_per_frame=2", "improve_policy.bootstraps=false")
    later = (*FITTING, "improve_policy", "promote_policy", "collect_episodes")
    assert [list_stages(config, i) for i in range(3)] == [
        ("import_dataset", "clone_policy", "collect_episodes"),
        later,
        later,
    ]
    without_models = load("source=robot", "recording.actions_per_frame=2", *CONTROL)
    assert list_stages(without_models, 1) == ("improve_policy", "promote_policy", "collect_episodes")
    left = list_remaining_stages(config, LoopState(iteration=2, next_stage="fit_world_model"))
    assert left == ["check_world_model", *["improve_policy"] * 3, "promote_policy", "collect_episodes"]
