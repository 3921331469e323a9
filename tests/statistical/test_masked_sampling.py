r"""Samples of the masked chain follow the enumerated law; samplers known to be wrong are caught.

H0: the counts of ``n`` independent draws are multinomial with the enumerated probabilities. Statistic: the G-test
:math:`2 \sum O \log(O / E)`, cells expected fewer than 5 times pooled, against chi-square. A true sampler fails a
test once in ``FALSE_ALARM``:sup:`-1` seeds; every test has a twin that runs a known-bad sampler and must fail.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chi2
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.trajectory import rollout, sample_states
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.problems.landscapes import TabularDenoiser
from difftilt.processes.masked import Masked, MaskedStep

FALSE_ALARM = 1e-6
LETTERS, LENGTH, N = 3, 3, 20_000
GRID = [1.0, 0.8, 0.35, 0.0]
reveals = pytest.mark.parametrize("reveal", ["count", "independent"])


def make_policy(reveal: str, fixed: list[int] | None = None) -> Policy:
    """Random token laws that agree in no order: the law of the design depends on the reveal law too."""
    denoiser = TabularDenoiser(LETTERS, LENGTH)
    nn.init.normal_(denoiser.logits, std=1.5, generator=torch.Generator().manual_seed(0))
    return Policy(
        denoiser,
        Masked(LETTERS, reveal),
        TokenCodec("ACG", LENGTH),
        (LENGTH,),
        grid=torch.tensor(GRID, dtype=torch.float64),
        fixed=None if fixed is None else torch.tensor(fixed),
    ).frozen_copy()


def p_value(states: torch.Tensor, law: torch.Tensor) -> float:
    """G-test of drawn states ``[n, L]`` against a law over all partial states ``[S]``."""
    base = LETTERS + 1
    index = states @ base ** torch.arange(LENGTH - 1, -1, -1)
    observed = index.bincount(minlength=base**LENGTH).double()
    if observed[law == 0].any():
        return 0.0
    expected = law * len(states)
    rare = expected < 5
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    positive = expected > 0
    if positive.sum() == 1:
        return 1.0  # only one state is possible, and it came
    statistic = 2 * torch.xlogy(observed, observed / expected).where(positive, 0).sum()
    return float(chi2.sf(statistic.item(), int(positive.sum()) - 1))


def step_law(policy: Policy, x_t: torch.Tensor, k: int) -> torch.Tensor:
    """Enumerated law of the state after step ``k`` from one state ``[L]``, over all partial states."""
    chain = EnumeratedChain(policy)
    laws, start = chain.laws(policy), (chain.states == x_t).all(-1).nonzero().item()
    law = torch.zeros(len(chain.states), dtype=torch.float64)
    for block in chain.blocks(k):
        for row in (block.index == start).nonzero()[:, 0]:
            law[block.successors[row]] = block.log_prob(laws[k])[row].exp()
    return law


def test_the_threshold_means_what_it_says():
    law = torch.arange(1, 65, dtype=torch.float64)
    law = law / law.sum()
    base = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"), -1).view(-1, 3)
    generator = torch.Generator().manual_seed(0)
    p = [p_value(base[torch.multinomial(law, 2000, True, generator=generator)], law) for _ in range(300)]
    assert 0.4 < sum(p) / len(p) < 0.6
    assert min(p) > 1e-5


@reveals
def test_a_step_from_any_state_follows_its_row(reveal):
    policy = make_policy(reveal)
    for k, x_t in ((0, [3, 3, 3]), (1, [3, 1, 3]), (1, [3, 3, 0]), (2, [2, 3, 1])):
        if step_law(policy, torch.tensor(x_t), k).sum() == 0:
            continue  # a state the count law does not visit at this step
        states = torch.tensor([x_t]).expand(N, -1)
        law = policy.step(states, policy.grid[k], policy.grid[k + 1])
        assert p_value(law.sample(torch.Generator().manual_seed(k)), step_law(policy, states[0], k)) > FALSE_ALARM


@reveals
@pytest.mark.parametrize("tau", [0.2, 2.0])
def test_relax_follows_the_same_row(reveal, tau):
    policy = make_policy(reveal)
    states = policy.prior(N, torch.Generator())
    relaxed = policy.step(states, policy.grid[0], policy.grid[1]).relax(torch.Generator().manual_seed(0), tau=tau)
    assert p_value(relaxed.argmax(-1), step_law(policy, states[0], 0)) > FALSE_ALARM


@reveals
@pytest.mark.parametrize("fixed", [None, [-1, 2, -1]], ids=["free", "one position fixed"])
def test_designs_follow_the_enumerated_marginal(reveal, fixed):
    policy = make_policy(reveal, fixed)
    chain = EnumeratedChain(policy)
    law = torch.zeros((LETTERS + 1) ** LENGTH, dtype=torch.float64)
    law[chain.designs @ (LETTERS + 1) ** torch.arange(LENGTH - 1, -1, -1)] = chain.marginal(policy)
    assert p_value(sample_states(policy, N, torch.Generator().manual_seed(0), batch=3000), law) > FALSE_ALARM


@reveals
def test_a_rollout_visits_the_enumerated_occupancy(reveal):
    policy = make_policy(reveal)
    chain = EnumeratedChain(policy)
    states = rollout(policy, N, torch.Generator().manual_seed(0)).states
    for x_t, law in zip(states, chain.occupancy(chain.laws(policy)), strict=True):
        assert p_value(x_t, law) > FALSE_ALARM


@reveals
def test_mean_log_ratio_of_a_rollout_is_the_exact_path_kl(reveal):
    """H0: k1 has the exact mean; |z| < 4.9 fails once in 10^6. The twin forgets the reference's last step."""
    policy, reference = make_policy(reveal), make_policy(reveal)
    reference.denoiser.logits.mul_(0.5)
    paths = rollout(policy, N, torch.Generator().manual_seed(0), references=[reference])
    exact = EnumeratedChain(policy).path_kl(policy, reference)

    def z(log_ratio: torch.Tensor) -> float:
        return abs(((log_ratio.mean() - exact) / (log_ratio.std() / N**0.5)).item())

    assert z(paths.log_ratio[0].sum(0)) < 4.9
    assert z(paths.log_ratio[0, :-1].sum(0)) > 4.9


