"""Find the class that a config names, and make its settings.

``kind`` is a name in a registry, e.g. `worldloop.simulators.SIMULATORS`, or ``module:Class`` for a class of your own.
Both follow the same contract: `worldloop.core.interfaces.TaskSimulator` or `Policy`. If your class lacks something, the
error names it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.factory.config import ClassChoice

_EXPLAINED = "worldloop/core/interfaces.py says what it does"


def find_class[T](kind: str, registry: Mapping[str, type[T]]) -> type[T]:
    """The class called ``kind`` in ``registry``, or the class that ``module:Class`` names.

    Raises `WorldloopError` if that class cannot be imported, has no dataclass ``Config``, or has abstract methods.
    """
    if kind in registry:
        return registry[kind]
    module, _, name = kind.partition(":")
    try:
        own: type[T] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise WorldloopError(f"cannot load {kind!r}: {error}; is its folder on PYTHONPATH?") from error
    if not is_dataclass(getattr(own, "Config", None)):
        raise WorldloopError(f"{kind} lacks Config, the dataclass of its settings: {_EXPLAINED}")
    if missing := sorted(getattr(own, "__abstractmethods__", ())):
        raise WorldloopError(f"{kind} lacks {', '.join(missing)}: {_EXPLAINED}")
    return own


TRUST = "if you trust that code, add --own-code"


def require_known(kind: str, known: Collection[str], where: str, remedy: str = TRUST) -> None:
    """Raise `WorldloopError` if ``kind``, which the files of ``where`` name, is not one of ``known``.

    To import a class is to run its code. A run or a checkpoint may be a stranger's; a config that a user writes is not.
    """
    if kind not in known:
        raise WorldloopError(f"{where} names {kind!r}, which is not part of worldloop: {remedy}")


def make_settings(chosen: Any, config: ClassChoice) -> Any:
    """The settings of the class ``chosen``: the config's section of its name, or ``chosen.Config(**options)``."""
    section = config.chosen_section()
    if section is not None:
        return section
    try:
        inspect.signature(chosen.Config).bind(**config.options)
    except TypeError as error:
        raise WorldloopError(f"{config.kind} does not take the config's options: {error}") from error
    return chosen.Config(**config.options)


def require_members(members: tuple[str, ...], part: Any, name: str) -> None:
    """Raise `WorldloopError` if ``part`` lacks one of ``members``, naming them. ``name``: its name in the config."""
    missing = [member for member in members if getattr(part, member, None) is None]
    if missing:
        raise WorldloopError(f"{name} lacks {', '.join(missing)}: {_EXPLAINED}")


def require_arguments(part_class: type[Any], *arguments: Any) -> None:
    """Raise `WorldloopError` unless ``part_class`` can be called with ``arguments``."""
    try:
        inspect.signature(part_class).bind(*arguments)
    except TypeError as error:
        name = f"{part_class.__module__}:{part_class.__qualname__}"
        raise WorldloopError(f"{name} is not built from what a config gives it ({error}): {_EXPLAINED}") from error
