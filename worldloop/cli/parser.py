"""The commands and options of the command line. Nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from worldloop.core.version import __version__

_OWN_CODE = "import the simulator and the policy that the run names, also if they are not worldloop's own"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"worldloop: {message} (see: {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `worldloop.cli.commands` says what each does."""
    parser = _Parser(prog="worldloop", description="Co-train a video world model and a robot policy, in a closed loop.")
    parser.add_argument("--version", action="version", version=f"worldloop {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="run a whole loop; resumes if its run directory exists")
    run.add_argument("config", type=Path, help="YAML file, e.g. configs/debug.yaml")
    run.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="e.g. seed=1 run_root=/data/runs")

    stage = commands.add_parser("stage", help="run only the next stage of a loop, by name")
    stage.add_argument("name", metavar="NAME", help="e.g. fit_world_model; a wrong name lists all of them")
    stage.add_argument("config", type=Path)
    stage.add_argument("overrides", nargs="*", default=[], metavar="key=value")

    report = commands.add_parser("report", help="the results of a run: a table, or one HTML file with plots and videos")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page instead")

    status = commands.add_parser("status", help="what a run is doing, also one that runs elsewhere")
    status.add_argument("run_dir", type=Path, metavar="RUN_DIR")

    compare = commands.add_parser("compare", help="two runs: success on the same states, cost, what they differ in")
    compare.add_argument("run_a", type=Path, metavar="RUN_A")
    compare.add_argument("run_b", type=Path, metavar="RUN_B")

    clean = commands.add_parser("clean", help="what a run no longer needs, and with --yes delete it")
    clean.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    clean.add_argument("--yes", action="store_true", help="delete; without it nothing changes")
    clean.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help="latest iterations that stay whole (default: as the config says)",
    )

    ood = commands.add_parser("benchmark-ood", help="a run's policy where it has not learned: place, light, object")
    ood.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    ood.add_argument("--policy", default="", metavar="CHECKPOINT", help="in the run (default: its current policy)")
    ood.add_argument("--states", type=int, default=200, metavar="N", help="of each task and condition (default: 200)")
    ood.add_argument("--own-code", action="store_true", help=_OWN_CODE)
    ood.add_argument("--variations", nargs="*", metavar="NAME", help="of the simulator (default: all that it has)")

    sans = commands.add_parser("sans", help="look at a run's dataset")
    actions = sans.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser)
    for name, text in (
        ("list", "list the versions of a dataset"),
        ("show", "count the episodes of a version by task, source and outcome"),
        ("verify", "read every file of a version, also in its cache, and compare it with its hash"),
        ("merge", "write a version as one LeRobot dataset"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("root", type=Path, help="folder of the dataset, e.g. runs/debug/sans")
        if name != "list":
            action.add_argument("version", nargs="?", default="", help="name of a version (default: the newest)")
        if name == "merge":
            action.add_argument("--out", type=Path, required=True, help="folder to create")
            action.add_argument(
                "--outcome",
                default="",
                choices=("success", "near_success", "failure"),
                help="only episodes that end so",
            )

    add = actions.add_parser("add", help="bring a robot's episodes into a run that waits for them")
    add.add_argument("root", type=Path, metavar="RUN", help="directory of a run with source=robot")
    add.add_argument("dataset", type=Path, metavar="DATASET", help="folder of a LeRobot dataset")
    add.add_argument(
        "overrides", nargs="*", default=[], metavar="recording.key=value", help="how it is read, e.g. labels"
    )

    label = actions.add_parser("label", help="say which episodes of a recording succeed")
    label.add_argument("root", type=Path, metavar="DATASET", help="folder of a LeRobot dataset, which is left as it is")
    label.add_argument("labels", type=Path, metavar="LABELS", help="JSON file to write, or to add to")
    label.add_argument("--success", default="", metavar="LIST", help="episodes, e.g. 0,3,5-9, or: rest")
    label.add_argument("--failure", default="", metavar="LIST", help="episodes, e.g. 1-2, or: rest")
    label.add_argument("--sheet", type=Path, metavar="PNG", help="first, middle and last frame of each, to judge by")
    label.add_argument("--camera", action="append", default=[], metavar="NAME", help="to draw; may be repeated")

    play = commands.add_parser("play", help="drive the robot inside a world model, in the browser")
    play.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run, or a checked world model's directory")
    play.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: any free one)")
    play.add_argument("--device", default="auto", help="auto, cpu or cuda")
    play.add_argument(
        "--pretrained", default="", metavar="FOLDER", help="of a fine-tuned model: where its pipeline is now"
    )
    play.add_argument("--config", type=Path, help="simulator to play beside (default: that of the checkpoint's run)")
    play.add_argument("--own-code", action="store_true", help=_OWN_CODE)
    play.add_argument("--no-simulator", action="store_true", help="the world model alone")
    play.add_argument("--open", action="store_true", help="open the page in the default browser")

    export = commands.add_parser("export", help="a checked world model as a folder with a model card, or on the Hub")
    export.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a run, or a checked world model's directory"
    )
    export.add_argument("out", type=Path, metavar="DIR", help="folder to create")
    export.add_argument("--push", metavar="OWNER/MODEL", default="", help="upload it to the Hugging Face Hub as well")
    export.add_argument("--public", action="store_true", help="where --push makes a new repository; else private")

    export_policy = commands.add_parser("export-policy", help="a policy of kind lerobot as a folder that LeRobot loads")
    export_policy.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run, or a policy's directory")
    export_policy.add_argument("out", type=Path, metavar="DIR", help="folder to create")

    doctor = commands.add_parser("doctor", help="what is installed, what is missing, and the remedy")
    doctor.add_argument("--json", action="store_true", help="machine-readable")
    return parser
