"""Export a world model to a folder with a model card; upload it to the Hugging Face Hub, and download it again.

    DIRECTORY/README.md   the model card: what the model imagines, the check's figures, how to use it

The other files are those of `worldloop.storage.checkpoint` and `worldloop.storage.card`, with one change: if the
pretrained pipeline is a folder on this machine, only the folder's name is kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.files import malformed, to_json, whole_directory
from worldloop.core.hub import HUB_NAME, fetch_snapshot, import_hub
from worldloop.core.specs import SimulatorSpec
from worldloop.storage.card import read_card
from worldloop.storage.checkpoint import read_description, rebuild_dataclass

FILES = ("checkpoint.json", "model.safetensors", "card.json", "starts.safetensors")
# The figures of the check in the closed loop that a model card shows: key, meaning.
_SHOWN_IN_CLOSED_LOOP = (
    ("within_group_auc", "AUC within groups: of two rollouts from one state, which one succeeds? chance .5"),
    ("auc", "AUC over all rollouts"),
    ("start_only_auc", "its floor: AUC of what the start alone tells"),
    ("true_negative_rate", "share of failing replays without a declared success"),
    ("own", "success of the policy itself in the simulator"),
    ("replay", "success of its imagined actions in the simulator"),
    ("declared", "success as imagined"),
)
# The figures that a model card shows for each source: key, meaning, unit.
_SHOWN = (
    ("auc", "success head over whole episodes, AUC", ""),
    ("actions_only_auc", "its floor: AUC of the recorded actions alone", ""),
    ("balanced_accuracy", "success head, balanced accuracy", ""),
    ("expected_calibration_error", "success head, expected calibration error", ""),
    ("auc_branches_4_chunks", "success head over four chunks from real states, AUC", ""),
    ("visual_alignment_imagined", "outcome seen in imagined frames, balanced accuracy", ""),
    ("psnr_db", "PSNR", " dB"),
    ("psnr_db_first_frame", "PSNR of copying the first frame", " dB"),
    ("ssim", "SSIM", ""),
    ("object_error_cm", "object position at the end, error", " cm"),
    ("object_error_cm_floor", "the same of simulated frames (the probe's floor)", " cm"),
)


def require_hub_name(name: str) -> None:
    """Raise `WorldloopError` unless ``name`` is owner/model."""
    if not HUB_NAME.fullmatch(name):
        raise WorldloopError(f"{name!r} is no name on the Hub: owner/model")


def export_world_model(checkpoint: Path, out: Path, name: str = "") -> None:
    """Copy the checked world model in ``checkpoint`` to the new folder ``out``, with a model card.

    ``name`` is that on the Hub, owner/model, by which the card tells people to load it; "": by the folder. An export of
    the same world model that is there already is written again. Raises `WorldloopError` if ``out`` holds anything else,
    or if the world model was not checked or is damaged.
    """
    if out.exists() and not _is_export(out, checkpoint):
        raise WorldloopError(f"{out} exists: export into a folder that does not exist yet")
    with malformed(f"checkpoint {checkpoint}", "restore it from a copy"):
        text = write_model_card(checkpoint, f"hf://{name}" if name else out.name)
    with whole_directory(out, f"the exported world model {out}") as directory:
        for name in FILES:
            shutil.copy2(checkpoint / name, directory / name)
        description = read_description(checkpoint)
        if (base := description["config"].get("pretrained", "")) and not _is_on_hub(base):
            description["config"]["pretrained"] = Path(base).name
            (directory / "checkpoint.json").write_bytes(to_json(description))
        (directory / "README.md").write_text(text)


def _is_export(out: Path, checkpoint: Path) -> bool:
    """Whether ``out`` holds nothing but an export of the world model in ``checkpoint``, e.g. after a failed upload."""
    if not (out / "checkpoint.json").is_file() or {path.name for path in out.iterdir()} - {*FILES, "README.md"}:
        return False
    return bool(read_description(out)["sha256"] == read_description(checkpoint)["sha256"])


def write_model_card(checkpoint: Path, name: str) -> str:
    """The model card, Markdown with the Hub's metadata."""
    card = read_card(checkpoint)
    description = read_description(checkpoint)
    spec = rebuild_dataclass(SimulatorSpec, description["spec"])
    base = description["config"].get("pretrained", "")
    is_plural = len(spec.tasks) > 1
    choice = f', task="{spec.tasks[0].id}"' if is_plural else ""
    lines = [
        "---",
        "library_name: worldloop",
        "pipeline_tag: robotics",
        *([f"base_model: {base}", "base_model_relation: adapter"] if base and _is_on_hub(base) else []),
        "tags: [world-model, robotics, video, gymnasium]",
        "---",
        "",
        f"# {name.removeprefix('hf://')}",
        "",
        f"An action-conditioned world model of {_list_tasks(spec)}, as a Gymnasium environment: {_list_cameras(spec)}, "
        f"{spec.frames_per_second:g} frames a second of {spec.actions_per_frame} actions each "
        f"({', '.join(spec.robot.action_names)}; {spec.robot.control_mode}).",
        "",
        "    import gymnasium, worldloop.envs",
        "",
        f'    env = gymnasium.make("worldloop/WorldModel-v0", checkpoint="{name}"{choice})',
        "",
        *(_tell_of_base(base) if base else []),
        *_describe_closed_loop(card.closed_loop),
        "## Checked on held-out episodes",
        "",
        "Whole episodes, imagined open loop from their first frame with the recorded actions; 95 % intervals. Recorded "
        "actions carry the outcome, so this says less about a policy that acts in the model."
        + (" First the mean over the tasks." if is_plural else ""),
        "",
        *_draw_table(card.figures),
    ]
    by_task = card.figures.get("tasks", {})
    for task in spec.task_ids:
        if task in by_task:
            lines += ["", f"### {task}", "", *_draw_table(by_task[task])]
    return "\n".join([*lines, ""])


