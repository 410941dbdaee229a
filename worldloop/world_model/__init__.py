"""The world model: codec, denoisers, sampler, heads, self-rollout training.

`DENOISERS` and `CODECS` map the names in a config, ``world_model.denoiser`` and ``world_model.codec``, to classes.
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
