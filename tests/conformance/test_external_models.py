"""Other libraries' models: their own pipelines' images, ratios of exactly 1, adapters, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import difftilt as dt
from allocations import peak_bytes
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.core.trajectory import rollout, sample_states, step_log_prob
from difftilt.errors import ConfigError, StateError, UnsupportedError
from difftilt.networks import DiffusersDenoiser, Guided
from difftilt.rewards.prompts import PromptReward

for library in ("diffusers", "transformers", "peft"):
    pytest.importorskip(library)

import tiny  # noqa: E402

PROMPTS = ["red", "blue ball"]


class Redness:
    """Mean red above the other colours, of 8-bit images or of pixels in [0, 1]."""

    def __call__(self, designs: list[Any]) -> list[float]:
        return [float(image[..., 0].mean() - image[..., 1:].mean()) / 255 for image in designs]

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return p[:, 0].mean((1, 2)) - p[:, 1:].mean((1, 2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return tiny.stable_diffusion(folder)


def states(policy: Policy, n: int = 2, cond: Any = None) -> torch.Tensor:
    return sample_states(policy, n, torch.Generator().manual_seed(3), cond=cond)


# --- the chain is the pipeline's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_stable_diffusion_latents_and_images_are_the_pipelines(pipeline: Any, eta: float, guidance: float) -> None:
    away = {"negative_prompt": "blue"} if guidance > 1 else {}
    policy = dt.load(pipeline, prompt="red", **away, steps=4, guidance_scale=guidance, eta=eta)
    words = {"prompt": ["red"] * 2, "negative_prompt": ["blue"] * 2, "guidance_scale": guidance}
    theirs = [
        pipeline(**words, num_inference_steps=4, eta=eta, generator=torch.Generator().manual_seed(3), **form).images
        for form in ({"output_type": "latent"}, {})
    ]
    assert (states(policy) - theirs[0]).abs().max() < 1e-5 * theirs[0].abs().max()
    for ours, image in zip(policy.codec.decode(states(policy)), theirs[1], strict=True):
        assert np.abs(ours.astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_prompts_are_conditions_and_negative_prompts_too(pipeline: Any) -> None:
    policy = dt.load(pipeline, steps=3, guidance_scale=4.0)
    conditions = dt.prompts(pipeline, PROMPTS, negative="green")
    theirs = pipeline(
        prompt=PROMPTS, negative_prompt=["green"] * 2, guidance_scale=4.0, num_inference_steps=3, eta=1.0,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images  # fmt: skip
    assert (states(policy, cond=conditions.table) - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_stable_diffusion_3_latents_are_the_pipelines(folder: Path) -> None:
    pipeline = tiny.stable_diffusion_3(folder)
    policy = dt.load(pipeline, prompt="red", steps=4, level=0.0)
    theirs = pipeline(
        prompt=["red"] * 2, num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="latent"
    ).images
    assert (states(policy) - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_dit_images_are_the_pipelines() -> None:
    pipeline = tiny.dit()
    policy = dt.load(pipeline, label=1, steps=4, eta=0.0)
    theirs = pipeline(
        class_labels=[1, 1], num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="pt"
    ).images
    with torch.no_grad():
        assert (policy.codec.readable(states(policy)) - theirs).abs().max() < 1 / 255


@pytest.mark.parametrize("kind", ["DDIMPipeline", "DDPMPipeline"])
def test_unconditional_pipelines_are_theirs_with_their_clipping(kind: str) -> None:
    import diffusers

    scheduler = getattr(diffusers, kind.replace("Pipeline", "Scheduler"))()  # clips, as released ones do
    pipeline = getattr(diffusers, kind)(tiny.unet(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    policy = dt.load(pipeline, steps=5, eta=0.0 if kind == "DDIMPipeline" else None)
    theirs = pipeline(2, torch.Generator().manual_seed(3), num_inference_steps=5, output_type="np").images
    ours = (states(policy) / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()
    assert np.abs(ours - theirs).max() < 1e-5


# --- ratios of exactly 1 -----------------------------------------------------------------------------------------


def exactly_one(policy: Policy, cond: Any = None) -> None:
    """Log-probabilities of a rollout, again on the same slices: the same numbers to the last bit."""
    path = rollout(policy, 3, torch.Generator().manual_seed(0), cond=cond)
    assert path.states.dtype == torch.float32 or not path.states.is_floating_point()
    assert path.log_prob.abs().max() > 0
    for k in range(path.steps):
        again = step_log_prob(policy, path.states[k], path.states[k + 1], path.times[k], path.times[k + 1], cond)
        assert torch.equal(again.double().detach(), path.log_prob[k]), k


@pytest.mark.parametrize("precision", [None, "bfloat16"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", ["sd", "sd3", "dit", "unet", "esm"])
def test_first_pass_ratios_are_exactly_one(name: str, adapted: bool, precision: str | None, folder: Path) -> None:
    import diffusers

    settings = {"precision": precision, "steps": 3, "sigma_min": 0.05}
    if name == "sd":
        policy = dt.load(tiny.stable_diffusion(folder), prompt="red", guidance_scale=5.0, **settings)
    elif name == "sd3":
        policy = dt.load(tiny.stable_diffusion_3(folder), prompt="red", guidance_scale=5.0, **settings)
    elif name == "dit":
        policy = dt.load(tiny.dit(), label=1, **settings)
    elif name == "unet":
        policy = dt.load(tiny.unet(), scheduler=diffusers.DDPMScheduler(), **settings)
    else:
        model, tokenizer = tiny.protein_model(folder)
        policy = dt.load(model if precision is None else model.bfloat16(), tokenizer=tokenizer, length=6, steps=3)
    if adapted:
        policy = dt.lora(policy, rank=2, dropout=0.5)
        with torch.no_grad():
            for parameter in policy.trainable():
                parameter.add_(0.05)
    algorithm = dt.PPO(alpha=0.1, batch=4, minibatches=1)
    exactly_one(algorithm.init(policy.train(), [Anchor(policy.frozen_copy(), 0.1)]).policy)


def test_dropout_left_on_would_change_ratios(pipeline: Any) -> None:
    policy = dt.lora(dt.load(pipeline, prompt="red", steps=3), rank=2, dropout=0.5)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.05)
    with pytest.raises(AssertionError):
        exactly_one(policy.train())


def test_half_precision_weights_keep_states_in_float32(folder: Path) -> None:
    pipeline = tiny.stable_diffusion(folder).to(torch.bfloat16)
    policy = dt.load(pipeline, prompt="red", guidance_scale=5.0, steps=3)
    exactly_one(policy)
    assert policy.codec.decode(states(policy))[0].dtype == np.uint8


def test_guidance_is_in_the_log_probability(pipeline: Any) -> None:
    """Paths of a guided chain are not those of the plain one, and their log-ratio says so."""
    guided = dt.load(pipeline, prompt="red", steps=3, guidance_scale=5.0)
    plain = dt.load(pipeline, prompt="red", steps=3, guidance_scale=1.0)
    path = rollout(guided, 4, torch.Generator().manual_seed(0), references=[plain, guided])
    assert path.log_ratio[0].sum(0).mean() > 0
    assert path.log_ratio[1].abs().max() == 0


# --- adapters ----------------------------------------------------------------------------------------------------


def test_fresh_adapters_change_nothing_and_hold_no_second_copy(pipeline: Any) -> None:
    policy = dt.load(pipeline, prompt="red", steps=3)
    adapted = dt.lora(policy, rank=2)
    reference, copy = adapted.frozen_copy(), adapted.copy()
    assert torch.equal(states(policy), states(adapted))
    assert torch.equal(states(policy), states(reference))
    assert all(parameter.requires_grad for parameter in policy.parameters())
    base = {p.data_ptr() for p in policy.parameters()}
    for made in (adapted, reference, copy):
        rest = {p.data_ptr() for name, p in made.named_parameters() if ".lora_" not in name}
        assert rest == base
    assert sum(p.numel() for p in adapted.trainable()) < 0.1 * sum(p.numel() for p in policy.parameters())
    own = {p.data_ptr() for p in adapted.trainable()}
    assert not own & {p.data_ptr() for p in copy.trainable()}


def test_a_reference_of_tuned_adapters_keeps_them(pipeline: Any) -> None:
    policy = dt.lora(dt.load(pipeline, prompt="red", steps=3), rank=2)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.1)
    before, reference = states(policy), policy.frozen_copy()
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.1)
    assert torch.equal(states(reference), before)
    assert not torch.equal(states(policy), before)


@pytest.mark.parametrize(
    "algorithm",
    [
        dt.PPO(alpha=1e-4, batch=32, minibatches=2, learning_rate=0.02),
        dt.RewardBackprop(alpha=1e-4, batch=4, learning_rate=0.02),
    ],
    ids=["ppo", "reward_backprop"],
)
def test_twenty_updates_of_adapters_make_images_redder_and_load_in_plain_diffusers(
    algorithm: Any, folder: Path, tmp_path: Path
) -> None:
    """The same 64 noises before and after: redder by 5 standard errors of the differences."""
    policy = dt.lora(dt.load(tiny.stable_diffusion(folder), prompt="red", steps=4, guidance_scale=5.0), rank=4)
    result = dt.finetune(policy, Redness(), algorithm, loop=dt.LoopConfig(steps=20))
    change = np.subtract(Redness()(result.policy.sample(64, seed=7)), Redness()(policy.sample(64, seed=7)))
    assert change.mean() > 5 * change.std() / 8
    dt.save_adapters(result.policy, tmp_path / "adapters")
    plain = tiny.stable_diffusion(folder)
    plain.load_lora_weights(str(tmp_path / "adapters"))
    again = dt.load(plain, prompt="red", steps=4, guidance_scale=5.0)
    assert torch.equal(states(again), states(result.policy))
    theirs = plain(
        prompt=["red"] * 2, guidance_scale=5.0, num_inference_steps=4, eta=1.0,
        generator=torch.Generator().manual_seed(3), output_type="np",
    ).images  # fmt: skip
    for ours, image in zip(result.policy.codec.decode(states(result.policy)), theirs, strict=True):
        assert np.abs(ours / 255 - image).max() < 1 / 255


def test_adapters_of_a_language_model_load_in_plain_peft(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model, tokenizer = tiny.protein_model(folder)
    policy = dt.lora(dt.load(model, tokenizer=tokenizer, length=6), rank=2)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.1)
    dt.save_adapters(policy, tmp_path)
    again = dt.load(PeftModel.from_pretrained(tiny.protein_model(folder)[0], tmp_path).merge_and_unload(),
                    tokenizer=tokenizer, length=6)  # fmt: skip
    x_t, t = torch.full((2, 6), 20), torch.ones(2)
    assert (again.denoiser(x_t, t) - policy.denoiser(x_t, t)).abs().max() < 1e-5


def test_memory_of_backpropagation_through_a_pipeline_does_not_grow_with_steps(pipeline: Any) -> None:
    """By no more than the stored states, and half a kilobyte of numbers a step; activations are 60 times as much."""

    def peak(steps: int) -> int:
        policy = dt.lora(dt.load(pipeline, prompt="red", steps=steps), rank=2)
        algorithm = dt.RewardBackprop(alpha=0.1, batch=2)
        state = algorithm.init(policy, [Anchor(policy.frozen_copy(), 0.1)])
        algorithm.step(state, Redness(), torch.Generator().manual_seed(0))
        return peak_bytes(lambda: algorithm.step(state, Redness(), torch.Generator().manual_seed(0)))

    state = 2 * 4 * 8 * 8 * 4
    assert peak(9) - peak(3) <= 6 * (state + 600)


# --- other models ------------------------------------------------------------------------------------------------


def test_relaxed_letters_at_the_corners_give_the_logits_of_a_language_model(folder: Path) -> None:
    """Masks included, which ESM scales its embeddings by; the framed ids give its own logits."""
    model, tokenizer = tiny.protein_model(folder)
    policy = dt.load(model, tokenizer=tokenizer, length=6)
    assert policy.codec.alphabet == tiny.RESIDUES
    x_t = torch.tensor([[0, 20, 3, 20, 20, 7], [20] * 6, [1, 2, 3, 4, 5, 6]])
    logits = policy.denoiser(x_t, torch.ones(3))
    words = ["".join("<mask>" if i == 20 else tiny.RESIDUES[i] for i in row) for row in x_t.tolist()]
    ids = torch.tensor(tokenizer(words)["input_ids"])
    letters = tokenizer.convert_tokens_to_ids(list(tiny.RESIDUES))
    with torch.no_grad():
        assert torch.equal(logits, model(input_ids=ids).logits[:, 1:-1, letters])
    relaxed = torch.nn.functional.one_hot(x_t, 21).float()
    assert (policy.denoiser(relaxed, torch.ones(3)) - logits).abs().max() < 1e-5


def test_a_reward_reads_the_prompt_of_each_image(pipeline: Any) -> None:
    seen: list[tuple[int, list[str]]] = []

    def score(images: Any, texts: Any) -> list[float]:
        seen.append((len(images), list(texts)))
        return [len(text) for text in texts]

    policy = dt.lora(dt.load(pipeline, steps=2, guidance_scale=2.0), rank=1)
    conditions = dt.prompts(pipeline, PROMPTS, group=2)
    result = dt.finetune(
        policy, PromptReward(score, PROMPTS), dt.PPO(alpha=0.1, batch=8, minibatches=1), conditions=conditions,
        loop=dt.LoopConfig(steps=1),
    )  # fmt: skip
    assert seen[-1][0] == len(seen[-1][1]) == 8
    assert set(seen[-1][1]) <= set(PROMPTS)
    assert result.history[0]["reward"] == np.mean([len(text) for text in seen[-1][1]])
    with pytest.raises(ConfigError, match="which of 2 prompts"):
        PromptReward(score, PROMPTS)([0])


def test_any_conditional_model_takes_labels() -> None:
    import diffusers

    unet = tiny.unet(num_class_embeds=3)
    policy = dt.load(unet, scheduler=diffusers.DDPMScheduler(), steps=2, label=1)
    label = {"label": torch.tensor([1, 1])}
    assert torch.equal(states(policy), states(policy, cond=label))
    assert not torch.equal(states(policy), states(policy, cond={"label": torch.tensor([1, 2])}))
    conditions = Conditions({"label": torch.arange(3)})
    noisy = dt.load(unet, scheduler=diffusers.DDPMScheduler(), steps=2, sigma_min=0.1)
    algorithm = dt.PPO(alpha=1.0, batch=4, minibatches=1)
    result = dt.finetune(noisy, Redness(), algorithm, conditions=conditions, loop=dt.LoopConfig(steps=1))
    assert result.history[0]["ratio_first_pass"] < 1e-5


def test_a_model_is_saved_and_loaded_without_its_library_s_files(tmp_path: Path) -> None:
    import diffusers

    unet = tiny.unet(num_class_embeds=3)
    policy = dt.lora(dt.load(unet, scheduler=diffusers.DDPMScheduler(), steps=2), rank=2)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.1)
    policy.denoiser = Guided(policy.denoiser, default={"label": torch.tensor([2])})
    policy.save_pretrained(tmp_path)
    again = dt.load(str(tmp_path))
    assert torch.equal(states(again), states(policy))


def test_local_folders_load_by_what_they_hold(pipeline: Any, folder: Path, tmp_path: Path) -> None:
    import diffusers

    pipeline.save_pretrained(tmp_path / "pipeline")
    assert torch.equal(
        states(dt.load(str(tmp_path / "pipeline"), prompt="red", steps=2)),
        states(dt.load(pipeline, prompt="red", steps=2)),
    )
    unet = tiny.unet()
    unet.save_pretrained(tmp_path / "unet")
    scheduler = diffusers.DDPMScheduler()
    ours = dt.load(unet, scheduler=scheduler, steps=2)
    assert torch.equal(states(dt.load(str(tmp_path / "unet"), scheduler=scheduler, steps=2)), states(ours))
    model, tokenizer = tiny.protein_model(folder)
    model.save_pretrained(tmp_path / "protein")
    tokenizer.save_pretrained(tmp_path / "protein")
    one = dt.load(str(tmp_path / "protein"), length=6)
    assert one.sample(2) == dt.load(model, tokenizer=tokenizer, length=6).sample(2)


def test_gradients_are_the_same_with_gradient_checkpointing() -> None:
    import diffusers

    gradients = []
    for enabled in (False, True):
        unet = tiny.unet()
        if enabled:
            unet.enable_gradient_checkpointing()
        policy = dt.load(unet, scheduler=diffusers.DDPMScheduler(), steps=2).eval()
        x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        policy.denoiser(x_t, torch.ones(2)).square().sum().backward()
        gradients.append([p.grad for p in unet.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


# --- what is refused ---------------------------------------------------------------------------------------------


def test_schedulers_pipelines_and_models_that_are_not_supported_are_named(pipeline: Any, folder: Path) -> None:
    import diffusers

    with pytest.raises(UnsupportedError, match=r"DDIMScheduler.*got EulerDiscreteScheduler.*from_config"):
        dt.load(tiny.unet(), scheduler=diffusers.EulerDiscreteScheduler())
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    with pytest.raises(UnsupportedError, match=r"StableDiffusionPipeline.*got StableDiffusionImg2ImgPipeline"):
        dt.load(other)
    with pytest.raises(UnsupportedError, match=r"UNet2DModel, UNet2DConditionModel.*got AutoencoderKL"):
        dt.load(tiny.vae(), scheduler=diffusers.DDPMScheduler())
    with pytest.raises(UnsupportedError, match=r"ForMaskedLM.*got CLIPTextModel"):
        dt.load(pipeline.text_encoder, tokenizer=pipeline.tokenizer, length=3)


def test_settings_that_a_model_lacks_or_needs_are_named(pipeline: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'guidance_scale'"):
        dt.load(pipeline, guidance=3.0)
    with pytest.raises(ConfigError, match=r"expected scheduler=\.\.\. with a UNet2DModel"):
        dt.load(tiny.unet())
    with pytest.raises(ConfigError, match=r"expected tokenizer=\.\.\. and length=\.\.\. with a EsmForMaskedLM"):
        dt.load(tiny.protein_model(folder)[0])
    with pytest.raises(ConfigError, match=r"process=\.\.\. and codec=\.\.\. and event_shape=\.\.\. with a Linear"):
        dt.load(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="expected no settings with 'utr-mrl'"):
        dt.load("utr-mrl", steps=3)
    with pytest.raises(ConfigError, match="got dict"):
        dt.load({})
    with pytest.raises(ConfigError, match="'to_nothing', which UNet2DConditionModel lacks"):
        dt.lora(dt.load(pipeline), targets=["to_nothing"])
    with pytest.raises(ConfigError, match="expected a policy with adapters"):
        dt.save_adapters(dt.load(pipeline), folder / "none")
    with pytest.raises(ConfigError, match="expected a condition 'prompt'"):
        DiffusersDenoiser(tiny.conditional_unet(), 1000)(torch.zeros(1, 4, 8, 8), torch.ones(1))
    with pytest.raises(ConfigError, match="negative condition for guidance"):
        Guided(torch.nn.Identity(), 2.0)
    with pytest.raises(UnsupportedError, match=r"save adapters with difftilt\.save_adapters"):
        dt.load(pipeline).save_pretrained(folder / "whole")


def test_a_checkpoint_of_other_shapes_names_the_tensor_and_pickles_are_not_read(tmp_path: Path) -> None:
    import diffusers
    from safetensors.torch import load_file, save_file

    unet = tiny.unet()
    unet.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    save_file(weights | {"conv_in.weight": torch.zeros(16, 5, 3, 3)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(StateError, match=r"conv_in\.weight"):
        dt.load(str(tmp_path), scheduler=diffusers.DDPMScheduler())
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(StateError, match="safetensors"):
        dt.load(str(tmp_path), scheduler=diffusers.DDPMScheduler())
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Nothing"}))
    with pytest.raises(UnsupportedError, match=r"UNet2DModel, .*got Nothing"):
        dt.load(str(tmp_path), scheduler=diffusers.DDPMScheduler())
