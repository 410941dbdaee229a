"""Which simulator and which policy a run uses, and their settings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from worldloop.core.sections import add_sections
from worldloop.policies import POLICIES
from worldloop.simulators import SIMULATORS


@dataclass(frozen=True)
class ClassChoice:
    """The choice of a class: a name in a registry, or ``module:Class`` for a class of your own.

    A class in the registry is built from the config's section of its name, your own class from its
    ``Config(**options)``.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)  # arguments of your own class's Config

    def chosen_section(self) -> Any:
        """The section of the chosen class, an instance of its ``Config``; ``None`` for a class of your own."""
        return None if ":" in self.kind else getattr(self, self.kind)


@add_sections(SIMULATORS)
@dataclass(frozen=True)
class SimulatorConfig(ClassChoice):
    """Which simulator, and one section for every name of `worldloop.simulators.SIMULATORS`."""

    kind: str = "maniskill"  # a name in SIMULATORS, or module:Class of your own

    def __post_init__(self) -> None:
        _require_kind("simulator.kind", self.kind, SIMULATORS)


@add_sections(POLICIES)
@dataclass(frozen=True)
class PolicyConfig(ClassChoice):
    """Which policy, and one section for every name of `worldloop.policies.POLICIES`."""

    kind: str = "token_vla"  # a name in POLICIES, or module:Class of your own

    def __post_init__(self) -> None:
        _require_kind("policy.kind", self.kind, POLICIES)


def _require_kind(key: str, kind: str, names: Collection[str]) -> None:
    if kind not in names and ":" not in kind:
        raise ValueError(f"{key} {kind!r} is not one of {', '.join(names)}, or module:Class of your own")
