"""LeRobot's policies here give what LeRobot itself gives: actions, losses, statistics and folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_lerobot import (
    ACT,
    BASE,
    HAND,
    NORMALISATION,
    Episodes,
    make_batch,
    make_lerobot,
    make_raw_batch,
    make_smolvla_config,
)
from tiny_vla import PULL, PUSH, make_observation, make_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import make_generator, make_row_generators, make_row_keys, row_normal
from worldloop.core.types import Normalisation
from worldloop.factory.build import make_policy
from worldloop.factory.checkpoints import load_policy, save_policy
from worldloop.factory.config import PolicyConfig
from worldloop.policies.lerobot.config import LeRobotConfig
from worldloop.policies.lerobot.policy import LeRobotPolicy

TYPES = ["act", "diffusion", "smolvla"]
NAMES = {"base": "observation.images.base"}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """`make_lerobot`, also for a tiny SmolVLA."""

    def make(policy_type: str, **options: Any) -> LeRobotPolicy:
        if policy_type == "smolvla":
            pytest.importorskip("num2words", reason="SmolVLA's processor needs it")
            config = LeRobotConfig("smolvla", config=make_smolvla_config(tmp_path / "vlm") | options.pop("more", {}))
            built = make_policy(LeRobotPolicy, config, make_spec(), NORMALISATION, options.pop("chunk_length", 3), 0)
            assert isinstance(built, LeRobotPolicy)
            return built.eval()
        return make_lerobot(policy_type, **options)

    return make


def make_theirs(policy: LeRobotPolicy, folder: Path) -> tuple[Any, Any, Any]:
    """LeRobot's own policy and processors, loaded from the folder that ``policy`` is written to."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    policy.save_pretrained(folder)
    config = PreTrainedConfig.from_pretrained(folder)
    theirs = get_policy_class(config.type).from_pretrained(folder, strict=True)
    return theirs, *make_pre_post_processors(config, pretrained_path=str(folder))


# --- as LeRobot does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy_type", TYPES)
def test_actions_are_those_of_lerobot_from_the_exported_folder(make: Any, policy_type: str, tmp_path: Path) -> None:
    """Exported, loaded by LeRobot's own classes, and asked for a chunk from the same observations and noise."""
    policy = make(policy_type)
    policy.prepare(Episodes(make_batch(20)))
    theirs, preprocess, postprocess = make_theirs(policy, tmp_path / "exported")
    observation, keys = make_observation(4, seed=3), make_row_keys(4, 7, "noise")
    batch = preprocess(make_raw_batch(observation, NAMES))
    if policy_type == "diffusion":  # DDPM adds noise at every step, which LeRobot does not let a caller choose
        generators = make_row_generators(keys, observation.env_step)
        first = torch.stack([torch.randn(4, 2, generator=generator) for generator in generators])
        seen = {"observation.state": batch["observation.state"][:, None]}
        seen["observation.images"] = batch["observation.images.base"][:, None, None]
        condition = theirs.diffusion._prepare_global_conditioning(seen)
        predicted = theirs.diffusion.conditional_sample(4, condition, generator=generators, noise=first)[:, :3]
    elif policy_type == "smolvla":
        predicted = theirs.predict_action_chunk(batch, noise=row_normal(keys, observation.env_step, (3, 5)))
    else:
        predicted = theirs.predict_action_chunk(batch)
    expected = postprocess(predicted)
    assert expected.abs().max() > 0.05
    assert torch.equal(policy.act(observation, keys).actions, expected.clamp(-1, 1))


@pytest.mark.parametrize("policy_type", TYPES)
def test_the_loss_is_that_of_lerobot(make: Any, policy_type: str, tmp_path: Path) -> None:
    """Also with padding: the policy's horizon is longer than the chunk, and two actions are not valid."""
    policy = make(policy_type)
    if policy_type != "diffusion":
        policy = make(policy_type, **({"sizes": ACT | {"chunk_size": 5}} if policy_type == "act" else {}))
    dataset = make_batch(6, length=3)
    policy.prepare(Episodes(dataset))
    theirs, preprocess, _ = make_theirs(policy, tmp_path / "exported")
    policy.train()
    theirs.train()
    loss, told = policy.compute_imitation_loss(dataset, make_generator(0))
    padding = policy.horizon - 3
    actions = torch.cat([dataset.actions, dataset.actions[:, -1:].expand(-1, padding, -1)], 1)
    is_pad = torch.cat([~dataset.valid, torch.ones(6, padding, dtype=torch.bool)], 1)
    raw = make_raw_batch(dataset.observation, NAMES)
    if policy_type == "diffusion":  # LeRobot's dataset gives it an axis of time
        raw = {key: value[:, None] if isinstance(value, torch.Tensor) else value for key, value in raw.items()}
    raw |= {"action": actions, "action_is_pad": is_pad}
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (), generator=make_generator(0))))
        expected, _ = theirs.forward(preprocess(raw))
    assert torch.equal(loss, expected)
    assert all(isinstance(value, float) for value in told.values())
    loss.backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in policy.parameters())
    # What is not valid teaches nothing (the VAE encoder of ACT does see it).
    if policy_type != "act":
        changed = torch.where(dataset.valid[..., None], dataset.actions, 0.7)
        again, _ = policy.compute_imitation_loss(replace(dataset, actions=changed), make_generator(0))
        assert torch.allclose(again, loss, atol=1e-5 if policy_type == "smolvla" else 0.05)


