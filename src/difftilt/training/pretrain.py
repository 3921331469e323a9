r"""Pretraining: fit a denoiser to data by the process's own denoising loss, with EMA, checkpoints and resume.

For masked diffusion the validation loss is a bound on :math:`-\log p(x_0)`: it is compared, in nats per token, with
position-free Markov models on the same held-out designs.

**In order.** Where a causal network shows positions one at a time, one call on the finished design gives the laws of
all its steps, and :math:`-\log p(x_0)` exactly ((1) of :mod:`difftilt.networks.causal`). It is trained by that sum on
half of the examples. Of the others a random rest is hidden and asked for too, so that the network can say what comes
later from a beginning; that half takes the same sum, whose hidden terms are no part of the likelihood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.policy import gives_all_steps
from difftilt.core.process import Process
from difftilt.core.stats import mean_and_error
from difftilt.errors import StateError
from difftilt.rng import Streams, seeded_initialisation
from difftilt.tracking.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from difftilt.training.ema import Ema
from difftilt.types import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of pretraining."""

    updates: int = 6000
    """Optimiser steps."""
    batch: int = 256
    """Examples per step."""
    learning_rate: float = 2e-3
    """Peak of a linear warm-up (2 %) and cosine decay to 1 %."""
    weight_decay: float = 1e-2
    """Decoupled, AdamW."""
    ema: float = 0.999
    """Decay of the parameter average, which is what is kept."""
    validate_every: int = 500
    """Updates between validations; the best average so far is kept. Also the checkpoint interval."""
    seed: int = 0
    """Seed of the run."""


@dataclass(frozen=True)
class PretrainResult:
    """The best average's parameters and how it was found."""

    weights: dict[str, Tensor]
    validation: float
    """Loss of the kept average on the validation set: nats per design for masked diffusion."""
    history: list[dict[str, float]]
    seconds: float


def learning_rate_factor(update: int, total: int) -> float:
    """Warm-up over the first 2 % of the updates, then cosine decay to 1 %."""
    warm = max(1, total // 50)
    if update < warm:
        return (update + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (update - warm) / max(1, total - warm)))


@torch.no_grad()
def denoising_bounds(
    denoiser: nn.Module, process: Process, x_0: Tensor, rng: torch.Generator, *, draws: int = 8, batch: int = 512
) -> Float[Tensor, " N"]:
    r"""Denoising loss of each design, float64, times stratified over (0, 1].

    For masked diffusion this is an unbiased estimate of an upper bound on :math:`-\log p(x_0)`, nats; of a causal
    network in order it is that number itself.

    Args:
        denoiser: the network, used as it is (put it in eval mode).
        process: gives the loss.
        x_0: finished states.
        rng: noise source.
        draws: times per design.
        batch: designs per network call.
    """
    if gives_all_steps(denoiser, process):
        t = x_0.new_zeros(batch, dtype=torch.float64)
        parts = x_0.split(batch)
        return torch.cat([_of_all_steps(denoiser(part, t[: len(part)], None), part).double() for part in parts])
    losses = []
    for part in x_0.split(batch):
        total = torch.zeros(part.shape[0], dtype=torch.float64, device=part.device)
        offset = torch.rand(part.shape[0], generator=rng, device=part.device)
        for j in range(draws):
            t = ((offset + j) / draws).clamp(min=1e-4)
            x_t = process.corrupt(part, t, rng)
            total += process.denoising_loss(denoiser(x_t, t, None), part, x_t, t).double()
        losses.append(total / draws)
    return torch.cat(losses)


def _of_all_steps(logits: Float[Tensor, "B L V"], x_0: Tensor) -> Float[Tensor, " B"]:
    """Equation (1) of :mod:`difftilt.networks.causal`, nats."""
    return F.cross_entropy(logits.transpose(1, 2), x_0.long(), reduction="none").sum(-1)


