"""Folders of transformers models of the real classes, thousands of times smaller, with random weights."""

from pathlib import Path
from typing import Any

import torch
import transformers

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])  # none of the usual ones


def make_sentence_encoder(folder: Path, seed: int = 0, **pooling: bool) -> Path:
    """A BERT on bytes; ``pooling``: as sentence-transformers stores it, e.g. ``pooling_mode_cls_token=True``."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=384, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    return _save(folder, transformers.BertModel(config), transformers.ByT5Tokenizer(), pooling)


def make_backbone(folder: Path, kind: str, seed: int = 0) -> Path:
    """``kind``: ``dinov2`` (registers of its own, crops), ``resnet`` (a feature map), or ``siglip`` (with a text side).

    Images are normalised by `MEAN` and `STD`.
    """
    torch.manual_seed(seed)
    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    look: dict[str, Any] = {"image_mean": MEAN.tolist(), "image_std": STD.tolist()}
    match kind:
        case "dinov2":
            config = transformers.Dinov2WithRegistersConfig(image_size=28, patch_size=7, num_register_tokens=4, **small)
            crop = {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}}
            return _save(
                folder, transformers.Dinov2WithRegistersModel(config), transformers.BitImageProcessor(**crop, **look)
            )
        case "resnet":
            sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
            model: Any = transformers.ResNetModel(transformers.ResNetConfig(layer_type="basic", **sizes))
            return _save(
                folder, model, transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, resample=2, **look)
            )
        case _:
            vision = small | {"image_size": 24, "patch_size": 8, "intermediate_size": 32}
            text = small | {"vocab_size": 32, "intermediate_size": 32, "max_position_embeddings": 8}
            model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
            return _save(folder, model, transformers.SiglipImageProcessor(size={"height": 24, "width": 24}, **look))


def _save(folder: Path, model: Any, processor: Any, pooling: dict[str, bool] | None = None) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if pooling:
        (folder / "1_Pooling").mkdir()
        entries = ", ".join(f'"{name}": {str(value).lower()}' for name, value in pooling.items())
        (folder / "1_Pooling/config.json").write_text("{" + entries + "}")
    return folder