@pytest.mark.parametrize("policy_type", ["act", "diffusion"])
def test_gradients_under_autocast_are_the_same_every_time(policy_type: str) -> None:
    """bf16 convolutions on the CPU gave what had been in memory before, where a kernel meets padding alone."""
    policy, dataset = make_lerobot(policy_type).train(), make_batch(8)
    found = []
    for _ in range(4):
        policy.zero_grad()
        for _ in range(4):
            torch.full((1000, 1000), float("nan"))  # freed at once, and handed out again
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = policy.compute_imitation_loss(dataset, make_generator(0))
        loss.backward()
        found.append(torch.cat([w.grad.flatten() for w in policy.parameters() if w.grad is not None]))
    assert found[0].isfinite().all()
    assert all(torch.equal(other, found[0]) for other in found)


def test_statistics_are_those_of_the_dataset_and_of_sans() -> None:
    policy, dataset = (
        make_lerobot(cameras=(BASE, HAND), imagenet_statistics=False),
        make_batch(50, cameras=(BASE, HAND)),
    )
    policy.prepare(Episodes(dataset))
    (held,) = [step for step in policy._parts.preprocessor.steps if type(step).__name__ == "NormalizerProcessorStep"]
    actions = dataset.actions[dataset.valid].numpy()
    table = held._tensor_stats
    assert table["observation.state"]["mean"].tolist() == [1.0, 2.0, 3.0]
    assert table["observation.state"]["std"].tolist() == [2.0, 2.0, 0.5]
    for name, expected in (("mean", actions.mean(0)), ("min", actions.min(0)), ("q01", np.quantile(actions, 0.01, 0))):
        assert table["action"][name].numpy() == pytest.approx(expected, abs=1e-6)
    pixels = dataset.observation.frames["hand"][:, -1].numpy().reshape(-1, 3) / 255
    image = table["observation.images.hand"]
    assert image["std"].shape == (3, 1, 1)
    assert image["std"].flatten().numpy() == pytest.approx(pixels.std(0), abs=1e-6)
    assert image["q90"].flatten().numpy() == pytest.approx(np.quantile(pixels, 0.9, 0), abs=0.004)
    usual = make_lerobot()
    usual.prepare(Episodes(dataset))
    assert usual.statistics["observation.images.base"][0].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    still = replace(dataset, observation=replace(dataset.observation, proprio=torch.ones(50, 3)))
    usual.prepare(Episodes(still))
    state = usual.statistics.table()["observation.state"]
    assert (state["max"] - state["min"]).tolist() == pytest.approx([0.02] * 3)  # never zero: it is divided by


# --- acting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy_type", TYPES)
def test_a_row_acts_by_its_own_key_whatever_else_is_in_the_batch(make: Any, policy_type: str) -> None:
    policy = make(policy_type)
    observation, keys = make_observation(4), make_row_keys(4, 0, "act")
    torch.manual_seed(1)
    chunk = policy.act(observation, keys)
    assert chunk.actions.shape == (4, 3, 2)
    assert torch.equal(chunk.actions, policy.act(observation, keys).actions)
    order = [2, 0]
    alone = policy.act(observation.rows(order), keys[order]).actions
    assert torch.allclose(alone, chunk.actions[order], atol=1e-5)
    other = policy.act(observation, make_row_keys(4, 1, "act")).actions
    later = policy.act(replace(observation, env_step=observation.env_step + 1), keys).actions
    if policy_type == "act":  # LeRobot's ACT acts from a latent of zeros
        assert torch.equal(other, chunk.actions)
    else:
        assert (other - chunk.actions).abs().max() > 0.01
        assert (later - chunk.actions).abs().max() > 0.01
    assert torch.equal(policy.act(observation, None).actions, policy.act(observation, None).actions)


def test_temperature_scales_the_noise(make: Any) -> None:
    policy, observation, keys = make("smolvla"), make_observation(3), make_row_keys(3, 0, "act")
    policy.temperature = 1e-9
    assert torch.allclose(policy.act(observation, keys).actions, policy.act(observation, None).actions, atol=1e-6)


