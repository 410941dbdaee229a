"""Damage the inputs of every command, one file at a time, and see whether each is one clear error or a clean run.

    python scripts/fuzz_inputs.py [--trials 240] [--seed 0] [--only PREFIX] [--out fuzz.json]

A small run of the toy is copied for every trial, along with a recording and its labels, and an exported world model;
one of the files, or a config, is truncated, emptied, deleted, gets bits flipped or noise, or has a value replaced where
it is JSON or YAML. Then the commands that read such a file run in this process, or an environment is made of it and
stepped. A finding is a traceback, more than one line of error, more than a minute of processor time or ten minutes in
all, or a file of the dataset that has changed or gone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
ENVIRONMENT = "environment"  # no command line: `gymnasium.make`, a reset, a step and a game
SETTINGS = (
    "runtime=inline",
    "num_iterations=1",
    "resources.num_simulators=0",
    "fit_world_model.num_steps=4",
    "fit_world_model.num_proprio_steps=4",
    "clone_policy.num_steps=4",
    "check_world_model.probe_steps=2",
    "check_world_model.required_auc=0",
    "check_world_model.reset_every=[]",
    "improve_policy.num_updates=2",
)
RECORDING = ("recording.image_size=16", "recording.actions_per_frame=2", "chunk_length=4")
PROCESSOR_S, WAITING_S = 60, 600  # a command may take: the first does not depend on what else the machine does
VALUES: tuple[Any, ...] = (None, -1, 0, 1e30, "", "x", [], {}, True, [1, 2], {"a": 1}, "../../etc", 3.5)


def damage_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(("truncated", "empty", "bits", "noise"))
    if kind == "truncated":
        return kind, data[: rng.randrange(max(1, len(data)))]
    if kind == "empty":
        return kind, b""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    if kind == "noise":
        at = rng.randrange(len(changed))
        changed[at : at + 64] = rng.randbytes(min(64, len(changed) - at))
    return kind, bytes(changed)


def damage_values(value: Any, rng: random.Random) -> str:
    """Replace or delete one value somewhere inside ``value``, in place; says which."""
    path = []
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(list(keys))
        path.append(str(key))
        if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        if isinstance(value, dict) and rng.random() < 0.25:
            del value[key]
            return f"without {'.'.join(path)}"
        value[key] = rng.choice(VALUES)
        return f"{'.'.join(path)} = {value[key]!r}"


def damage(path: Path, rng: random.Random) -> str:
    data = path.read_bytes()
    if rng.random() < 0.1:
        path.unlink()
        return "deleted"
    if path.suffix in (".json", ".yaml") and rng.random() < 0.6:
        from omegaconf import OmegaConf

        value = json.loads(data) if path.suffix == ".json" else OmegaConf.to_container(OmegaConf.load(path))
        what = damage_values(value, rng)
        path.write_text(json.dumps(value))  # which is YAML, too
        return what
    what, changed = damage_bytes(data, rng)
    path.write_bytes(changed)
    return what


def list_commands(run: Path, intact: Path, target: str, folder: Path) -> list[list[str]]:
    """The command lines that read ``target``."""
    sans, config = str(run / "sans"), str(run / "config.yaml")
    stage = "fit_world_model" if target.startswith("partial/") else "check_world_model"
    go_on = [stage, config, f"run_root={run.parent}", "run_name=debug"]
    if target == "config":
        return [["stage", "promote_policy", str(folder / "config.yaml"), f"run_root={folder / 'new'}"]]
    if target.startswith("exported/"):
        return [
            [ENVIRONMENT, str(folder / "run/exported")],
            ["export", str(folder / "run/exported"), str(folder / "e")],
        ]
    if target.startswith(("recording/", "labels.json")):
        recording, labels = folder / "run/recording", folder / "run/labels.json"
        settings = [f"recording.root={recording}", f"run_root={folder / 'new'}", *RECORDING]
        by = f"labels={labels}" if target == "labels.json" else "success_key=next.success"
        return [
            ["sans", "label", str(recording), str(labels), "--success", "0"],
            ["stage", "import_dataset", str(ROOT / "configs/recorded_cpu.yaml"), *settings, f"recording.{by}"],
        ]
    commands = [["stage", *go_on], ["report", str(run)], ["status", str(run)], ["compare", str(intact), str(run)]]
    if target.startswith("sans/"):
        commands = [["sans", "verify", sans], ["sans", "show", sans], ["sans", "list", sans], ["stage", *go_on]]
        commands += [["sans", "merge", sans, "--out", str(folder / "merged")]]
    if target.startswith("checkpoints/"):
        commands += [["export", str(run), str(folder / "exported")], ["report", str(run), "--html", str(folder / "r")]]
    return commands


def execute(command: list[str]) -> tuple[int | None, str, str]:
    """Exit code (``None``: an exception escaped), what it printed as errors, and the exception."""
    from worldloop.__main__ import main

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"longer than {PROCESSOR_S} s of processor time, or {WAITING_S} s")

    out, err = io.StringIO(), io.StringIO()
    timers = {signal.ITIMER_PROF: (signal.SIGPROF, PROCESSOR_S), signal.ITIMER_REAL: (signal.SIGALRM, WAITING_S)}
    for timer, (number, seconds) in timers.items():
        signal.signal(number, too_long)
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return (make_environment if command[0] == ENVIRONMENT else main)(command), err.getvalue(), ""
    except SystemExit as error:
        return int(error.code or 0), err.getvalue(), ""
    except BaseException:
        return None, err.getvalue(), traceback.format_exc()
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)


def make_environment(command: list[str]) -> int:
    """As a command line would end: 0, or one line of error and 2."""
    import gymnasium

    import worldloop.envs  # noqa: F401
    from worldloop.core.errors import WorldloopError
    from worldloop.play.make import make_play_session

    try:
        env = gymnasium.make("worldloop/WorldModel-v0", checkpoint=command[1], device="cpu")
        env.reset(seed=0)
        env.action_space.seed(0)
        env.step(env.action_space.sample())
        make_play_session(Path(command[1]), None, "cpu").step([0.0] * env.action_space.shape[1])  # type: ignore[index]
    except WorldloopError as error:
        print(f"worldloop: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def make_others(folder: Path, run: Path) -> None:
    """Beside the run: ``recording`` and ``labels.json``, as of a robot, and ``exported``."""
    import numpy as np
    from recording import record

    from worldloop.__main__ import main

    rng = np.random.default_rng(0)
    episodes = [
        {
            "images": rng.integers(0, 255, (12, 24, 32, 3), dtype=np.uint8),
            "state": rng.normal(size=(12, 3)).astype(np.float32),
            "action": rng.normal(size=(12, 3)).astype(np.float32),
            "success": np.arange(12) >= (8 if number % 2 else 99),
            "task": "push the cube",
        }
        for number in range(6)
    ]
    record(folder / "recording", episodes, use_videos=False)
    with contextlib.redirect_stdout(io.StringIO()):
        assert (
            main(["sans", "label", str(folder / "recording"), str(folder / "labels.json"), "--success", "1,3,5"]) == 0
        )
        assert main(["export", str(run), str(folder / "exported")]) == 0


def hash_dataset(run: Path) -> dict[str, str]:
    files = [p for part in ("shards", "versions") for p in (run / "sans" / part).rglob("*") if p.is_file()]
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def make_run(folder: Path) -> Path:
    """A run that stands before its check, all of whose files have been written by the stages before and after.

    What its fit had kept when it was cut lies beside, in ``partial/``; ``before_fit.json`` is the state to go on from.
    """
    import worldloop.loop.run as loop
    from worldloop.config.loading import load_config
    from worldloop.storage.run_directory import RunDirectory

    config = load_config(ROOT / "configs/debug.yaml", [f"run_root={folder}", *SETTINGS])
    before = None
    directory = RunDirectory(folder / "debug")
    while (state := directory.read_state()).next_stage:
        if state.next_stage == "check_world_model":
            before = state
        if state.next_stage == "fit_world_model":
            shutil.copy(directory.path / "state.json", folder / "before_fit.json")
            cut_in_its_middle(loop, replace(config, resources=replace(config.resources, checkpoint_every_s=1e-9)))
            shutil.copytree(directory.path / "partial", folder / "partial")
        loop.run_loop(config, state.next_stage)
    assert before is not None
    values = {**before.to_dict(), "evaluation_success": state.evaluation_success}
    directory.write_state(type(state).from_dict(values))
    shutil.copytree(folder / "partial", directory.path / "partial", dirs_exist_ok=True)
    return directory.path


def cut_in_its_middle(loop: Any, config: Any) -> None:
    """Ctrl-C after the second optimizer step of the fit."""
    whole = loop.TerminalDisplay

    class CutDisplay(whole):  # type: ignore[misc, valid-type]
        unit, count = "", 0

        def open(self, label: str, total: int, unit: str) -> None:
            self.unit, self.count = unit, 0

        def advance(self, count: int, figures: dict[str, float]) -> None:
            self.count += count
            if (self.unit, self.count) == ("step", 2):
                raise KeyboardInterrupt

    loop.TerminalDisplay = CutDisplay
    try:
        with contextlib.suppress(KeyboardInterrupt):
            loop.run_loop(config, "fit_world_model")
    finally:
        loop.TerminalDisplay = whole


def list_targets(run: Path) -> list[str]:
    """Relative to the run, or to what lies beside it."""
    found = [p.relative_to(run) for p in run.rglob("*") if p.is_file() and p.stat().st_size]
    for part in ("recording", "labels.json", "exported"):
        beside = run.parent / part
        found += [p.relative_to(run.parent) for p in (beside, *beside.rglob("*")) if p.is_file()]
    files = sorted(map(str, found))
    return [name for name in files if "tfevents" not in name and ".lock" not in name and not name.startswith("logs/")]


def try_once(number: int, intact: Path, folder: Path, rng: random.Random, only: str) -> list[dict[str, Any]]:
    """One damaged file and all commands that read it; what was found, and the exit codes under ``codes``."""
    run = folder / "run/debug"
    shutil.copytree(intact, run)
    for part in ("recording", "exported"):
        shutil.copytree(intact.parent / part, run.parent / part)
    shutil.copy(intact.parent / "labels.json", run.parent)
    files = [name for name in list_targets(run) if name.startswith(only)]
    target = "config" if number % 6 == 0 and not only else rng.choice(files)
    if target == "config":
        shutil.copy(ROOT / "configs/debug.yaml", folder / "config.yaml")
        what = damage(folder / "config.yaml", rng)
    else:
        what = damage(run / target if (run / target).exists() else run.parent / target, rng)
    if target.startswith("partial/"):
        shutil.copy(intact.parent / "before_fit.json", run / "state.json")
    before = hash_dataset(run)
    results = []
    for command in list_commands(run, intact, target, folder):
        code, error, escaped = execute(command)
        lines = [line for line in error.splitlines() if line.startswith("worldloop: ")]
        finding = ""
        if escaped:
            finding = escaped
        elif code not in (0, 1, 2):
            finding = f"exit code {code}"
        elif code and (len(lines) != 1 or not error.rstrip().endswith(lines[-1])):
            finding = f"not one line of error: {error}"
        after = hash_dataset(run)
        changed = [name for name, digest in before.items() if after.get(name) != digest]
        if changed:
            finding += f" changed {changed}"
        results.append({"target": target, "damage": what, "command": command[:2], "code": code, "finding": finding})
        if code and not finding:
            results[-1]["error"] = lines[-1]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="beginning of the files to damage, e.g. partial/ or sans/shards")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    base = Path(tempfile.mkdtemp(prefix="wl-fuzz-"))
    codes: Counter[str] = Counter()
    findings, targets = [], set()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            intact = make_run(base)
            make_others(base, intact)
        for number in range(options.trials):
            folder = base / f"trial{number}"
            rng = random.Random(options.seed * 100_003 + number)
            for result in try_once(number, intact, folder, rng, options.only):
                targets.add(result["target"])
                codes[f"exit {result['code']}"] += 1
                if result["finding"]:
                    findings.append(result)
                    print(f"{number}: {result['command']} on {result['target']} ({result['damage']})", flush=True)
                    print("    " + result["finding"].strip().replace("\n", "\n    ")[-1500:], flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    summary = {
        "schema_version": 1,
        "trials": options.trials,
        "seed": options.seed,
        "files": len(targets),
        "commands": sum(codes.values()),
        "by_exit_code": dict(codes),
        "findings": findings,
    }
    if options.out:
        options.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{options.trials} damaged inputs, {summary['commands']} commands, {dict(codes)}, {len(findings)} findings")
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