def _list_tasks(spec: SimulatorSpec) -> str:
    """``PushCube-v1 ("push the cube to the goal"), PullCube-v1 ("pull ...")``."""
    return ", ".join(f"{task.id} (\u201c{task.instruction}\u201d)" for task in spec.tasks)


def _list_cameras(spec: SimulatorSpec) -> str:
    """``base_camera (64 x 64 px), hand_camera (48 x 32 px)``: width x height."""
    return ", ".join(f"{camera.name} ({camera.width} x {camera.height} px)" for camera in spec.robot.cameras)


def _describe_closed_loop(figures: dict[str, Any]) -> list[str]:
    """A section of the last check in the closed loop, see `WorldModelCard`; nothing without one."""
    if not figures:
        return []
    lines = [
        "## Checked in the closed loop",
        "",
        f"A policy ({Path(figures['checkpoint']).name}) acted on imagined frames, and the simulator replayed its "
        f"actions: {figures['n']} rollouts from {figures['num_starts']} held-out states; 95 % intervals over states.",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {meaning} | {_format(figures.get(key), '')} |" for key, meaning in _SHOWN_IN_CLOSED_LOOP]
    return [*lines, ""]


def _draw_table(figures: dict[str, Any]) -> list[str]:
    """A Markdown table of ``figures`` (see `WorldModelCard`), with one column per source."""
    sources = [source for source, values in figures.items() if isinstance(values, dict) and source != "tasks"]
    if not sources:
        return ["Nothing was held out, so there is no figure."]
    lines = ["| | " + " | ".join(f"{s.replace('_', '-')}, n {figures[s]['n']}" for s in sources) + " |"]
    lines.append("|---|" + "---|" * len(sources))
    for key, meaning, unit in _SHOWN:
        cells = [_format(figures[source].get(key), unit) for source in sources]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    return lines


def _is_on_hub(pretrained: str) -> bool:
    return bool(HUB_NAME.fullmatch(pretrained)) and not Path(pretrained).exists()


def _tell_of_base(pretrained: str) -> list[str]:
    if _is_on_hub(pretrained):
        return [f"It holds what was trained beside {pretrained}, which is loaded from the Hub.", ""]
    name = Path(pretrained).name
    return [f"It holds what was trained beside the pipeline {name}: say where that is by `pretrained=FOLDER`.", ""]


def push_to_hub(directory: Path, name: str, private: bool = True) -> str:
    """Upload an exported world model to the Hub as ``name`` (owner/model); returns its URL."""
    hub = import_hub()
    require_hub_name(name)
    try:
        api = hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, commit_message="World model and its check's figures")
    except Exception as error:  # no network, no login, no rights: the Hub's client raises its own and httpx's errors
        failure = WorldloopError(f"cannot upload {directory} to {name}: {first_line(error)}; `hf auth login` logs in")
        failure.exit_code = 1
        raise failure from error
    return f"https://huggingface.co/{name}"


def fetch_from_hub(name: str, revision: str | None = None) -> Path:
    """A local copy of the world model called ``name`` on the Hub, at ``revision`` or its newest, downloaded once.

    Raises `WorldloopError` if it cannot be downloaded.
    """
    return fetch_snapshot(name, revision, (*FILES, "README.md"))


def _format(value: Any, unit: str) -> str:
    if value is None:
        return "-"
    digits = 1 if unit else 3
    if isinstance(value, dict):
        if value.get("value") is None:
            return "-"
        text = f"{value['value']:.{digits}f}{unit}"
        return text if value["low"] is None else f"{text} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
    return f"{value:.{digits}f}{unit}"
