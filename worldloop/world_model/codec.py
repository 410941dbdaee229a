"""Codecs: they turn stored frames into latents, on which denoisers work, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from worldloop.core import images
from worldloop.core.specs import CameraSpec
from worldloop.networks.views import map_views


class Codec(Protocol):
    """Encodes frames to latents and decodes latents to frames.

    - ``channels``: of a latent, the same for all cameras; ``sizes``: camera -> (height, width) of its latents
    - ``limit``: imagined latents are clamped to [-limit, limit]
    - ``pretrained``: folder or Hub name of a published pipeline, for codecs that need weights
    """

    channels: int
    sizes: dict[str, tuple[int, int]]
    limit: float

    def __init__(self, cameras: Sequence[CameraSpec], pretrained: str) -> None: ...

    def encode(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Frames, camera -> u8 [..., H, W, 3], to latents, camera -> f32 [..., channels, h, w] of about unit scale."""
        ...

    def decode(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inverse of `encode` up to rounding."""
        ...


class PixelCodec:
    """A codec without a network: latents are the pixels scaled to [-1, 1], and decoding is exact."""

    channels = 3
    limit = 1.0

    def __init__(self, cameras: Sequence[CameraSpec], pretrained: str = "") -> None:
        self.sizes = {camera.name: (camera.height, camera.width) for camera in cameras}

    def encode(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return map_views(images.to_network, frames)

    def decode(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return map_views(images.to_uint8, latents)
