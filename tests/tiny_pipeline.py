"""A Cosmos-Predict2 pipeline in diffusers' layout, a few thousand times smaller."""

import json
from pathlib import Path

import torch

PUBLISHED = json.loads((Path(__file__).parent / "world_model/cosmos_predict2_2b_video2world.json").read_text())


def make_pipeline(root: Path) -> Path:
    """Every part of the published pipeline with its architecture and random weights."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "text_embed_dim": 8}
    config = PUBLISHED["config"] | sizes | {"adaln_lora_dim": 8, "in_channels": 5, "out_channels": 4}
    diffusers.CosmosTransformer3DModel(**config).save_pretrained(root / "transformer")
    vae = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, -0.1, 0.2, 0.0], latents_std=[0.5, 0.6, 0.7, 0.8],
    )  # fmt: skip
    vae.save_pretrained(root / "vae")
    text = transformers.T5Config(
        vocab_size=384, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, is_encoder_decoder=False
    )
    transformers.T5EncoderModel(text).save_pretrained(root / "text_encoder")
    transformers.ByT5Tokenizer().save_pretrained(root / "tokenizer")
    return root
