"""Which settings of ``difftilt.load`` fit which models of diffusers. A setting that would do nothing is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from difftilt.errors import ConfigError, UnsupportedError, supported

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler")
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "DiTPipeline", "StableDiffusionPipeline", "StableDiffusion3Pipeline")
WITH_PROMPTS = PIPELINES[3:]
MEANT_FOR = {
    "eta": ("DDIMScheduler",),
    "level": ("FlowMatchEulerDiscreteScheduler",),
    "label": ("DiTPipeline",),
    "prompt": WITH_PROMPTS,
    "negative_prompt": WITH_PROMPTS,
    "guidance_scale": PIPELINES[2:],
    "height": PIPELINES[2:],
    "width": PIPELINES[2:],
}
"""The schedulers or pipelines that a setting says something to."""


def supported_scheduler(name: str) -> str:
    """``name``, of a class of :data:`SCHEDULERS`.

    Raises:
        UnsupportedError: it is none of them; they are named.
    """
    remedy = "if it is of the DDPM family, take DDIMScheduler.from_config(pipeline.scheduler.config)"
    return supported(name, SCHEDULERS, what="a scheduler", remedy=remedy)


def supported_pipeline(name: str) -> str:
    """``name``, of a class of :data:`PIPELINES`.

    Raises:
        UnsupportedError: it is none of them; they are named.
    """
    return supported(name, PIPELINES, what="a pipeline", remedy="load its model alone, with its scheduler")


def refuse_idle(name: str, **given: Any) -> None:
    """Settings that say nothing to the scheduler or pipeline of class ``name``; ``None`` is not given.

    Raises:
        ConfigError: one is given.
    """
    for setting, value in given.items():
        if value is not None and name not in MEANT_FOR[setting]:
            raise ConfigError(
                f"expected no {setting} with a {name}; got {setting}={value!r}; leave it out: it is for "
                f"{', '.join(MEANT_FOR[setting])}"
            )


WITHOUT_MORE = {"addition_embed_type": ("text",), "encoder_hid_dim_type": ("text_proj",), "time_cond_proj_dim": ()}
"""Entries of a model's config that ask for inputs which chains here do not have (sizes, image prompts, the guidance
scale of a distilled model), and the kinds that ask for none."""


def refuse_other_inputs(model: Any) -> None:
    """A model that reads more than a state, a time, and a prompt or class.

    Raises:
        UnsupportedError: it does; what asks for it is named.
    """
    config, name = model.config, type(model).__name__
    for entry, fine in WITHOUT_MORE.items():
        if config.get(entry) not in (None, *fine):
            raise UnsupportedError(
                f"expected a {name} without {entry}; got {config[entry]!r}, which asks for more than a state, a time "
                "and a prompt; write a small module forward(x_t, t, cond) around it and give difftilt.load that"
            )
    came = config.in_channels, config.get("out_channels") or config.in_channels
    if came[1] not in (came[0], 2 * came[0]):
        raise UnsupportedError(
            f"expected a {name} that predicts as many channels as it reads (or twice, with a variance); got {came[1]} "
            f"of {came[0]}, as for inpainting; write a small module forward(x_t, t, cond) around it and give "
            "difftilt.load that"
        )


def refuse_label(model: Any, label: int) -> None:
    """A class that the model does not have.

    Raises:
        ConfigError: there is no such class, or there are none.
    """
    config = model.config
    if config.get("class_embed_type") is not None:
        return  # it reads other numbers in the place of a class
    count = config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or 0
    if not 0 <= label < count:
        wanted = f"a label of 0 to {count - 1}" if count else "no label"
        raise ConfigError(
            f"expected {wanted} with this {type(model).__name__}, of {count} classes; got label={label}; "
            f"{'choose one of them' if count else 'leave it out'}"
        )


def latent_shape(
    model: Any, shape: Sequence[int], scale: int, height: int | None, width: int | None
) -> tuple[int, ...]:
    """Shape of the latents of an image, on which the model runs.

    Args:
        model: of diffusers.
        shape: of its own latents, ``(C, h, w)``.
        scale: pixels of a latent, along a side.
        height: pixels; its own when not given.
        width: likewise.

    Raises:
        ConfigError: sizes that the model cannot make.
    """
    sizes = (scale * shape[1] if height is None else height, scale * shape[2] if width is None else width)
    unit = scale * (model.config.get("patch_size") or 1)
    most = unit * (model.config.get("pos_embed_max_size") or math.inf)
    square = "num_embeds_ada_norm" in model.config  # DiT
    if any(size % unit or not unit <= size <= most for size in sizes) or (square and sizes[0] != sizes[1]):
        raise ConfigError(
            f"expected a multiple of {unit} pixels{f' up to {most}' if most < math.inf else ''}"
            f"{', the same in height and width' if square else ''}; got {sizes[0]} by {sizes[1]}; change height or "
            "width"
        )
    return (shape[0], sizes[0] // scale, sizes[1] // scale)
