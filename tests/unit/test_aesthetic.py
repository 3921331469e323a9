"""The aesthetic score on a tiny random CLIP made from its config; nothing is downloaded."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("transformers")

from difftilt.core.codec import ImageCodec
from difftilt.errors import StateError
from difftilt.rewards.aesthetic import AestheticReward, read_head
from tiny import seeded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    seeded(CLIPVisionModelWithProjection, config=config).save_pretrained(tmp_path)
    rng = torch.Generator().manual_seed(0)
    sizes = (12, 6, 1)
    head: dict[str, Any] = {}
    for number, (a, b) in enumerate(pairwise(sizes)):
        head[f"layers.{10 * number}.weight"] = torch.randn((b, a), generator=rng)
        head[f"layers.{10 * number}.bias"] = torch.randn(b, generator=rng)
    save_file(head, tmp_path / "aesthetic.safetensors")
    return tmp_path


def pixels(n: int = 3, *shape: int) -> torch.Tensor:
    return torch.rand((n, *(shape or (3, 20, 24))), generator=torch.Generator().manual_seed(1))


def test_it_is_the_heads_affine_maps_of_the_normalised_embedding(folder: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    reward, p = AestheticReward.from_folder(folder), pixels(3, 3, 16, 16)
    clip = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    mean, std = reward.mean, reward.std
    with torch.no_grad():
        embedding = clip(pixel_values=(p - mean) / std).image_embeds
        embedding = embedding / embedding.norm(dim=1, keepdim=True)
    first, second = read_head(folder / "aesthetic.safetensors")
    expected = (embedding @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(reward.on_probabilities(p), expected[:, 0], rtol=1e-4, atol=1e-5)


def test_it_equals_the_call_on_8_bits_and_has_a_gradient_of_finite_differences(folder: Path) -> None:
    reward, codec = AestheticReward.from_folder(folder), ImageCodec()
    x_0 = 2 * pixels() - 1
    called = reward(codec.decode(x_0))
    torch.testing.assert_close(reward.on_probabilities(codec.readable(x_0)).double(), called, rtol=0, atol=1e-5)
    reward.clip.double()
    reward.head.double()
    p = (0.2 + 0.6 * pixels(1)).double().requires_grad_(True)  # within [0, 1] also where bicubic resizing overshoots
    (gradient,) = torch.autograd.grad(reward.on_probabilities(p).sum(), p)
    direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (reward.on_probabilities(p + s * step * direction).sum() for s in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-4)


def test_grey_and_wide_images_are_read(folder: Path) -> None:
    reward = AestheticReward.from_folder(folder)
    assert reward.on_probabilities(pixels(2, 1, 20, 20)).shape == (2,)
    assert reward(list(np.zeros((2, 40, 20), dtype=np.uint8))).shape == (2,)
    middle, wide = pixels(1, 3, 16, 16), torch.zeros(1, 3, 16, 32)
    wide[..., 8:24] = middle
    torch.testing.assert_close(reward.on_probabilities(wide), reward.on_probabilities(middle))


def test_what_is_missing_or_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"config\.json"):
        AestheticReward.from_folder(tmp_path / "nowhere")
    save_file({"weight": torch.zeros(1, 5)}, folder / "other.safetensors")
    with pytest.raises(StateError, match="embeddings of 12 numbers"):
        AestheticReward.from_folder(folder, folder / "other.safetensors")
    save_file({"weight": torch.zeros(2, 12)}, folder / "two.safetensors")
    with pytest.raises(StateError, match="ends in one number"):
        AestheticReward.from_folder(folder, folder / "two.safetensors")
