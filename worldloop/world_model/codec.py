"""Between stored frames and what a denoiser works on (latents). Pixels need no network."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from worldloop.core import images


class Codec(Protocol):
    """``channels`` and ``size`` are the latent's; ``frames_per_latent`` is the codec's own temporal compression.

    ``limit``: imagined latents are held within -limit and limit. ``pretrained`` is the folder or Hub name of a
    published pipeline, for those that need weights.
    """

    channels: int
    size: int
    frames_per_latent: int
    limit: float

    def __init__(self, image_size: int, pretrained: str) -> None: ...

    def encode(self, frames: Tensor) -> Tensor:
        """u8 [..., h, w, 3] -> f32 [..., channels, size, size], about unit scale."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Inverse of `encode` up to rounding: -> u8 [..., h, w, 3]."""
        ...


class PixelCodec:
    """Latents are the pixels in [-1, 1]; the round trip is exact."""

    channels = 3
    frames_per_latent = 1
    limit = 1.0

    def __init__(self, image_size: int, pretrained: str = "") -> None:
        self.size = image_size

    def encode(self, frames: Tensor) -> Tensor:
        return images.to_network(frames)

    def decode(self, latents: Tensor) -> Tensor:
        return images.to_uint8(latents)
