"""The world model: codec, denoisers, sampler, heads, self-rollout training.

Denoisers and codecs by their names in configs, ``world_model.denoiser`` and ``world_model.codec``.
"""

from worldloop.world_model.codec import Codec, PixelCodec
from worldloop.world_model.cosmos import CosmosDenoiser
from worldloop.world_model.denoiser import Denoiser
from worldloop.world_model.hybrid import HybridDenoiser
from worldloop.world_model.pretrained import WanCodec

DENOISERS: dict[str, type[Denoiser]] = {
    "hybrid": HybridDenoiser,
    "cosmos": CosmosDenoiser,
}
CODECS: dict[str, type[Codec]] = {
    "pixel": PixelCodec,
    "wan": WanCodec,
}
