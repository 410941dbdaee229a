"""A loop that starts from recorded demonstrations beside its simulator, and what is refused before it starts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hand_demonstrations import make_toy_spec, write_demonstrations
from hand_recording import edit_table

from worldloop.config.loading import load_config
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError
from worldloop.core.types import Episode
from worldloop.loop.run import open_run, run_loop
from worldloop.loop.startup import check_run_can_start
from worldloop.sans.demonstrations import open_demonstrations, read_demonstrations
from worldloop.sans.recordings import RecordingConfig
from worldloop.sans.store import SansStore
from worldloop.storage.run_directory import RunDirectory

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
ONLY_DEMONSTRATIONS = ("seed_dataset.demonstrations=true", "seed_dataset.episodes={}", "seed_dataset.forked_states=0")
QUICK = (
    "clone_policy.num_steps=20",
    "fit_world_model.num_steps=10",
    "fit_world_model.num_refit_steps=5",
    "fit_world_model.num_proprio_steps=10",
    "check_world_model.probe_steps=10",
    "check_world_model.num_videos=0",
    "check_world_model.reset_every=[]",
    "improve_policy.bootstraps=false",
    "improve_policy.num_updates=1",
    "improve_policy.groups_per_update=2",
    "improve_policy.num_candidates=1",
    "improve_policy.num_imitation_steps=10",
    "check_closed_loop.num_states=0",
    "promote_policy.num_states=2",
    "promote_policy.max_states=4",
    "promote_policy.states_per_look=4",
    "evaluate_policy.num_states=5",
    "collect_episodes.num_episodes=12",
)


def _load(folder: Path, *settings: str) -> LoopConfig:
    return load_config(DEBUG, [f"run_root={folder}", *ONLY_DEMONSTRATIONS, *settings])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Episode]]:
    """Scripted episodes of the toy as one LeRobot dataset, by the store's own export, and the episodes themselves."""
    folder = tmp_path_factory.mktemp("exported")
    names = ("stops_short", "lateral_offset", "noisy", "far")
    counts = ["seed_dataset.episodes.expert=10", *(f"seed_dataset.episodes.{name}=1" for name in names)]
    config = load_config(DEBUG, [f"run_root={folder}", "seed_dataset.forked_states=0", *counts])
    store = SansStore(run_loop(config, only_stage="seed_dataset").path / "sans")
    version = store.version("v000")
    store.merge(version, folder / "demonstrations")
    return folder / "demonstrations", list(store.episodes(version))


def test_our_own_export_comes_back_as_it_was_stored(exported: tuple[Path, list[Episode]]) -> None:
    """Its last frame is not exported, and with it the actions before it."""
    root, originals = exported
    spec = make_toy_spec()
    config = RecordingConfig(root=str(root), success_key="success", actions_per_row=2)
    imported = list(read_demonstrations(open_demonstrations(config, spec), spec, 11))
    assert len(imported) == len(originals) == 14
    for own, original in zip(imported, originals, strict=True):
        F = own.num_frame_steps
        assert original.num_frame_steps - 1 == F
        assert (own.meta.task, own.meta.instruction) == (original.meta.task, original.meta.instruction)
        assert own.is_success == original.is_success
        for name in ("frames", "proprio", "actions", "valid", "rewards"):
            got, want = getattr(own, name), getattr(original, name)
            if name == "frames":
                got, want = got["base_camera"], want["base_camera"]
            assert np.array_equal(got, want[: len(got)]), name
    assert sum(own.is_success for own in imported) >= 8


@pytest.mark.slow
def test_a_loop_starts_from_demonstrations_alone(exported: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    """Two iterations: the second also starts episodes from known states, which a demonstration does not have."""
    settings = [f"recording.root={exported[0]}", "recording.success_key=success", "recording.actions_per_row=2"]
    run = run_loop(_load(tmp_path, *settings, *QUICK)).path
    text = (run / "results.json").read_text()
    assert "NaN" not in text
    first, second, last = json.loads(text)["iterations"]
    assert first["recorded_demonstrations"]["success"] + first["recorded_demonstrations"]["failure"] == 14
    assert first["recorded_left_out"] == first["demonstrations"] == 0
    assert first["simulated_success"]["n"] == last["simulated_success"]["n"] == 5
    assert first["env_steps"] > first["simulator_steps"] > 0, "what is recorded cost the simulator nothing"
    assert second["psnr_db"] > 0
    store = SansStore(run / "sans")
    version = store.version(RunDirectory(run).read_state().dataset)
    cache = store.open_cache(version)
    assert [shard.name for shard in version.shards] == ["000-demonstrations-000", "000-policy", "001-policy"]
    is_known = np.array([meta.variant != "demonstration" for meta in cache.metas])
    assert np.array_equal(cache.knows_state, is_known)
    assert is_known.sum() == 24
    known = {meta.initial_state_id for meta in cache.metas if meta.iteration == 0 and meta.source == "policy"}
    again = [meta.initial_state_id for meta in cache.metas if meta.iteration == 1 and meta.initial_state_id in known]
    assert len(again) == 3, "a quarter starts from the most uncertain known states"


def test_scripted_episodes_may_be_added_and_a_changed_recording_is_named(tmp_path: Path) -> None:
    root = write_demonstrations(tmp_path / "demos")
    base = tmp_path / "both.yaml"
    base.write_text(f"extends: {DEBUG}\nseed_dataset:\n  demonstrations: true\n  episodes: {{}}\n  forked_states: 0\n")
    settings = ["seed_dataset.episodes.far=3", "recording.success_key=next.success"]
    config = load_config(base, [f"run_root={tmp_path}", f"recording.root={root}", *settings])
    run = run_loop(config, only_stage="seed_dataset").path
    store = SansStore(run / "sans")
    metas = store.metas(store.version("v000"))
    assert [(m.source, m.variant) for m in metas] == [("expert", "demonstration")] * 2 + [("perturbed", "far")] * 3
    assert list(json.loads((run / "inputs.json").read_text())["inputs"]) == ["recording.root"]
    edit_table(root, "data", lambda table: table.at.__setitem__((3, "action"), [0.25, 0.5]))
    with pytest.raises(WorldloopError, match=r"recording\.root .*demos has changed since"):
        open_run(config)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (("world_model.landmarks=true",), r"world_model\.landmarks learns from the simulator's state, which recorded"),
        (
            ("policy.kind=harmowam", "improve_policy.method=imitate_successes"),
            r"recorded demonstrations do not tell positions, .* add the sign 'gripper'",
        ),
        (("recording.root=/nowhere",), r"/nowhere is no LeRobotDataset|/nowhere"),
        (("simulator.toy.tasks=[ToyReach-v1]",), r"no task of the run has the instruction 'Push the blue disc"),
        (("simulator.kind=own_parts:NoExpert", "seed_dataset.forked_states=1"), r"NoExpert lacks make_scripted_policy"),
        (("simulator.kind=own_parts:NoExpert",), r"dataset .* has base_camera"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_demonstrations_is_refused(tmp_path: Path, settings: tuple[str, ...], match: str) -> None:
    root = write_demonstrations(tmp_path / "demos")
    given = (f"recording.root={root}", "recording.success_key=next.success")
    with pytest.raises(WorldloopError, match=match) as error:
        check_run_can_start(_load(tmp_path, *given, *settings))
    assert "\n" not in str(error.value)
    shutil.rmtree(root)
    assert not list(tmp_path.iterdir())
