"""Memory of untruncated reward backpropagation: it grows with the number of steps by the stored states alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from allocations import peak_bytes
from difftilt.algorithms import pathwise
from difftilt.algorithms.reward_backprop import RewardBackprop
from difftilt.core.algorithm import Anchor
from difftilt.core.codec import TokenCodec, VectorCodec
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.networks import ConvDenoiser
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked
from difftilt.rng import seeded_initialisation

BATCH, LENGTH, LETTERS, SIZE, WIDTH = 16, 8, 4, 32, 64
STATE = {"tokens": BATCH * LENGTH * (LETTERS + 1) * 4, "vectors": BATCH * SIZE * 4}
"""Bytes of one stored state of the batch: tokens are relaxed, with a place for the mask."""


class Perceptron(nn.Module):
    """A network whose activations are larger than the state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SIZE, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(),
                                    nn.Linear(WIDTH, SIZE))  # fmt: skip

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return self.layers(x_t)


class Sum:
    """A differentiable reward that keeps next to nothing."""

    def __call__(self, designs: list[Any]) -> torch.Tensor:
        return torch.zeros(len(designs))

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return p.flatten(1).sum(1)


def policy(kind: str, steps: int) -> Policy:
    with seeded_initialisation(0):
        if kind == "tokens":
            denoiser = ConvDenoiser(LETTERS, LENGTH, width=WIDTH, kernel=3, dilations=(1, 2))
            return Policy(denoiser, Masked(LETTERS), TokenCodec("ACGT", LENGTH), (LENGTH,), steps=steps)
        process = Gaussian(Cosine(0.05), prediction="x_0", sigma_min=0.1)
        return Policy(Perceptron(), process, VectorCodec(), (SIZE,), steps=steps)


def peak(kind: str, steps: int) -> int:
    """Of a whole update, the optimiser's first allocations left out."""
    tuned, rng = policy(kind, steps), torch.Generator().manual_seed(0)
    algorithm = RewardBackprop(batch=BATCH)
    state = algorithm.init(tuned, [Anchor(tuned.frozen_copy(), 0.5)])
    algorithm.step(state, Sum(), rng)
    return peak_bytes(lambda: algorithm.step(state, Sum(), rng))


def plain(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Stands in for torch's checkpoint: keeps all activations."""
    return function(*arguments)


@pytest.mark.parametrize("kind", STATE)
def test_memory_grows_by_the_stored_states_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From K = 10 to K = 100 by 90 states (1 % for times and seeds); without checkpoints by far more (twin)."""
    grown = peak(kind, 100) - peak(kind, 10)
    assert grown <= 1.01 * 90 * STATE[kind]
    assert grown >= 0.99 * 90 * STATE[kind], "states are kept: the measure sees them"
    monkeypatch.setattr(pathwise, "checkpoint", plain)
    assert peak(kind, 20) - peak(kind, 10) > 5 * 10 * STATE[kind]
