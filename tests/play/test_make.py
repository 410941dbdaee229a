"""A game from a run: beside which simulator, and that nothing ends it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.executability.inverse_dynamics import InverseDynamicsConfig
from worldloop.factory.build import build_inverse_dynamics, build_planner
from worldloop.factory.checkpoints import load_critic, load_policy, load_world_model, save_planner_policy
from worldloop.factory.pretrained import export_policy, save_pretrained
from worldloop.loop.benchmark import run_benchmark
from worldloop.loop.run import make_context
from worldloop.play.make import find_simulator, make_play_session
from worldloop.play.server import describe
from worldloop.reporting.progress import SilentDisplay
from worldloop.rollout.jobs import RolloutJob, execute_rollout_job
from worldloop.storage.card import read_card
from worldloop.storage.run_directory import RunDirectory
from worldloop.value.critic import average_value

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_the_simulator_is_the_run_s_or_that_of_a_config(debug_run: Path, tmp_path: Path) -> None:
    own = find_simulator(debug_run)
    assert own == load_config(CONFIGS / "debug.yaml").simulator
    checkpoint = next(debug_run.glob("checkpoints/*/world_model*"))
    assert find_simulator(checkpoint) == own
    assert find_simulator(tmp_path) is None
    other = load_config(CONFIGS / "pushcube_cpu.yaml")
    assert find_simulator(debug_run, other) == other.simulator
    assert find_simulator(debug_run, load_config(CONFIGS / "recorded_cpu.yaml")) is None


def test_neither_time_nor_success_ends_the_simulator_s_episode(debug_run: Path) -> None:
    session = make_play_session(debug_run, find_simulator(debug_run), "cpu")
    assert session.simulator is not None
    spec = session.simulator.spec
    assert (session.simulator.num_envs, spec.max_episode_steps, spec.success_hold_frames) == (1, 10**6, 10**6)
    session.close()
    assert make_play_session(debug_run, None, "cpu").simulator is None


def test_the_card_s_check_in_the_closed_loop_is_shown_beside_the_game(debug_run: Path) -> None:
    checkpoint = debug_run / "checkpoints/iteration_001/world_model"
    figure = read_card(checkpoint).closed_loop["within_group_auc"]
    session = make_play_session(debug_run, None, "cpu")
    expected = f"closed-loop AUC within groups {figure['value']:.2f}" if figure else ""
    assert session.note.startswith(expected)
    assert describe(session)["note"] == session.note


def test_the_critics_of_the_run_value_every_moment(debug_run: Path, tmp_path: Path) -> None:
    session = make_play_session(debug_run, None, "cpu")
    critics = [load_critic(debug_run / path) for path in RunDirectory(debug_run).read_state().critics]
    assert len(critics) == 2
    start = read_card(debug_run / "checkpoints/iteration_001/world_model").starts.rows([0])
    expected = float(average_value(critics, start))
    assert session.moments[0].value == pytest.approx(expected, abs=1e-6)
    assert -1 <= expected <= 0
    session.step([0.5, 0.0])
    assert describe(session)["value"] == pytest.approx(session.moments[1].value, abs=1e-4)
    assert session.moments[1].value != session.moments[0].value
    exported = tmp_path / "world_model"
    shutil.copytree(debug_run / "checkpoints/iteration_001/world_model", exported)
    assert describe(make_play_session(exported, None, "cpu"))["value"] is None, "outside of a run there are no critics"


def test_another_simulator_is_refused(debug_run: Path) -> None:
    simulator = find_simulator(debug_run)
    assert simulator is not None
    toy = simulator.chosen_section()
    for other, message in (
        (
            replace(toy, image_size=32),
            "the simulator's camera 'base_camera' shows 32 x 32 pixels, the world model's 16 x 16",
        ),
        (replace(toy, cameras=("hand_camera",)), "camera 'base_camera' is not one of the simulator's hand_camera"),
        (replace(toy, tasks=("ToyReach-v1",)), "task 'ToyPush-v1' is not one of the simulator's ToyReach-v1"),
        (replace(toy, actions_per_frame=4), "the simulator's actions_per_frame is 4, the world model's 2"),
    ):
        with pytest.raises(WorldloopError, match=message):
            make_play_session(debug_run, replace(simulator, toy=other), "cpu")


def test_a_simulator_with_more_cameras_and_tasks_will_do(debug_run: Path) -> None:
    simulator = find_simulator(debug_run)
    assert simulator is not None
    more = replace(
        simulator.chosen_section(), tasks=("ToyReach-v1", "ToyPush-v1"), cameras=("hand_camera", "base_camera")
    )
    session = make_play_session(debug_run, replace(simulator, toy=more), "cpu")
    session.step([0.5, 0.0])
    assert {task for task, _ in session.starts} == {"ToyPush-v1"}
    assert list(session.moments[1].frames) == ["base_camera"]
    session.close()


def test_the_planner_of_the_run_plans_if_it_is_asked_to(debug_run: Path, tmp_path: Path) -> None:
    """One with random weights, stored as `fit_planner` would store it."""
    run = tmp_path / "run"
    shutil.copytree(debug_run, run)
    directory = RunDirectory(run)
    state = directory.read_state()
    fitted = load_world_model(run / state.world_model)
    planner = build_planner(replace(fitted.config, num_sampler_steps=2), fitted.spec, fitted.normalisation, seed=0)
    reader = build_inverse_dynamics(InverseDynamicsConfig(width=8), fitted.spec, fitted.normalisation, seed=0)
    path = "checkpoints/iteration_001/planner"
    save_planner_policy(planner, reader, 2, run / path, path)
    directory.write_state(replace(state, planner=path))
    session = make_play_session(run, None, "cpu")
    session.step([0.5, 0.0])
    assert (describe(session)["has_planner"], describe(session)["plan"]) == (True, None)
    session.show_plan(True)
    shown = describe(session)
    assert len(shown["plan"]["base_camera"]) == len(shown["frames"]["base_camera"])
    assert shown["plan"] != shown["frames"]
    assert not describe(make_play_session(debug_run, None, "cpu"))["has_planner"]

    (run / path / "model.safetensors").write_bytes(b"cut")
    spoiled = make_play_session(run, None, "cpu")
    assert not describe(spoiled)["has_planner"]
    assert "no plan: " in spoiled.note


def test_a_stranger_s_files_are_neither_read_nor_imported(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config.yaml further up is not that of the run; a run's own files may not name code that would be imported."""
    (tmp_path / "antigravity_probe.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.yaml").write_text("lr: 3")
    (tmp_path / "state.json").write_text("{}")
    exported = tmp_path / "models/mine"
    save_pretrained(debug_run, exported)
    assert find_simulator(exported) is None
    run = Path(shutil.copytree(debug_run, tmp_path / "run"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("kind: toy", "kind: antigravity_probe:Thing"))
    with pytest.raises(WorldloopError, match=r"run names 'antigravity_probe:Thing', .* add --own-code$"):
        find_simulator(run)
    own = find_simulator(run, own_code=True)
    assert own is not None
    assert own.kind == "antigravity_probe:Thing"
    with pytest.raises(WorldloopError, match="add --own-code"):
        run_benchmark(run, "", 1, None, SilentDisplay())
    (run / "config.yaml").write_text(config.replace("kind: token_vla", "kind: antigravity_probe:Thing"))
    with pytest.raises(WorldloopError, match="add --own-code"):
        run_benchmark(run, "", 1, None, SilentDisplay())


def test_a_stranger_s_checkpoint_names_no_code_that_is_imported(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only `policy.kind` of the config in use may: no checkpoint in a run that is copied, benchmarked, or goes on."""
    (tmp_path / "antigravity_probe.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    run = Path(shutil.copytree(debug_run, tmp_path / "run"))
    checkpoint = run / RunDirectory(run).read_state().policy
    description = (checkpoint / "checkpoint.json").read_text()
    (checkpoint / "checkpoint.json").write_text(description.replace('"token_vla"', '"antigravity_probe:Thing"'))
    refused = "names 'antigravity_probe:Thing', which is not part of worldloop"
    with pytest.raises(WorldloopError, match=refused):
        load_policy(checkpoint)
    with pytest.raises(WorldloopError, match=refused):
        export_policy(run, tmp_path / "out")
    for own_code in (False, True):
        with pytest.raises(WorldloopError, match=refused):
            run_benchmark(run, "", 1, None, SilentDisplay(), own_code)
    context = make_context("evaluate_policy", load_config(run / "config.yaml"), run, None, SilentDisplay())
    with pytest.raises(WorldloopError, match=refused):
        context.models.load_policy(RunDirectory(run).read_state().policy)
    states = RunDirectory(run).read_initial_states("evaluation", *context.spec.task_ids)
    assert states is not None
    policy = {"policy": str(checkpoint), "policy_kind": "token_vla"}
    job = RolloutJob(states, context.simulation.config, 2, torch.zeros(len(states), 2), 0, (), **policy)
    with pytest.raises(WorldloopError, match=refused):
        execute_rollout_job(job)
