"""A run's configuration from YAML in ``configs/`` and ``key=value`` on the command line, and back to YAML.

An unknown key, an old one or a bad value is a `WorldloopError` that names the key and what is allowed.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError, first_line

# Keys of earlier versions -> their present names; the first entry that matches counts.
# ``*`` matches any one name, and stays the same. ``key=value`` is a value that no longer exists.
# The keys of an old section are now keys of the new section.
OLD_KEYS = {
    "simulator.kind=recorded": "source=recording",
    "simulator.recorded.frames_after_success": "recording.success_hold_frames and recording.success_confirm_frames",
    "simulator.recorded.camera": "recording.cameras",
    "simulator.recorded": "recording",
    "recording.camera": "recording.cameras",
    "simulator.*.frames_after_success": "simulator.*.success_hold_frames and simulator.*.success_confirm_frames",
    "simulator.maniskill.task": "simulator.maniskill.tasks (a list)",
    "simulator.maniskill.camera": "simulator.maniskill.cameras (a list)",
    "resources.rows_at_once": "resources.max_imagination_batch",
    "resources.keep_every_s": "resources.checkpoint_every_s",
    "improve_policy.uncertainty_penalty": "improve_policy.reward.certainty",
    "improve_policy.num_critic_steps": "improve_policy.bootstraps (true or false) and fit_value.num_steps",
    "fit_value.target": "value.target",
    "promote_policy.min_gain": "promote_policy.net_wins (a number of states)",
}

# Settings that name a folder or file of the user's, in which ~ is the home folder.
PATH_KEYS = ("run_root", "recording.root", "recording.labels", "world_model.pretrained", "policy.lerobot.path")

# A run may be continued with other values of these keys, because no result depends on them.
_FREE_KEYS = ("runtime", "resources", "retention", "run_root", "run_name", "mirror")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> LoopConfig:
    """Read YAML, apply ``key=value`` overrides, check everything. Raises `WorldloopError` with one clear line.

    ``extends: other.yaml``, a path relative to the file, takes over another config except its ``run_name``.
    """
    path = Path(path)
    parts = _read(path)
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise WorldloopError(f"override {override!r} is not of the form key=value")
    changes = _read_overrides(overrides)
    try:
        config = build_config([*parts, changes], str(path))
    except WorldloopError:
        build_config(parts, str(path))
        build_config([*parts, changes], "command line")  # the file alone is right
        raise
    if not config.run_name:
        config = build_config([*parts, changes, {"run_name": path.stem}], str(path))
    return config


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    """The settings in ``overrides``, each ``key=value``; text stays as it was written."""
    try:
        changes, texts = OmegaConf.from_dotlist(list(overrides)), OmegaConf.create()
        for override in overrides:
            key, _, value = override.partition("=")
            OmegaConf.update(texts, key, yaml.load(value, yaml.BaseLoader), force_add=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise WorldloopError(f"overrides {' '.join(overrides)!r} cannot be read: {first_line(error)}") from error
    _keep_text(changes, OmegaConf.to_container(texts), LoopConfig)
    return changes


def _keep_text(values: DictConfig, texts: Any, kind: Any) -> None:
    """Set text settings of the dataclass ``kind`` in ``values`` to what was written, in ``texts``.

    YAML reads 007 as the number 7 and on as true; a run of that name is to be called 007.
    """
    if not is_dataclass(kind) or not isinstance(texts, dict):
        return
    hints = get_type_hints(kind)
    for name in [name for name in values if name in hints and name in texts]:
        value, written = values[name], texts[name]
        if isinstance(value, DictConfig):
            _keep_text(value, written, hints[name])
        elif hints[name] is str and isinstance(value, bool | int | float):
            values[name] = written
        elif hints[name] == tuple[str, ...] and isinstance(value, ListConfig):
            values[name] = [w if isinstance(v, bool | int | float) else v for v, w in zip(value, written, strict=True)]


def _read(path: Path, extended_by: tuple[Path, ...] = ()) -> list[DictConfig]:
    """The configs that ``path`` extends, the most basic first, then the YAML at ``path`` itself."""
    if path.resolve() in extended_by:
        raise WorldloopError(f"config {path} extends itself")
    if not path.is_file():
        by = f", which {extended_by[-1]} extends," if extended_by else ""
        problem = "is a folder: name a YAML file" if path.is_dir() else "does not exist"
        raise WorldloopError(f"config {path}{by} {problem}")
    try:
        text = path.read_text()
        loaded = OmegaConf.create(text)
        texts = yaml.load(text, yaml.BaseLoader)
    except Exception as error:  # YAML parsers raise many kinds; all of them mean the same to a user
        raise WorldloopError(f"config {path} is not YAML: {_explain_yaml(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise WorldloopError(f"config {path} is not a mapping of keys to values")
    _keep_text(loaded, texts, LoopConfig)
    if "extends" not in loaded:
        return [loaded]
    base = loaded.pop("extends")
    if not isinstance(base, str):
        raise WorldloopError(f"config {path}: extends must be the name of a config, got {base!r}")
    parts = _read(path.parent / base, (*extended_by, path.resolve()))
    for part in parts:
        part.pop("run_name", None)
    return [*parts, loaded]


def _explain_yaml(error: Exception) -> str:
    """One line that says what is wrong, and in which line of the file."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or first_line(error)
    return f"{problem}, line {mark.line + 1}" if mark is not None else problem


