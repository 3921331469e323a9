"""What a second review of models found: each test is named by what was wrong."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("diffusers")

import torch

import difftilt as dt
import tiny
from difftilt.core.codec import VectorCodec
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, ShapeError, StateError, UnsupportedError
from difftilt.networks.diffusers_scheduler import from_diffusers
from difftilt.networks.lora import Adapted
from difftilt.processes import Flow, Simplex, Uniform


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


# --- what no test had seen: each fails on a one-line change of the adapters -----------------------------------------


def test_a_config_of_ddpm_makes_a_ddim_chain_whatever_its_variance():
    from diffusers import DDPMScheduler

    config = {**DDPMScheduler(clip_sample=False).config, "variance_type": "fixed_large"}
    process, grid = from_diffusers(config, 5)
    other, _ = from_diffusers({**config, "variance_type": "learned_range"}, 5)
    assert process.config() == other.config()
    assert process.kernel == "ddim"
    with pytest.raises(UnsupportedError, match="learned_range"):
        from_diffusers({**config, "variance_type": "learned_range"}, 5, kernel="ddpm")
    with pytest.raises(UnsupportedError, match="fixed_large_log"):
        from_diffusers({**config, "variance_type": "fixed_large_log"}, 5, kernel="ddpm")
    with pytest.raises(UnsupportedError, match="thresholding off"):
        from_diffusers({**config, "thresholding": True}, 5)
    assert len(grid) == 6


def test_trained_betas_are_the_tables():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=40, trained_betas=torch.linspace(1e-4, 0.3, 40).tolist(), clip_sample=False
    )
    scheduler.set_timesteps(8)
    process, grid = from_diffusers(scheduler.config, 8)
    table = [scheduler.alphas_cumprod[i].item() for i in scheduler.timesteps]
    assert process.schedule.scales(grid[:-1])[0].square().tolist() == pytest.approx(table, abs=1e-12)


def test_a_flow_model_is_told_its_own_number_of_timesteps(tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = tiny.stable_diffusion_3(tmp_path)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=200, shift=3.0)
    policy = dt.load(pipeline, prompt="a", steps=4, level=0.0, guidance_scale=1.0)
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    latents = pipeline("a", num_inference_steps=4, guidance_scale=1.0, generator=theirs, output_type="latent").images
    assert (sample_states(policy, 1, ours) - latents).abs().max() < 1e-5 * latents.abs().max()


def test_scales_of_at_most_one_are_no_guidance_as_in_diffusers(tmp_path):
    pipeline = tiny.stable_diffusion(tmp_path)
    none = dt.load(pipeline, prompt="a", steps=2, guidance_scale=1.0)
    for scale in (0.0, 0.5):
        policy = dt.load(pipeline, prompt="a", steps=2, guidance_scale=scale)
        assert policy.denoiser.scale == 1
        assert sample_states(policy, 2, torch.Generator().manual_seed(0)).equal(
            sample_states(none, 2, torch.Generator().manual_seed(0))
        )


def test_adapters_are_scaled_by_their_alpha_over_their_rank():
    bare = torch.nn.Linear(3, 2)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = bare

        def forward(self, x_t, t, cond=None):
            return self.lin(x_t)

    adapted = Adapted(Net(), rank=2, lora_alpha=6, targets=["lin"])
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    parts = dict(adapted.named_parameters())
    a, b = (next(value for name, value in parts.items() if f".lora_{letter}." in name) for letter in "AB")
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(adapted(x, x[:, 0]), bare(x) + 6 / 2 * x @ a.T @ b.T)


@pytest.mark.parametrize(("window", "level", "memoryless", "full"), [
    ((1.0, 0.0), 2**0.5, True, True), ((0.9, 0.0), 2**0.5, False, False), ((1.0, 0.3), 2**0.5, True, False),
    ((1.0, 0.0), 1.0, False, False), ((1.0, 0.0), 2.0, True, True),
])  # fmt: skip
def test_what_a_flow_says_of_its_noise(window, level, memoryless, full):
    flow = Flow(level, window=window)
    assert (flow.memoryless, flow.full_noise) == (memoryless, full)


def test_windowed_keeps_the_floor_of_its_flow():
    network = tiny.Velocity()
    policy = dt.load(network, process=Flow(sigma_min=0.25), codec=VectorCodec(), event_shape=(2,), steps=4)
    made = dt.windowed(policy, 0.6, 0.0)
    assert made.process.sigma_min == 0.25
    step = made.step(torch.zeros(3, 2), torch.tensor(0.25, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    assert step.std.tolist() == [0.25] * 3


@pytest.mark.parametrize("s", [0.0, 0.25])
def test_letters_that_a_uniform_chain_never_shows_had_no_gradient_at_the_last_step(s, rng):
    own, other = (torch.randn(2, 3, 4, dtype=torch.float64, generator=rng) for _ in range(2))
    own[..., 2] = -torch.inf
    own.requires_grad_(True)
    times = torch.tensor(0.5, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
    mine, theirs = (Uniform(4).transition(logits, torch.tensor([[0, 1, 3]] * 2), *times) for logits in (own, other))
    possible = mine.log_law > -torch.inf
    terms = mine.log_law.exp() * (mine.log_law - theirs.log_law)
    assert mine.kl(theirs).tolist() == pytest.approx(
        [row[at].sum().item() for row, at in zip(terms, possible, strict=True)]
    )
    assert (s > 0) == bool(possible.all())
    (mine.kl(theirs) + mine.log_prob(mine.sample(rng))).sum().backward()
    assert own.grad.isfinite().all()
    assert (own.grad[..., 2] == 0).all()


def test_a_simplex_step_from_the_earliest_times_is_finite(rng):
    process, u = Simplex(3), torch.rand(2, 4, 2, generator=rng)
    logits = torch.zeros(2, 4, 3)
    for t in (1e-3, 5e-4, 1e-5):
        time = torch.tensor(t, dtype=torch.float64)
        law = process.transition(logits, u, time, torch.zeros_like(time))
        assert law.mean.isfinite().all()
        assert process.corrupt(torch.zeros(2, 4, dtype=torch.long), time.expand(2), rng).isfinite().all()
