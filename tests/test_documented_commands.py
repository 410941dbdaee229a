"""Every command, setting and block that README.md and docs/ show could work as it is written, and the quick ones do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import ROOT
from documented_commands import find_faults, list_commands, read_snippets
from hand_recording import write_recording

from worldloop.__main__ import main
from worldloop.config.loading import load_config
from worldloop.loop.startup import check_run_can_start

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "sans_data/README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_all_that_a_page_tells_one_to_type_could_work(page: Path) -> None:
    assert not (faults := find_faults(page)), "\n".join(faults)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("    worldloop dance configs/debug.yaml\n", "invalid choice: 'dance'"),
        ("    worldloop status\n", "required: RUN_DIR"),
        ("    worldloop sans list|show RUN --deep\n", "unrecognized arguments: --deep"),
        ("    worldloop run configs/nowhere.yaml     # or another\n", "no such config configs/nowhere.yaml"),
        ("    worldloop run configs/debug.yaml sed=1\n", "unknown key sed"),
        ("    worldloop run CONFIG value.kind=vivaa\n", "vivaa"),
        ("1. So:\n\n       make loop     # quick\n       make looop\n", "looop"),
        ('    make loop ARGS="sed=1"\n', "unknown key sed"),
        ("    python scripts/nothing.py\n", "no such file scripts/nothing.py"),
        ("```\npython scripts/kill_drill.py --loops toy\n```\n", "unrecognized arguments: --loops"),
        ("    ray start --heads\n", "No such option '--heads'"),
        ("    ray job submit -- \\\n        worldloop run pushcube.yaml\n", "no such config pushcube.yaml"),
        ("```sh\nworldloop doctor\nkubectl apply\n```\n", "unknown program in 'kubectl apply'"),
        ("Do `worldloop stage NAME`.\n", "required: config"),
        ("Do `worldloop dances`.\n", "invalid choice: 'dances'"),
        ("Do `pip install '.[simm]'`.\n", "no extra simm"),
        ("Set `policy.kind=tokenvla`.\n", "tokenvla"),
        ("Set `improve_policy.guidence=...`.\n", "unknown key improve_policy.guidence"),
        ("```yaml\npolicy:\n  kindd: lerobot\n```\n", "unknown key policy.kindd"),
        ("```python\nfrom worldloop.sans.clips import Clips\n```\n", "worldloop.sans.clips has no ['Clips']"),
    ],
)
def test_what_cannot_work_is_found(text: str, fault: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{text}")
    (found,) = find_faults(page)
    assert fault in found


def test_a_block_is_read_as_a_reader_reads_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n    real -> imagined\n\n1. So:\n\n       ray start \\\n           --head     # once\n\n`a=b`\n"
    )
    drawing, block, code = read_snippets(page)
    assert (drawing.line, list_commands(drawing)) == (3, [])
    assert (block.line, list_commands(block)) == (7, ["ray start --head"])
    assert (code.text, list_commands(code)) == ("a=b", [])


def test_the_commands_for_a_recording_work_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is a run of minutes: all checks are made that come before it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    write_recording(tmp_path / "DATASET", num_episodes=10)
    block = next(s for s in read_snippets(ROOT / "docs/recordings.md") if "sans label DATASET" in s.text)
    *label, run = [command.split()[1:] for command in list_commands(block)]
    assert len(label) == 2
    for arguments in label:
        assert main(arguments) == 0
    assert Path("sheet.png").stat().st_size > 0
    check_run_can_start(load_config(run[1], run[2:]))


def test_the_token_of_a_cluster_is_made_as_written(tmp_path: Path) -> None:
    (block,) = (s for s in read_snippets(ROOT / "docs/cluster.md") if "ray get-auth-token" in s.text)
    *first, head, others = list_commands(block)
    assert head.startswith("ray start --head ")
    assert others.startswith("ray start --address ")
    bare = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    environment = bare | {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-ec", "\n".join(first)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / ".ray/auth_token").read_text().strip()) > 20
