"""Choices of the critic: every wrong one is one clear error that names the key."""

from pathlib import Path

import pytest

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.value import CRITICS
from worldloop.value.config import KINDS, ValueConfig
from worldloop.value.returns import TARGETS

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kind=cathegorical", r"value\.kind is 'cathegorical', allowed: categorical, success, viva"),
        ("target=returns", r"value\.target is 'returns', allowed: recap, progress, outcome"),
        ("copies=2", r"value\.copies is '2', allowed: 1, 64, all"),
        ("future_steps=0", r"value\.future_steps is 0, allowed: 1 to inf"),
        ("future_weight=-0.1", r"value\.future_weight is -0\.1, allowed: 0 to inf"),
        ("pure_noise_share=1.1", r"value\.pure_noise_share is 1\.1, allowed: 0 to 1"),
        ("learning_rate=0", r"value\.learning_rate is 0\.0, allowed: 1e-07 to 1"),
        ("from_world_model=maybe", r"bad value for value\.from_world_model"),
        ("copy=all", r"unknown key value\.copy; did you mean copies\?"),
    ],
)
def test_a_wrong_choice_is_one_error_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(WorldloopError, match=message) as error:
        load_config(DEBUG, [f"value.{override}"])
    assert "\n" not in str(error.value)


def test_every_choice_is_known_to_a_run() -> None:
    for kind in KINDS:
        for target in TARGETS:
            for copies in ("1", "64", "all"):
                overrides = [f"value.kind={kind}", f"value.target={target}", f"value.copies={copies}"]
                assert load_config(DEBUG, overrides).value == ValueConfig(kind, target, copies)
    assert set(KINDS) == {*CRITICS, "viva"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_world_model", [True, False])
def test_only_viva_may_use_the_fitted_world_model(kind: str, from_world_model: bool) -> None:
    config = ValueConfig(kind, from_world_model=from_world_model)
    assert config.uses_world_model == (kind == "viva" and from_world_model)
