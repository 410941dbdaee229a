"""Cosmos-Predict2 for real: the published sizes on the meta device, and by value a tiny pipeline in the same layout."""

from pathlib import Path

import pytest
import torch
from tiny_pipeline import PUBLISHED, make_pipeline
from world_model_toy import TWO_CAMERAS, ToyEpisodes, tiny_config, toy_normalisation, toy_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.specs import CameraSpec
from worldloop.factory import checkpoints
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.cosmos import CosmosConfig
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.pretrained import WanCodec, read_cosmos_config
from worldloop.world_model.training import compute_joint_loss

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("hub") / "tiny-video2world")


def make_config(pipeline: Path, **changes: object) -> WorldModelConfig:
    settings: dict[str, object] = {
        "denoiser": "cosmos", "codec": "wan", "pretrained": str(pipeline), "text_tokens": 12, "lora_rank": 4,
        "cosmos": CosmosConfig(condition_dim=16), "zero_time_share": 0.3, "num_sampler_steps": 2,
    }  # fmt: skip
    return tiny_config(**(settings | changes))


def make_model(pipeline: Path, **changes: object) -> VideoWorldModel:
    torch.manual_seed(0)
    return VideoWorldModel(make_config(pipeline, **changes), toy_spec(TWO_CAMERAS), toy_normalisation())


def test_published_sizes_are_those_of_the_transformer_that_we_build() -> None:
    """At full size without memory: every name and shape of the block and of what is around it, and the sum."""
    with torch.device("meta"):
        transformer = diffusers.CosmosTransformer3DModel(**PUBLISHED["config"])
    shapes = {name: list(p.shape) for name, p in transformer.named_parameters()}
    assert sum(p.numel() for p in transformer.parameters()) == PUBLISHED["num_parameters"]
    blocks = PUBLISHED["config"]["num_layers"]
    expected = dict(PUBLISHED["shapes"])
    for name in [name for name in expected if name.startswith("transformer_blocks.0.")]:
        for i in range(1, blocks):
            expected[name.replace(".0.", f".{i}.", 1)] = expected[name]
    assert shapes == expected


def test_sizes_are_read_from_the_folder(pipeline: Path) -> None:
    config = read_cosmos_config(str(pipeline), CosmosConfig(condition_dim=16))
    assert config == CosmosConfig(
        patch=2, num_layers=2, num_heads=2, head_dim=16, mlp_ratio=4.0, adaln_lora_dim=8, condition_dim=16,
        rope_scale=(1.0, 3.0, 3.0), concat_padding_mask=True, prediction="velocity",
    )  # fmt: skip


def test_published_weights_are_in_place_by_value(pipeline: Path) -> None:
    stored = diffusers.CosmosTransformer3DModel.from_pretrained(pipeline, subfolder="transformer").state_dict()
    ours = make_model(pipeline).denoiser.transformer.state_dict()
    ours = {name.replace(".base_layer", ""): value for name, value in ours.items() if "lora_" not in name}
    assert ours.keys() == stored.keys()
    assert all(torch.equal(ours[name], stored[name]) for name in stored)


