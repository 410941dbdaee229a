"""A registry's line brings its config section along."""

import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest
from omegaconf import OmegaConf

from worldloop.core.sections import add_sections


@dataclass(frozen=True)
class SmallConfig:
    size: int = 1


@dataclass(frozen=True)
class LargeConfig:
    size: int = 9
    depths: tuple[int, ...] = (1, 2)


class Small:
    Config = SmallConfig


class Large:
    Config = LargeConfig


@add_sections({"small": Small, "large": Large})
@dataclass(frozen=True)
class ChoiceConfig:
    """Which of them."""

    kind: str = "small"

    def __post_init__(self) -> None:
        if self.kind not in ("small", "large"):
            raise ValueError(self.kind)


@dataclass(frozen=True)
class WholeConfig:
    choice: ChoiceConfig = field(default_factory=ChoiceConfig)


def test_every_class_of_the_registry_has_a_section() -> None:
    config = ChoiceConfig(kind="large", large=LargeConfig(size=3))  # type: ignore[call-arg]
    assert (config.kind, config.small, config.large.size) == ("large", SmallConfig(), 3)  # type: ignore[attr-defined]
    assert repr(config).startswith("ChoiceConfig(kind='large', small=SmallConfig(size=1), large=")
    assert ChoiceConfig.__doc__ == "Which of them."
    with pytest.raises(FrozenInstanceError):
        config.kind = "small"  # type: ignore[misc]
    with pytest.raises(ValueError, match="medium"):
        replace(config, kind="medium")


def test_instances_travel_between_processes() -> None:
    config = ChoiceConfig(kind="large")
    assert pickle.loads(pickle.dumps(config)) == config


def test_omegaconf_reads_the_sections() -> None:
    schema = OmegaConf.structured(WholeConfig)
    merged = OmegaConf.merge({"choice": {"large": {"size": 4, "depths": [7]}}}, {})
    assert OmegaConf.to_object(schema.choice) == ChoiceConfig()
    OmegaConf.set_readonly(schema, False)
    OmegaConf.set_readonly(schema.choice, False)
    OmegaConf.set_readonly(schema.choice.large, False)
    config = OmegaConf.to_object(OmegaConf.merge(schema, merged))
    assert config.choice.large == LargeConfig(4, (7,))  # type: ignore[union-attr]
