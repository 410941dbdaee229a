"""The list of stages and their config sections; `tests/test_docs.py` adds a stage of one's own."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

from worldloop.config.loading import load_config, to_yaml
from worldloop.config.schema import LoopConfig
from worldloop.stages import STAGES, trains

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"


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
        "fit_world_model", "distil_world_model", "fit_planner", "align_world_model", "clone_policy", "improve_policy",
        "refit_world_model",
    ]  # fmt: skip


def test_what_falls_into_microbatches_are_settings_of_stages_that_train() -> None:
    for name, stage in STAGES.items():
        for key in getattr(stage.Config, "MICROBATCHED", ()):
            assert trains(name)
            assert isinstance(getattr(stage.Config(), key), int)


def test_a_config_travels_to_other_processes() -> None:
    config = load_config(DEBUG, ["fit_world_model.num_steps=7"])
    again = pickle.loads(pickle.dumps(config))
    assert isinstance(again, LoopConfig)
    assert again == config
    assert to_yaml(again) == to_yaml(config)
