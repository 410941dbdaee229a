"""The code blocks of docs/adding_a_*.md: what a page says one adds to the package."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
COMMAND = re.compile(r"^    worldloop run configs/debug\.yaml (.*)$", re.MULTILINE)
BLOCK = re.compile(r"^```(python|diff)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A new file's whole ``text``, or what changes in the file at ``path`` (under the repository's root)."""

    is_diff: bool
    path: str
    text: str


def list_pages() -> list[Path]:
    return sorted((ROOT / "docs").glob("adding_a_*.md"))


def read_blocks(page: Path) -> Iterator[Block]:
    for language, path, text in BLOCK.findall(page.read_text()):
        yield Block(language == "diff", path, text)


def read_overrides(page: Path) -> list[str]:
    """``key=value`` of the page's command."""
    (command,) = COMMAND.findall(page.read_text())
    return command.split()


def add_to(root: Path, page: Path) -> None:
    """Do in the copy of the repository at ``root`` what ``page`` says."""
    for block in read_blocks(page):
        path = root / block.path
        if block.is_diff:
            path.write_text(apply_diff(path.read_text(), block.text))
        else:
            path.parent.mkdir(exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(block.text)


def apply_diff(text: str, diff: str) -> str:
    """``text`` with the hunks of ``diff``, which are parted by ``@@``: their other lines stand in ``text`` once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] == " ")
        if text.count(before) != 1:
            raise ValueError(f"stands {text.count(before)} times in the file:\n{before}")
        text = text.replace(before, "".join(line[1:] for line in lines))
    return text


def load_module(page: str, name: str) -> ModuleType:
    """The one new file of ``page`` as a module called ``name``."""
    (block,) = (block for block in read_blocks(ROOT / "docs" / page) if not block.is_diff)
    module = sys.modules[name] = ModuleType(name)
    exec(compile(block.text, f"docs/{page}", "exec"), vars(module))
    return module
