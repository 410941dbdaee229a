"""Run Python as if worldloop alone were installed, with the packages that it and some of its extras ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = str(ROOT / "pyproject.toml")

# What the extras' packages need themselves counts as installed, as after `pip install '.[EXTRA]'`.
HIDE = """
import importlib.metadata as metadata
import re
import sys
import tomllib

from packaging.requirements import Requirement

PROJECT = tomllib.loads(open(PYPROJECT).read())["project"]


def normal(name):
    return re.sub("[-_.]+", "-", name).lower()


TOPS = {top: {*map(normal, names)} for top, names in metadata.packages_distributions().items()}
INSTALLED = {normal(d.metadata["Name"]) for d in metadata.distributions()}


def list_needs(name, extras):
    if name == "worldloop":
        texts = [*PROJECT["dependencies"], *(t for e in extras for t in PROJECT["optional-dependencies"][e])]
    else:
        texts = metadata.requires(name) or ()
    for requirement in map(Requirement, texts):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
            yield normal(requirement.name), tuple(requirement.extras)


def list_allowed(extras):
    allowed, left = set(), [("worldloop", tuple(extras))]
    while left:
        need = left.pop()
        if need not in allowed and (need[0] in INSTALLED or need[0] == "worldloop"):
            allowed.add(need)
            left += list_needs(*need)
    return {name for name, _ in allowed}


def list_refused(extras):
    allowed = list_allowed(extras)
    return {top for top, names in TOPS.items() if allowed.isdisjoint(names)} - {"worldloop"}
"""
BLOCK = """
class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in refused else self.finder.find_spec(name, path, target)


refused = list_refused(EXTRAS)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
assert not {"torch", "gymnasium", "tqdm"} & refused
"""


@cache
def _read_installed() -> dict[str, Any]:
    names: dict[str, Any] = {"PYPROJECT": PYPROJECT}
    exec(HIDE, names)
    return names


def list_refused(extras: Sequence[str]) -> set[str]:
    """The installed top-level modules that an install of worldloop with ``extras`` alone would lack."""
    refused: set[str] = _read_installed()["list_refused"](extras)
    return refused


def run_bare(extras: Sequence[str], code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process that cannot import anything but the base install and ``extras`` of worldloop."""
    text = f"EXTRAS, PYPROJECT = {list(extras)!r}, {PYPROJECT!r}\n{HIDE}\n{BLOCK}\n{code}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", text]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
