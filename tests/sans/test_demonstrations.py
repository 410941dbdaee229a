"""Demonstrations beside a simulator: read as it would have stored them, and refused by name where they do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_demonstrations import INSTRUCTIONS, make_toy_spec, write_demonstrations
from hand_recording import edit_info, edit_table

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Episode
from worldloop.sans.demonstrations import Demonstrations, open_demonstrations, read_demonstrations
from worldloop.sans.recordings import RecordingConfig
from worldloop.sans.store import SansStore

TASKS = ("ToyPush-v1", "ToyReach-v1")


def _open(root: Path, spec: SimulatorSpec | None = None, **settings: Any) -> Demonstrations:
    given = {"success_key": "next.success"} | settings
    return open_demonstrations(RecordingConfig(root=str(root), **given), spec or make_toy_spec())


def _read(found: Demonstrations, spec: SimulatorSpec | None = None) -> list[Episode]:
    return list(read_demonstrations(found, spec or make_toy_spec(), sim_state_dim=11))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_demonstrations(tmp_path / "demos")


def test_episodes_are_those_of_an_expert_of_the_simulator(root: Path) -> None:
    """The eighth action succeeds, in frame step 3; one more is held. The dataset's own picture size does not matter."""
    first, second = _read(_open(root))
    assert first.meta.instruction == "push the blue disc to the red goal", "as the simulator says it"
    assert second.meta.instruction == INSTRUCTIONS[1]
    assert (first.meta.task, first.meta.source, first.meta.variant) == ("ToyPush-v1", "expert", "demonstration")
    assert {e.meta.split for e in (first, second)} == {"train"}
    assert (second.meta.initial_state_id, second.meta.outcome) == ("ToyPush-v1/demonstration/000001", "success")
    assert (second.meta.simulator_version, second.meta.hz) == ("disc, LeRobot v3.0", 10.0)
    assert second.frames["base_camera"].shape == (6, 16, 16, 3)
    assert second.frames["base_camera"][:, 0, 0, 0].tolist() == [20 * row + 1 for row in (0, 2, 4, 6, 8, 10)]
    assert second.actions.shape == (5, 2, 2)
    assert second.actions.reshape(-1, 2)[3] == pytest.approx([0.5, 0.13])
    assert second.valid.reshape(-1).tolist() == [True] * 8 + [False] * 2
    assert second.rewards.reshape(-1).argmax() == 7
    assert second.sim_state.shape == (6, 11)
    assert np.isnan(second.sim_state).all()


def test_a_camera_that_is_not_square_is_filled(root: Path) -> None:
    spec = make_toy_spec()
    wide = replace(spec.robot.cameras[0], height=12, width=16)
    (doubt,) = _open(root).doubts
    assert doubt == "the pictures of 'base_camera' are 32 x 24 pixels and are stretched to the run's 16 x 16"
    spec = replace(spec, robot=replace(spec.robot, cameras=(wide,)))
    found = _open(root, spec)
    assert found.doubts == ()
    assert _read(found, spec)[0].frames["base_camera"].shape == (6, 12, 16, 3)


def test_all_succeed_at_their_end(root: Path) -> None:
    """Eleven usable actions; so late that the last two of six frames show it."""
    first = _read(_open(root, success_key="", all_succeed=True))[0]
    assert first.meta.outcome == "success"
    assert (first.num_frame_steps, first.num_env_steps) == (6, 10)


