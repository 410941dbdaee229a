"""Episodes that a robot recorded with a policy of a run, which has no simulator: added by hand, iteration by iteration.

    sans/added/NNN-FINGERPRINT.json   a dataset that was added for iteration NNN: its shards, and how its episodes ended

The file is written last, so a dataset that was added halfway counts as not added. Adding it again completes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.core.files import malformed, read_json, to_json, write_file
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Episode
from worldloop.sans.demonstrations import Demonstrations, read_demonstrations
from worldloop.sans.recorded_episodes import split_episodes
from worldloop.sans.shard import ShardRef
from worldloop.sans.store import SansStore

EPISODES_PER_SHARD = 200
VARIANT = "policy"
_SCHEMA_VERSION = 1
_REMEDY = "restore it from a copy of the run"


@dataclass(frozen=True)
class AddedEpisodes:
    """A dataset that was added for an iteration.

    - ``policy``: the checkpoint that acted; ``path``: where the dataset was; ``fingerprint``: of its content
    - ``outcomes``: success and task of each episode, in order; ``num_env_steps``: up to the first success
    """

    iteration: int
    policy: str
    path: str
    fingerprint: str
    shards: tuple[ShardRef, ...]
    outcomes: tuple[tuple[bool, str], ...]
    num_env_steps: int


def read_added(store: SansStore, iteration: int | None = None) -> list[AddedEpisodes]:
    """The datasets that were added for ``iteration``, by fingerprint; ``None``: for any."""
    prefix = "" if iteration is None else f"{iteration:03d}-"
    return [_read(store, path.stem) for path in sorted((store.root / "added").glob(f"{prefix}[!.]*.json"))]


def add_recorded(
    store: SansStore,
    found: Demonstrations,
    spec: SimulatorSpec,
    iteration: int,
    policy: str,
    validation_share: float,
) -> AddedEpisodes:
    """Store the episodes of ``found`` as those of the checkpoint ``policy``; no version contains them yet.

    ``validation_share`` of the successes and of the failures of each task is held out. Raises `WorldloopError` if the
    dataset was added before.
    """
    fingerprint = found.recording.fingerprint
    for own in read_added(store):
        if own.fingerprint == fingerprint:
            raise WorldloopError(
                f"{own.path} has these episodes, and was added in iteration {own.iteration}: give others"
            )
    outcomes: list[tuple[bool, str]] = []
    num_env_steps = 0

    def counted(episode: Episode) -> Episode:
        nonlocal num_env_steps
        outcomes.append((bool(episode.is_success), episode.meta.task))
        num_env_steps += episode.num_env_steps
        return episode

    name = f"{iteration:03d}-{fingerprint[:12]}"
    episodes = (counted(e) for e in _read_episodes(found, spec, iteration, policy, validation_share))
    shards = store.append_in_blocks(episodes, f"{iteration:03d}-robot-{fingerprint[:12]}", EPISODES_PER_SHARD, spec)
    path = str(found.recording.dataset.root.resolve())
    added = AddedEpisodes(iteration, policy, path, fingerprint, tuple(shards), tuple(outcomes), num_env_steps)
    write_file(
        store.root / "added" / f"{name}.json", to_json({"schema_version": _SCHEMA_VERSION, **asdict(added)}), name
    )
    return added


def _read_episodes(
    found: Demonstrations, spec: SimulatorSpec, iteration: int, policy: str, validation_share: float
) -> Iterator[Episode]:
    recording = found.recording
    is_success = {number: part.first_success is not None for number, part in recording.used.items()}
    splits = split_episodes(recording.tasks, validation_share, is_success)
    episodes = read_demonstrations(found, spec, sim_state_dim=0)
    for number, episode in zip(recording.used, episodes, strict=True):
        meta = replace(
            episode.meta,
            source="policy",
            variant=VARIANT,
            split=splits[number],
            iteration=iteration,
            policy_version=policy,
            initial_state_id=f"{episode.meta.task}/robot/{iteration:03d}-{recording.fingerprint[:12]}/{number:06d}",
        )
        yield replace(episode, meta=meta)


def _read(store: SansStore, name: str) -> AddedEpisodes:
    what = f"what was added, {name},"
    value: dict[str, Any] = read_json(store.root / "added" / f"{name}.json", what, _SCHEMA_VERSION, _REMEDY)
    with malformed(what, _REMEDY):
        del value["schema_version"]
        value["shards"] = tuple(ShardRef(**shard) for shard in value["shards"])
        value["outcomes"] = tuple((bool(is_success), str(task)) for is_success, task in value["outcomes"])
        return AddedEpisodes(**value)