def _training_loss(
    denoiser: nn.Module, process: Process, x_0: Tensor, x_t: Tensor, t: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The process's loss; of a causal network in order see the module."""
    if not gives_all_steps(denoiser, process):
        return process.denoising_loss(denoiser(x_t, t, None), x_0, x_t, t)
    whole = torch.arange(len(x_0), device=x_0.device)[:, None] % 2 == 0
    return _of_all_steps(denoiser(torch.where(whole, x_0.long(), x_t), t, None), x_0)


def pretrain(
    denoiser: nn.Module,
    process: Process,
    train: Tensor,
    validation: Tensor,
    config: PretrainConfig,
    *,
    folder: Path | None = None,
    resume: bool = False,
    on_update: Callable[[dict[str, float]], None] | None = None,
) -> PretrainResult:
    """Train ``denoiser`` in place and leave the best average's weights in it.

    Args:
        denoiser: network ``(x_t, t, cond) -> prediction``.
        process: noising law and loss.
        train: states to fit, ``[N, *event]``.
        validation: states that choose the average that is kept.
        config: settings.
        folder: where checkpoints go; none are written without it.
        resume: continue from the folder's latest checkpoint, to the same numbers (one thread).
        on_update: called after each validation with its record.

    Raises:
        StateError: the folder holds checkpoints and ``resume`` is false.
    """
    begun = folder is not None and bool(checkpoint_steps(folder))
    if begun and not resume:
        raise StateError(f"expected an empty folder for checkpoints; got some in '{folder}'; resume, or choose another")
    device = next(denoiser.parameters()).device
    train, validation = train.to(device), validation.to(device)
    streams = Streams(config.seed, device)
    average = Ema(denoiser.state_dict(), config.ema)
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best: dict[str, Any] = {"validation": math.inf, "weights": average.average}
    history: list[dict[str, float]] = []
    first, spent = 0, 0.0
    if folder is not None and begun:
        first, state = load_checkpoint(folder)
        denoiser.load_state_dict(state["denoiser"])
        optimiser.load_state_dict(state["optimiser"])
        average.load_state_dict(state["average"])
        streams.load_state_dict(state["streams"])
        best, history, spent = state["best"], state["history"], state["seconds"]
    started = time.monotonic() - spent
    running, count = torch.zeros((), device=device), 0
    for update in range(first, config.updates):
        denoiser.train()
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(update, config.updates)
        rng = streams("train")
        rows = torch.randint(train.shape[0], (config.batch,), generator=rng, device=device)
        t = (torch.rand(1, generator=rng, device=device) + torch.arange(config.batch, device=device) / config.batch) % 1
        t = t.clamp(min=1e-3)
        x_t = process.corrupt(train[rows], t, rng)
        seed = torch.randint(2**62, (), generator=streams("dropout"), device=device).item()
        with seeded_initialisation(int(seed)):  # dropout takes no generator; its masks must be the same after a resume
            loss = _training_loss(denoiser, process, train[rows], x_t, t).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0 * train[0].numel() ** 0.5)
        optimiser.step()
        average.update(denoiser.state_dict())
        running, count = running + loss.detach(), count + 1
        done = update + 1
        if done % config.validate_every == 0 or done == config.updates:
            current = {name: value.clone() for name, value in denoiser.state_dict().items()}
            denoiser.load_state_dict(average.average)
            denoiser.eval()
            bounds = denoising_bounds(denoiser, process, validation, Streams(config.seed, device)("validate"))
            value, error = mean_and_error(bounds)
            if value < best["validation"]:
                best = {"validation": value, "weights": {k: v.clone() for k, v in average.average.items()}}
            denoiser.load_state_dict(current)
            seconds = time.monotonic() - started
            history.append(
                {
                    "update": done,
                    "train": (running / count).item(),
                    "validation": value,
                    "error": error,
                    "seconds": seconds,
                }
            )
            running, count = torch.zeros((), device=device), 0
            if folder is not None:
                state = {
                    "denoiser": denoiser.state_dict(), "optimiser": optimiser.state_dict(),
                    "average": average.state_dict(), "streams": streams.state_dict(), "best": best, "history":
                    history, "seconds": seconds,
                }  # fmt: skip
                save_checkpoint(folder, done, state)
            if on_update is not None:
                on_update(history[-1])
    denoiser.load_state_dict(best["weights"])
    denoiser.eval()
    return PretrainResult(best["weights"], best["validation"], history, time.monotonic() - started)
