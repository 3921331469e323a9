"""A review of tuned models: half-precision weights, tokenizers without a helper, and networks that were tuned whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import difftilt as dt
import tiny
from difftilt.errors import ConfigError
from difftilt.networks.lora import innermost

HALVES = (torch.float16, torch.bfloat16)


class Redness:
    def __call__(self, images: list[Any]) -> list[float]:
        return [float(image[..., 0].mean() - image[..., 1:].mean()) / 255 for image in images]


def half(folder: Path, dtype: torch.dtype) -> dt.Policy:
    return dt.load(tiny.stable_diffusion(folder).to(dtype), prompt="fox", guidance_scale=2.0, steps=3)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_adapters_of_a_half_precision_pipeline_are_float32_and_all_of_them_move(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """The twin, adapters in the pipeline's own precision, is refused or warned of."""
    policy = dt.lora(half(tmp_path, dtype), rank=2)
    before = {name: p.clone() for name, p in policy.named_parameters() if ".lora_" in name}
    assert {p.dtype for p in before.values()} == {torch.float32}
    algorithm = dt.PPO(alpha=0.01, batch=4, learning_rate=3e-5, ratio="gaussian_kl")
    tuned = dt.finetune(policy, Redness(), algorithm, loop=dt.LoopConfig(steps=3)).policy
    after = dict(tuned.named_parameters())
    moved = [(after[name] != value).float().mean().item() for name, value in before.items() if ".lora_A." in name]
    assert min(moved) > 0.95
    for parameter in policy.trainable():
        parameter.data = parameter.data.to(dtype)
    said = r"expected parameters of 32 bits to tune; got .*lora_A"
    refused, warned = pytest.raises(ConfigError, match=said), pytest.warns(UserWarning, match=said)
    with refused if dtype == torch.float16 else warned:
        dt.finetune(policy, Redness(), algorithm, loop=dt.LoopConfig(steps=1))


def test_a_half_precision_network_is_not_tuned_whole(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got .* in torch.float16, which loses small updates; tune adapters"):
        dt.finetune(half(tmp_path, torch.float16), Redness(), dt.PPO(batch=4), loop=dt.LoopConfig(steps=1))


def test_a_network_tuned_whole_is_written_for_its_own_library(tmp_path: Path) -> None:
    """The pipeline is as it was; with the saved network its images are the tuned policy's."""
    from diffusers import UNet2DConditionModel

    pipeline = tiny.stable_diffusion(tmp_path)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    policy = dt.load(pipeline, prompt="fox", guidance_scale=2.0, steps=3)
    tuned = dt.finetune(policy, Redness(), dt.PPO(alpha=0.01, batch=4), loop=dt.LoopConfig(steps=2)).policy
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    with pytest.raises(ConfigError, match=r"difftilt\.save_network"):
        dt.save_adapters(tuned, tmp_path / "adapters")
    dt.save_network(tuned, tmp_path / "unet")
    pipeline.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    again = dt.load(pipeline, prompt="fox", guidance_scale=2.0, steps=3)
    for ours, theirs, start in zip(*(p.sample(2, seed=0) for p in (tuned, again, policy)), strict=True):
        assert (ours == theirs).all()
        assert (ours != start).any()


def test_save_network_refuses_adapters_and_networks_of_no_library(tmp_path: Path) -> None:
    adapted = dt.lora(dt.load(tiny.stable_diffusion(tmp_path), prompt="fox", steps=3), rank=2)
    with pytest.raises(ConfigError, match=r"use difftilt\.save_adapters"):
        dt.save_network(adapted, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"policy\.save_pretrained"):
        dt.save_network(dt.load("tfbind8"), tmp_path / "x")


def test_a_network_whose_own_part_is_called_a_model_is_taken_whole() -> None:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    sizes = {"vocab_size": 26, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = ModernBertConfig(num_attention_heads=2, pad_token_id=0, **sizes)
    whole = ModernBertForMaskedLM(config)
    assert innermost(whole) is whole
    wrapped = torch.nn.Module()
    wrapped.model = whole
    assert innermost(wrapped) is whole


def test_a_bert_with_its_own_tokenizer_is_a_policy(tmp_path: Path) -> None:
    """BertTokenizer has no build_inputs_with_special_tokens; the frame is still that of the tokenizer."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    policy = dt.load(BertForMaskedLM(config), tokenizer=tokenizer, length=6)
    assert (policy.denoiser.before, policy.denoiser.after) == ([2], [3])
    assert all(len(design) == 6 and set(design) <= set(words[5:]) for design in policy.sample(8))
