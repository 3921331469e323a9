"""Seeded initialisation, and streams that do not run into one another; streams as such are in test_core_parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from difftilt.rng import Streams, seeded_initialisation


def test_initialisation_is_set_by_the_seed_and_leaves_the_global_generator_where_it_was() -> None:
    def made(seed: int) -> torch.Tensor:
        with seeded_initialisation(seed):
            return nn.Linear(4, 4).weight.detach().clone()

    before = torch.random.get_rng_state()
    first = made(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(made(3), first)
    assert not torch.equal(made(4), first)


def test_the_global_generator_is_restored_after_an_error_too() -> None:
    before = torch.random.get_rng_state()

    def fail() -> None:
        with seeded_initialisation(0):
            torch.rand(1)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_and_names_do_not_run_into_one_another() -> None:
    """Seed 1 and name "2/x" is another stream than seed 12 and "x"; many streams all differ in their first draws."""
    draws = {}
    for seed in range(40):
        for name in ("train", "validate", "dropout", "evaluate", "1/train"):
            value = torch.rand((), generator=Streams(seed)(name), dtype=torch.float64).item()
            assert value not in draws, (seed, name, draws[value])
            draws[value] = (seed, name)
    assert len(draws) == 200


def test_neighbouring_seeds_are_independent() -> None:
    """H0: first draws of 2,000 seeds are uniform and uncorrelated with the next seed's; 5.5 standard errors, 4e-8 each.

    Twin: numbers that grow with the seed are correlated.
    """
    first = torch.stack([torch.rand((), generator=Streams(seed)("x"), dtype=torch.float64) for seed in range(2000)])
    assert abs(first.mean().item() - 0.5) < 5.5 * (1 / 12 / 2000) ** 0.5
    centred = first - 0.5
    assert abs((centred[1:] * centred[:-1]).mean().item()) < 5.5 * (1 / 12) / 2000**0.5
    ramp = torch.linspace(0, 1, 2000, dtype=torch.float64) - 0.5
    assert abs((ramp[1:] * ramp[:-1]).mean().item()) > 5.5 * (1 / 12) / 2000**0.5
