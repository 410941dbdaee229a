"""What docs/ shows: the pages on adding something are followed to the letter, and all links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import ROOT, add_to, apply_diff, list_pages, load_module, read_overrides
from documented_commands import expand, list_commands, read_snippets
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldloop.__main__ import main
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def extended_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loop of a copy of the package with all pages' additions, on their commands' settings together."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "worldloop", root / "worldloop", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", root / "configs")
    settings: list[str] = []
    for page in list_pages():
        add_to(root, page)
        settings += [setting for setting in read_overrides(page) if not setting.startswith("run_name=")]
    small = ["num_iterations=1", "run_name=extended", "clone_policy.num_steps=300", "check_world_model.required_auc=0"]
    command = [sys.executable, "-m", "worldloop", "run", "configs/debug.yaml", *settings, *small]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return root / "runs/extended"


def read_iterations(run: Path) -> list[dict[str, Any]]:
    iterations: list[dict[str, Any]] = json.loads((run / "results.json").read_text())["iterations"]
    return iterations


@pytest.mark.slow
def test_a_new_stage_runs_and_records(extended_run: Path) -> None:
    """A success takes some steps of the 16 there are."""
    first, last = read_iterations(extended_run)
    assert 0 < first["steps_to_success"] <= 16
    events = EventAccumulator(str(extended_run / "tensorboard/loop"))
    events.Reload()
    (shown,) = events.Scalars("loop/steps_to_success")
    assert (shown.step, shown.value) == (0, pytest.approx(first["steps_to_success"]))
    assert "steps_to_success" not in last
    assert "time_successes" in (extended_run / "config.yaml").read_text()


@pytest.mark.slow
def test_a_new_reward_is_logged(extended_run: Path) -> None:
    events = EventAccumulator(str(extended_run / "tensorboard/improve_policy"))
    events.Reload()
    shares = [event.value for event in events.Scalars("improve_policy/reward_speed")]
    assert shares
    assert all(0 <= share < 0.2 for share in shares), "times its weight"
    assert max(shares) > 0


@pytest.mark.slow
def test_a_new_simulator_and_policy_learn(extended_run: Path) -> None:
    """The clone reaches the goal more often than not."""
    clone, improved = read_iterations(extended_run)
    assert clone["simulated_success"]["rate"] > 0.5
    assert improved["imagined_success"]["n"] == 40


@pytest.mark.slow
def test_the_commands_that_look_at_a_run_work_as_written(
    extended_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """README.md's list, in a fresh folder: all but those that make a run, play, or need another dataset or policy."""
    monkeypatch.chdir(tmp_path)
    (block,) = (s for s in read_snippets(ROOT / "README.md") if s.text.startswith("    worldloop run CONFIG"))
    run = str(extended_run)
    filled = {"RUN_DIR": run, "RUN_A": run, "RUN_B": run, "CHECKPOINT": run, "ROOT": f"{run}/sans", "DIR": "out"}
    ran = []
    for command in list_commands(block):
        for words in expand(command.replace("[--html FILE]", "--html page.html")):
            if words[1] in ("report", "status", "compare", "export") or (
                words[1] == "sans" and words[2] not in ("add", "label")
            ):
                shutil.rmtree("out", ignore_errors=True)
                assert main([filled.get(word, word) for word in words[1:]]) == 0, (words, capsys.readouterr().err)
                ran.append(" ".join(words[1:3]))
    assert len(ran) == 8, ran
    assert Path("page.html").stat().st_size > 10_000
    assert Path("out/meta/info.json").is_file(), "merged last"


@pytest.mark.slow
def test_the_code_that_opens_a_dataset_runs(extended_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(extended_run.parents[1])
    shard = sorted((extended_run / "sans/shards").iterdir())[0].name
    names: dict[str, Any] = {}
    for snippet in read_snippets(ROOT / "sans_data/README.md"):
        if snippet.language == "python":
            code = snippet.text.replace("<run>", "extended").replace("<shard>", shard)
            exec(code.replace("base_camera", "above"), names)
    assert {"frame", "clip"} <= names.keys()


def test_the_new_simulator_knows_the_variants_and_no_others() -> None:
    policy = load_module("adding_a_simulator.md", "shown_reach").ReachScriptedPolicy
    policy(SCRIPTED_VARIANTS, torch.arange(len(SCRIPTED_VARIANTS)), 2)
    with pytest.raises(ValueError, match="sideways"):
        policy(("expert", "sideways"), torch.arange(2), 2)


def test_a_diff_changes_what_stands_there_once() -> None:
    assert apply_diff("a\nb\nc\nd\n", " a\n+x\n b\n@@\n+y\n d\n") == "a\nx\nb\nc\ny\nd\n"
    with pytest.raises(ValueError, match="stands 0 times"):
        apply_diff("a\n", " b\n+x\n")
    with pytest.raises(ValueError, match="stands 2 times"):
        apply_diff("a\na\n", " a\n+x\n")


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_module_and_config_that_docs_name_exists() -> None:
    named = re.compile(r"`((?:worldloop|configs|scripts|experiments|benchmarks|tests|docs)/[\w./-]+)`")
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = "" if page.name == "CHANGELOG.md" else page.read_text()
        for path in named.findall(text):
            assert "NNN" in path or (ROOT / path).exists(), f"{page.name}: {path}"
