"""What surrogates are made of: merged measurements, features, chances of feasibility, calibration."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from difftilt.core.codec import ImageCodec, SimplexCodec, TokenCodec, VectorCodec
from difftilt.core.stats import spearman
from difftilt.errors import ConfigError, DataError, UnsupportedError
from difftilt.surrogates.calibration import QUANTILE, calibration, factor_for, temper
from difftilt.surrogates.feasibility import Logistic, solve
from difftilt.surrogates.features import features, kmers, one_hot, pairs
from difftilt.surrogates.measurements import Forecast, Measurements, readable

CODEC = TokenCodec("ACGT", 3)
NAN = math.nan


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- measurements ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [CODEC, SimplexCodec("ACGT", 3)])
def test_letters_are_read_one_hot_whatever_their_states(codec: TokenCodec) -> None:
    x = readable(codec, ["ACG", "TTA"])
    assert x.dtype == torch.float64
    assert x.argmax(-1).tolist() == [[0, 1, 2], [3, 3, 0]]
    assert x.sum().item() == 6


def test_pixels_are_read_between_0_and_1_and_vectors_as_they_are() -> None:
    image = torch.randint(0, 256, (4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    torch.testing.assert_close(readable(ImageCodec(), [image])[0, 0] * 255, torch.from_numpy(image).double())
    vector = tensor(0.5, -2).numpy()
    assert readable(VectorCodec(), [vector]).tolist() == [[0.5, -2]]


def test_replicates_of_unknown_noise_pool_their_variance() -> None:
    """Two designs: 1, 3 about 2 and 5, 6, 7 about 6: squares 2 + 2 over 5 - 2 spare measurements."""
    rows = Measurements(["AAA", "CCC", "AAA", "CCC", "CCC"], tensor(1, 5, 3, 6, 7)).rows(CODEC)
    of = {CODEC.decode(x.argmax(-1)[None])[0]: i for i, x in enumerate(rows.x)}
    assert rows.y[[of["AAA"], of["CCC"]]].tolist() == [2, 6]
    assert rows.noise == pytest.approx(math.sqrt(4 / 3))
    torch.testing.assert_close(rows.variance[[of["AAA"], of["CCC"]]], tensor(4 / 6, 4 / 9))


def test_replicates_of_known_noise_weigh_by_it() -> None:
    rows = Measurements(["AAA", "AAA", "CCC"], tensor(0, 3, 1), tensor(1, 2, 0.5)).rows(CODEC)
    order = rows.y.argsort()
    torch.testing.assert_close(rows.y[order], tensor(3 / 4 / (1 + 1 / 4), 1))
    torch.testing.assert_close(rows.variance[order], tensor(1 / (1 + 1 / 4), 0.25))
    assert rows.noise == pytest.approx(math.sqrt((1 + 4 + 0.25) / 3))


@pytest.mark.parametrize("n", [2, 7])
def test_n_copies_of_a_row_are_one_row_with_noise_over_root_n(n: int) -> None:
    copies = Measurements(["AAA"] * n + ["CCC"], tensor(*[2.0] * n, 1), tensor(*[0.3] * n, 0.3)).rows(CODEC)
    once = Measurements(["AAA", "CCC"], tensor(2, 1), tensor(0.3 / math.sqrt(n), 0.3)).rows(CODEC)
    torch.testing.assert_close(copies.x, once.x)
    torch.testing.assert_close(copies.variance, once.variance)
    torch.testing.assert_close(copies.y, once.y)


def test_without_replicates_or_stated_noise_there_is_none() -> None:
    rows = Measurements(["AAA", "CCC"], tensor(1, 2)).rows(CODEC)
    assert rows.noise == 0
    assert rows.variance.tolist() == [0, 0]


def test_an_infeasible_design_is_no_row() -> None:
    given = Measurements(["AAA", "GGG", "CCC"], tensor(1, NAN, 2), tensor(1, 1, 2))
    assert given.feasible.tolist() == [True, False, True]
    rows = given.rows(CODEC)
    assert sorted(rows.y.tolist()) == [1, 2]
    assert CODEC.encode(["GGG"]).tolist() not in rows.x.argmax(-1).tolist()
    assert rows.variance[rows.y.argsort()].tolist() == [1, 4]


def test_standardised_values_have_mean_0_and_std_1() -> None:
    rows = Measurements(["AAA", "CCC", "GGG"], tensor(3, 5, 10), tensor(1, 1, 2)).rows(CODEC)
    y, variance = rows.standardised()
    assert y.mean().item() == pytest.approx(0)
    assert y.std().item() == pytest.approx(1)
    torch.testing.assert_close(variance * 13, rows.variance)
    back = rows.forecast(y, variance)
    torch.testing.assert_close(back.mean, rows.y)
    torch.testing.assert_close(back.model, rows.variance.sqrt())
    torch.testing.assert_close(back.noise, rows.variance.sqrt())
    torch.testing.assert_close(back.measured, rows.y)


@pytest.mark.parametrize(
    ("designs", "values", "noise"),
    [
        (["AAA"], tensor(1, 2), None),
        (["AAA", "CCC"], tensor(1, math.inf), None),
        (["AAA", "CCC"], tensor(1, 2), tensor(0, 1)),
        (["AAA", "CCC"], tensor(1, 2), tensor(NAN, 1)),
        (["AAA", "CCC"], tensor(1, 1), None),
        (["AAA", "AAA"], tensor(1, 2), None),
        (["AAA", "CCC"], tensor(NAN, NAN), None),
    ],
)
def test_what_cannot_be_learned_from_is_refused(designs: list[str], values: torch.Tensor, noise: object) -> None:
    with pytest.raises(DataError, match=r"expected .*; got .*; "):
        Measurements(designs, values, noise).rows(CODEC)


# --- features --------------------------------------------------------------------------------------------------------


def test_features_of_letters_count_by_hand() -> None:
    x = readable(CODEC, ["ACC"])
    assert one_hot(x).nonzero()[:, 1].tolist() == [0, 5, 9]
    assert pairs(x).nonzero()[:, 1].tolist() == [0 * 16 + 0 * 4 + 1, 16 + 0 * 4 + 1, 32 + 1 * 4 + 1]
    assert {int(i): int(kmers(x, 1)[0, i]) for i in kmers(x, 1)[0].nonzero()} == {0: 1, 1: 2}
    assert kmers(x, 2).nonzero()[:, 1].tolist() == [0 * 4 + 1, 1 * 4 + 1]
    assert kmers(x).nonzero()[:, 1].tolist() == [0 * 16 + 1 * 4 + 1]


def test_both_strands_are_one() -> None:
    """ACC and its reverse complement GGT; and neither is CCA, read backwards, or TGG, complemented."""
    acc, ggt, cca, tgg = (
        kmers(readable(CODEC, [design]), 2, both_strands=True) for design in ("ACC", "GGT", "CCA", "TGG")
    )
    assert torch.equal(acc, ggt)
    assert not torch.equal(acc, cca)
    assert torch.equal(cca, tgg)
    assert not torch.equal(kmers(readable(CODEC, ["ACC"]), 2), kmers(readable(CODEC, ["GGT"]), 2))


@pytest.mark.parametrize("names", [("one_hot",), ("pairs",), ("kmers",), ("kmers_both_strands",)])
def test_features_of_a_relaxed_design_are_their_mean_over_its_letters(names: tuple[str, ...], rng) -> None:
    """Multilinear, so at independent letters the expectation: enumerated over all 64 designs."""
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    p = torch.rand(1, 3, 4, generator=rng, dtype=torch.float64)
    p = p / p.sum(-1, keepdim=True)
    chance = p[0, torch.arange(3), every].prod(1)
    phi = features(names, p)
    torch.testing.assert_close(phi(p)[0], chance @ phi(F.one_hot(every, 4).double()))
    assert (phi(p)[:, 0] == 1).all()


def test_features_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'kmers'"):
        features(("kmer",), torch.zeros(1, 3, 4))
    with pytest.raises(UnsupportedError, match="expected designs of letters"):
        features(("one_hot", "pairs"), torch.zeros(1, 5))
    with pytest.raises(ConfigError, match="at most 4,096 features"):
        features(("pairs",), torch.zeros(1, 50, 4))


# --- feasibility -----------------------------------------------------------------------------------------------------


def test_the_chance_of_feasibility_maximises_its_objective(rng) -> None:
    """Gradient of (1) by autograd at the weights found, and not with the prior halved."""
    phi = torch.randn(40, 3, generator=rng, dtype=torch.float64)
    feasible = torch.rand(40, generator=rng) < 0.4
    w = solve(phi, feasible, prior_std=1.5).requires_grad_()

    def slope(prior_std: float) -> torch.Tensor:
        log_chance = torch.where(feasible, F.logsigmoid(phi @ w), F.logsigmoid(-phi @ w)).sum()
        return torch.autograd.grad(log_chance - w.square().sum() / (2 * prior_std**2), w)[0]

    assert slope(1.5).abs().max() < 1e-7
    assert slope(0.75).abs().max() > 1e-2


def test_a_forbidden_word_is_learned_from_what_was_infeasible() -> None:
    """Designs with an AC are infeasible: of those not seen, the right ones get the smaller chances."""
    codec = TokenCodec("ACGT", 5)
    every = torch.cartesian_prod(*[torch.arange(4)] * 5)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    designs = codec.decode(every[order])
    value = torch.tensor([NAN if "AC" in design else 1.0 for design in designs], dtype=torch.float64)
    fitted = Logistic(features=("one_hot", "kmers")).fit(codec, Measurements(designs[:400], value[:400]))
    chance = fitted.log_probability(readable(codec, designs[400:])).exp()
    infeasible = value[400:].isnan()
    assert chance[infeasible].max() < chance[~infeasible].quantile(0.1)
    assert chance[infeasible].mean() < 0.1 < 0.9 < chance[~infeasible].mean()


def test_a_value_does_not_move_the_chance_of_feasibility() -> None:
    designs = ["AAA", "CCC", "GGG", "TTT"]
    one, other = (
        Logistic().fit(CODEC, Measurements(designs, value)).weights
        for value in (tensor(1, 2, NAN, 3), tensor(-7, 0, NAN, 1e3))
    )
    assert torch.equal(one, other)


# --- calibration -----------------------------------------------------------------------------------------------------


def forecast(error: torch.Tensor, model: float = 1.0, noise: float = 0.0) -> Forecast:
    like = torch.ones_like(error)
    mean = torch.linspace(0, 1, len(error), dtype=torch.float64)
    return Forecast(mean, model * like, noise * like, mean + error)


def test_numbers_of_calibration_by_hand_and_by_scipy() -> None:
    seen = Forecast(tensor(0, 1, 2, 3), tensor(1, 1, 2, 1), tensor(0, 1, 0, 0.5), tensor(0.5, 3.3, -2, NAN))
    got = calibration(seen, factor=2.0)
    std = tensor(2, math.sqrt(5), 4)
    assert got.rows == 3
    assert got.coverage_90 == 1
    assert got.coverage_50 == pytest.approx(1 / 3)
    assert calibration(seen).coverage_90 == pytest.approx(2 / 3)
    density = scipy.stats.norm.logpdf([0.5, 2.3, -4], 0, std.numpy())
    assert got.nll == pytest.approx(-density.mean())
    assert got.spearman == pytest.approx(scipy.stats.spearmanr([0, 1, 2], [0.5, 3.3, -2]).statistic)
    assert got.rmse == pytest.approx(math.sqrt((0.25 + 2.3**2 + 16) / 3))
    assert calibration(Forecast(*[tensor(NAN)] * 4)).rows == 0
    assert pytest.approx({q: scipy.stats.norm.ppf(0.5 + q / 2) for q in QUANTILE}, abs=1e-6) == QUANTILE


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_the_factor_is_the_least_that_covers_90_of_100(noise: float) -> None:
    """Errors 1..99 over 99 rows: the 90th smallest lies just within."""
    error = torch.arange(1, 100, dtype=torch.float64) / 40
    factor = factor_for(forecast(error, 1.3, noise))
    assert factor == pytest.approx(math.sqrt((90 / 40 / QUANTILE[0.9]) ** 2 - noise**2) / 1.3)
    assert calibration(forecast(error, 1.3, noise), factor=1.0001 * factor).coverage_90 == pytest.approx(90 / 99)
    assert calibration(forecast(error, 1.3, noise), factor=0.9999 * factor).coverage_90 == pytest.approx(89 / 99)


def test_of_20_rows_the_19th_is_covered() -> None:
    """Conformal's correction: 0.9 of 21, not of 20."""
    error = torch.arange(1, 21, dtype=torch.float64) / 10
    assert factor_for(forecast(error)) == pytest.approx(1.9 / QUANTILE[0.9])


def test_the_factor_is_scale_free_and_ignores_infeasible_rows() -> None:
    error = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = forecast(error)
    assert factor_for(forecast(7 * error, 7.0)) == pytest.approx(factor_for(seen))
    fills = (0, 1, 0, NAN)
    parts = zip((seen.mean, seen.model, seen.noise, seen.measured), fills, strict=True)
    more = Forecast(*[torch.cat([part, part.new_full((30,), fill)]) for part, fill in parts])
    assert factor_for(more) == factor_for(seen)


def test_past_rounds_temper_what_held_out_rows_do_not_show() -> None:
    error = torch.linspace(-2, 2, 41, dtype=torch.float64)
    held_out, past = forecast(error), forecast(2 * error)
    assert factor_for(past) == pytest.approx(2 * factor_for(held_out))
    assert temper(held_out) == factor_for(held_out)
    assert temper(held_out, past) == pytest.approx(math.sqrt(2) * factor_for(held_out))
    assert temper(held_out, forecast(9 * error[:5])) == factor_for(held_out)
    assert factor_for(forecast(error[:5])) == 1


def test_spearman_is_scipys() -> None:
    a, b = tensor(1, 2, 2, 5), tensor(0, 3, -1, 9)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
