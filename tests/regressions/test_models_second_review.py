"""What a second review of models found: each test is named by what was wrong."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("diffusers")

import torch

import difftilt as dt
import tiny
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, ShapeError, StateError, UnsupportedError


def test_a_small_network_spent_a_hundredth_of_its_pass_on_the_search_for_its_dtype(monkeypatch):
    from diffusers import DDPMScheduler, UNet2DModel

    policy = dt.load(tiny.unet(), scheduler=DDPMScheduler(), steps=4, sigma_min=0.1)
    asked, found = [], UNet2DModel.dtype.fget

    def search(model):
        asked.append(sys._getframe(1).f_globals["__name__"].partition(".")[0])
        return found(model)

    monkeypatch.setattr(UNet2DModel, "dtype", property(search))
    policy.sample(2)
    assert asked.count("difftilt") == 1
    policy.sample(2)
    assert asked.count("difftilt") == 1

    policy.denoiser.model.to(torch.bfloat16)
    policy.sample(2)
    assert asked.count("difftilt") == 2  # a cast is followed


def test_a_negative_prompt_without_guidance_was_read_by_nobody(tmp_path):
    pipeline = tiny.stable_diffusion(tmp_path)
    with pytest.raises(ConfigError, match="negative_prompt without guidance"):
        dt.load(pipeline, prompt="a", negative_prompt="b", guidance_scale=1.0)
    policy, conditions = dt.load(pipeline, guidance_scale=1.0, steps=2), dt.prompts(pipeline, ["a"], negative="b")
    with pytest.raises(ConfigError, match="'negative_prompt' without guidance"):
        policy.sample(1, cond=conditions.rows(torch.tensor([0])))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"in_channels": 9}, "4 of 9"),
        ({"in_channels": 8}, "4 of 8"),
        ({"time_cond_proj_dim": 16}, "time_cond_proj_dim"),
        ({"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
          "projection_class_embeddings_input_dim": 68}, "addition_embed_type"),
    ],
)  # fmt: skip
def test_unets_with_inputs_that_nobody_gives_were_loaded(changes, named):
    from diffusers import DDIMScheduler

    with pytest.raises(UnsupportedError, match=named):
        dt.load(tiny.conditional_unet(**changes), scheduler=DDIMScheduler())


def test_a_learned_variance_is_no_other_input():
    from diffusers import DDIMScheduler

    policy = dt.load(tiny.unet(out_channels=6), scheduler=DDIMScheduler(), steps=2)
    assert policy.sample(1)[0].shape == (8, 8, 3)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_none_were_taken_for_settings(wrong, tmp_path):
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    unet = tiny.unet()
    for settings in ({"sigma_min": wrong}, {"eta": wrong}):
        with pytest.raises(ConfigError, match="expected eta"):
            dt.load(unet, scheduler=DDIMScheduler(), **settings)
    for settings in ({"sigma_min": wrong}, {"level": wrong}):
        with pytest.raises(ConfigError, match="expected level"):
            dt.load(unet, scheduler=FlowMatchEulerDiscreteScheduler(), **settings)
    with pytest.raises(ConfigError, match="guidance_scale"):
        dt.load(tiny.stable_diffusion(tmp_path), guidance_scale=wrong)


def test_a_shift_that_was_set_after_the_scheduler_was_made_is_the_chains(tmp_path):
    pipeline = tiny.stable_diffusion_3(tmp_path)
    pipeline.scheduler.set_shift(5.0)
    policy = dt.load(pipeline, prompt="a", steps=5, level=0.0, guidance_scale=1.0)
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    latents = pipeline("a", num_inference_steps=5, guidance_scale=1.0, generator=theirs, output_type="latent").images
    assert (sample_states(policy, 1, ours) - latents).abs().max() < 1e-5 * latents.abs().max()


@pytest.mark.parametrize("left", [0, 50, -100])
def test_a_truncated_file_of_transformers_is_a_state_error(left, tmp_path):
    model, tokenizer = tiny.protein_model(tmp_path)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(StateError, match="expected a language model with safetensors weights"):
        dt.load(str(tmp_path / "model"), length=4)


def test_conditions_of_another_encoder_are_named(tmp_path):
    policy = dt.load(tiny.stable_diffusion(tmp_path), steps=2)
    with pytest.raises(ShapeError, match=r"\(8, 16\) for the condition 'prompt'.*got \(8, 7\)"):
        policy.sample(1, cond={"prompt": torch.zeros(1, 8, 7)})
