"""Planners of the toy world in `world_model_toy`, with random weights, and what they plan from."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from world_model_toy import TWO_CAMERAS, ToyEpisodes, tiny_config, toy_normalisation, toy_spec

from worldloop.core.types import Observation
from worldloop.policies.harmowam.config import HarmoWAMConfig
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.cosmos import CosmosConfig
from worldloop.world_model.planner import VideoPlanner

DENOISERS = ("hybrid", "cosmos")
B, M = 3, 2  # rows, planned frames
HARMOWAM = HarmoWAMConfig(
    width=32,
    num_layers=1,
    num_heads=2,
    stem_channels=(16, 16),
    num_image_tokens=2,
    num_keypoints=8,
    proprio_prefixes=("x", "y"),
    action_low=-1.0,
    action_high=1.0,
    augment_shift_px=0,
    augment_brightness=0.0,
)


def make_config(denoiser: str, **changes: Any) -> WorldModelConfig:
    if denoiser == "cosmos":
        pytest.importorskip("diffusers")
    cosmos = CosmosConfig(patch=4, num_layers=2, num_heads=2, head_dim=16, adaln_lora_dim=8, condition_dim=16)
    return dataclasses.replace(tiny_config(), denoiser=denoiser, cosmos=cosmos, **changes)


def make_planner(denoiser: str = "hybrid", num_sampler_steps: int = 3, **changes: Any) -> VideoPlanner:
    """Of two cameras and two tasks; its weights are not those of a copy of the frame now."""
    config = make_config(denoiser, num_sampler_steps=num_sampler_steps, **changes)
    torch.manual_seed(0)
    planner = VideoPlanner(config, toy_spec(TWO_CAMERAS, ("Dot", "LeftDot")), toy_normalisation()).eval()
    with torch.no_grad():
        for parameter in planner.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return planner


def make_start() -> Observation:
    """Three frames in which the dot moves."""
    data = ToyEpisodes(B, seed=2, cameras=TWO_CAMERAS)
    frames = {camera: images[:, [0, 1, 2]] for camera, images in data.frames.items()}
    return dataclasses.replace(data.first_observation(B), frames=frames, proprio=data.proprio[:, 2])


def keys(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)
