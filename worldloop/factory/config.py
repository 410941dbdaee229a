"""Which simulator and which policy a run uses, and their settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from worldloop.policies.token_vla.policy import TokenVLAConfig
from worldloop.sans.recordings import RecordedConfig
from worldloop.simulators.maniskill.simulator import ManiSkillConfig
from worldloop.simulators.toy.simulator import ToyConfig

SIMULATORS = ("maniskill", "toy", "recorded")


@dataclass(frozen=True)
class SimulatorConfig:
    """``kind``: maniskill | toy | recorded (a LeRobot dataset, no simulator) | ``module:Class`` of your own, built from
    ``options``.
    """

    kind: str = "maniskill"
    maniskill: ManiSkillConfig = field(default_factory=ManiSkillConfig)
    toy: ToyConfig = field(default_factory=ToyConfig)
    recorded: RecordedConfig = field(default_factory=RecordedConfig)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_kind("simulator.kind", self.kind, SIMULATORS)


@dataclass(frozen=True)
class PolicyConfig:
    """``kind``: token_vla | ``module:Class`` of your own, built from ``options``."""

    kind: str = "token_vla"
    token_vla: TokenVLAConfig = field(default_factory=TokenVLAConfig)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_kind("policy.kind", self.kind, ("token_vla",))


def _check_kind(key: str, kind: str, names: tuple[str, ...]) -> None:
    if kind not in names and ":" not in kind:
        raise ValueError(f"{key} {kind!r} is not one of {', '.join(names)}, or module:Class of your own")
