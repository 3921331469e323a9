"""Tiny models of other libraries with random weights, made from config: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


class Velocity(torch.nn.Module):
    """A plain network of two-dimensional designs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return self.last(torch.tanh(self.first(torch.cat([x_t, t[:, None].to(x_t)], dim=1))))


def seeded(make: Any, **config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**config).eval()


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DModel

    return seeded(UNet2DModel, **{
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (16, 16), "norm_num_groups": 4,
        "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "attention_head_dim": 8,
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), **changes,
    })  # fmt: skip


def conditional_unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return seeded(UNet2DConditionModel, **{
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 16), "norm_num_groups": 4,
        "layers_per_block": 1, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 2,
        **changes,
    })  # fmt: skip


def vae(channels: int = 4, **changes: Any) -> Any:
    from diffusers import AutoencoderKL

    return seeded(AutoencoderKL, **{
        "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": channels, **changes,
    })  # fmt: skip


def tokenizer(folder: Path) -> Any:
    """CLIP's, over a few letters."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def text_config(**changes: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1, **changes,
    )  # fmt: skip


def stable_diffusion(folder: Path) -> Any:
    """A whole Stable Diffusion pipeline, with 16 x 16 images."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae(), text_encoder=seeded(CLIPTextModel, config=text_config()), tokenizer=tokenizer(folder),
        unet=conditional_unet(), scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion_3(folder: Path) -> Any:
    """A whole Stable Diffusion 3 pipeline without its T5, with 16 x 16 images."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    transformer = seeded(
        SD3Transformer2DModel, sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
        out_channels=4,
    )  # fmt: skip
    encoders = [seeded(CLIPTextModelWithProjection, config=text_config(projection_dim=16)) for _ in range(2)]
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(shift_factor=0.1),
        text_encoder=encoders[0], tokenizer=tokenizer(folder), text_encoder_2=encoders[1],
        tokenizer_2=tokenizer(folder), text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def dit() -> Any:
    """A DiT pipeline with 3 classes, the third of them null, and a learned variance."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = seeded(
        DiTTransformer2DModel, sample_size=8, num_layers=2, patch_size=4, attention_head_dim=8, num_attention_heads=2,
        in_channels=4, out_channels=8, attention_bias=True, activation_fn="gelu-approximate", norm_type="ada_norm_zero",
        num_embeds_ada_norm=1000, norm_elementwise_affine=False,
    )  # fmt: skip
    pipeline = DiTPipeline(transformer, vae(), DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def protein_model(folder: Path, **changes: Any) -> tuple[Any, Any]:
    """An ESM masked language model and its tokenizer."""
    from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

    words = ["<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "X", ".", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = EsmConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, pad_token_id=1, mask_token_id=words.index("<mask>"), hidden_dropout_prob=0.1,
        position_embedding_type="rotary", token_dropout=True, **changes,
    )  # fmt: skip
    return seeded(EsmForMaskedLM, config=config), EsmTokenizer(str(folder / "vocab.txt"))
