"""What each command does, and the tables it prints (within 80 columns)."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldloop.core.errors import WorldloopError

if TYPE_CHECKING:
    from worldloop.play.session import PlaySession


def execute(options: argparse.Namespace) -> int:
    """Dispatch a parsed command line; see `worldloop.__main__` for the exit codes."""
    match options.command:
        case "run":
            return _run(options.config, options.overrides)
        case "stage":
            return _run(options.config, options.overrides, only_stage=options.name)
        case "report" | "status" | "compare":
            runs = [options.run_a, options.run_b] if options.command == "compare" else [options.run_dir]
            with _reading(*runs):
                return _report(options)
        case "clean":
            return _clean(options)
        case "benchmark-ood":
            return _benchmark(options)
        case "sans":
            return _sans(options)
        case "play":
            return _play(options)
        case "export":
            return _export(options)
        case "export-policy":
            return _export_policy(options)
        case _:
            from worldloop.cli.doctor import run_doctor

            return run_doctor(as_json=options.json)


def _run(path: Path, overrides: list[str], only_stage: str = "") -> int:
    """Run the loop, or only its next stage, and print the table of results."""
    # Set before torch is imported, because the import sets the size of thread pools.
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    from worldloop.config.loading import load_config
    from worldloop.core.interrupts import answer_signals
    from worldloop.loop.run import run_loop
    from worldloop.reporting.tables import format_report
    from worldloop.stages import STAGES

    if only_stage and only_stage not in STAGES:
        raise WorldloopError(f"unknown stage {only_stage!r}; stages: {', '.join(STAGES)}")
    config = load_config(path, overrides)
    is_job = "RAY_JOB_ID" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if is_job and not Path(config.run_root).is_absolute():
        raise WorldloopError(
            f"run_root {config.run_root!r} must be absolute in a Ray job, whose folder is a throw-away copy: "
            "add run_root=/a/shared/folder"
        )
    with answer_signals():
        directory = run_loop(config, only_stage)
    with _reading(directory.path):
        print(format_report(directory.path))
    return 0


def _reading(*runs: Path) -> AbstractContextManager[None]:
    """Within this context, an error that broken records of ``runs`` cause becomes one `WorldloopError`."""
    from worldloop.core.files import malformed

    remedy = "restore its results.json, state.json and status.json"
    return malformed(f"what {' or '.join(map(str, runs))} has recorded", remedy)


def _report(options: argparse.Namespace) -> int:
    match options.command:
        case "status":
            from worldloop.reporting.status import format_status

            print(format_status(options.run_dir))
        case "report" if options.html:
            from worldloop.reporting.html import write_html_report

            if options.html.is_dir():
                raise WorldloopError(f"--html {options.html} is a folder: name a file in it")
            write_html_report(options.run_dir, options.html)
            print(f"report written to {options.html}")
        case "report":
            from worldloop.reporting.tables import format_report

            print(format_report(options.run_dir))
        case _:
            from worldloop.config.loading import find_differences
            from worldloop.reporting.comparison import format_comparison

            print(format_comparison(options.run_a, options.run_b, find_differences))
    return 0


def _clean(options: argparse.Namespace) -> int:
    """List what can be freed in a run; with ``--yes`` free it, while no other process works on the run."""
    from worldloop.loop.cleaning import describe_removable, find_removable, read_retention, remove
    from worldloop.storage.run_directory import RunDirectory

    directory = RunDirectory(options.run_dir)
    if not directory.exists:
        raise WorldloopError(f"{options.run_dir} is no run directory: give the folder with its config.yaml")
    if options.iterations is not None and options.iterations < 1:
        raise WorldloopError(f"--iterations must be at least 1, got {options.iterations}")
    retention = read_retention(directory, options.iterations)
    if options.yes:
        directory.lock()
    try:
        found = find_removable(directory.path, directory.read_state(), retention)
        if not found:
            print("nothing to free")
            return 0
        print("\n".join(describe_removable(found)))
        if options.yes:
            remove(directory.path, found)
            print("freed")
        else:
            print("nothing has been deleted; --yes deletes it")
    finally:
        directory.unlock()
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    """Test a policy in every condition, print the table and draw the plot; goes on where it was interrupted."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from worldloop.core.interrupts import answer_signals
    from worldloop.loop.benchmark import run_benchmark
    from worldloop.reporting.generalisation import format_conditions, plot_conditions
    from worldloop.reporting.progress import TerminalDisplay

    if options.states < 1:
        raise WorldloopError(f"--states must be at least 1, got {options.states}")
    with answer_signals():
        result = run_benchmark(
            options.run_dir,
            options.policy,
            options.states,
            options.variations,
            TerminalDisplay(),
            own_code=options.own_code,
        )
    print(format_conditions(result))
    if (picture := plot_conditions(result, Path(result["path"]).with_suffix(".png"))) is not None:
        print(f"plot written to {picture}")
    return 0


