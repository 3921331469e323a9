"""Training of learned rewards: reproducible by seed, early stopping, and the numbers that say how good a fit is."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from difftilt.core.stats import ranks
from difftilt.errors import DataError
from difftilt.networks import ConvRegressor
from difftilt.training.regress import RegressConfig, measure_fit, train_members

LETTERS = st.lists(st.integers(0, 5), min_size=3, max_size=30)


@given(LETTERS)
def test_ranks_with_ties_are_scipys(values: list[int]) -> None:
    ours = ranks(torch.tensor(values, dtype=torch.float64))
    assert ours.tolist() == scipy.stats.rankdata(values).tolist()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=30))
def test_spearman_is_scipys_also_with_ties(pairs: list[tuple[int, int]]) -> None:
    a, b = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    if len(a.unique()) == 1 or len(b.unique()) == 1:
        return
    assert measure_fit(a, b).spearman == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)


def test_r_squared_by_hand() -> None:
    """1 for the truth, 0 for its mean, and negative for worse than that; of predictions and not of their ranks."""
    y = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert measure_fit(y, y).r_squared == pytest.approx(1.0)
    assert measure_fit(torch.full_like(y, 3.0), y).r_squared == pytest.approx(0.0)
    assert measure_fit(y + 2, y).r_squared == pytest.approx(1 - 4 / 3.5)
    assert measure_fit(-y, y).spearman == pytest.approx(-1.0)
    fit = measure_fit(torch.tensor([1.0, 2.0, 3.0, 4.0]), y)
    assert (fit.spearman, fit.rows) == (pytest.approx(1.0), 4)
    assert fit.r_squared == pytest.approx(1 - (4 / 4) / 3.5)


def rows(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and a standardised score that counts one letter."""
    x = torch.randint(4, (n, 6), generator=torch.Generator().manual_seed(0))
    y = (x == 2).sum(1).float()
    return x, (y - y.mean()) / y.std()


def member() -> ConvRegressor:
    return ConvRegressor(4, 6, width=8, kernel=3, dilations=(1,), hidden=8, dropout=0.2)


CONFIG = RegressConfig(epochs=6, batch=32, members=2, learning_rate=1e-2)


def weights(models: list[nn.Module]) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for model in models for p in model.parameters()])


def test_members_are_repeated_by_the_seed_and_differ_from_one_another() -> None:
    x, y = rows()
    torch.rand(3)
    one = train_members(member, x, y, CONFIG)
    torch.rand(5)
    two = train_members(member, x, y, CONFIG)
    assert torch.equal(weights(one), weights(two)), "initialisation, order or dropout is not seeded"
    assert not torch.equal(weights(one[:1]), weights(one[1:]))
    other = train_members(member, x, y, RegressConfig(**{**CONFIG.__dict__, "seed": 1}))
    assert not torch.equal(weights(one), weights(other))


def test_training_fits_and_leaves_members_in_eval_mode_and_the_global_generator_alone() -> None:
    x, y = rows()
    before, errors = torch.random.get_rng_state(), []
    config = RegressConfig(**{**CONFIG.__dict__, "epochs": 20})
    models = train_members(member, x, y, config, on_member=lambda e, error: errors.append((e, error)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert [e for e, _ in errors] == [0, 1]
    assert all(error < 0.2 for _, error in errors)
    assert not any(model.training for model in models)


def test_the_member_kept_is_the_best_on_its_held_out_rows_and_those_are_never_trained_on() -> None:
    """Defect 8: kept by value. The network memorises rows by their number, so leaks would show."""
    seen: list[set[int]] = []

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 1)
            nn.init.zeros_(self.table.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen[-1].update(x[:, 0].tolist())
            return self.table(x)[:, 0, 0]

    def make() -> Lookup:
        seen.append(set())
        return Lookup()

    x, y = torch.arange(100)[:, None], torch.randn(100, generator=torch.Generator().manual_seed(0))
    errors: list[float] = []
    models = train_members(make, x, y, CONFIG, on_member=lambda e, error: errors.append(error))
    for trained_on, model, error in zip(seen, models, errors, strict=True):
        assert len(trained_on) == 90
        held_out = torch.tensor(sorted(set(range(100)) - trained_on))
        assert (model.table.weight[held_out] == 0).all()
        assert (model(x[held_out]) - y[held_out]).square().mean().item() == pytest.approx(error)
    assert seen[0] != seen[1], "each member holds out rows of its own"


def test_the_kept_epoch_is_the_best_one() -> None:
    """A network whose error first falls and then rises: what is kept is the turning point."""

    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))
            self.register_buffer("epoch", torch.tensor(0.0))

        def train(self, mode: bool = True) -> Drifting:
            if mode:
                self.epoch += 1
            return super().train(mode)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.epoch - 3).expand(len(x)) + 0 * self.unused

    (model,) = train_members(
        Drifting, torch.zeros(50, 1, dtype=torch.long), torch.zeros(50), RegressConfig(epochs=6, members=1)
    )
    assert model.epoch == 3


def test_scores_that_are_all_alike_are_explained() -> None:
    x, _ = rows(30)
    with pytest.raises(DataError, match="expected scores that a regressor can fit; got a loss that is no number"):
        train_members(member, x, torch.full((30,), math.nan), CONFIG)


def test_few_rows_still_hold_one_out() -> None:
    x, y = rows(8)
    errors: list[float] = []
    train_members(member, x, y, CONFIG, on_member=lambda e, error: errors.append(error))
    assert all(math.isfinite(error) for error in errors)


def test_another_loss_trains_a_classifier_and_only_what_it_trains_on_is_changed() -> None:
    """Labels are the signs of a first number; training sees it with the sign turned, and so learns the opposite."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, generator=rng)
    label, errors = (x[:, 0] > 0).long(), []
    config = RegressConfig(epochs=6, batch=16, members=1, learning_rate=0.1)
    for turn, right in ((1, 1.0), (-1, 0.0)):
        (model,) = train_members(
            lambda: nn.Linear(1, 2), x, label, config, loss=torch.nn.functional.cross_entropy,
            seen=lambda part, rng, turn=turn: turn * part, on_member=lambda _, error: errors.append(error),
        )  # fmt: skip
        assert (model(x).argmax(1) == label).float().mean().item() == pytest.approx(right, abs=0.05)
    assert errors[0] < 0.3 < 0.7 < errors[1], "the held-out loss is of rows as they are"
