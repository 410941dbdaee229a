"""The list of stages, and a stage of one's own: one file (`toy_stage`) and one line in the list."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_stage

from worldloop.config.schema import LoopConfig, build_config, find_differences, load_config, to_yaml
from worldloop.core.errors import WorldloopError
from worldloop.loop.run import run_loop
from worldloop.loop.schedule import list_stages
from worldloop.stages import STAGES, trains

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"


@pytest.fixture
def with_toy() -> Iterator[None]:
    """A line for the toy stage in `STAGES`, after that of `clone_policy`."""
    before = dict(STAGES)
    STAGES.clear()
    for name, stage in before.items():
        STAGES[name] = stage
        if name == "clone_policy":
            STAGES["count_episodes"] = toy_stage
    yield
    STAGES.clear()
    STAGES.update(before)


def test_every_stage_has_a_frozen_config_of_its_own_that_needs_no_setting() -> None:
    kinds = [stage.Config for stage in STAGES.values()]
    assert len(set(kinds)) == len(kinds), "a section is found by its type"
    for kind in kinds:
        assert kind.__dataclass_params__.frozen
        section = load_config(DEBUG).section(kind)
        assert isinstance(section, kind)
        assert dataclasses.is_dataclass(kind())


def test_the_stages_that_run_on_every_rank_train_something() -> None:
    assert [name for name in STAGES if trains(name)] == [
        "clone_policy", "fit_world_model", "distil_world_model", "improve_policy",
    ]  # fmt: skip


def test_what_falls_into_micro_batches_are_settings_of_stages_that_train() -> None:
    for name, stage in STAGES.items():
        for key in getattr(stage.Config, "MICRO_BATCHED", ()):
            assert trains(name)
            assert isinstance(getattr(stage.Config(), key), int)


def test_a_config_travels_to_other_processes() -> None:
    config = load_config(DEBUG, ["fit_world_model.num_steps=7"])
    again = pickle.loads(pickle.dumps(config))
    assert isinstance(again, LoopConfig)
    assert again == config
    assert to_yaml(again) == to_yaml(config)


@pytest.mark.usefixtures("with_toy")
def test_a_new_stage_has_a_section_of_its_name() -> None:
    assert load_config(DEBUG).section(toy_stage.Config) == toy_stage.Config()
    config = load_config(DEBUG, ["count_episodes.only_first=false"])
    assert config.section(toy_stage.Config) == toy_stage.Config(only_first=False)
    assert pickle.loads(pickle.dumps(config)) == config
    assert find_differences(to_yaml(load_config(DEBUG)), to_yaml(config)) == [
        "count_episodes.only_first (True -> False)"
    ]
    with pytest.raises(WorldloopError, match=r"unknown key count_episodes\.note_; did you mean note"):
        load_config(DEBUG, ["count_episodes.note_=x"])
    with pytest.raises(WorldloopError, match=r"count_episodes\.note must not be empty"):
        load_config(DEBUG, ["count_episodes.note=''"])


@pytest.mark.usefixtures("with_toy")
def test_a_new_stage_has_its_place_where_its_line_is() -> None:
    config = load_config(DEBUG)
    assert list_stages(config, 0)[:4] == ("seed_dataset", "clone_policy", "count_episodes", "evaluate_policy")
    assert "count_episodes" not in list_stages(config, 1)
    always = load_config(DEBUG, ["count_episodes.only_first=false"])
    assert list_stages(always, 1)[:2] == ("count_episodes", "fit_world_model")


@pytest.mark.usefixtures("with_toy")
def test_a_new_stage_runs_in_the_loop(tmp_path: Path) -> None:
    small = ["num_iterations=0", "clone_policy.num_steps=3", "count_episodes.note=recorded"]
    directory = run_loop(load_config(DEBUG, [f"run_root={tmp_path}", *small]))
    (entry,) = directory.read_results()["iterations"]
    assert entry["recorded"] == sum(entry["scripted_episodes"].values()) == 96
    assert "count_episodes" in [timing["stage"] for timing in directory.read_timings()]


def test_without_its_line_a_stage_is_unknown() -> None:
    with pytest.raises(WorldloopError, match="unknown key count_episodes"):
        build_config([{"count_episodes": {"note": "x"}}], "test")