def test_actions_stay_within_the_robots_bounds() -> None:
    policy = make_lerobot()
    torch.nn.init.constant_(policy.policy.model.action_head.bias, 50.0)
    assert policy.act(make_observation(2), None).actions.max() == 1.0


def test_a_smolvla_reads_its_instruction(make: Any) -> None:
    policy = make("smolvla")
    push, pull = (policy.act(make_observation(2, text), None).actions for text in (PUSH, PULL))
    assert not torch.equal(push, pull)


def test_cameras_are_called_as_the_policy_calls_them() -> None:
    policy = make_lerobot(cameras=(BASE, HAND))
    assert list(policy._parts.config.image_features) == ["observation.images.base", "observation.images.hand"]
    config = LeRobotConfig("act", cameras={"hand": "wrist"}, config=ACT)
    spec = make_spec(cameras=(BASE, HAND))
    policy = make_policy(LeRobotPolicy, config, spec, NORMALISATION, 3, 0)  # type: ignore[assignment]
    assert policy.spec.robot.camera_names == ("hand",)
    assert list(policy._parts.config.image_features) == ["observation.images.wrist"]
    batch = policy.preprocess(make_observation(2, cameras=(BASE, HAND)))
    assert batch["observation.images.wrist"].shape == (2, 3, 8, 12)
    with pytest.raises(WorldloopError, match="camera 'top' is not one of base, hand"):
        make_policy(LeRobotPolicy, replace(config, cameras={"top": "x"}), spec, NORMALISATION, 3, 0)


