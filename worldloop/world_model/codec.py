"""Between stored frames and what a denoiser works on (latents). Pixels need no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from worldloop.core import images
from worldloop.core.specs import CameraSpec
from worldloop.networks.views import map_views


class Codec(Protocol):
    """``channels`` of a latent, the same for all cameras, and camera -> (height, width) of its latents: ``sizes``.

    ``limit``: imagined latents are held within -limit and limit. ``pretrained`` is the folder or Hub name of a
    published pipeline, for those that need weights.
    """

    channels: int
    sizes: dict[str, tuple[int, int]]
    limit: float

    def __init__(self, cameras: Sequence[CameraSpec], pretrained: str) -> None: ...

    def encode(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Camera -> u8 [..., H, W, 3] to camera -> f32 [..., channels, h, w], about unit scale."""
        ...

    def decode(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inverse of `encode` up to rounding."""
        ...


class PixelCodec:
    """Latents are the pixels in [-1, 1]; the round trip is exact."""

    channels = 3
    limit = 1.0

    def __init__(self, cameras: Sequence[CameraSpec], pretrained: str = "") -> None:
        self.sizes = {camera.name: (camera.height, camera.width) for camera in cameras}

    def encode(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return map_views(images.to_network, frames)

    def decode(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return map_views(images.to_uint8, latents)
