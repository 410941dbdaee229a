"""Single stages on the data of a finished debug run, in a folder of their own."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from reporters import RecordingReporter

from worldloop.config.loading import list_settings, load_config
from worldloop.loop.run import make_context
from worldloop.reporting.progress import SilentDisplay
from worldloop.runtime.inline import InlineRuntime
from worldloop.stages import STAGES
from worldloop.stages.context import StageContext
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

DEBUG = Path(__file__).resolve().parents[1] / "configs/debug.yaml"
LATER = ("align_world_model", "check_planner", "resources")  # sections on which no fit of `open_fitted` depends
_fitted: dict[tuple[object, ...], tuple[Path, LoopState]] = {}  # a folder for copying, and its state


def run_stage(name: str, state: LoopState, context: StageContext) -> LoopState:
    """``state`` after the stage called ``name``, with its own section of the config."""
    return STAGES[name].run(state, context.config_of(STAGES[name].Config), context)


def open_fitted(debug_run: Path, folder: Path, stage: str, *overrides: str) -> tuple[LoopState, StageContext]:
    """Iteration 1 of ``debug_run`` after its first world model, with inverse dynamics and a planner if they are used.

    The dataset, the clone and the world model are those of ``debug_run``; the reporter records. ``stage`` is the one
    that comes next. Tests with the same settings of what is fitted share one fit.
    """
    config = load_config(DEBUG, ["runtime=inline", *overrides])
    display = SilentDisplay()
    context = make_context(stage, config, folder, InlineRuntime(0, 0, display), display)
    context = replace(context, reporter=RecordingReporter())
    needed = ["fit_inverse_dynamics"] if config.uses_inverse_dynamics else []
    if config.uses_planner and stage != "fit_planner":
        needed.append("fit_planner")
    settings = [item for item in list_settings(config).items() if item[0].split(".")[0] not in LATER]
    key = (debug_run, *needed, str(settings))
    if key in _fitted:
        shutil.copytree(_fitted[key][0], folder, symlinks=True, dirs_exist_ok=True)
        return _fitted[key][1], context
    (folder / "sans").symlink_to(debug_run / "sans")
    done = RunDirectory(debug_run).read_state()
    for path in (done.clone, done.world_model):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(debug_run / path)
    state = LoopState(
        iteration=1,
        dataset="v001",
        clone=done.clone,
        policy=done.clone,
        world_model=done.world_model,
        teacher=done.world_model,
        num_fits=1,
        records=done.records[:1],
    )
    for name in needed:
        state = run_stage(name, state, context)
    _fitted[key] = Path(tempfile.mkdtemp()), state
    shutil.copytree(folder, _fitted[key][0], symlinks=True, dirs_exist_ok=True)
    return state, context
