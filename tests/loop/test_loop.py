"""The loop as a whole on the toy simulator: results, resume after a kill, Ctrl-C, Ray, and refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from processes import get_context
from signalled_runs import clone_until_sigterm

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.loop.run import run_loop
from worldloop.loop.schedule import list_stages
from worldloop.reporting.tables import format_report

ROOT = Path(__file__).resolve().parents[2]
DEBUG = ROOT / "configs/debug.yaml"
SMALL = (
    "clone_policy.num_steps=20",
    "fit_world_model.num_steps=12",
    "fit_world_model.num_refit_steps=12",
    "fit_world_model.num_proprio_steps=30",
    "fit_value.num_steps=20",
    "improve_policy.num_imitation_steps=20",
)


RECAP = (
    "improve_policy.method=recap",
    "improve_policy.num_recap_steps=20",
    "num_iterations=1",
    "evaluate_policy.num_states=10",
    "promote_policy.max_states=10",
)
FEW_CHECKS = ("check_world_model.probe_steps=5", "check_world_model.reset_every=[]", "check_world_model.num_videos=0")
VIVA = ("value.kind=viva", "fit_value.num_steps=8", "fit_value.batch_size=16", *FEW_CHECKS)


def _run_in_child(
    run_root: str, kill_at: tuple[int, str] | None, overrides: tuple[str, ...], stop_before: tuple[int, str] | None
) -> None:
    """Run the debug loop; kill this process for good at the first progress of stage ``kill_at``.

    Or end in order before ``stop_before`` begins.
    """
    import worldloop.loop.run as loop

    class Display(loop.TerminalDisplay):
        def log(self, line: str) -> None:
            if line.startswith("iteration "):
                head, _, name = line.rpartition(": ")
                self.now = (int(head.split()[1].split("/")[0]), name)
                if self.now == stop_before:
                    raise KeyboardInterrupt

        def advance(self, count: int, figures: dict[str, float]) -> None:
            if self.now == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    loop.TerminalDisplay = Display  # type: ignore[misc]
    with suppress(KeyboardInterrupt):
        loop.run_loop(load_config(DEBUG, [f"run_root={run_root}", *SMALL, *overrides]))
        assert stop_before is None, "this stage never came"


def _in_child(
    run_root: Path, kill_at: tuple[int, str] | None, *overrides: str, stop_before: tuple[int, str] | None = None
) -> int | None:
    process = get_context().Process(target=_run_in_child, args=(str(run_root), kill_at, overrides, stop_before))
    process.start()
    process.join(200)
    return process.exitcode


def _begin_two(folder: Path, stop_before: tuple[int, str], *overrides: str) -> tuple[Path, Path]:
    """Two folders with the same loop, which has come to stage ``stop_before``."""
    whole, killed = folder / "whole", folder / "killed"
    assert _in_child(whole, None, *overrides, stop_before=stop_before) == 0
    shutil.copytree(whole, killed)
    return whole, killed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    assert _in_child(root, None) == 0
    return root / "debug"


def test_run_directory_and_results(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert {"config.yaml", "state.json", "results.json", "timings.json", "tensorboard", "checkpoints", "sans"} <= names
    for iteration in (1, 2):
        for kind in ("world_model", "policy_after_002", "policy_after_004"):
            assert (finished / f"checkpoints/iteration_{iteration:03d}/{kind}/model.safetensors").is_file()
    results = json.loads((finished / "results.json").read_text())
    assert [e["iteration"] for e in results["iterations"]] == [0, 1, 2]
    clone, last = results["iterations"][0], results["iterations"][2]
    assert clone["imagined_success"] is None
    assert clone["imagined_success_reason"] == "no world model yet"
    assert clone["reward_alignment"] is None
    assert last["lpips"] is None
    assert "LPIPS" in last["lpips_reason"]
    for entry in results["iterations"]:
        success = entry["simulated_success"]
        assert success["n"] == 40
        assert success["rate"] == pytest.approx(success["k"] / 40)
        assert success["low"] <= success["rate"] <= success["high"]
    assert set(last["reward_alignment"]) >= {"scripted", "on_policy"}
    assert clone["env_steps"] < last["env_steps"]
    assert clone["simulator_steps"] == clone["env_steps"], "the clone's evaluation does not count"
    checked = 3 * 8 * (1 + 4)  # episodes on validation states: 3 policies, 8 states, the policy's own and 4 replays
    new = {name: last[name] - results["iterations"][1][name] for name in ("simulator_steps", "env_steps")}
    assert new["simulator_steps"] > new["env_steps"] + checked, "the gate and the checks count"
    judged = last["value_check"]
    assert set(judged) == {"scripted", "on_policy"}
    assert 0 <= judged["scripted"]["auc"]["0.50"]["value"] <= 1
    # 4 updates of 8 groups of 4 rows, each of at most 8 chunks of one frame
    assert 0 < last["imagined_frames"] <= 4 * 8 * 4 * 8
    for entry in results["iterations"][1:]:
        closed_loop = entry["closed_loop"]
        names = [Path(checked["checkpoint"]).name for checked in closed_loop["checkpoints"]]
        assert names == ["policy_of_successes", "policy_after_002", "policy_after_004"]
        for name in ("last_candidate", "promoted"):
            figures = closed_loop[name]
            assert figures is None or figures["n"] == 32, name
            assert figures is not None or closed_loop[f"{name}_reason"]
        assert closed_loop["last_candidate"]["num_starts"] == 8
    (calibration,) = json.loads((finished / "state.json").read_text())["calibrations"].values()
    assert calibration["floor_db"] > 0


def test_the_check_stands_beside_its_baselines_and_floors(finished: Path) -> None:
    check = json.loads((finished / "results.json").read_text())["iterations"][-1]["world_model_check"]
    for source in ("scripted", "on_policy"):
        figures = check[source]
        assert figures["object_error_cm_floor"]["end"]["value"] < figures["object_error_cm"]["end"]["value"]
        assert len(figures["object_error_cm"]["by_frame"]) == 10  # frames of a full toy episode
        for name in ("psnr_db", "moving_psnr_db"):
            assert {"value", "low", "high", "n"} <= set(figures[f"{name}_first_frame"]["mean"])
        assert [h["chunks"] for h in figures["horizon"]] == [2]
    assert check["on_policy"]["action_following"] is None
    assert "forked_states" in check["on_policy"]["action_following_reason"]
    followed = check["scripted"]["action_following"]
    assert followed["num_states"] == 4
    assert followed["num_pairs"] == 4 * 6
    assert 0 < followed["image"]["ratio"]["value"] < 2


def test_evaluation_states_never_enter_the_dataset(finished: Path) -> None:
    from worldloop.sans.store import SansStore

    store = SansStore(finished / "sans")
    ids = {e.meta.initial_state_id for name in store.list_versions() for e in store.episodes(store.version(name))}
    assert ids
    assert all("/train/" in state_id for state_id in ids)


def test_a_share_of_the_episodes_starts_where_the_world_model_is_uncertain(finished: Path) -> None:
    from worldloop.sans.store import SansStore

    store = SansStore(finished / "sans")
    before = {e.meta.initial_state_id: e.meta.split for e in store.episodes(store.version("v001-2"))}
    added = [e.meta for e in store.episodes(store.version("v002"))][-40:]
    assert all(m.iteration == 1 for m in added)
    again = [m for m in added if m.initial_state_id in before]
    assert len(again) == 10
    assert all(m.split == before[m.initial_state_id] == "train" for m in again)


@pytest.mark.slow
def test_killed_in_every_stage_gives_the_same_results(finished: Path, tmp_path: Path) -> None:
    config = load_config(DEBUG)
    stages = [(i, name) for i in (0, 1) for name in list_stages(config, i)]  # iteration 2 has no other
    for target in stages:
        assert _in_child(tmp_path, target) == -signal.SIGKILL, target
    assert _in_child(tmp_path, None) == 0
    assert (tmp_path / "debug/results.json").read_bytes() == (finished / "results.json").read_bytes()


@pytest.mark.parametrize("critics", [(), VIVA], ids=["categorical", "viva"])
def test_a_loop_with_recap_killed_in_its_own_stages_gives_the_same_results(
    critics: tuple[str, ...], tmp_path: Path
) -> None:
    whole, killed = _begin_two(tmp_path, (1, "fit_value"), *RECAP, *critics)
    assert _in_child(whole, None, *RECAP, *critics) == 0
    for name in ("fit_value", "check_value", "label_advantages", "improve_policy"):
        assert _in_child(killed, (1, name), *RECAP, *critics) == -signal.SIGKILL, name
    assert _in_child(killed, None, *RECAP, *critics) == 0
    results = (whole / "debug/results.json").read_bytes()
    assert (killed / "debug/results.json").read_bytes() == results
    _, last = json.loads(results)["iterations"]
    assert set(last["good_share"]) == {"expert", "perturbed", "policy"}
    assert last["value_check"]["on_policy"]["num_episodes"] > 0
    assert last["simulated_success"]["n"] == 10
    assert "closed_loop" not in last
    assert "imagined_frames" not in last
    # viva is built on a world model, which is checked, and in which no policy is improved
    assert ("world_model_check" in last) == bool(critics)
    assert (last["imagined_success"] is not None) == (last["reward_alignment"] is not None) == bool(critics)


HARMOWAM = (
    "policy.kind=harmowam",
    *RECAP,
    "fit_planner.num_steps=8",
    "fit_inverse_dynamics.num_steps=8",
    *FEW_CHECKS,
    "check_planner.num_states=4",
)


def test_a_loop_with_harmowam_killed_in_its_own_stages_gives_the_same_results(tmp_path: Path) -> None:
    """Its world model and its planner are fitted in iteration 0 too, before it is cloned."""
    whole, killed = _begin_two(tmp_path, (0, "fit_planner"), *HARMOWAM)
    assert _in_child(whole, None, *HARMOWAM) == 0
    for target in ((0, "fit_planner"), (0, "clone_policy"), (1, "improve_policy")):
        assert _in_child(killed, target, *HARMOWAM) == -signal.SIGKILL, target
    assert _in_child(killed, None, *HARMOWAM) == 0
    results = (whole / "debug/results.json").read_bytes()
    assert (killed / "debug/results.json").read_bytes() == results
    first, last = json.loads(results)["iterations"]
    assert first["imagined_success_reason"] == "the world model has not been checked"
    for entry in (first, last):
        gate = entry["gate_check"]["scripted"]
        assert 0.1 < gate["labelled"]["value"] < 0.9, "the gate has both kinds of frames to learn from"
        assert gate["auc"] is not None


def test_harmowam_cannot_be_improved_by_likelihood_ratios(tmp_path: Path) -> None:
    config = load_config(DEBUG, [f"run_root={tmp_path}", "policy.kind=harmowam"])
    message = "harmowam lacks log_prob, which improve_policy.method=grpo needs: set improve_policy.method to imitate_im"
    with pytest.raises(WorldloopError, match=message):
        run_loop(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ray_and_simulator_pool_give_the_same_results(finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "worldloop", "run", str(DEBUG), f"run_root={tmp_path}", "runtime=ray", *SMALL]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    result = subprocess.run(
        [*command, "resources.num_simulators=2"], capture_output=True, text=True, timeout=280, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "debug/results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert "gain over clone" in result.stdout


def test_sigterm_ends_cleanly_and_the_run_resumes(tmp_path: Path) -> None:  # as Ctrl-C, see test_progress
    rest = clone_until_sigterm(DEBUG, tmp_path, timeout_s=15)
    assert "leaked" not in rest
    assert "the same command continues" in rest
    state = json.loads((tmp_path / "debug/state.json").read_text())
    assert state["next_stage"] == "clone_policy"


def test_a_run_directory_of_another_config_is_refused(finished: Path) -> None:
    with pytest.raises(WorldloopError, match=r"made with another config: seed \(0 -> 1\)"):
        run_loop(load_config(DEBUG, [f"run_root={finished.parent}", "seed=1", *SMALL]))


def test_a_run_directory_of_an_earlier_version_is_refused(finished: Path, tmp_path: Path) -> None:
    old = shutil.copytree(finished, tmp_path / "debug")
    text = (old / "config.yaml").read_text()
    (old / "config.yaml").write_text(text.replace("checkpoint_every_s", "keep_every_s"))
    with pytest.raises(
        WorldloopError,
        match=r"made by an earlier version: resources.keep_every_s is now resources.checkpoint_every_s; give another",
    ):
        run_loop(load_config(DEBUG, [f"run_root={tmp_path}", *SMALL]))


def test_a_finished_run_is_left_alone(finished: Path) -> None:
    before = (finished / "timings.json").read_bytes()
    run_loop(load_config(DEBUG, [f"run_root={finished.parent}", *SMALL]))
    assert (finished / "timings.json").read_bytes() == before


def test_only_the_next_stage_can_be_run(tmp_path: Path) -> None:
    config = load_config(DEBUG, [f"run_root={tmp_path}"])
    with pytest.raises(WorldloopError, match=r"next stage of .* is seed_dataset, not improve_policy"):
        run_loop(config, "improve_policy")
    assert not (tmp_path / "debug/config.yaml").exists(), "no run is made by a mistake"
    directory = run_loop(config, "seed_dataset")
    assert directory.read_state().next_stage == "clone_policy"
    before = (directory.path / "status.json").read_bytes()
    with pytest.raises(WorldloopError, match=r"next stage of .* is clone_policy, not improve_policy"):
        run_loop(config, "improve_policy")
    assert (directory.path / "status.json").read_bytes() == before


def test_a_corrupt_shard_stops_the_next_stage_by_name(tmp_path: Path) -> None:
    config = load_config(DEBUG, [f"run_root={tmp_path}"])
    directory = run_loop(config, "seed_dataset")
    (parquet,) = (directory.path / "sans/shards/000-scripted/data").rglob("*.parquet")
    data = bytearray(parquet.read_bytes())
    data[len(data) // 2] ^= 1
    parquet.write_bytes(bytes(data))
    with pytest.raises(WorldloopError, match="000-scripted"):
        run_loop(config, "clone_policy")
    assert directory.read_state().next_stage == "clone_policy"


def test_a_full_disk_is_explained_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(DEBUG, [f"run_root={tmp_path}", *SMALL])
    directory = run_loop(config, "seed_dataset")

    def full(handle: int) -> None:
        if "/checkpoints/" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WorldloopError, match="disk full while writing checkpoint") as error:
            run_loop(config, "clone_policy")
    assert error.value.exit_code == 1
    assert not (directory.path / "checkpoints/iteration_000/policy").exists()
    assert run_loop(config, "clone_policy").read_state().next_stage == "evaluate_policy"


def test_no_policy_is_improved_in_a_model_that_is_not_good_enough(tmp_path: Path) -> None:
    # Enough held-out successes and failures of the policy to judge by.
    enough = ["clone_policy.num_steps=100", "collect_episodes.num_episodes=80", "collect_episodes.validation_share=0.7"]
    overrides = [f"run_root={tmp_path}", "check_world_model.required_auc=1.0", "num_iterations=1", *SMALL, *enough]
    overrides += ["evaluate_policy.num_states=10", *FEW_CHECKS]
    directory = run_loop(load_config(DEBUG, [*overrides, "improve_policy.restart_from=policy"]))
    state, entry = directory.read_state(), directory.read_results()["iterations"][1]
    assert entry["num_fits"] == 2
    assert state.world_model == "checkpoints/iteration_001/world_model_2"
    assert state.world_model_steps == 12 + 12
    assert "below check_world_model.required_auc 1.0" in entry["improvement_skipped"]
    assert entry["promoted"] is False
    assert state.policy == state.clone
    assert "no policy improved in it: AUC" in format_report(directory.path)


def test_the_control_that_imitates_needs_no_world_model(tmp_path: Path) -> None:
    overrides = [f"run_root={tmp_path}", "improve_policy.method=imitate_successes", "num_iterations=1", *SMALL]
    config = load_config(DEBUG, overrides)
    assert "fit_world_model" not in list_stages(config, 1)
    results = run_loop(config).read_results()
    assert results["iterations"][1]["simulated_success"]["n"] == 40
    assert results["iterations"][1]["imagined_success"] is None