# --- checkpoints and folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy_type", TYPES)
def test_a_checkpoint_acts_and_learns_bit_equally(make: Any, policy_type: str, tmp_path: Path) -> None:
    policy, dataset = make(policy_type), make_batch(8)
    policy.prepare(Episodes(dataset))
    save_policy(policy, tmp_path / "policy", PolicyConfig("lerobot", lerobot=policy.config), version="v")
    assert not [path for path in (tmp_path / "policy").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, LeRobotPolicy)
    assert loaded.version == "v"
    observation, keys = make_observation(4, seed=5), make_row_keys(4, 2, "act")
    assert torch.equal(loaded.act(observation, keys).actions, policy.act(observation, keys).actions)
    losses = [p.train().compute_imitation_loss(dataset, make_generator(1))[0] for p in (policy, loaded)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("policy_type", TYPES)
def test_an_exported_folder_comes_back(make: Any, policy_type: str, tmp_path: Path) -> None:
    """Export, import by `path`, and a checkpoint of that, which needs the folder no more."""
    policy = make(policy_type)
    policy.prepare(Episodes(make_batch(8)))
    folder = tmp_path / "exported"
    policy.save_pretrained(folder)
    config = LeRobotConfig(path=str(folder), keeps_statistics=True)
    back = make_policy(LeRobotPolicy, config, make_spec(), Normalisation(torch.zeros(3), torch.ones(3)), 3, 1).eval()
    observation, keys = make_observation(4, seed=5), make_row_keys(4, 2, "act")
    expected = policy.act(observation, keys).actions
    assert torch.equal(back.act(observation, keys).actions, expected)
    back.prepare(Episodes(make_batch(8, seed=9)))  # its own statistics stay
    save_policy(back, tmp_path / "policy", PolicyConfig("lerobot", lerobot=config), version="")
    folder.rename(tmp_path / "gone")
    assert torch.equal(load_policy(tmp_path / "policy").act(observation, keys).actions, expected)


def test_statistics_of_new_episodes_replace_those_of_the_folder(tmp_path: Path) -> None:
    policy, other = make_lerobot(), make_batch(8, seed=9)
    policy.prepare(Episodes(make_batch(8)))
    policy.save_pretrained(tmp_path / "exported")
    back = make_lerobot("", path=str(tmp_path / "exported"))
    back.prepare(Episodes(other))
    assert torch.equal(back.statistics["action"][2], other.actions[other.valid].amin(0))
    assert torch.equal(back.policy.model.action_head.weight, policy.policy.model.action_head.weight)


def test_a_policy_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client answers from a folder: no test reaches the network."""
    import huggingface_hub

    policy = make_lerobot()
    policy.save_pretrained(tmp_path / "server")
    asked: list[Any] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "server")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    back = make_lerobot("", path="hf://someone/act@v2")
    assert asked == [("someone/act", "v2", ["*.json", "*.safetensors"])]
    assert torch.equal(back.policy.model.action_head.weight, policy.policy.model.action_head.weight)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_folder_that_names_a_class_of_a_stranger_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "antigravity_probe.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    make_lerobot().save_pretrained(tmp_path / "exported")
    file = tmp_path / "exported/policy_preprocessor.json"
    pipeline = json.loads(file.read_text())
    pipeline["steps"].append({"class": "antigravity_probe.Thing", "config": {}})
    file.write_text(json.dumps(pipeline))
    with pytest.raises(
        WorldloopError, match=r"names the class 'antigravity_probe\.Thing', which is not part of LeRobot"
    ):
        make_lerobot("", path=str(tmp_path / "exported"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_type": "", "sizes": {}}, "set policy.lerobot.type, e.g. act"),
        ({"policy_type": "acts", "sizes": {}}, "LeRobot has no policy 'acts': set policy.lerobot.type to .*act"),
        ({"sizes": {"dim_mode": 3}}, "config.dim_mode is no field of LeRobot's act; did you mean dim_model"),
        ({"sizes": {"device": "cuda"}}, "config.device follows from the run: leave it out"),
        ({"sizes": ACT | {"dim_model": "wide"}}, "LeRobot cannot build act with these settings .*dim_model"),
        ({"sizes": ACT | {"chunk_size": 2}}, "chunks of 2 actions, fewer than chunk_length 3: lower chunk_length, or"),
        ({"policy_type": "diffusion", "sizes": {"n_obs_steps": 2}}, r"diffusion looks back \(n_obs_steps is 2\)"),
        ({"policy_type": "vqbet", "sizes": {}}, "vqbet makes no chunk of actions from one observation"),
        ({"policy_type": "smolvla", "sizes": {"vlm_model_name": "/nowhere/vlm"}}, "needs files .*vlm_model_name=/now"),
        ({"policy_type": "", "path": "/nowhere"}, "path /nowhere is no folder"),
        ({"keeps_statistics": True}, "keeps_statistics keeps those of policy.lerobot.path, which is not set"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldloopError, match=message) as caught:
        make_lerobot(**settings)
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    make_lerobot().save_pretrained(folder)
    with pytest.raises(WorldloopError, match=r"type is diffusion, and .* holds a act"):
        make_lerobot("diffusion", path=str(folder), sizes={})
    with pytest.raises(WorldloopError, match=r"reads observation.images.base, and the cameras here are hand"):
        make_lerobot("", path=str(folder), cameras=(HAND,))
    with pytest.raises(WorldloopError, match=r"lacks [0-9]+ weights of its config"):
        make_lerobot("", path=str(folder), sizes={"n_encoder_layers": 2})
    (folder / "policy_preprocessor.json").unlink()
    with pytest.raises(WorldloopError, match=r"has no policy_preprocessor.json"):
        make_lerobot("", path=str(folder))


def test_rows_of_several_actions_are_learned_and_taken_apart(tmp_path: Path) -> None:
    """As LeRobot trains on a merged dataset: one row holds the two actions between two frames."""
    spec = replace(make_spec(), actions_per_frame=2)
    wide = make_lerobot(sizes=ACT | {"chunk_size": 2}, chunk_length=2)
    wide._parts.config.output_features["action"].shape = (4,)
    theirs = type(wide.policy)(wide._parts.config).eval()
    wide._parts.policy = theirs
    wide.save_pretrained(tmp_path / "wide")
    config = LeRobotConfig(path=str(tmp_path / "wide"))
    policy = make_policy(LeRobotPolicy, config, spec, NORMALISATION, 2, seed=0)
    assert isinstance(policy, LeRobotPolicy)
    assert (policy.actions_per_row, policy.horizon, policy.imitation_length) == (2, 4, 4)
    batch = make_batch(6, length=4)  # of row 0 the last two actions are not valid: a whole row of LeRobot's
    policy.prepare(Episodes(batch))
    table = policy.statistics.table()["action"]
    assert torch.equal(table["mean"], batch.actions[batch.valid].mean(0).repeat(2))

    loss, _ = policy.compute_imitation_loss(batch, make_generator(0))
    inputs = policy.preprocess(
        batch.observation, {"action": batch.actions.reshape(6, 2, 4), "action_is_pad": ~batch.valid[:, ::2]}
    )
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (), generator=make_generator(0))))
        expected, _ = policy.policy(inputs)
    assert torch.equal(loss, expected)

    rows = policy._parts.postprocessor(policy.eval().policy.predict_action_chunk(policy.preprocess(batch.observation)))
    acted = policy.act(batch.observation, None).actions
    assert torch.equal(acted, torch.stack([rows[:, 0, :2], rows[:, 0, 2:]], dim=1).clamp(-1, 1))
    save_policy(policy, tmp_path / "saved", PolicyConfig(kind="lerobot", lerobot=config), "v")  # type: ignore[call-arg]
    assert torch.equal(load_policy(tmp_path / "saved").act(batch.observation, None).actions, acted)