def _sans(options: argparse.Namespace) -> int:
    if options.action == "label":
        return _label(options)
    if options.action == "add":
        return _add(options)
    from worldloop.sans.store import SansStore

    if not options.root.is_dir():
        raise WorldloopError(f"dataset folder {options.root} does not exist")
    store = SansStore(options.root)
    names = store.list_versions()
    if not names:
        raise WorldloopError(f"{options.root} has no versions of a dataset; those of a run are in RUN_DIR/sans")
    if options.action == "list":
        for name in names:
            version = store.version(name)
            episodes = sum(shard.num_episodes for shard in version.shards)
            plural = "s" if len(version.shards) != 1 else " "
            print(f"{name:<24} {len(version.shards):>3} shard{plural} {episodes:>7} episodes")
        return 0
    name = options.version or names[-1]
    if name not in names:
        raise WorldloopError(f"no version {name!r} in {options.root}; there are: {', '.join(names)}")
    version = store.version(name)
    match options.action:
        case "show":
            print(_format_summary(store.summary(version)))
        case "verify":
            for shard in store.verify(version):
                print(f"the cache of shard {shard} was damaged: it is built again when it is next needed")
            print(f"{name}: {len(version.shards)} shards match their hashes")
        case "merge":
            store.merge(version, options.out, options.outcome)
            print(f"{name} written to {options.out}")
    return 0


def _play(options: argparse.Namespace) -> int:
    """Serve the game until Ctrl-C."""
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    from worldloop.config.loading import load_config
    from worldloop.core.interrupts import answer_signals
    from worldloop.play.make import find_simulator, make_play_session
    from worldloop.play.server import PlayServer

    config = load_config(options.config) if options.config else None
    simulator, note = None, "no simulator beside it"
    if not options.no_simulator:
        try:
            simulator = find_simulator(options.checkpoint, config, options.own_code)
            note = "" if simulator else note
        except WorldloopError as error:
            note = f"{note}: {error}"

    def make_session() -> PlaySession:
        nonlocal note
        try:
            return make_play_session(options.checkpoint, simulator, options.device, options.pretrained)
        except (WorldloopError, ImportError) as error:
            if simulator is None or config:
                raise
            note = f"no simulator beside it: {error}"
            return make_play_session(options.checkpoint, None, options.device, options.pretrained)

    server = PlayServer(make_session, options.port)
    try:
        with answer_signals():  # Ctrl-C also works if the parent ignores it, as a shell in the background
            if note:
                print(note)
            print(f"playing {options.checkpoint} at\n{server.url}\nCtrl-C ends it", flush=True)
            if options.open:
                import webbrowser

                webbrowser.open(server.url)
            server.serve_forever()
    except KeyboardInterrupt:
        print("\nended")
    finally:
        server.close()
    return 0


def _export(options: argparse.Namespace) -> int:
    from worldloop.factory.pretrained import save_pretrained
    from worldloop.storage.hub import push_to_hub, require_hub_name

    if options.push:
        require_hub_name(options.push)
    save_pretrained(options.checkpoint, options.out, options.push or "")
    print(f"world model and model card written to {options.out}")
    if options.push:
        print(f"uploaded to {push_to_hub(options.out, options.push, private=not options.public)}")
    return 0


def _export_policy(options: argparse.Namespace) -> int:
    from worldloop.factory.pretrained import export_policy

    export_policy(options.checkpoint, options.out)
    print(f"policy written to {options.out}, for LeRobot's from_pretrained")
    return 0


def _add(options: argparse.Namespace) -> int:
    from worldloop.loop.waiting import add_episodes, describe_added

    print("\n".join(describe_added(*add_episodes(options.root, options.dataset, options.overrides))))
    return 0


def _label(options: argparse.Namespace) -> int:
    """Update the labels of a recording, draw its contact sheet if one is asked for, and print the labels."""
    from worldloop.sans.labels import format_numbers, read_labels, update_labels, write_labels
    from worldloop.sans.recorded_dataset import open_dataset

    dataset = open_dataset(str(options.root), options.camera, setting="--camera")
    count, fingerprint = len(dataset.episodes), dataset.found.fingerprint
    known = read_labels(options.labels, count, fingerprint).success if options.labels.exists() else {}
    labels = update_labels(known, count, options.success, options.failure)
    if labels != known:
        write_labels(options.labels, labels, count, fingerprint)
    if options.sheet:
        from worldloop.sans.contact_sheet import draw_contact_sheet
        from worldloop.sans.recorded_episodes import read_previews

        draw_contact_sheet(options.sheet, read_previews(dataset, size=96), labels)
    for doubt in dataset.found.doubts:
        print(f"warning: {doubt}", file=sys.stderr)
    print(f"{options.root}: {count} episodes, labels in {options.labels}")
    for name, numbers in (
        ("success", [n for n in labels if labels[n]]),
        ("failure", [n for n in labels if not labels[n]]),
        ("no label", [n for n in range(count) if n not in labels]),
    ):
        text = f"  {name:<8} {len(numbers):>5}  {format_numbers(numbers)}"
        print("\n".join(textwrap.wrap(text, 80, subsequent_indent=" " * 18)))
    return 0


def _format_summary(summary: dict[str, Any]) -> str:
    """One line for each count of the whole version; with several tasks, also one line per task."""

    def line(name: str, *counts: dict[str, int]) -> str:
        text = "; ".join(", ".join(f"{value} {count}" for value, count in c.items()) for c in counts)
        return "\n".join(textwrap.wrap(f"  {name:<10} {text}", 80, subsequent_indent=" " * 13))

    lines = [f"{summary['name']}: {summary['num_episodes']} episodes, {summary['num_frames']} frames"]
    cameras = (f"{name} {width} x {height} px" for name, (height, width) in summary["cameras"].items())
    lines.append(f"  {'cameras':<10} " + ", ".join(cameras))
    lines += [line(key, summary[key]) for key in ("task", "source", "variant", "outcome", "split", "iteration")]
    if len(summary["by_task"]) > 1:
        lines += [line(task, *counts.values()) for task, counts in summary["by_task"].items()]
    return "\n".join(lines)
