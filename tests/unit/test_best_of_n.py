"""Best of N: order statistics against all subsets of a small pool, the KL bound, and the N that meets a KL."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import pytest
import torch

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError
from difftilt.metrics.best_of_n import best_of_n_weights
from difftilt.problems.landscapes import TableReward, TabularDenoiser
from difftilt.processes.masked import Masked
from difftilt.samplers.best_of_n import BestOfN

REWARD = torch.tensor([0.3, -1.0, 2.0, 0.7, -0.2, 5.0, 1.1], dtype=torch.float64)


@pytest.mark.parametrize("n", range(1, 8))
def test_weights_are_the_share_of_subsets_in_which_a_design_is_the_best(n: int) -> None:
    """Brute force over all subsets of n of the 7."""
    subsets = list(itertools.combinations(range(7), n))
    wins = torch.zeros(7, dtype=torch.float64)
    for subset in subsets:
        wins[max(subset, key=lambda i: REWARD[i].item())] += 1
    torch.testing.assert_close(best_of_n_weights(REWARD, n), wins / len(subsets))


def test_infeasible_designs_win_only_among_themselves() -> None:
    """Brute force: 3 of 7 have no reward; a subset of them alone keeps one of them."""
    reward = REWARD.clone()
    reward[[0, 3, 5]] = math.nan
    for n in range(1, 8):
        weights = best_of_n_weights(reward, n)
        assert weights[[0, 3, 5]].sum().item() == pytest.approx(math.comb(3, n) / math.comb(7, n))
        feasible = [i for i in range(7) if not reward[i].isnan()]
        for i in feasible:
            below = sum(1 for j in range(7) if reward[j].isnan() or reward[j] < reward[i])
            assert weights[i].item() == pytest.approx(math.comb(below, n - 1) / math.comb(7, n))


def test_the_expectation_does_not_depend_on_how_ties_are_broken() -> None:
    reward = torch.tensor([1.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    for n in (1, 2, 3):
        best = [max(reward[list(subset)]).item() for subset in itertools.combinations(range(4), n)]
        assert (best_of_n_weights(reward, n) @ reward).item() == pytest.approx(sum(best) / len(best))


@pytest.mark.parametrize(("pool", "n"), [(10_000, 1), (10_000, 64), (10_000, 2500), (10_000, 10_000), (3, 3)])
def test_weights_of_a_large_pool_sum_to_one_and_grow_with_the_rank(pool: int, n: int) -> None:
    reward = torch.randperm(pool, generator=torch.Generator().manual_seed(0)).double()
    weights = best_of_n_weights(reward, n)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert (weights >= 0).all()
    ranked = weights[reward.argsort()]
    assert (ranked.diff() >= -1e-12).all()
    assert (ranked[: n - 1] == 0).all()
    assert ranked[-1].item() == pytest.approx(n / pool, rel=1e-6)


@pytest.mark.parametrize("n", [0, -1, 8])
def test_an_n_outside_the_pool_is_refused(n: int) -> None:
    with pytest.raises(ConfigError, match=f"between 1 and the pool's 7 designs; got {n}"):
        best_of_n_weights(REWARD, n)


# --- the KL bound --------------------------------------------------------------------------------------------------


def best_law(law: torch.Tensor, n: int) -> torch.Tensor:
    """Law of the best of ``n`` draws where designs are ordered by reward: differences of cdf^n."""
    cdf = torch.cat([torch.zeros(1, dtype=torch.float64), law.cumsum(0)])
    return (cdf**n).diff()


@pytest.mark.parametrize("n", [1, 2, 4, 64, 1000])
def test_the_kl_of_best_of_n_is_at_most_the_bound_and_meets_it_for_many_designs(n: int) -> None:
    """Exact KL by closed form: 20 designs spend less, a million equally likely ones spend it all."""
    bound = BestOfN(candidates=n).kl_bound
    few = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few /= few.sum()

    def kl(law: torch.Tensor) -> float:
        best = best_law(law, n)
        return (torch.xlogy(best, best) - torch.xlogy(best, law)).sum().item()

    assert kl(few) <= bound + 1e-12
    assert kl(torch.full((1_000_000,), 1e-6, dtype=torch.float64)) == pytest.approx(bound, abs=1e-3)
    if n > 4:
        assert kl(few) < bound - 0.01


def test_the_n_of_a_kl_is_the_largest_whose_bound_does_not_exceed_it() -> None:
    for kl in (0.0, 0.1, math.log(2) - 0.5, 0.3, 1.0, 2.5, 3.0, 5.0, 8.0, 14.8, 20.0):
        n = BestOfN.candidates_for(kl)
        assert BestOfN(candidates=n).kl_bound <= kl < BestOfN(candidates=n + 1).kl_bound, kl
    assert BestOfN.candidates_for(BestOfN(candidates=64).kl_bound) == 64
    assert BestOfN.candidates_for(-1.0) == 1
    assert BestOfN.candidates_for(math.nan) == 1


def test_a_huge_kl_is_answered_at_once() -> None:
    started = time.monotonic()
    assert BestOfN.candidates_for(math.inf) == BestOfN.candidates_for(40.0) > 1e17
    assert time.monotonic() - started < 0.5


def test_no_candidates_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at least 1 candidate; got 0"):
        BestOfN(candidates=0)


# --- the sampler ---------------------------------------------------------------------------------------------------


def uniform(length: int = 3) -> Policy:
    return Policy(TabularDenoiser(2, length), Masked(2), TokenCodec("AC", length), (length,), steps=length).eval()


class Counted(TableReward):
    def __init__(self) -> None:
        super().__init__({"".join(w): float("".join(w).count("C")) for w in itertools.product("AC", repeat=3)})
        self.batches: list[int] = []

    def __call__(self, designs: Any) -> list[float]:
        self.batches.append(len(designs))
        return super().__call__(designs)


def test_every_design_costs_n_calls_and_is_unweighted(rng: torch.Generator) -> None:
    reward = Counted()
    kept = BestOfN(candidates=5)(uniform(), reward, 7, rng)
    assert sum(reward.batches) == 35
    assert kept.x_0.shape == (7, 3)
    assert (kept.log_weight == 0).all()
    assert kept.log_z is None


def test_a_large_order_is_split_without_mixing_groups(rng: torch.Generator) -> None:
    """4,096 candidates at a time; one candidate gives the policy itself, many give the best design."""
    reward = Counted()
    kept = BestOfN(candidates=3000)(uniform(), reward, 3, rng)
    assert reward.batches == [3000, 3000, 3000]
    assert (kept.x_0 == 1).all()
    single = BestOfN(candidates=1)(uniform(), reward, 5000, torch.Generator().manual_seed(0)).x_0
    assert (single.double().mean(0) - 0.5).abs().max() < 6 * 0.5 / 5000**0.5


def test_an_infeasible_design_is_kept_only_if_all_are(rng: torch.Generator) -> None:
    reward = TableReward({"CCC": -5.0})  # feasible and as bad as can be
    kept = BestOfN(candidates=200)(uniform(), reward, 20, rng)
    assert (kept.x_0 == 1).all()
    assert BestOfN(candidates=3)(uniform(), TableReward({}), 4, rng).x_0.shape == (4, 3)


def test_conditions_stay_with_their_designs(rng: torch.Generator) -> None:
    class Told(TabularDenoiser):
        def forward(self, x_t: Any, t: Any, cond: Any = None) -> torch.Tensor:
            logits = super().forward(x_t, t, cond)
            sign = cond["which"][:, None] * 2.0 - 1
            return logits + 50 * sign[..., None] * torch.tensor([-1.0, 1.0])

    policy = uniform()
    policy.denoiser = Told(2, 3)
    which = torch.tensor([0, 1, 1, 0, 1])
    kept = BestOfN(candidates=2000)(policy, Counted(), 5, rng, cond={"which": which})
    assert torch.equal(kept.x_0, which[:, None].expand(-1, 3))
