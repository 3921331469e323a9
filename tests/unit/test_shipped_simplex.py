"""The shipped Dirichlet diffusion of 5'UTRs: how it is loaded, what its bound leaves out, the law of its letters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import difftilt as dt
from difftilt import build
from difftilt.core.codec import SimplexCodec, TokenCodec
from difftilt.core.jacobi import lines_of_descent, log_densities
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states
from difftilt.domains.describing import describe_sequences
from difftilt.errors import ConfigError
from difftilt.metrics.sequences import kmer_counts
from difftilt.networks import TimedConvDenoiser
from difftilt.processes import Masked, Simplex
from difftilt.training.designs import DesignSet, summary


@pytest.fixture(scope="module")
def shipped() -> Policy:
    return dt.load("utr-mrl", process="simplex")


# --- loading -------------------------------------------------------------------------------------------------------


def test_a_task_is_loaded_by_its_process_and_masked_where_none_is_named(shipped: Policy) -> None:
    assert isinstance(shipped.process, Simplex)
    assert isinstance(shipped.codec, SimplexCodec)
    assert shipped.event_shape == (50, 3)
    assert isinstance(dt.load("utr-mrl").process, Masked)
    assert isinstance(dt.load("utr-mrl", process="masked").process, Masked)
    assert isinstance(dt.load(build.ZOO / "utr-mrl", process="simplex").process, Simplex)


def test_what_a_name_does_not_hold_is_refused(tmp_path: Path) -> None:
    network = TimedConvDenoiser(4, 5, "sticks", width=8)
    Policy(network, Simplex(4), SimplexCodec("ACGT", 5), (5, 3)).save_pretrained(tmp_path / "one")
    with pytest.raises(ConfigError, match="expected a known process of utr-mrl; got 'simplx'; did you mean 'simplex'"):
        dt.load("utr-mrl", process="simplx")
    with pytest.raises(ConfigError, match="expected a folder of models with a simplex one; got"):
        dt.load(tmp_path / "one", process="simplex")
    for settings in ({"process": Simplex(4)}, {"process": "simplex", "steps": 3}):
        with pytest.raises(ConfigError, match="expected no settings with 'utr-mrl', whose folder says all"):
            dt.load("utr-mrl", **settings)


def test_tokens_are_the_letters_that_decode_prints() -> None:
    sticks = torch.rand(64, 5, 3, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    plain, codec = TokenCodec("ACGT", 5), SimplexCodec("ACGT", 5)
    assert plain.decode(codec.tokens(sticks)) == codec.decode(sticks)
    letters = codec.tokens(sticks)
    assert torch.equal(plain.tokens(letters), letters)


def test_designs_that_are_alike_count_once_though_their_sticks_differ() -> None:
    """Of 64 states of one letter there are 4 designs at most, drawn again by weight or not."""
    policy = Policy(TimedConvDenoiser(4, 1, "sticks", width=8), Simplex(4), SimplexCodec("ACGT", 1), (1, 3))
    rng = torch.Generator().manual_seed(0)
    x_0 = policy.prior(64, rng)
    designs = policy.codec.decode(x_0)
    assert set(designs) == set("ACGT")
    describe = describe_sequences(policy, torch.tensor([[0], [1]]))
    facts = describe(x_0)
    assert facts["unique_fraction"] == 4 / 64
    assert facts["novelty"] == pytest.approx(sum(design in "GT" for design in designs) / 64)
    number = torch.zeros(64, dtype=torch.float64)
    drawn = DesignSet(x_0, designs, number, number, number, torch.arange(64) / 64, number)
    assert summary(drawn, describe, rng)["distinct_drawn"] == 4 / 64


# --- the bound -----------------------------------------------------------------------------------------------------


def test_the_bound_leaves_out_less_than_two_thousandths_of_a_nat_a_token() -> None:
    """KL of the law at t = 1 to the prior, mean over letters: what the mean loss lacks of a bound (DDSM, ELBO).

    By quadrature over each stick's stationary law. Its leading term, by hand: half of the squared leading
    eigenfunctions at the corners (5, 4 and 3 for the three sticks, as often as they are broken), times
    exp(-2 horizon).
    """
    process, total = Simplex(4), 0.0
    p = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for i, b in enumerate(process.b.tolist()):
        u = 1 - (1 - p) ** (1 / b)
        time = process.horizon * process.speed[i].item()
        terms = log_densities(u, 1.0, b, lines_of_descent(1 + b, [time])[0])
        flat = math.log(b) + (b - 1) * torch.log1p(-u)
        from_zero, from_one = ((term.logsumexp(0) - flat) for term in terms)
        assert from_zero.exp().mean() == pytest.approx(1, abs=1e-3)
        kl = [(ratio.exp() * ratio).mean().item() for ratio in (from_zero, from_one)]
        total += ((3 - i) * kl[0] + kl[1]) / 4  # letters behind this one start it at 0, its own at 1
    leading = 0.5 * math.exp(-2 * process.horizon) * (5 + 4 * 3 / 4 + 3 * 2 / 4)
    assert total == pytest.approx(leading, rel=0.05)
    assert 0.0015 < total < 0.0017


# --- the law -------------------------------------------------------------------------------------------------------


def shares(counts: torch.Tensor) -> torch.Tensor:
    return counts.double() / counts.sum()


def test_letters_of_designs_are_as_frequent_as_in_the_training_data(shipped: Policy) -> None:
    """H0: every letter is as frequent as in the training designs, up to 0.005 of the model's own error.

    n = 256 designs of 50 letters, 4 shares; 5.5 standard errors: false alarms below 2e-7. Twin: the chain is not run,
    and letters are read off the noise that it starts from.
    """
    words = torch.tensor(shipped.card["kmer_counts"]).view(4, 16)
    wanted = shares(words.sum(1))
    bar = 5.5 * (wanted * (1 - wanted) / (256 * 50)).sqrt() + 0.005
    rng = torch.Generator().manual_seed(0)
    for states, right in ((sample_states(shipped, 256, rng), True), (shipped.prior(256, rng), False)):
        tokens = shipped.codec.tokens(states)  # ty: ignore[unresolved-attribute]
        assert bool(((shares(kmer_counts(tokens, 1, 4)) - wanted).abs() < bar).all()) == right
