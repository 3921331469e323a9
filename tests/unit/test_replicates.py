"""Noise told from replicates: Smyth's moderated variances."""

from __future__ import annotations

import pytest
import torch

from difftilt.core.codec import TokenCodec
from difftilt.surrogates.gaussian_process import GaussianProcess
from difftilt.surrogates.linear import Linear
from difftilt.surrogates.measurements import Measurements
from difftilt.surrogates.replicates import inverse_trigamma, moderated

CODEC = TokenCodec("ACGT", 6)


def drawn(scale: torch.Tensor, replicates: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares about the mean of replicates with these standard deviations, and degrees of freedom."""
    rng = torch.Generator().manual_seed(seed)
    y = scale[:, None] * torch.randn(len(scale), replicates, generator=rng, dtype=torch.float64)
    return (y - y.mean(1, keepdim=True)).square().sum(1), torch.full((len(scale),), replicates - 1)


def test_the_inverse_is_one() -> None:
    for x in (1e-3, 0.5, 3.0, 1e3):
        there = torch.polygamma(1, torch.tensor(x, dtype=torch.float64))
        assert inverse_trigamma(there).item() == pytest.approx(x, rel=1e-9)


@pytest.mark.parametrize(("replicates", "bound", "share"), [(2, 0.3, 0.85), (4, 0.05, 0.65)])
def test_the_laws_numbers_are_found_again(replicates: int, bound: float, share: float) -> None:
    """60,000 variances from the law of (1) with d_0 = 6, s_0^2 = 4, by hand of (1). Pairs are floored."""
    rng = torch.Generator().manual_seed(1)
    chi = torch.randn(60_000, 6, generator=rng, dtype=torch.float64).square().sum(1)
    squares, freedom = drawn((6 * 4 / chi).sqrt(), replicates)
    expected = (6 * 4 + squares) / (6 + freedom)
    found = moderated(squares, freedom)
    assert ((found / expected).log().abs() < bound).all()
    pooled = squares.sum() / freedom.sum()
    assert ((pooled / expected).log().abs() > bound).double().mean() > 0.5, "twin: one variance for all"
    own = squares / freedom
    truth = 6 * 4 / chi
    error = [((v / truth).log()).square().mean() for v in (found, own, pooled)]
    assert error[0] < share * min(error[1:]), "moderated is nearer the truth than either"


def test_the_mean_of_replicates_has_its_share_of_their_variance() -> None:
    squares, freedom = drawn(torch.linspace(0.1, 3, 12, dtype=torch.float64), 3)
    spread = (squares / 2).sqrt()
    tokens = torch.cartesian_prod(*[torch.arange(4)] * 6)[::300][:12]
    y = torch.stack([-spread, 0 * spread, spread], 1) + torch.arange(12.0, dtype=torch.float64)[:, None]
    designs = [design for design in CODEC.decode(tokens) for _ in range(3)]
    rows = Measurements(designs, y.flatten()).rows(CODEC)
    expected = dict(zip(rows.y.round().long().tolist(), (3 * rows.variance).tolist(), strict=True))
    assert [expected[i] for i in range(12)] == pytest.approx(moderated(squares, freedom).tolist())


def test_units_do_not_matter_and_designs_without_replicates_have_the_usual_variance() -> None:
    squares, freedom = drawn(torch.linspace(0.1, 3, 12, dtype=torch.float64), 3)
    squares[0], freedom[0] = 0.0, 0
    found = moderated(squares, freedom)
    torch.testing.assert_close(moderated(49 * squares, freedom), 49 * found)
    assert found[1:].min() < found[0] < found[1:].max()


def test_where_noise_is_alike_or_replicates_are_few_one_variance_is_pooled() -> None:
    alike = torch.tensor([1.0, 1.1, 0.9, 1.05, 1.0], dtype=torch.float64)
    for squares, freedom in (
        (alike, torch.full((5,), 2)), (torch.tensor([1.0, 50.0, 0.0]).double(), torch.tensor([1, 1, 0]))
    ):  # fmt: skip
        assert moderated(squares, freedom).tolist() == pytest.approx(
            [squares.sum().item() / freedom.sum().item()] * len(squares)
        )
    assert moderated(torch.zeros(6).double(), torch.ones(6, dtype=torch.long)).tolist() == [0.0] * 6
    assert moderated(torch.zeros(6).double(), torch.zeros(6, dtype=torch.long)).tolist() == [0.0] * 6


@pytest.mark.parametrize("learner", [Linear(), GaussianProcess()], ids=["linear", "gp"])
def test_a_surrogate_follows_the_exact_designs_and_not_the_noisy_ones(learner: Linear | GaussianProcess) -> None:
    """20 designs, three replicates each, every second one with noise 0.001, the others with 2."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, (20, 6), generator=rng)
    scale = torch.tensor([0.001, 2.0] * 10, dtype=torch.float64)
    truth = (tokens == 2).double().mean(1)
    y = truth[:, None] + scale[:, None] * torch.randn(20, 3, generator=rng, dtype=torch.float64)
    designs = [design for design in CODEC.decode(tokens) for _ in range(3)]
    fit = learner.fit(CODEC, Measurements(designs, y.flatten()), torch.Generator().manual_seed(0))
    off = (fit.predict(CODEC.decode(tokens)).mean[::2] - y.mean(1)[::2]).abs()
    assert off.max() < 0.1
    pooled = Measurements(designs, y.flatten(), torch.full((60,), 1.3, dtype=torch.float64))
    twin = learner.fit(CODEC, pooled, torch.Generator().manual_seed(0)).predict(CODEC.decode(tokens)).mean[::2]
    assert (twin - y.mean(1)[::2]).abs().max() > 0.1, "twin: one noise for all"


def test_a_handful_of_rows_leaves_something_to_be_learned() -> None:
    """The std of the linear surrogate; by the evidence alone it was below 0.001 of the values' spread in most fits."""
    for seed in range(8):
        rng = torch.Generator().manual_seed(seed)
        value = torch.randn(4, generator=rng, dtype=torch.float64)
        fit = Linear().fit(CODEC, Measurements(CODEC.decode(torch.randint(4, (4, 6), generator=rng)), value), rng)
        std = fit.predict(CODEC.decode(torch.randint(4, (50, 6), generator=rng))).std
        assert std.mean() > 0.2 * value.std()
