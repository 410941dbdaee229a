"""Published Cosmos-Predict2 Video2World weights: the transformer under LoRA, the video codec and the text encoder.

``folder`` is a pipeline in diffusers' layout (``transformer/ vae/ text_encoder/ tokenizer/``), or its name on the Hub,
e.g. ``nvidia/Cosmos-Predict2-2B-Video2World``. Published weights stay frozen, unless ``lora_rank`` is 0. Training
changes, and checkpoints store, only the adapters (LoRA, arXiv:2106.09685) and our own modules.

Departure from the published pipeline:

1. Each frame is encoded alone. The codec's temporal compression, four frames to a latent after the first, would tie one
   frame step to four frames.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldloop.core import images
from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.specs import CameraSpec
from worldloop.networks.views import map_views
from worldloop.world_model.cosmos import CosmosConfig

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
LATENT_LIMIT = 4.0  # standard deviations; imagined latents are clamped to this
_FRAMES_AT_ONCE = 32  # frames per codec pass, to bound memory


def read_cosmos_config(folder: str, config: CosmosConfig) -> CosmosConfig:
    """``config`` with the sizes of the published transformer, and with its prediction, velocity.

    Raises `WorldloopError` if it is no Cosmos-Predict2 Video2World transformer.
    """
    values = _load("CosmosTransformer3DModel", folder, "transformer", only_config=True)
    unknown = {
        key: values[key]
        for key, allowed in (("extra_pos_embed_type", None), ("use_crossattn_projection", False))
        if values.get(key, allowed) != allowed
    }
    patch = values["patch_size"]
    if unknown or patch[0] != 1 or patch[1] != patch[2] or values["in_channels"] != values["out_channels"] + 1:
        raise WorldloopError(
            f"world_model.pretrained {folder} is no Cosmos-Predict2 Video2World transformer ({unknown or values}): "
            "give one of the Cosmos-Predict2 pipelines, in diffusers' layout"
        )
    return replace(
        config,
        patch=patch[1],
        num_layers=values["num_layers"],
        num_heads=values["num_attention_heads"],
        head_dim=values["attention_head_dim"],
        mlp_ratio=values["mlp_ratio"],
        adaln_lora_dim=values["adaln_lora_dim"],
        rope_scale=tuple(values["rope_scale"]),
        concat_padding_mask=values["concat_padding_mask"],
        prediction="velocity",
    )


def load_transformer(folder: str, lora_rank: int) -> Any:
    """The published transformer, frozen, with trainable adapters of rank ``lora_rank``; 0: all weights trainable."""
    transformer = _load("CosmosTransformer3DModel", folder, "transformer")
    if lora_rank == 0:
        return transformer.requires_grad_(True)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise WorldloopError(
            "LoRA needs peft, which is not installed: pip install -e '.[cosmos]' in the clone"
        ) from error
    transformer.requires_grad_(False)
    adapters = LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=list(LORA_TARGETS))
    return inject_adapter_in_model(adapters, transformer)


class WanCodec(nn.Module):
    """`Codec` with the pipeline's frozen `AutoencoderKLWan`: one latent of unit scale per frame and camera."""

    limit = LATENT_LIMIT
    mean: Tensor
    std: Tensor

    def __init__(self, cameras: Sequence[CameraSpec], pretrained: str) -> None:
        super().__init__()
        self.vae = _load("AutoencoderKLWan", pretrained, "vae").eval().requires_grad_(False)
        factor = 2 ** (len(self.vae.config.dim_mult) - 1)
        for camera in cameras:
            if camera.height % factor or camera.width % factor:
                raise WorldloopError(
                    f"frames of {camera.height} x {camera.width} pixels of camera {camera.name!r} do not divide by the "
                    f"codec's {factor}: change their size"
                )
        self.channels = int(self.vae.config.z_dim)
        self.sizes = {camera.name: (camera.height // factor, camera.width // factor) for camera in cameras}
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.vae.config, f"latents_{name}"))
            self.register_buffer(name, values[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> WanCodec:
        """Stay in evaluation mode: the codec is frozen."""
        return super().train(False)

    def encode(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return map_views(self._encode, frames)

    def decode(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return map_views(self._decode, latents)

    @torch.no_grad()
    def _encode(self, frames: Tensor) -> Tensor:
        flat = images.to_network(frames.flatten(0, -4))
        parts = [self.vae.encode(part[:, :, None]).latent_dist.mode()[:, :, 0] for part in flat.split(_FRAMES_AT_ONCE)]
        return ((torch.cat(parts) - self.mean) / self.std).unflatten(0, frames.shape[:-3])

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        flat = latents.flatten(0, -4) * self.std + self.mean
        parts = [self.vae.decode(part[:, :, None]).sample[:, :, 0] for part in flat.split(_FRAMES_AT_ONCE)]
        return images.to_uint8(torch.cat(parts)).unflatten(0, latents.shape[:-3])


class T5Instruction(nn.Module):
    """The pipeline's text encoder: ``forward(("push the cube", ...)) -> f32 [B, num_tokens * dim]``.

    Embeddings are cached. The encoder, the largest network of all, is loaded only for new instructions. Padding is
    zero, as published.
    """

    device_of: Tensor

    def __init__(self, folder: str, num_tokens: int) -> None:
        super().__init__()
        self.folder, self.num_tokens = folder, num_tokens
        self._known: dict[str, Tensor] = {}
        self.register_buffer("device_of", torch.zeros(0), persistent=False)

    def forward(self, instructions: tuple[str, ...]) -> Tensor:
        new = [text for text in dict.fromkeys(instructions) if text not in self._known]
        if new:
            self._known |= dict(zip(new, self._encode(new), strict=True))
        return torch.stack([self._known[text] for text in instructions]).to(self.device_of.device)

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> Tensor:
        import transformers

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, subfolder="tokenizer")
            encoder = transformers.T5EncoderModel.from_pretrained(self.folder, subfolder="text_encoder").eval()
        except (OSError, ValueError) as error:
            raise WorldloopError(
                f"cannot load the text encoder of world_model.pretrained {self.folder} ({first_line(error)}): "
                "it must be a whole diffusers pipeline, here or on the Hub"
            ) from error
        tokens = tokenizer(
            texts, padding="max_length", max_length=self.num_tokens, truncation=True, return_tensors="pt"
        )
        hidden = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state.float()
        embedded = (hidden * tokens.attention_mask[:, :, None]).flatten(1)
        del encoder
        gc.collect()
        return embedded


def _load(kind: str, folder: str, part: str, only_config: bool = False) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise WorldloopError(
            "world_model.pretrained needs diffusers, which is not installed: pip install -e '.[cosmos]' in the clone"
        ) from error
    local = Path(folder)
    if local.exists() and not (local / part).is_dir():
        raise WorldloopError(f"world_model.pretrained {folder} has no {part}/: it must be a whole diffusers pipeline")
    loader = getattr(diffusers, kind)
    try:
        if only_config:
            return loader.load_config(folder, subfolder=part)
        return loader.from_pretrained(folder, subfolder=part)
    except (OSError, ValueError, KeyError) as error:
        raise WorldloopError(
            f"cannot load {part} of world_model.pretrained {folder} ({first_line(error)}): "
            "it must be a whole diffusers pipeline, here or on the Hub; pretrained= says where a checkpoint's is now"
        ) from error
