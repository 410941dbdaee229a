"""What a config names by a path: its content is part of what a run was made with, not only its name.

A run whose recording, labels or pretrained weights were changed meanwhile would go on with the old ones where they have
been read, and with the new ones elsewhere. So the run stores a fingerprint of each, and every stage compares it.
"""

from __future__ import annotations

from pathlib import Path

from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.files import hash_file, hash_folder
from worldloop.factory.build import build_simulator_spec
from worldloop.policies.token_vla.policy import ENCODERS
from worldloop.sans.demonstrations import open_demonstrations
from worldloop.sans.recordings import open_recording
from worldloop.storage.run_directory import RunDirectory

Inputs = dict[str, dict[str, str]]


def describe_inputs(config: LoopConfig) -> Inputs:
    """Setting -> ``path`` and ``sha256`` of the content, of those that are on this machine.

    Of a recording all numbers that are read count, and the sizes of its files; of weights the two ends of every file.
    """
    recording, found = config.recording, {}
    if config.reads_recording and Path(recording.root).is_dir():
        labels = Path(recording.labels)
        if recording.success_key or recording.all_succeed or labels.is_file():
            found["recording.root"] = (recording.root, _hash_recording(config))
        if recording.labels and labels.is_file():
            found["recording.labels"] = (recording.labels, hash_file(labels))
    weights = {"world_model.pretrained": config.world_model.pretrained}
    kind, section = config.policy.kind, config.policy.chosen_section()
    for name in {"lerobot": ("path",), "token_vla": ENCODERS}.get(kind, ()):
        weights[f"policy.{kind}.{name}"] = getattr(section, name)
    for setting, folder in weights.items():
        if folder and Path(folder).is_dir():
            found[setting] = (folder, hash_folder(Path(folder)))
    return {setting: {"path": path, "sha256": digest} for setting, (path, digest) in found.items()}


def _hash_recording(config: LoopConfig) -> str:
    if config.source != "simulator":
        return open_recording(config.recording).fingerprint
    return open_demonstrations(config.recording, build_simulator_spec(config.simulator)).recording.fingerprint


def require_same_inputs(config: LoopConfig, directory: RunDirectory) -> None:
    """Raise `WorldloopError` naming an input whose content has changed since the run in ``directory`` was made.

    An input at another path is another setting, which `worldloop.loop.changes` judges. A run that an earlier worldloop
    made has no fingerprints.
    """
    stored = directory.read_inputs()
    if not stored:
        return
    for setting, now in sorted(describe_inputs(config).items()):  # labels before the recording that they are of
        before = stored.get(setting)
        if before and before["path"] == now["path"] and before["sha256"] != now["sha256"]:
            raise WorldloopError(
                f"{setting} {now['path']} has changed since {directory.path} was made of it: put it back as it was, or "
                "give another run_name"
            )
