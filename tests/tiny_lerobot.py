"""LeRobot policies a thousand times smaller than usual, and a tiny SmolVLM that is made here, without the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_vla import BASE, HAND, PUSH, make_observation, make_spec

from worldloop.core.randomness import make_generator
from worldloop.core.types import ImitationBatch, Normalisation, Observation
from worldloop.factory.build import make_policy
from worldloop.policies.lerobot.config import LeRobotConfig
from worldloop.policies.lerobot.policy import LeRobotPolicy

ACT: dict[str, Any] = {
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 24,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
    "pretrained_backbone_weights": None,
}
DIFFUSION: dict[str, Any] = {
    "down_dims": [8, 16],
    "n_groups": 4,
    "diffusion_step_embed_dim": 8,
    "spatial_softmax_num_keypoints": 4,
    "num_train_timesteps": 10,
    "use_group_norm": True,
    "pretrained_backbone_weights": None,
}
NORMALISATION = Normalisation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 0.5]))
_WORDS = (
    "<pad> <unk> <s> </s> <image> <fake_token_around_image> <global-img> <end_of_utterance> "
    "push pull the cube to goal Advantage : negative positive"
)


def make_smolvla_config(folder: Path) -> dict[str, Any]:
    """The fields of a tiny SmolVLA, whose VLM of 30,000 weights is described in ``folder``."""
    return {
        "vlm_model_name": str(make_tiny_vlm(folder)),
        "max_state_dim": 6,
        "max_action_dim": 5,
        "resize_imgs_with_padding": [16, 16],
        "num_vlm_layers": 2,
        "num_steps": 3,
        "tokenizer_max_length": 12,
    }


def make_tiny_vlm(folder: Path) -> Path:
    """``folder`` with the config, the tokenizer and the processor of a SmolVLM of two layers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = _WORDS.split()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ("image_token", "fake_image_token", "global_image_token", "end_of_utterance_token")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=dict(zip(special, words[4:8], strict=True)),
    )
    width = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    SmolVLMConfig(
        vision_config=width | {"num_hidden_layers": 1, "image_size": 16, "patch_size": 4},
        text_config=width
        | {"model_type": "llama", "vocab_size": len(words), "num_hidden_layers": 2, "num_key_value_heads": 1}
        | {"head_dim": 16, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
        scale_factor=2,
        image_token_id=4,
        pad_token_id=0,
    ).save_pretrained(folder)
    SmolVLMProcessor(SmolVLMImageProcessor(), fast, SmolVLMVideoProcessor(), image_seq_len=4).save_pretrained(folder)
    return folder


def make_lerobot(
    policy_type: str = "act",
    chunk_length: int = 3,
    cameras: tuple[Any, ...] = (BASE,),
    sizes: dict[str, Any] | None = None,
    **settings: Any,
) -> LeRobotPolicy:
    """A policy with fresh weights of seed 0, in eval mode."""
    known = {"act": ACT, "diffusion": DIFFUSION, "": {}}
    config = LeRobotConfig(type=policy_type, config=known[policy_type] if sizes is None else sizes, **settings)
    policy = make_policy(LeRobotPolicy, config, make_spec(cameras=cameras), NORMALISATION, chunk_length, seed=0)
    assert isinstance(policy, LeRobotPolicy)
    return policy.eval()


def make_batch(num_rows: int = 5, length: int = 3, seed: int = 0, cameras: tuple[Any, ...] = (BASE,)) -> ImitationBatch:
    """Chunks of actions in [-.8, .8]; the last two actions of row 0 are not valid."""
    generator = make_generator(seed, "chunks")
    actions = 1.6 * torch.rand(num_rows, length, 2, generator=generator) - 0.8
    valid = torch.ones(num_rows, length, dtype=torch.bool)
    valid[0, -2:] = False
    return ImitationBatch(make_observation(num_rows, PUSH, seed, cameras), actions, valid)


@dataclass(frozen=True)
class Episodes:
    """An `ImitationSource` of one batch."""

    batch: ImitationBatch

    def images(self) -> dict[str, torch.Tensor]:
        return {name: frames[:, -1] for name, frames in self.batch.observation.frames.items()}

    def observations(self, block_size: int) -> Any:
        yield self.batch.observation

    def proprio(self) -> torch.Tensor:
        assert self.batch.observation.proprio is not None
        return self.batch.observation.proprio

    def actions(self) -> torch.Tensor:
        return self.batch.actions[self.batch.valid]

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        return self.batch


def make_raw_batch(observation: Observation, names: dict[str, str]) -> dict[str, Any]:
    """``observation`` as LeRobot's dataset would give it; ``names``: camera -> feature."""
    assert observation.proprio is not None
    images = {
        names[c]: frames[:, -1].permute(0, 3, 1, 2) / 255 for c, frames in observation.frames.items() if c in names
    }
    return images | {"observation.state": observation.proprio, "task": list(observation.instruction)}


__all__ = ["ACT", "BASE", "DIFFUSION", "HAND", "NORMALISATION", "Episodes", "make_batch", "make_lerobot"]