def build_config(parts: Sequence[Any], origin: str) -> LoopConfig:
    """Merge ``parts`` over the defaults; later parts win. ``origin`` names them in a `WorldloopError`."""
    for part in parts:
        if renamed := list_old_keys(part):
            raise WorldloopError(f"{origin}: {'; '.join(renamed)}")
    try:
        merged: Any = deepcopy(_make_schema())
        for part in parts:
            _clear_emptied(merged, OmegaConf.create(part))
            merged.merge_with(part)
        for key in PATH_KEYS:
            OmegaConf.update(merged, key, os.path.expanduser(OmegaConf.select(merged, key)))
        result = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise WorldloopError(f"{origin}: {_explain_unknown_key(error)}") from error
    except OmegaConfBaseException as error:
        message = first_line(error)
        raise WorldloopError(f"{origin}: bad value for {error.full_key or 'a key'}: {message}") from error
    except (ValueError, TypeError) as error:
        raise WorldloopError(f"{origin}: {error}") from error
    assert isinstance(result, LoopConfig)
    for key, value in _flatten(OmegaConf.to_container(merged)).items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise WorldloopError(f"{origin}: {key} is {value}, allowed: finite numbers")
    return result


def list_old_keys(part: Any) -> list[str]:
    """A message, "old is now new", for each of `OLD_KEYS` in ``part``, which is YAML or a mapping."""
    renamed: dict[str, str] = {}
    for key, value in _flatten(OmegaConf.to_container(OmegaConf.create(part))).items():
        for old, new in OLD_KEYS.items():
            if message := _explain_old_key(key, value, old, new):
                renamed.setdefault(old, message)
                break
    return list(renamed.values())


def _explain_old_key(key: str, value: Any, old: str, new: str) -> str:
    """A message that says what to write instead of ``key``; "" if the entry ``old`` of `OLD_KEYS` does not match it."""
    pattern, _, old_value = old.partition("=")
    names, parts = pattern.split("."), key.split(".")
    if len(parts) < len(names) or any(name not in ("*", part) for name, part in zip(names, parts, strict=False)):
        return ""
    if old_value and str(value) != old_value:
        return ""
    wildcard = dict(zip(names, parts, strict=False)).get("*", "")
    replacement = ".".join([new.replace("*", wildcard), *parts[len(names) :]])
    return f"{key}={value} is now {replacement}" if old_value else f"{key} is now {replacement}"


@cache
def _make_schema() -> DictConfig:
    """All settings with their types and defaults, to copy and merge into. Making them takes longer than copying."""
    schema: DictConfig = OmegaConf.structured(LoopConfig)
    _make_writable(schema)
    return schema


def _make_writable(node: Any) -> None:
    """Make ``node`` and all below it writable, to merge into it: OmegaConf makes frozen dataclasses read-only."""
    OmegaConf.set_readonly(node, False)
    for key in node:
        if OmegaConf.is_dict(node._get_node(key)):
            _make_writable(node._get_node(key))


def _clear_emptied(node: Any, part: Any) -> None:
    """Empty each mapping of ``node`` that is empty in ``part``: merging alone would keep its entries."""
    for key in part if OmegaConf.is_dict(part) else ():
        if key not in node or not OmegaConf.is_dict(part._get_node(key)):
            continue
        own = node._get_node(key)
        if OmegaConf.is_dict(own) and not is_dataclass(OmegaConf.get_type(own)) and not part[key]:
            own.clear()
        elif OmegaConf.is_dict(own):
            _clear_emptied(own, part[key])


def _explain_unknown_key(error: ConfigKeyError) -> str:
    key = str(error.full_key or error.key)
    cls: Any = LoopConfig
    for part in key.split(".")[:-1]:
        cls = get_type_hints(cls).get(part, cls) if is_dataclass(cls) else cls
    known = [f.name for f in fields(cls)] if is_dataclass(cls) else []
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
    return f"unknown key {key}{hint}"


def to_yaml(config: LoopConfig) -> str:
    """The resolved configuration, as stored in each run directory."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def list_settings(config: LoopConfig) -> dict[str, Any]:
    """``section.key`` -> value of the seed and of every setting that differs from its default."""
    defaults, values = _list_defaults(), _flatten(OmegaConf.to_container(OmegaConf.structured(config)))
    return {k: v for k, v in values.items() if k == "seed" or v != defaults.get(k)}


def find_differences(stored: str, other: str) -> list[str]:
    """The changes of `find_changes`, as ``key (old -> new)``."""
    return describe_changes(find_changes(stored, other))


def describe_changes(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Each of ``changes``, key -> (old, new), as ``key (old -> new)``."""
    return [f"{key} ({old} -> {new})" for key, (old, new) in changes.items()]


def find_changes(stored: str, other: str) -> dict[str, tuple[Any, Any]]:
    """Key -> (old, new), where these values differ between two stored YAMLs.

    Keys on which no result depends are left out. A key that is missing, as in the YAML of an earlier worldloop, counts
    as its default.
    """
    old, new = (_list_defaults() | _flatten_yaml(text) for text in (stored, other))
    keys = [k for k in dict.fromkeys([*old, *new]) if k.split(".")[0] not in _FREE_KEYS]
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


def _list_defaults() -> dict[str, Any]:
    """``section.key`` -> default value."""
    return _flatten(OmegaConf.to_container(_make_schema()))


def _flatten_yaml(text: str) -> dict[str, Any]:
    return _flatten(OmegaConf.to_container(OmegaConf.create(text)))


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """``section.key`` -> value of nested mappings; a tuple as a list, which is what YAML reads."""
    if not isinstance(node, dict):
        return {prefix.rstrip("."): list(node) if isinstance(node, tuple) else node}
    return {k: v for key, child in node.items() for k, v in _flatten(child, f"{prefix}{key}.").items()}