@pytest.mark.parametrize(
    ("written", "settings", "simulator", "match"),
    [
        ({"camera": "image"}, {}, {},
         r"run has the camera 'base_camera', dataset .* has image: say which of them it is, "
         r"recording\.camera_names=\{NAME: base_camera\}"),
        ({}, {"camera_names": {"top": "base_camera"}}, {},
         r"camera_names says that 'top' is 'base_camera': dataset .* has the cameras base_camera, the run ba"),
        ({"state_names": ["x", "y", "vx", "vy"]}, {}, {},
         r"'observation\.state' of dataset .* has the 4 dimensions x, y, vx, vy, the run's proprio the 4 agent"
         r".*: if they mean the same, in this order, set recording\.state_names=\[agent_x,agent_y,agent_vx,agent_vy\]"),
        ({}, {"state_key": "action"}, {},
         r"'action' of .* the 2 dimensions dx, dy, the run's proprio the 4 .* another feature as recording\.sta"),
        ({}, {"action_key": "observation.state"}, {},
         r"the 4 dimensions .* run's action the 2 dx, dy: if a row holds 2 actions .*\.actions_per_row=2"),
        ({}, {"state_names": ("x",)}, {}, r"recording\.state_names are 1, and recording\.state_key has 4 dimensions"),
        ({}, {"actions_per_row": 3}, {"actions_per_frame": 3},
         r"recording\.actions_per_row is 3, which does not divide the 2 dimensions"),
        ({}, {"actions_per_row": 2, "action_key": "observation.state", "action_names": ("dx", "dy")},
         {"actions_per_frame": 3}, r"actions_per_frame 3 is no multiple of recording\.actions_per_row 2"),
        ({"fps": 20}, {}, {}, r"has 20 actions a second, the run 10: .* if the dataset's fps is wrong, set "
         r"recording\.hz=10"),
        ({"push": 1.2}, {}, {}, r"action 'dx' is 1\.2 in row 0 of episode 0, and the run's bounds are -1 and 1; "
         r"20 of 20 actions are out .*recording\.clip_actions=true.*\.skip_episodes=0-1"),
        ({}, {}, {"max_episode_steps": 6}, r"episode 0 of .* takes 8 actions, and the run's time limit for "
         r"ToyPush-v1 is 6; 2 are too long: raise its max_episode_steps, or leave .*skip_episodes=0-1"),
        ({"instructions": ("stack the cups", INSTRUCTIONS[0])}, {}, {},
         r"no task of the run has the instruction 'stack the cups' of dataset .*; the run has ToyPush-v1: "
         r"'push the blue disc to the red goal', .* recording\.task_of=\{INSTRUCTION: TASK\}, .*skip_other_tasks=true"),
        ({"instructions": ("stack the cups",)}, {"skip_other_tasks": True}, {}, r"no task .* 'stack the cups'"),
        ({}, {"task_of": {"lift": "ToyPush-v1"}}, {}, r"task_of says that 'lift' is 'ToyPush-v1': the dataset's inst"),
        ({}, {"task_of": {INSTRUCTIONS[0]: "Push"}}, {}, r"is 'Push': .*; the run's tasks ToyPush-v1"),
        ({}, {"success_key": ""}, {}, r"nothing says which episodes of .* set recording\.all_succeed=true"),
        ({}, {"all_succeed": True}, {}, r"recording\.success_key=next\.success and recording\.all_succeed=True say w"),
        ({}, {"root": ""}, {}, r"recording\.root is not given"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_simulator_is_named(
    tmp_path: Path, written: dict[str, Any], settings: dict[str, Any], simulator: dict[str, Any], match: str
) -> None:
    root = write_demonstrations(tmp_path / "demos", **written)
    given = {"root": str(root), "success_key": "next.success"} | settings
    with pytest.raises(WorldloopError, match=match) as error:
        open_demonstrations(RecordingConfig(**given), make_toy_spec(**simulator))
    assert "\n" not in str(error.value)


def test_no_success_and_odd_metadata_are_named(root: Path) -> None:
    edit_table(root, "data", lambda table: table.__setitem__("next.success", False))
    with pytest.raises(WorldloopError, match=r"no episode of .* succeeds, so there is nothing to imitate"):
        _open(root)
    edit_info(root, lambda info: info["features"]["observation.images.base_camera"].pop("shape"))
    with pytest.raises(WorldloopError, match=r"meta/ of the dataset .* is not what LeRobot writes"):
        _open(root)


def test_the_remedies_help(tmp_path: Path) -> None:
    """What the errors above ask for: names, a rate and clipping."""
    root = write_demonstrations(
        tmp_path / "demos", camera="image", fps=20, push=1.2, state_names=["x", "y", "vx", "vy"], action_names=[]
    )
    found = _open(
        root,
        camera_names={"image": "base_camera"},
        state_names=("agent_x", "agent_y", "agent_vx", "agent_vy"),
        hz=10.0,
        clip_actions=True,
    )
    unnamed, clipped = found.doubts[1:]
    assert unnamed == "the dataset names no dimension of its action: they count as dx, dy, in this order"
    assert clipped.endswith("20 of 20 actions are out of theirs and are clipped")
    first = _read(found)[0]
    assert first.actions[..., 0].max() == 1.0
    assert list(first.frames) == ["base_camera"]


def test_rounding_beyond_a_bound_is_clipped_without_a_word(tmp_path: Path) -> None:
    found = _open(write_demonstrations(tmp_path / "demos", push=1.0005))
    assert not any("clipped" in doubt for doubt in found.doubts)
    assert _read(found)[0].actions.max() == 1.0


def test_a_task_is_found_by_its_words_or_told(tmp_path: Path) -> None:
    """Both tasks run; one instruction is nobody's, and an episode that is skipped is asked nothing."""
    spec = make_toy_spec(tasks=TASKS)
    written = ("stack the cups", INSTRUCTIONS[0], "bring it home", "bring the white disc to the red goal")
    root = write_demonstrations(tmp_path / "demos", written)
    found = _open(root, spec, task_of={"bring it home": TASKS[1]}, skip_other_tasks=True)
    assert found.num_left_out == 1
    metas = [episode.meta for episode in _read(found, spec)]
    assert [meta.task for meta in metas] == [TASKS[0], TASKS[1], TASKS[1]]
    assert metas[1].instruction in spec.task(TASKS[1]).instructions, "one of its paraphrases"
    assert metas[2].instruction == written[3]
    found = _open(root, spec, skip_episodes="0,2-3")
    assert found.doubts[-1] == "there is no demonstration of ToyReach-v1"
    same = tuple(replace(task, instructions=("move it",)) for task in spec.tasks)
    write_demonstrations(tmp_path / "other", ("move it",))
    with pytest.raises(WorldloopError, match=r"'move it' belongs to the run's tasks ToyPush-v1, ToyReach-v1: say"):
        _open(tmp_path / "other", replace(spec, tasks=same))


def test_a_version_of_both_kinds_knows_of_which_it_has_the_state(
    root: Path, store: SansStore, make_episode: Any
) -> None:
    simulated = make_episode(1, num_steps=5, outcome="failure")
    spec = make_toy_spec()
    found = _open(root, spec)
    demonstration = next(read_demonstrations(found, spec, simulated.sim_state.shape[1]))
    shaped = {name: getattr(simulated, name) for name in ("frames", "proprio", "actions", "valid", "rewards")}
    shaped |= {name: getattr(simulated, name) for name in ("success", "distances_m")}
    meta = replace(demonstration.meta, hz=simulated.meta.hz, actions_per_frame=simulated.meta.actions_per_frame)
    unknown = np.full_like(simulated.sim_state, np.nan)
    mixed = [replace(demonstration, meta=meta, sim_state=unknown, **shaped), simulated]
    shards = store.append_in_blocks(mixed, "000-mixed", 1)
    assert [shard.name for shard in shards] == ["000-mixed-000", "000-mixed-001"]
    version = store.snapshot("v000", shards)
    assert store.open_cache(version).knows_state.tolist() == [False, True]
    stored = next(iter(store.episodes(version)))
    assert np.isnan(stored.sim_state).all()
    assert stored.meta.variant == "demonstration"
