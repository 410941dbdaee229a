"""A game from a run: beside which simulator, and that nothing ends it."""

from dataclasses import replace
from pathlib import Path

import pytest

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.play.make import find_simulator, make_play_session

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


def test_another_simulator_is_refused(debug_run: Path) -> None:
    simulator = find_simulator(debug_run)
    assert simulator is not None
    larger = replace(simulator, toy=replace(simulator.chosen_section(), image_size=32))
    with pytest.raises(WorldloopError, match="the simulator's image_size is 32, the world model's 16"):
        make_play_session(debug_run, larger, "cpu")
