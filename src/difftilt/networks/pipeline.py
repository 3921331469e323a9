"""Policies from diffusers: a bare model with its scheduler, or a whole pipeline with prompts, guidance and VAE.

The chain is that of the pipeline's scheduler, step for step (:mod:`difftilt.networks.diffusers_scheduler`); guidance is
part of it (:mod:`difftilt.networks.guided`). The safety checker is not run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from difftilt.core.codec import Codec, ImageCodec
from difftilt.core.conditions import Conditions
from difftilt.core.noise import Table
from difftilt.core.policy import Policy
from difftilt.core.process import Process
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.networks.diffusers_model import DiffusersDenoiser
from difftilt.networks.diffusers_scheduler import flow_from_diffusers, from_diffusers
from difftilt.networks.fitting import (
    PIPELINES,
    WITH_PROMPTS,
    latent_shape,
    refuse_idle,
    refuse_label,
    refuse_other_inputs,
    supported_pipeline,
    supported_scheduler,
)
from difftilt.networks.guided import NEGATIVE, Guided
from difftilt.networks.latents import LatentCodec
from difftilt.processes.flow import MEMORYLESS
from difftilt.types import Condition, Float, Tensor


def chain(
    scheduler: Any, steps: int, *, eta: float | None, level: float | None, sigma_min: float
) -> tuple[Process, Float[Tensor, " K1"], int, bool]:
    """The process and grid of a scheduler, and how its model is told the time.

    Raises:
        UnsupportedError: a scheduler that is none of :data:`~difftilt.networks.fitting.SCHEDULERS`.
        ConfigError: a setting that says nothing to this one.
    """
    name = supported_scheduler(type(scheduler).__name__)
    refuse_idle(name, eta=eta, level=level)
    config = dict(scheduler.config)
    if name == "FlowMatchEulerDiscreteScheduler":
        noise = MEMORYLESS if level is None else level
        flow, grid = flow_from_diffusers(config, steps, level=noise, sigma_min=sigma_min, shift=scheduler.shift)
        return flow, grid, config.get("num_train_timesteps", 1000), True
    kernel = "ddpm" if name == "DDPMScheduler" else "ddim"
    noise = 1.0 if eta is None else eta
    gaussian, grid = from_diffusers(config, steps, kernel=kernel, eta=noise, sigma_min=sigma_min)
    assert isinstance(gaussian.schedule, Table)
    return gaussian, grid, len(gaussian.schedule.alphas_cumprod), False


def model_policy(
    model: Any,
    *,
    scheduler: Any,
    steps: int = 50,
    eta: float | None = None,
    level: float | None = None,
    sigma_min: float = 0.0,
    label: int | None = None,
    precision: str | None = None,
    codec: Codec | None = None,
    event_shape: tuple[int, ...] | None = None,
) -> Policy:
    """A policy from a diffusers model and its scheduler.

    Args:
        model: a supported model (:data:`~difftilt.networks.diffusers_model.INPUTS`).
        scheduler: a scheduler object; see :data:`~difftilt.networks.fitting.SCHEDULERS`.
        steps: steps ``K``.
        eta: share of DDIM's noise; 1 when not given, where tuning reaches the tilted law (diffusers' own default is 0).
        level: noise of flow matching, see :class:`~difftilt.processes.flow.Flow`; 0 is the scheduler's own ODE, the
            square root of 2 (memoryless) when not given.
        sigma_min: floor under the std of every step: tuning needs one where the last step has no noise.
        label: class that designs are made for where no condition is given.
        precision: ``"bfloat16"`` or ``"float16"`` to run the model under autocast.
        codec: states to designs; pixels in [-1, 1] when not given.
        event_shape: shape of a state; the model's sample size when not given.

    Raises:
        ConfigError: a setting that says nothing to this model or scheduler, or that it cannot follow.
        UnsupportedError: a model or scheduler that is not supported; those that are, are named.
    """
    process, grid, timesteps, continuous = chain(scheduler, steps, eta=eta, level=level, sigma_min=sigma_min)
    denoiser: Any = DiffusersDenoiser(model, timesteps, continuous=continuous, precision=precision)
    refuse_other_inputs(model)
    if label is not None:
        refuse_label(model, label)
        denoiser = Guided(denoiser, default={"label": torch.tensor([label])})
    shape = event_shape or _state_shape(model)
    policy = Policy(denoiser, process, codec or ImageCodec(), shape, grid=grid)
    return policy.to(next(model.parameters()).device).eval()


def _state_shape(model: Any) -> tuple[int, ...]:
    size = model.config.sample_size
    if size is None:
        raise ConfigError("expected a model with a sample_size; got none; pass event_shape=(C, H, W)")
    return (model.config.in_channels, *((size, size) if isinstance(size, int) else size))


def pipeline_policy(
    pipeline: Any,
    *,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    label: int | None = None,
    guidance_scale: float | None = None,
    steps: int = 50,
    eta: float | None = None,
    level: float | None = None,
    sigma_min: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    precision: str | None = None,
) -> Policy:
    """A policy from a pipeline of diffusers. Its networks are used as they are, not copied.

    Args:
        pipeline: one of :data:`~difftilt.networks.fitting.PIPELINES`.
        prompt: what images are made for where no condition is given, the empty one when not given; others:
            :func:`prompts`.
        negative_prompt: what guidance leads away from; the empty prompt when not given.
        label: likewise, of a class-conditional pipeline.
        guidance_scale: ``w`` of classifier-free guidance, 0 to 1 for none; the pipeline's usual one when not given
            (7.5; 7 for Stable Diffusion 3; 4 for DiT).
        steps: see :func:`model_policy`, like the next three and ``precision``.
        eta: see there.
        level: see there.
        sigma_min: see there.
        height: pixels; the model's own when not given.
        width: likewise.
        precision: see there.

    Raises:
        ConfigError: a setting that says nothing to this pipeline, or that it cannot follow.
        UnsupportedError: another pipeline or scheduler; those that are supported are named.
    """
    name = supported_pipeline(type(pipeline).__name__)
    refuse_idle(
        name, prompt=prompt, negative_prompt=negative_prompt, label=label, guidance_scale=guidance_scale, height=height,
        width=width,
    )  # fmt: skip
    model = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    settings: dict[str, Any] = {
        "steps": steps, "eta": eta, "level": level, "sigma_min": sigma_min, "precision": precision,
    }  # fmt: skip
    if name in PIPELINES[:2]:
        return model_policy(model, scheduler=pipeline.scheduler, **settings)
    codec = LatentCodec(pipeline.vae)
    shape = latent_shape(model, _state_shape(model), codec.scale, height, width)
    policy = model_policy(model, scheduler=pipeline.scheduler, codec=codec, event_shape=shape, **settings)
    usual = {"StableDiffusionPipeline": 7.5, "StableDiffusion3Pipeline": 7.0, "DiTPipeline": 4.0}[name]
    scale = usual if guidance_scale is None else max(1.0, guidance_scale)
    if not (guidance_scale is None or 0 <= guidance_scale < math.inf):
        raise ConfigError(f"expected a guidance_scale of 0 or more; got {guidance_scale}; take 1 for no guidance")
    if scale == 1 and negative_prompt is not None:
        raise ConfigError(
            f"expected no negative_prompt without guidance; got {negative_prompt!r} with guidance_scale="
            f"{guidance_scale}; leave it out, or take a scale above 1"
        )
    if name == "DiTPipeline":
        if label is not None:
            refuse_label(model, label)
        default = {} if label is None else {"label": torch.tensor([label])}
        negative: Condition = {"label": torch.tensor([model.config.num_embeds_ada_norm])}
    else:
        default, negative = _encoded(pipeline, [prompt or ""], [negative_prompt or ""])
    guided = Guided(policy.denoiser, scale, default, negative if scale != 1 else None)
    return policy.with_denoiser(guided).eval()


def prompts(
    pipeline: Any, texts: Sequence[str], *, negative: str | Sequence[str] | None = None, group: int = 1
) -> Conditions:
    """Conditions of a pipeline's policy, one for each text.

    Args:
        pipeline: with text encoders.
        texts: prompts.
        negative: negative prompts, one or one for each text; the policy's own when not given.
        group: designs made for one prompt in an update.

    Raises:
        ConfigError: not a list of prompts, or not as many negative ones.
        UnsupportedError: the pipeline has no prompts.
    """
    if type(pipeline).__name__ not in WITH_PROMPTS:
        raise UnsupportedError(
            f"expected a pipeline with prompts ({', '.join(WITH_PROMPTS)}); got {type(pipeline).__name__}; make "
            "Conditions of its labels"
        )
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"expected a list of one prompt or more; got {texts!r}; for one prompt pass [prompt]")
    away = [""] * len(texts) if negative is None else [negative] * len(texts) if isinstance(negative, str) else negative
    if len(away) != len(texts):
        raise ConfigError(f"expected a negative prompt for each of {len(texts)}; got {len(away)}; give one, or as many")
    positive, other = _encoded(pipeline, list(texts), list(away))
    table = {**positive, "index": torch.arange(len(texts))}
    if negative is not None:
        table |= {NEGATIVE + name: rows for name, rows in other.items()}
    return Conditions(table, group)


@torch.no_grad()
def _encoded(pipeline: Any, texts: list[str], negative: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Embeddings of prompts and of negative prompts."""
    more: dict[str, Any] = {"prompt_2": None, "prompt_3": None} if hasattr(pipeline, "tokenizer_3") else {}
    found = pipeline.encode_prompt(
        prompt=texts, negative_prompt=negative, device=pipeline.device, num_images_per_prompt=1,
        do_classifier_free_guidance=True, **more,
    )  # fmt: skip
    if len(found) == 2:
        return {"prompt": found[0]}, {"prompt": found[1]}
    return {"prompt": found[0], "pooled": found[2]}, {"prompt": found[1], "pooled": found[3]}
