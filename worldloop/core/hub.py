"""Names on the Hugging Face Hub, and downloads from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldloop.core.errors import WorldloopError, first_line

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_ADDRESS = re.compile(rf"hf:/+(?P<name>{HUB_NAME.pattern})(@(?P<revision>.+))?")  # a `Path` keeps one slash


def fetch_snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """A local copy of the files called like ``patterns`` of ``name``, owner/model, at ``revision`` or its newest.

    It is downloaded once. Raises `WorldloopError` if it cannot be.
    """
    hub = import_hub()
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # no network, login or model: the Hub's client raises its own and httpx's errors
        raise WorldloopError(
            f"hf://{name}{f'@{revision}' if revision else ''} cannot be had from the Hub: {first_line(error)}"
        ) from error


def import_hub() -> Any:
    """The Hub's client. Raises `WorldloopError` if it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise WorldloopError(
            "the Hub needs huggingface_hub, which is not installed: pip install huggingface_hub"
        ) from error
    return huggingface_hub
