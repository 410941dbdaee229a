"""A config dataclass that has one section for every class of a registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, make_dataclass
from typing import Any


def add_sections[T: type](registry: Mapping[str, Any]) -> Callable[[T], T]:
    """Class decorator for a frozen dataclass: add a field for every entry of ``registry``.

    The field has the entry's name; its default is the class's ``Config()``. So a new registry entry adds its own config
    section.
    """

    def extend(base: T) -> T:
        sections = [(name, part.Config, field(default_factory=part.Config)) for name, part in registry.items()]
        return make_dataclass(  # type: ignore[return-value]
            base.__name__,
            sections,
            bases=(base,),
            namespace={"__doc__": base.__doc__, "__qualname__": base.__qualname__},
            frozen=True,
            module=base.__module__,  # so that instances can be pickled
        )

    return extend
