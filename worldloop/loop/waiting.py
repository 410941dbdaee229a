"""A run with a robot in place of a simulator: where it waits for episodes, what it says then, and how they come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.factory.build import build_spec
from worldloop.sans.added import AddedEpisodes, add_recorded, read_added
from worldloop.sans.demonstrations import open_demonstrations
from worldloop.sans.store import SansStore
from worldloop.stages import collect_episodes
from worldloop.storage.run_directory import RunDirectory
from worldloop.storage.run_state import LoopState

WAITING = "waiting for episodes"
STAGE = "collect_episodes"


def describe_waiting(config: LoopConfig, run_dir: Path, state: LoopState) -> str:
    """What a robot has to do before the loop in ``run_dir`` goes on; "" if the next stage can run."""
    if (
        config.source != "robot"
        or state.next_stage != STAGE
        or read_added(SansStore(run_dir / "sans"), state.iteration)
    ):
        return ""
    spec = build_spec(config.source, config.simulator, config.recording)
    return _instruct(config, run_dir, state, spec)


def add_episodes(run_dir: Path, dataset: Path, overrides: Sequence[str]) -> tuple[AddedEpisodes, tuple[str, ...]]:
    """Bring the episodes in ``dataset`` into the run that waits for them; also returns what is doubtful about them.

    They are read as the run's `recording` section says, except for its ``root``, ``labels``, ``all_succeed`` and
    ``skip_episodes``; ``overrides`` are settings of that section for this dataset. Raises `WorldloopError` if the run
    waits for no episodes, or if the dataset does not fit.
    """
    directory = RunDirectory(run_dir)
    if not directory.exists:
        raise WorldloopError(f"{run_dir} is no run directory")
    if other := [override for override in overrides if not override.startswith("recording.")]:
        raise WorldloopError(f"{other[0]} is no setting of how the dataset is read: give recording.KEY=VALUE")
    config = load_config(run_dir / "config.yaml")
    if config.source != "robot":
        raise WorldloopError(f"{run_dir} has source {config.source}: episodes are added to a run with source=robot")
    fresh = [f"recording.root={dataset}", "recording.labels=''", "recording.all_succeed=false"]
    reading = load_config(run_dir / "config.yaml", [*fresh, "recording.skip_episodes=''", *overrides]).recording
    directory.lock()
    try:
        state = directory.read_state()
        if state.next_stage != STAGE:
            place = f"its next stage is {state.next_stage}" if state.next_stage else "it has ended"
            raise WorldloopError(f"{run_dir} waits for no episodes: {place}; start it again until it waits")
        spec = build_spec(config.source, config.simulator, config.recording)
        found = open_demonstrations(reading, spec, needs_success=False)
        share = config.section(collect_episodes.Config).validation_share
        added = add_recorded(SansStore(run_dir / "sans"), found, spec, state.iteration, state.policy, share)
    finally:
        directory.unlock()
    return added, found.doubts


def describe_added(added: AddedEpisodes, doubts: Sequence[str]) -> list[str]:
    """The lines that ``worldloop sans add`` prints."""
    counts = Counter("success" if is_success else "failure" for is_success, _ in added.outcomes)
    listed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    return [
        *(f"warning: {doubt}" for doubt in doubts),
        f"{len(added.outcomes)} episodes of {added.policy} added to iteration {added.iteration}: {listed}",
        "to go on, run the command again that started the run; more can be added before",
    ]


def _instruct(config: LoopConfig, run_dir: Path, state: LoopState, spec: SimulatorSpec) -> str:
    robot, recording = spec.robot, config.recording
    policy = run_dir / state.policy
    count = config.section(collect_episodes.Config).num_episodes
    fps = robot.hz / recording.actions_per_row
    if config.policy.kind == "lerobot":
        serve = [
            f"worldloop export-policy {policy} DIR",
            f"lerobot-rollout --strategy.type=episodic --policy.path=DIR --dataset.num_episodes={count} ...",
        ]
    else:
        serve = [
            "from worldloop.factory.checkpoints import load_policy",
            f"policy = load_policy(Path({str(policy)!r}))  # then policy.act(observation, noise_key)",
        ]
    cameras = ", ".join(f"{camera.name} ({camera.width} x {camera.height})" for camera in robot.cameras)
    outcome = (
        f"recording.success_key={recording.success_key}" if recording.success_key else "recording.labels=labels.json"
    )
    label = [] if recording.success_key else ["worldloop sans label DATASET labels.json --sheet sheet.png"]
    return "\n".join(
        [
            f"{WAITING}: iteration {state.iteration} of {run_dir} needs what the robot does with its policy",
            "1. Let this policy act:",
            *(f"     {line}" for line in serve),
            f"   About {count} episodes of each task, successes and failures alike, with these instructions:",
            *(f"     {task.instructions[0]!r}, at most {task.max_episode_steps} actions" for task in spec.tasks),
            f"2. Record them as a LeRobot dataset of {fps:g} rows a second, as the demonstrations were:",
            f"     {recording.state_key}: {', '.join(robot.proprio_names)}",
            f"     {recording.action_key}: {', '.join(robot.action_names)}",
            f"     cameras: {cameras}",
            "3. Say which succeeded, and add them:",
            *(f"     {line}" for line in label),
            f"     worldloop sans add {run_dir} DATASET {outcome}",
            "4. Start the run again by the same command.",
        ]
    )
