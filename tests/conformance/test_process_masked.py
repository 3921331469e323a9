"""The masked process keeps the contract of a process, on every state of small chains."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, NoDensityError, UnsupportedError
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.problems.landscapes import TabularDenoiser
from difftilt.processes.masked import Masked, MaskedStep

LETTERS, LENGTH = 2, 4
UNEVEN = [1.0, 0.83, 0.31, 0.0]
GRIDS = {
    "one token per step": [1.0, 0.75, 0.5, 0.25, 0.0],
    "all at once": [1.0, 0.0],
    "3 steps for 4 tokens": [1.0, 2 / 3, 1 / 3, 0.0],
    "more steps than tokens": [k / 7 for k in range(7, -1, -1)],
    "uneven": UNEVEN,
}
chains = pytest.mark.parametrize(
    ("reveal", "grid", "fixed"),
    [(reveal, grid, None) for reveal in ("count", "independent") for grid in GRIDS.values()]
    + [(reveal, UNEVEN, [-1, 1, -1, -1]) for reveal in ("count", "independent")],
    ids=[f"{reveal}, {name}" for reveal in ("count", "independent") for name in GRIDS]
    + ["count, fixed", "independent, fixed"],
)


def make_policy(reveal: str, grid: list[float], fixed: list[int] | None = None, *, seed: int = 0) -> Policy:
    """Random token laws on every partial state: nothing about them is special."""
    denoiser = TabularDenoiser(LETTERS, LENGTH)
    nn.init.normal_(denoiser.logits, std=1.5, generator=torch.Generator().manual_seed(seed))
    return Policy(
        denoiser,
        Masked(LETTERS, reveal),
        TokenCodec("AC", LENGTH),
        (LENGTH,),
        grid=torch.tensor(grid, dtype=torch.float64),
        fixed=None if fixed is None else torch.tensor(fixed),
    ).frozen_copy()


def all_pairs(policy: Policy, chain: EnumeratedChain, k: int) -> torch.Tensor:
    """``log_prob`` of every pair of states, possible or not, from the process itself: ``[S, S]``."""
    states, size = chain.states, len(chain.states)
    law = policy.step(states.repeat_interleave(size, 0), policy.grid[k], policy.grid[k + 1])
    return law.log_prob(states.repeat(size, 1)).view(size, size)


@chains
def test_rows_sum_to_one_and_log_prob_is_minus_infinity_elsewhere(reveal, grid, fixed):
    policy = make_policy(reveal, grid, fixed)
    chain = EnumeratedChain(policy)
    laws = chain.laws(policy)
    for k in range(policy.steps):
        table = all_pairs(policy, chain, k)
        torch.testing.assert_close(table.exp().sum(-1), torch.ones(len(table), dtype=table.dtype))
        for block in chain.blocks(k):
            row = torch.full((len(block.index), len(table)), -math.inf, dtype=torch.float64)
            row.scatter_(1, block.successors, block.log_prob(laws[k]))
            torch.testing.assert_close(table[block.index], row, rtol=0, atol=1e-12)


@chains
def test_a_shown_token_never_changes_nor_is_masked_again(reveal, grid, fixed):
    policy = make_policy(reveal, grid, fixed)
    states = EnumeratedChain(policy).states
    shown = states != LETTERS
    before, after = states[:, None], states[None]
    changed = (shown[:, None] & (before != after)).any(-1)
    for k in range(policy.steps):
        table = all_pairs(policy, EnumeratedChain(policy), k)
        assert table[changed].eq(-math.inf).all()
        x_s = policy.step(states, policy.grid[k], policy.grid[k + 1]).sample(torch.Generator().manual_seed(k))
        assert (x_s == states)[shown].all()


@chains
def test_closed_form_kl_is_the_sum_over_successors(reveal, grid, fixed):
    policy, other = make_policy(reveal, grid, fixed), make_policy(reveal, grid, fixed, seed=1)
    chain = EnumeratedChain(policy)
    for k in range(policy.steps):
        mine, theirs = all_pairs(policy, chain, k), all_pairs(other, chain, k)
        expected = (mine.exp() * (mine - theirs).where(mine > -math.inf, 0)).sum(-1)
        t, s = policy.grid[k], policy.grid[k + 1]
        closed = policy.step(chain.states, t, s).kl(other.step(chain.states, t, s))
        torch.testing.assert_close(closed, expected, rtol=0, atol=1e-12)
        assert policy.step(chain.states, t, s).kl(policy.step(chain.states, t, s)).eq(0).all()


@pytest.mark.parametrize("reveal", ["count", "independent"])
def test_a_batch_of_mixed_times_is_each_time_by_itself(reveal):
    policy, other = make_policy(reveal, UNEVEN), make_policy(reveal, UNEVEN, seed=1)
    chain = EnumeratedChain(policy)
    k = torch.arange(len(chain.states)) % policy.steps
    t, s = policy.grid[k], policy.grid[k + 1]
    mixed, mixed_other = policy.step(chain.states, t, s), other.step(chain.states, t, s)
    x_s = mixed.sample(torch.Generator().manual_seed(0))
    assert mixed.log_prob(x_s).isfinite().all()
    for step in range(policy.steps):
        rows = k == step
        alone = policy.step(chain.states[rows], policy.grid[step], policy.grid[step + 1])
        alone_other = other.step(chain.states[rows], policy.grid[step], policy.grid[step + 1])
        assert torch.equal(alone.log_prob(x_s[rows]), mixed.log_prob(x_s)[rows])
        assert torch.equal(alone.kl(alone_other), mixed.kl(mixed_other)[rows])


@pytest.mark.parametrize("reveal", ["count", "independent"])
def test_float32_logits_agree_with_float64(reveal):
    policy = make_policy(reveal, UNEVEN)
    chain = EnumeratedChain(policy)
    t, s = policy.grid[1], policy.grid[2]
    wide, wide_other = policy.step(chain.states, t, s), make_policy(reveal, UNEVEN, seed=1).step(chain.states, t, s)
    narrow = MaskedStep(wide.logits.float(), chain.states, s / t, reveal)
    narrow_other = MaskedStep(wide_other.logits.float(), chain.states, s / t, reveal)
    x_s = wide.sample(torch.Generator().manual_seed(0))
    assert torch.equal(narrow.sample(torch.Generator().manual_seed(0)), x_s)
    assert narrow.log_prob(x_s).dtype == torch.float32
    torch.testing.assert_close(narrow.log_prob(x_s).double(), wide.log_prob(x_s), rtol=0, atol=3e-6)
    torch.testing.assert_close(narrow.kl(narrow_other).double(), wide.kl(wide_other), rtol=0, atol=3e-6)


@chains
def test_the_prior_is_all_masked_but_for_what_is_fixed(reveal, grid, fixed):
    x_1 = make_policy(reveal, grid, fixed).prior(3, torch.Generator())
    expected = [LETTERS if value < 0 else value for value in fixed or [-1] * LENGTH]
    assert x_1.tolist() == [expected] * 3


def test_a_count_step_shows_the_nearest_number_and_of_two_the_larger():
    logits = torch.zeros(6, 5, 2, dtype=torch.float64)
    x_t = torch.full((6, 5), 2)
    keep = torch.tensor([0.5, 0.49, 0.51, 0.3, 0.1, 0.0], dtype=torch.float64)  # 2.5, 2.45, 2.55, 1.5, 0.5, 0 stay
    x_s = MaskedStep(logits, x_t, keep, "count").sample(torch.Generator().manual_seed(0))
    assert (x_s == 2).sum(-1).tolist() == [2, 2, 3, 1, 0, 0]


@pytest.mark.parametrize("length", [6, 7, 50])
def test_as_many_steps_as_tokens_show_one_token_each(length, rng):
    policy = Policy(Uniform(), Masked(4), TokenCodec("ACGT", length), (length,), steps=length)
    x = policy.prior(2, rng)
    for k in range(length):
        x = policy.step(x, policy.grid[k], policy.grid[k + 1]).sample(rng)
        assert (x == 4).sum(-1).tolist() == [length - k - 1] * 2


class Uniform(nn.Module):
    """Uniform token laws."""

    def forward(self, x_t, t, cond=None):
        return torch.zeros(*x_t.shape[:2], 4)


def test_independent_reveals_leave_a_binomial_number_masked():
    """Noising masks a token by time t with probability t; the reverse chain passes through the same counts."""
    policy = make_policy("independent", UNEVEN)
    chain = EnumeratedChain(policy)
    occupancy = chain.occupancy(chain.laws(policy))
    for t, law in zip(UNEVEN, occupancy, strict=True):
        counts = torch.stack([law[rows].sum() for rows in chain.levels])
        binomial = [math.comb(LENGTH, m) * t**m * (1 - t) ** (LENGTH - m) for m in range(LENGTH + 1)]
        torch.testing.assert_close(counts, torch.tensor(binomial, dtype=torch.float64))


@pytest.mark.parametrize("reveal", ["count", "independent"])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_relax_gives_one_hot_samples_of_the_same_law(reveal, tau):
    """Same stream, same positions; the value is exactly one-hot and a possible successor."""
    policy = make_policy(reveal, UNEVEN)
    states = EnumeratedChain(policy).states
    law = policy.step(states, policy.grid[0], policy.grid[1])
    relaxed = law.relax(torch.Generator().manual_seed(0), tau=tau)
    assert set(relaxed.unique().tolist()) == {0.0, 1.0}
    assert relaxed.sum(-1).eq(1).all()
    x_s = relaxed.argmax(-1)
    assert law.log_prob(x_s).isfinite().all()
    assert torch.equal(x_s == LETTERS, law.sample(torch.Generator().manual_seed(0)) == LETTERS)


@pytest.mark.parametrize("reveal", ["count", "independent"])
def test_relax_has_a_gradient_through_the_shown_positions_only(reveal):
    policy = make_policy(reveal, UNEVEN)
    x_t = torch.full((64, LENGTH), LETTERS)
    logits = policy.denoiser(x_t, policy.grid).clone().requires_grad_(True)
    law = MaskedStep(logits, x_t, policy.grid[1] / policy.grid[0], reveal)
    relaxed = law.relax(torch.Generator().manual_seed(0), tau=0.7)
    direction = torch.randn(relaxed.shape, generator=torch.Generator().manual_seed(1), dtype=relaxed.dtype)
    (relaxed * direction).sum().backward()
    shown = relaxed.argmax(-1) != LETTERS
    assert shown.any()
    assert not shown.all()
    assert logits.grad[~shown].eq(0).all()
    assert logits.grad[shown].abs().sum(-1).gt(0).all()


def test_a_relaxed_state_goes_on_as_the_state_it_is_in_value():
    policy, other = make_policy("count", UNEVEN), make_policy("count", UNEVEN, seed=1)
    t, s, u = policy.grid[:3]
    x_1 = torch.full((64, LENGTH), LETTERS)
    relaxed = policy.step(x_1, t, s).relax(torch.Generator().manual_seed(0), tau=0.5)
    soft, hard = policy.step(relaxed, s, u), policy.step(relaxed.argmax(-1), s, u)
    x_s = hard.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(soft.log_prob(x_s), hard.log_prob(x_s))
    torch.testing.assert_close(soft.kl(other.step(relaxed, s, u)), hard.kl(other.step(relaxed.argmax(-1), s, u)))
    relaxed_again = soft.relax(torch.Generator().manual_seed(2), tau=0.5)
    before = relaxed.argmax(-1)
    assert torch.equal(relaxed_again.argmax(-1)[before != LETTERS], before[before != LETTERS])


def test_log_prob_and_kl_have_the_gradient_of_their_formulas():
    """Against central differences, on a state with a shown token, both reveal laws."""
    x_t, x_s = torch.tensor([[2, 0, 2, 2]]), torch.tensor([[1, 0, 2, 0]])
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    other = torch.randn(1, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    keep = torch.tensor(0.4, dtype=torch.float64)
    for reveal in ("count", "independent"):
        assert torch.autograd.gradcheck(lambda z, r=reveal: MaskedStep(z, x_t, keep, r).log_prob(x_s), (logits,))
        assert torch.autograd.gradcheck(
            lambda z, w, r=reveal: MaskedStep(z, x_t, keep, r).kl(MaskedStep(w, x_t, keep, r)), (logits, other)
        )


def test_what_is_not_defined_says_so():
    law = make_policy("count", UNEVEN).step(torch.full((1, LENGTH), LETTERS), torch.tensor(1.0), torch.tensor(0.5))
    assert law.has_density
    with pytest.raises(UnsupportedError, match="discrete"):
        law.rsample(torch.Generator())
    with pytest.raises(ConfigError, match="count, independent"):
        Masked(4, "all")
    assert issubclass(UnsupportedError, NotImplementedError)
    assert issubclass(NoDensityError, ValueError)


def test_the_process_is_described_by_plain_values():
    process = Masked(4, "independent")
    assert process.config() == {"vocabulary": 4, "reveal": "independent"}
    assert process.memoryless