# --- known-bad twins ----------------------------------------------------------------------------------------------


def test_twin_a_wrong_keep_fraction_fails():
    """5 % off in s/t, as when the grid is cast to bfloat16 or the time is off by part of a step."""
    policy = make_policy("independent")
    states = policy.prior(N, torch.Generator())
    right = policy.step(states, policy.grid[0], policy.grid[1])
    wrong = MaskedStep(right.logits, states, 0.95 * right.keep, "independent")
    assert p_value(wrong.sample(torch.Generator().manual_seed(0)), step_law(policy, states[0], 0)) < FALSE_ALARM


def test_twin_revealing_left_to_right_fails():
    policy = make_policy("count")
    states = policy.prior(N, torch.Generator())
    law = policy.step(states, policy.grid[0], policy.grid[1])
    law._positions = lambda rng: (torch.arange(LENGTH) < law.shown[:, None]) & law.masked
    assert p_value(law.sample(torch.Generator().manual_seed(0)), step_law(policy, states[0], 0)) < FALSE_ALARM


@reveals
def test_twin_the_argmax_of_the_last_network_call_fails(reveal):
    """theory.md section 6, defect 13: the sampler returns the network's guess, not the state it sampled."""
    policy = make_policy(reveal)
    law = EnumeratedChain(policy)
    x_t, rng = policy.prior(N, torch.Generator()), torch.Generator().manual_seed(0)
    for t, s in itertools.pairwise(policy.grid):
        last = policy.step(x_t, t, s)
        x_t = last.sample(rng)
    occupancy = law.occupancy(law.laws(policy))[-1]
    assert p_value(x_t, occupancy) > FALSE_ALARM
    assert p_value(last.logits.argmax(-1), occupancy) < FALSE_ALARM


@reveals
def test_twin_tokens_of_the_most_likely_letter_fail(reveal):
    policy = make_policy(reveal)
    states = policy.prior(N, torch.Generator())
    law = policy.step(states, policy.grid[0], policy.grid[1])
    x_s = law.sample(torch.Generator().manual_seed(0))
    greedy = law.logits.argmax(-1).where(x_s != LETTERS, LETTERS)
    assert p_value(greedy, step_law(policy, states[0], 0)) < FALSE_ALARM
