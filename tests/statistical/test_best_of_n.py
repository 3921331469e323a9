"""Best of N by order statistics and by really drawing N, on a chain whose exact law of the best is known."""

from __future__ import annotations

import pytest
import scipy.stats
import torch

from difftilt.core.reward import score
from difftilt.core.trajectory import sample_states
from difftilt.metrics.best_of_n import best_of_n_weights
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.tilted import TiltedProblem
from difftilt.samplers.best_of_n import BestOfN

N = 8


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    return random_pairwise(4, 3, alpha=0.5, target_kl=1.0, seed=1)


def exact_law(problem: TiltedProblem, n: int) -> torch.Tensor:
    """P(best of n is x) over the designs: differences of the reward's cdf to the n; no two rewards are equal."""
    order = problem.table.argsort()
    cdf = torch.cat([torch.zeros(1, dtype=torch.float64), problem.pretrained_law[order].cumsum(0)])
    law = torch.empty_like(problem.table)
    law[order] = (cdf**n).diff()
    return law


def test_really_drawn_best_of_n_follows_its_exact_law(problem: TiltedProblem) -> None:
    """H0: 12,000 kept designs follow the exact law of best-of-8; Pearson statistic on cells of expectation >= 10.

    False alarm 1e-7, by the tail of the chi-square. Twins: best of 7 and of 9 are told apart.
    """
    rng = torch.Generator().manual_seed(0)
    x_0 = BestOfN(candidates=N)(problem.pretrained, problem.reward, 12_000, rng).x_0
    index = (x_0 @ (3 ** torch.arange(3, -1, -1))).long()
    lookup = problem.chain.designs @ (3 ** torch.arange(3, -1, -1))
    counts = torch.bincount(torch.searchsorted(lookup, index), minlength=81).double()

    def tail(n: int) -> float:
        expected = 12_000 * exact_law(problem, n)
        cells = expected >= 10
        observed = torch.cat([counts[cells], counts[~cells].sum()[None]])
        wanted = torch.cat([expected[cells], expected[~cells].sum()[None]])
        return scipy.stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum().item(), len(wanted) - 1)

    assert tail(N) > 1e-7
    assert tail(N - 1) < 1e-7
    assert tail(N + 1) < 1e-7


def test_order_statistics_of_a_pool_estimate_the_same_mean_without_bias(problem: TiltedProblem) -> None:
    """H0: over 1,500 pools of 32, the mean estimate of reward and of another number is the exact mean under best-of-8.

    5.5 standard errors (false alarm 8e-8 in all). Twin: with the weights of drawing *with* replacement from the pool,
    (i/M)^N - ((i-1)/M)^N, the bias is seen.
    """
    rng = torch.Generator().manual_seed(0)
    law = exact_law(problem, N)
    other = (problem.chain.designs == 1).sum(-1).double()
    estimates, biased = [], []
    rank = torch.arange(33, dtype=torch.float64)
    with_replacement = ((rank / 32) ** N).diff()
    for _ in range(1500):
        x_0 = sample_states(problem.pretrained, 32, rng)
        reward = score(problem.reward, problem.pretrained.codec, x_0).value
        count = (x_0 == 1).sum(-1).double()
        weights = best_of_n_weights(reward, N)
        estimates.append(torch.stack([weights @ reward, weights @ count]))
        biased.append(with_replacement @ reward.sort().values)
    sample = torch.stack(estimates)
    exact = torch.stack([law @ problem.table, law @ other])
    error = sample.std(0) / 1500**0.5
    assert ((sample.mean(0) - exact).abs() < 5.5 * error).all()
    twin = torch.stack(biased)
    assert abs(twin.mean() - exact[0]) > 5.5 * twin.std() / 1500**0.5


def test_the_sampler_spends_no_more_than_its_bound(problem: TiltedProblem) -> None:
    for n in (2, 8, 64):
        law = exact_law(problem, n)
        kl = (torch.xlogy(law, law) - torch.xlogy(law, problem.pretrained_law)).sum().item()
        assert 0 < kl <= BestOfN(candidates=n).kl_bound
