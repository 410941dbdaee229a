"""Configuration: what loads, and how mistakes are explained."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from worldloop.config.loading import OLD_KEYS, build_config, find_differences, load_config, to_yaml
from worldloop.config.schema import LoopConfig
from worldloop.core.errors import WorldloopError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DEBUG = ROOT / "configs/debug.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_load_and_round_trip(path: Path) -> None:
    config = load_config(path)
    assert config.run_name == path.stem
    assert build_config([OmegaConf.create(to_yaml(config))], "x") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_key_is_commented(path: Path) -> None:
    section, bare = "", []
    for line in path.read_text().splitlines():
        body = line.split("#")[0].rstrip()
        if body and not body.endswith(":") and "#" not in line and section != "episodes":
            bare.append(line)
        if body.endswith(":"):
            section = body.strip(" :")
    assert not bare, bare


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_iteration=3", "unknown key num_iteration; did you mean num_iterations?"),
        ("improve_policy.group_sice=3", "unknown key improve_policy.group_sice; did you mean group_size?"),
        ("num_iterations=many", "bad value for num_iterations"),
        ("improve_policy.group_size=1", "improve_policy.group_size must be at least 2, got 1"),
        ("runtime=slurm", "runtime 'slurm' is not one of ray, inline"),
        ("chunk_length=3", "chunk_length 3 must be a multiple of simulator.toy.actions_per_frame 2"),
        ("simulator.maniskill.tasks=[PushCub-v1]", "simulator.maniskill.tasks 'PushCub-v1' is not one of PushCube-v1"),
        ("world_model.denoiser=unet", "world_model.denoiser is 'unet', allowed: hybrid, cosmos"),
        ("seed_dataset.held_out_side=left", "set num_iterations=0"),
        (
            "policy.kind=diffusion",
            "policy.kind 'diffusion' is not one of token_vla, harmowam, lerobot, or module:Class",
        ),
        (
            "simulator.kind=gazebo",
            "simulator.kind 'gazebo' is not one of libero, maniskill, metaworld, toy, or module:Class",
        ),
        ("simulator.toy.imagesize=8", "unknown key simulator.toy.imagesize; did you mean image_size?"),
        ("policy.token_vlm.width=8", "unknown key policy.token_vlm; did you mean token_vla?"),
        ("source=video", "source 'video' is not one of simulator, recording"),
        ("source=recording", "num_iterations is 2, allowed with source recording: 1"),
        ("seed_dataset.episodes.expert=0", "seed_dataset.episodes.expert must be at least 1: the clone learns"),
        ("recording.hz=-1", "recording.actions_per_row must be at least 1, and recording.hz at least 0"),
        ("recording.validation_share=1", "recording.validation_share must be in [0, 1), got 1.0"),
        ("seed", "override 'seed' is not of the form key=value"),
    ],
)
def test_mistakes_name_the_key_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(WorldloopError) as error:
        load_config(ROOT / "configs/debug.yaml", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_more_evaluation_states_than_a_benchmark_has_are_refused() -> None:
    overrides = ["simulator.kind=libero", "chunk_length=10"]
    assert load_config(DEBUG, [*overrides, "evaluate_policy.num_states=50"]).simulator.kind == "libero"
    message = "evaluate_policy.num_states is 51, allowed with simulator.libero: at most 50, which it has"
    with pytest.raises(WorldloopError, match=message):
        load_config(DEBUG, [*overrides, "evaluate_policy.num_states=51"])


def test_demonstrations_go_with_a_simulator_of_which_all_states_are_used() -> None:
    demonstrations = "seed_dataset.demonstrations=true"
    assert load_config(ROOT / "configs/debug.yaml", [demonstrations, "seed_dataset.episodes.expert=0"]).reads_recording
    with pytest.raises(WorldloopError, match=r"seed_dataset\.demonstrations go with a simulator: set source"):
        load_config(ROOT / "configs/recorded_cpu.yaml", [demonstrations])
    with pytest.raises(WorldloopError, match=r"held_out_side cannot be told of recorded demonstrations"):
        load_config(
            ROOT / "configs/debug.yaml", [demonstrations, "seed_dataset.held_out_side=left", "num_iterations=0"]
        )


def test_an_empty_mapping_clears_what_came_before(tmp_path: Path) -> None:
    """Its default, and what a config that is extended says; a later part adds to it. It is stored as it is."""
    (tmp_path / "own.yaml").write_text(
        f"extends: {ROOT / 'configs/debug.yaml'}\nclone_policy: {{}}\n"
        "seed_dataset: {episodes: {}, demonstrations: true}\n"
    )
    config = load_config(tmp_path / "own.yaml", [])
    assert config.seed_dataset.episodes == {}
    assert config.clone_policy.num_steps == 100, "a section is no such mapping"
    (tmp_path / "stored.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "stored.yaml", []) == config
    assert load_config(tmp_path / "own.yaml", ["seed_dataset.episodes.far=2"]).seed_dataset.episodes == {"far": 2}
    with pytest.raises(WorldloopError, match=r"unknown key seed_dataset\.episods"):
        load_config(tmp_path / "own.yaml", ["seed_dataset.episods={}"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("simulator.kind=recorded", "simulator.kind=recorded is now source=recording"),
        ("simulator.recorded.root=data", "simulator.recorded.root is now recording.root"),
        ("simulator.recorded.camera=top", "simulator.recorded.camera is now recording.cameras"),
        ("recording.camera=top", "recording.camera is now recording.cameras"),
        (
            "simulator.recorded.frames_after_success=1",
            "simulator.recorded.frames_after_success is now recording.success_hold_frames and "
            "recording.success_confirm_frames",
        ),
        (
            "simulator.toy.frames_after_success=1",
            "simulator.toy.frames_after_success is now simulator.toy.success_hold_frames and "
            "simulator.toy.success_confirm_frames",
        ),
        (
            "improve_policy.uncertainty_penalty=0.05",
            "improve_policy.uncertainty_penalty is now improve_policy.reward.certainty",
        ),
    ],
)
def test_old_keys_name_the_new_ones(old: str, new: str, tmp_path: Path) -> None:
    """On the command line, in a file, and in the config that a run has stored."""
    debug, stored = ROOT / "configs/debug.yaml", tmp_path / "old.yaml"
    OmegaConf.save(OmegaConf.from_dotlist([old]), stored)
    with pytest.raises(WorldloopError, match=f"^{re.escape(f'command line: {new}')}$"):
        load_config(debug, [old])
    with pytest.raises(WorldloopError, match=f"^{re.escape(f'{stored}: {new}')}$"):
        load_config(stored)
    with pytest.raises(WorldloopError, match=re.escape(new)):
        build_config([OmegaConf.load(stored)], "config.yaml")


def test_every_old_key_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("simulator: {kind: recorded, recorded: {root: data, camera: top}}\n")
    with pytest.raises(WorldloopError) as error:
        load_config(tmp_path / "old.yaml")
    assert str(error.value) == (
        f"{tmp_path}/old.yaml: simulator.kind=recorded is now source=recording; "
        "simulator.recorded.root is now recording.root; simulator.recorded.camera is now recording.cameras"
    )


@pytest.mark.parametrize("old", OLD_KEYS)
def test_old_keys_are_keys_no_more(old: str) -> None:
    key, _, value = old.replace("*", "toy").partition("=")
    known = OmegaConf.select(OmegaConf.create(to_yaml(LoopConfig())), key)
    assert known != value if value else known is None


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(WorldloopError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(WorldloopError, match="not a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1, 2\nb: }")
    with pytest.raises(WorldloopError, match=r"is not YAML: did not find expected ',' or '\]', line 2$"):
        load_config(tmp_path / "broken.yaml")
    with pytest.raises(WorldloopError, match=r"^overrides 'seed=\[' cannot be read: "):
        load_config(DEBUG, ["seed=["])


@pytest.mark.parametrize("written", ["007", "on", "1e3", "2026-11-30", "null_run"])
def test_text_stays_as_it_was_written(tmp_path: Path, written: str) -> None:
    """YAML reads most of these as a number or as true."""
    assert load_config(DEBUG, [f"run_name={written}", f"world_model.cameras=[{written}]"]).run_name == written
    (tmp_path / "own.yaml").write_text(f"extends: {DEBUG.resolve()}\nrun_name: {written}\nvalue:\n  copies: 64\n")
    config = load_config(tmp_path / "own.yaml", [f"world_model.cameras=[{written}, top]"])
    assert (config.run_name, config.value.copies) == (written, "64")
    assert config.world_model.cameras == (written, "top")
    assert load_config(tmp_path / "own.yaml", ["run_name='on'"]).run_name == "on"


@pytest.mark.parametrize("key", ["policy.token_vla.temperature", "world_model.context_noise", "value.future_weight"])
@pytest.mark.parametrize("value", ["nan", ".nan", ".inf"])
def test_numbers_are_finite(key: str, value: str) -> None:
    with pytest.raises(WorldloopError, match=rf"{key} is (nan|inf), allowed: "):
        load_config(DEBUG, [f"{key}={value}"])


def test_the_numbers_of_a_list_are_finite() -> None:
    with pytest.raises(WorldloopError, match=r"rope_scale is \[nan, 1.0, 1.0\], allowed: finite numbers"):
        load_config(DEBUG, ["world_model.cosmos.rope_scale=[nan,1,1]"])


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "x" * 201])
def test_a_run_s_name_is_that_of_one_folder(name: str) -> None:
    with pytest.raises(WorldloopError, match=r"run_name '.*' must be the name of one folder, .*; run_root says where"):
        load_config(DEBUG, [f"run_name={name}"])


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(DEBUG, ["run_root=~/runs", "recording.root=~/data"])
    assert (config.run_root, config.recording.root) == ("/home/me/runs", "/home/me/data")


def test_a_config_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("run_name: base\nseed: 3\nclips: {motion_weight: 2.0, on_policy_share: 0.1}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nclips: {on_policy_share: 0.2}\n")
    config = load_config(tmp_path / "child.yaml", ["clips.outcome_balance=false"])
    assert (config.run_name, config.seed) == ("child", 3)
    assert (config.clips.motion_weight, config.clips.on_policy_share) == (2.0, 0.2)
    assert not config.clips.outcome_balance


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("gone.yaml", "gone.yaml, which .*a.yaml extends, does not exist"),
        ("a.yaml", "extends itself"),
        ("[1]", "name of"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, extends: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(f"extends: {extends}\n")
    with pytest.raises(WorldloopError, match=message):
        load_config(tmp_path / "a.yaml")


def test_differences_ignore_resources_and_name_results() -> None:
    config = load_config(ROOT / "configs/debug.yaml")
    moved = build_config([{"resources": {"num_simulators": 7}, "runtime": "ray", "seed": 1}], "test")
    keys = [d.split(" ")[0] for d in find_differences(to_yaml(config), to_yaml(moved))]
    assert "seed" in keys
    assert not any(k.startswith(("resources", "runtime")) for k in keys)


def test_every_stage_of_the_gpu_config_fills_its_simulator() -> None:
    config = load_config(ROOT / "configs/pushcube_gpu.yaml")
    rows = config.simulator.maniskill.num_envs
    assert (
        config.seed_dataset.block_size
        == config.evaluate_policy.block_size
        == config.collect_episodes.block_size
        == rows
    )
    assert config.promote_policy.block_size == config.promote_policy.num_states


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/runs?region=eu-west-1&endpoint_override=localhost:9000&scheme=http",
        "abfs://container@account.dfs.core.windows.net/runs",
        "gs://anonymous@bucket/runs",
        "file:///backup/runs",
    ],
)
def test_addresses_of_stores(address: str) -> None:
    assert load_config(DEBUG, [f"mirror={address}"]).mirror == address


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:secret@bucket/runs",
        "s3://secret@bucket/runs",
        "s3://bucket/runs?access_key=A&secret_key=secret",
        "abfs://container:secret@account/runs",
        "gs://bucket/runs?access_token=secret",
        "bucket/secret",
    ],
)
def test_an_address_with_credentials_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(WorldloopError, match="mirror must") as caught:
        load_config(DEBUG, [f"mirror={address}"])
    assert "secret" not in str(caught.value)