def test_fine_tuning_starts_as_published_and_changes_adapters_and_our_modules_alone(pipeline: Path) -> None:
    data, model = ToyEpisodes(16, cameras=TWO_CAMERAS), make_model(pipeline)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    views = [f"denoiser.views.{camera}" for camera in ("base_camera", "above/camera")]
    silent = ("lora_B", *(f"{v}.{part}" for v in views for part in ("window.linear", "window.out", "draw")))
    starts = [name for name in before if any(part in name for part in silent)]
    assert len({part for part in silent for name in starts if part in name}) == len(silent)
    assert not any(before[name].abs().sum() for name in starts)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    clip = data.load(data.sample(generator, 16), 1)
    for _ in range(25):
        loss, metrics, _ = compute_joint_loss(model, clip, torch.Generator().manual_seed(7))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(metrics["loss_video"])
    assert losses[-1] < 0.8 * losses[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert not changed & model.frozen
    assert {name for name in before if "lora_B" in name} <= changed
    assert any(name.startswith("denoiser.condition") for name in changed)
    frozen = {name for name in before if name.startswith("codec.") or ".base_layer." in name}
    assert frozen <= model.frozen


def test_a_checkpoint_holds_what_was_trained_and_loads_with_the_pipeline(pipeline: Path, tmp_path: Path) -> None:
    data, model = ToyEpisodes(4, cameras=TWO_CAMERAS), make_model(pipeline)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    model.eval()
    checkpoints.save_world_model(model, tmp_path / "checkpoint")
    stored = (tmp_path / "checkpoint/model.safetensors").stat().st_size
    assert stored < sum(p.numel() * 4 for name, p in model.named_parameters() if name not in model.frozen) * 1.1 + 1e5
    loaded = checkpoints.load_world_model(tmp_path / "checkpoint")
    actions = data.actions.flatten(1, 2)
    ends = [m.imagine(m.start(data.first_observation(4), torch.arange(4)), actions)[1] for m in (model, loaded)]
    assert all(torch.equal(ends[0].frames[camera], ends[1].frames[camera]) for camera in ends[0].frames)
    assert torch.equal(ends[0].success_logit, ends[1].success_logit)


def test_codec_agrees_with_the_pipeline_s_scaling(pipeline: Path) -> None:
    codec = WanCodec(TWO_CAMERAS, str(pipeline))
    assert (codec.channels, codec.sizes) == (4, {"base_camera": (8, 8), "above.camera": (4, 6)})
    by_camera = {c.name: torch.randint(0, 256, (2, 3, c.height, c.width, 3), dtype=torch.uint8) for c in TWO_CAMERAS}
    encoded = codec.encode(by_camera)
    assert encoded["above.camera"].shape == (2, 3, 4, 4, 6)
    decoded_views = codec.decode(encoded)
    assert {c: d.shape for c, d in decoded_views.items()} == {c: f.shape for c, f in by_camera.items()}
    frames, latents, decoded = (views["base_camera"] for views in (by_camera, encoded, decoded_views))
    assert latents.shape == (2, 3, 4, 8, 8)
    video = frames[1, 2].movedim(-1, 0)[None, :, None].float() / 127.5 - 1
    raw = codec.vae.encode(video).latent_dist.mode()[0, :, 0]
    mean, std = (torch.tensor(getattr(codec.vae.config, f"latents_{n}"))[:, None, None] for n in ("mean", "std"))
    torch.testing.assert_close(latents[1, 2], (raw - mean) / std, atol=1e-5, rtol=1e-4)
    again = ((codec.vae.decode(raw[None, :, None]).sample[0, :, 0] + 1) * 127.5).round().clamp(0, 255)
    assert (decoded[1, 2].movedim(-1, 0).float() - again).abs().max() <= 1


def test_instruction_is_the_text_encoder_s_with_zero_padding(pipeline: Path) -> None:
    model = make_model(pipeline)
    embedded = model.instruction(("push", "push the cube", "push"))
    assert embedded.shape == (3, 12 * 8)
    tokens = embedded.unflatten(1, (12, 8))
    assert torch.equal(tokens[0], tokens[2])
    assert tokens[0, :5].abs().sum(1).min() > 0  # four bytes and the end
    assert not tokens[0, 5:].any()


def test_what_does_not_fit_is_named(pipeline: Path, tmp_path: Path) -> None:
    for changes in ({"codec": "pixel"}, {"denoiser": "hybrid"}, {"pretrained": ""}):
        with pytest.raises(ValueError, match=r"world_model\.pretrained goes with"):
            make_config(pipeline, **changes)
    (tmp_path / "half").mkdir()
    with pytest.raises(WorldloopError, match="has no transformer/"):
        make_model(tmp_path / "half")
    with pytest.raises(WorldloopError, match=r"cannot load transformer of world_model\.pretrained no/such-model"):
        make_model(Path("no/such-model"))
    torch.manual_seed(0)
    with pytest.raises(WorldloopError, match="16 x 17 pixels of camera 'odd' do not divide by the codec's 2"):
        VideoWorldModel(make_config(pipeline), toy_spec((CameraSpec("odd", 16, 17),)), toy_normalisation())
    other = diffusers.CosmosTransformer3DModel(
        **PUBLISHED["config"] | {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 4,
                                 "out_channels": 4, "text_embed_dim": 8}
    )  # fmt: skip
    other.save_pretrained(tmp_path / "text2image/transformer")
    with pytest.raises(WorldloopError, match="is no Cosmos-Predict2 Video2World transformer"):
        make_model(tmp_path / "text2image")
