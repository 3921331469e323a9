"""Masked diffusion in stages keeps the contract of a process, on every state of small chains."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.trajectory import rollout, sample_states
from difftilt.errors import ConfigError, ShapeError, UnsupportedError
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.problems.landscapes import TabularDenoiser
from difftilt.processes.masked import Masked, MaskedStep

LETTERS, LENGTH = 2, 4
MASK = LETTERS
APART = [(1, 1.0, 0.75), (2, 0.75, 0.5), (1, 0.5, 0.0)]
OVERLAPPING = [(1, 1.0, 0.6), (2, 0.8, 0.3), (1, 0.5, 0.1)]
ENDS = [1.0, 0.75, 0.6, 0.5, 0.2, 0.0]
CROSSING = [1.0, 0.7, 0.31, 0.0]
chains = pytest.mark.parametrize(
    ("reveal", "stages", "grid"),
    [
        (reveal, stages, grid)
        for reveal in ("count", "independent")
        for stages in (APART, OVERLAPPING)
        for grid in (ENDS, CROSSING)
    ],
    ids=[
        f"{reveal}, {stages}, {grid}"
        for reveal in ("count", "independent")
        for stages in ("apart", "overlapping")
        for grid in ("with the ends", "across the ends")
    ],
)
reveals = pytest.mark.parametrize("reveal", ["count", "independent"])
STATES = torch.tensor(list(itertools.product(range(LETTERS + 1), repeat=LENGTH)))


def make_policy(reveal: str, stages: list, grid: list[float] | None = None, *, steps: int = 8, seed: int = 0) -> Policy:
    """Random token laws on every partial state: nothing about them is special."""
    denoiser = TabularDenoiser(LETTERS, LENGTH)
    nn.init.normal_(denoiser.logits, std=1.5, generator=torch.Generator().manual_seed(seed))
    times = None if grid is None else torch.tensor(grid, dtype=torch.float64)
    process, codec = Masked(LETTERS, reveal, stages), TokenCodec("AC", LENGTH)
    return Policy(denoiser, process, codec, (LENGTH,), steps=steps, grid=times).frozen_copy()


def all_pairs(policy: Policy, k: int) -> torch.Tensor:
    """``log_prob`` of every pair of states, possible or not: ``[S, S]``."""
    size = len(STATES)
    law = policy.step(STATES.repeat_interleave(size, 0), policy.grid[k], policy.grid[k + 1])
    return law.log_prob(STATES.repeat(size, 1)).view(size, size)


def hidden(stages: list, t: float) -> list[float]:
    """Probability of each position to be masked at ``t``, written a second time."""
    return [min(max((t - low) / (high - low), 0.0), 1.0) for count, high, low in stages for _ in range(count)]


def by_hand(policy: Policy, stages: list, k: int) -> torch.Tensor:
    """The law of a step on all states, from the definition: a product over runs of reveal laws, and token laws."""
    now, after = hidden(stages, policy.grid[k].item()), hidden(stages, policy.grid[k + 1].item())
    runs, first = [], 0
    for count, _, _ in stages:
        runs.append(range(first, first + count))
        first += count
    laws = policy.denoiser(STATES, policy.grid[:1]).double().softmax(-1)
    table = torch.zeros(len(STATES), len(STATES), dtype=torch.float64)
    for row, x_t in enumerate(STATES.tolist()):
        for column, x_s in enumerate(STATES.tolist()):
            if any(a not in (MASK, b) for a, b in zip(x_t, x_s, strict=True)):
                continue
            weight = 1.0
            for run in runs:
                masked = [i for i in run if x_t[i] == MASK]
                shown = [i for i in masked if x_s[i] != MASK]
                keep = after[run[0]] / now[run[0]] if now[run[0]] > 0 else 0.0
                if policy.process.reveal == "count":
                    stay = math.floor(len(masked) * keep + 0.5 - 1e-9)
                    weight *= (len(masked) - len(shown) == stay) / math.comb(len(masked), len(shown))
                else:
                    weight *= (1 - keep) ** len(shown) * keep ** (len(masked) - len(shown))
                for i in shown:
                    weight *= laws[row, i, x_s[i]].item()
            table[row, column] = weight
    return table


@chains
def test_log_prob_is_the_definition_and_rows_sum_to_one(reveal, stages, grid):
    policy = make_policy(reveal, stages, grid)
    for k in range(policy.steps):
        table = all_pairs(policy, k)
        torch.testing.assert_close(table.exp(), by_hand(policy, stages, k), rtol=0, atol=1e-12)
        torch.testing.assert_close(table.exp().sum(-1), torch.ones(len(table), dtype=table.dtype))


@chains
def test_closed_form_kl_is_the_sum_over_successors(reveal, stages, grid):
    policy, other = make_policy(reveal, stages, grid), make_policy(reveal, stages, grid, seed=1)
    for k in range(policy.steps):
        mine, theirs = all_pairs(policy, k), all_pairs(other, k)
        expected = (mine.exp() * (mine - theirs).where(mine > -math.inf, 0)).sum(-1)
        t, s = policy.grid[k], policy.grid[k + 1]
        closed = policy.step(STATES, t, s).kl(other.step(STATES, t, s))
        torch.testing.assert_close(closed, expected, rtol=0, atol=1e-12)
        assert policy.step(STATES, t, s).kl(policy.step(STATES, t, s)).eq(0).all()


@reveals
def test_one_stage_is_the_process_without_stages_to_the_last_bit(reveal, rng):
    plain = make_policy(reveal, None, CROSSING)
    staged = make_policy(reveal, [(LENGTH, 1.0, 0.0)], CROSSING)
    t = torch.rand(64, generator=rng, dtype=torch.float64)
    x_0 = torch.randint(0, LETTERS, (64, LENGTH), generator=rng)
    one, two = (p.process.corrupt(x_0, t, torch.Generator().manual_seed(1)) for p in (plain, staged))
    assert torch.equal(one, two)
    for s in (t * 0.7, torch.zeros_like(t)):
        a, b = plain.step(one, t, s), staged.step(one, t, s)
        x_s = a.sample(torch.Generator().manual_seed(2))
        assert torch.equal(x_s, b.sample(torch.Generator().manual_seed(2)))
        assert torch.equal(a.log_prob(x_s), b.log_prob(x_s))
        whole = [(LENGTH, 1.0, 0.0)]
        others = [make_policy(reveal, stages, CROSSING, seed=1).step(one, t, s) for stages in (None, whole)]
        assert torch.equal(a.kl(others[0]), b.kl(others[1]))
        assert torch.equal(a.relax(torch.Generator().manual_seed(3), tau=0.5),
                           b.relax(torch.Generator().manual_seed(3), tau=0.5))  # fmt: skip


@reveals
def test_a_stage_is_finished_before_the_next_begins(reveal):
    policy = make_policy(reveal, APART, steps=8)
    assert policy.steps == 8
    for x_t, t in zip(rollout(policy, 256, torch.Generator().manual_seed(0)).states, policy.grid, strict=True):
        masked = x_t == MASK
        for run, (count, high, low) in zip((slice(0, 1), slice(1, 3), slice(3, 4)), APART, strict=True):
            assert t < high or masked[:, run].all()
            assert t > low or not masked[:, run].any()
            assert masked[:, run].shape[1] == count


def test_as_many_steps_as_positions_show_one_a_step():
    policy = make_policy("count", APART, steps=4)
    left = (rollout(policy, 64, torch.Generator().manual_seed(0)).states == MASK).sum(-1)
    assert left.tolist() == [[m] * 64 for m in (4, 3, 2, 1, 0)]


def test_a_run_past_its_window_is_shown_at_once():
    """Off the chain's path, so that no state is a dead end."""
    law = make_policy("count", APART).step(torch.full((8, LENGTH), MASK), torch.tensor(0.3), torch.tensor(0.2))
    x_s = law.sample(torch.Generator().manual_seed(0))
    assert (x_s[:, :3] != MASK).all()
    assert law.log_prob(x_s).isfinite().all()


@reveals
def test_a_batch_of_mixed_times_is_each_time_by_itself(reveal):
    policy, other = make_policy(reveal, OVERLAPPING, ENDS), make_policy(reveal, OVERLAPPING, ENDS, seed=1)
    k = torch.arange(len(STATES)) % policy.steps
    t, s = policy.grid[k], policy.grid[k + 1]
    mixed, mixed_other = policy.step(STATES, t, s), other.step(STATES, t, s)
    x_s = mixed.sample(torch.Generator().manual_seed(0))
    assert mixed.log_prob(x_s).isfinite().all()
    for step in range(policy.steps):
        rows = k == step
        alone = policy.step(STATES[rows], policy.grid[step], policy.grid[step + 1])
        alone_other = other.step(STATES[rows], policy.grid[step], policy.grid[step + 1])
        assert torch.equal(alone.log_prob(x_s[rows]), mixed.log_prob(x_s)[rows])
        assert torch.equal(alone.kl(alone_other), mixed.kl(mixed_other)[rows])


@reveals
def test_letters_that_cannot_be_have_no_kl_and_no_gradient(reveal):
    """A logit of minus infinity: the same letter is impossible under both policies, in laws, KLs and gradients."""
    rng = torch.Generator().manual_seed(0)
    raw = [torch.randn(3, LENGTH, 3, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    never = torch.zeros(LENGTH, 3, dtype=torch.bool)
    never[1:3, 2] = True
    process, x_t = Masked(3, reveal, APART), torch.tensor([[0, 3, 3, 3]] * 3)
    laws = [
        process.transition(z.masked_fill(never, -math.inf), x_t, torch.tensor(0.7), torch.tensor(0.55)) for z in raw
    ]
    kl = laws[0].kl(laws[1])
    two = [
        process.transition(z[..., :2], x_t.clamp(max=2), torch.tensor(0.7), torch.tensor(0.55)) for z in raw
    ]  # the letters that are left in the run whose turn it is
    torch.testing.assert_close(kl, two[0].kl(two[1]))
    x_s = laws[0].sample(rng)
    assert (x_s[:, 1:3] != 2).all()
    loss = kl.sum() + laws[0].log_prob(x_s).sum()
    for gradient in torch.autograd.grad(loss, raw):
        assert gradient.isfinite().all()
        assert gradient[:, 1:3, 2].eq(0).all()


# --- the noising law and the bound ----------------------------------------------------------------------------------


def test_corrupt_masks_each_run_with_its_own_probability(rng):
    """H0: binomial shares; |z| < 4.9 fails once in 10^6 for each run. The twin takes the next run's window."""
    n = 20_000
    for t in (0.9, 0.7, 0.4, 0.05):
        x_t = Masked(2, stages=OVERLAPPING).corrupt(torch.zeros(n, LENGTH, dtype=torch.long), torch.full((n,), t), rng)
        share = (x_t == 2).double().mean(0)
        for found, p, wrong in zip(share.tolist(), hidden(OVERLAPPING, t), hidden(OVERLAPPING[::-1], t), strict=True):
            error = max((p * (1 - p) / n) ** 0.5, 1e-6)
            assert abs(found - p) < 4.9 * error
            assert p == wrong or abs(found - wrong) > 4.9 * error


def orders() -> list[tuple[int, ...]]:
    """All orders of showing single positions that the stages allow."""
    return [(0, *pair, 3) for pair in itertools.permutations((1, 2))]


def marginal(denoiser: nn.Module, x_0: list[int]) -> float:
    """Probability of a design under the chain that shows one position a step: a mean over orders."""
    total = 0.0
    for order in orders():
        state, p = [MASK] * LENGTH, 1.0
        for i in order:
            p *= denoiser(torch.tensor([state]), torch.ones(1)).double().softmax(-1)[0, i, x_0[i]].item()
            state[i] = x_0[i]
        total += p / len(orders())
    return total


def mean_loss(denoiser: nn.Module, x_0: list[int]) -> float:
    r"""The mean of the loss over ``t ~ U(0, 1)`` and masks, exactly.

    Within a window of width ``w``, a pattern of ``m`` of ``n`` masked has probability
    :math:`w \int_0^1 u^m (1 - u)^{n - m} du`; earlier runs are shown, later ones masked.
    """
    process, total = Masked(LETTERS, stages=APART), 0.0
    target = torch.tensor([x_0])
    for (first, last), (n, high, low) in zip(((0, 1), (1, 3), (3, 4)), APART, strict=True):
        for pattern in itertools.product([False, True], repeat=n):
            masked = torch.tensor([[i >= last or (i >= first and pattern[i - first]) for i in range(LENGTH)]])
            x_t, m = target.where(~masked, MASK), sum(pattern)
            t = torch.tensor([(high + low) / 2], dtype=torch.float64)
            weight = (high - low) * math.gamma(m + 1) * math.gamma(n - m + 1) / math.gamma(n + 2)
            total += weight * process.denoising_loss(denoiser(x_t, t).double(), target, x_t, t).item()
    return total


def test_the_mean_loss_is_the_likelihood_where_orders_agree():
    joint = torch.rand(2, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint /= joint.sum()
    denoiser = TabularDenoiser.from_joint(joint)
    for x_0 in itertools.product(range(2), repeat=LENGTH):
        assert mean_loss(denoiser, list(x_0)) == pytest.approx(-math.log(joint[x_0].item()), abs=1e-10)


def test_the_mean_loss_bounds_the_likelihood_where_they_do_not():
    denoiser = make_policy("count", APART).denoiser
    gaps = []
    for x_0 in itertools.product(range(2), repeat=LENGTH):
        bound, p = mean_loss(denoiser, list(x_0)), marginal(denoiser, list(x_0))
        gaps.append(bound + math.log(p))
    assert min(gaps) > -1e-12
    assert max(gaps) > 0.05  # and is no equality


def test_the_weights_are_the_means_of_the_continuous_ones():
    r"""With ``m`` of ``n`` masked, the mean of :math:`1 / (t - a)` over the posterior of ``t``, by quadrature."""
    n, high, low = 3, 0.8, 0.3
    process = Masked(1, stages=[(n, high, low)])
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for m in (1, 2, 3):
        x_t = torch.tensor([[1] * m + [0] * (n - m)])
        weight = process.denoising_loss(torch.zeros(1, n, 1), torch.zeros_like(x_t), x_t, torch.tensor([0.5]))
        assert weight.item() == 0  # one letter is certain
        logits = torch.tensor([[[0.0, 0.0]]], dtype=torch.float64).expand(1, n, 2)
        two = Masked(2, stages=[(n, high, low)])
        loss = two.denoising_loss(logits, torch.zeros_like(x_t), x_t.where(x_t == 0, 2), torch.tensor([0.5]))
        posterior = u**m * (1 - u) ** (n - m)
        mean = (posterior / (u * (high - low))).sum() / posterior.sum()
        assert loss.item() == pytest.approx(m * math.log(2) * mean.item(), rel=1e-6)


def test_there_is_no_loss_outside_a_window():
    process, x_t = Masked(2, stages=APART), torch.full((3, LENGTH), 2)
    logits = torch.zeros(3, LENGTH, 2, requires_grad=True)
    loss = process.denoising_loss(logits, torch.zeros_like(x_t), x_t, torch.tensor([0.9, 0.6, 0.2]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.abs().sum(-1).gt(0).tolist() == [
        [True, False, False, False], [False, True, True, False], [False, False, False, True]
    ]  # fmt: skip


# --- samples ---------------------------------------------------------------------------------------------------------

FALSE_ALARM = 1e-6
N = 20_000


def p_value(states: torch.Tensor, law: torch.Tensor) -> float:
    """G-test of drawn states against a law over all partial states; H0: multinomial counts."""
    index = states @ (LETTERS + 1) ** torch.arange(LENGTH - 1, -1, -1)
    observed = index.bincount(minlength=len(STATES)).double()
    if observed[law <= 0].any():
        return 0.0
    expected = law * len(states)
    often = expected >= 5
    observed = torch.cat([observed[often], observed[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None]])
    positive = expected > 0
    if positive.sum() == 1:
        return 1.0
    statistic = 2 * torch.xlogy(observed, observed / expected).where(positive, 0).sum()
    return float(chi2.sf(statistic.item(), int(positive.sum()) - 1))


def occupancy(policy: Policy, stages: list) -> list[torch.Tensor]:
    """Law of the state at each time, from :func:`by_hand`."""
    law = torch.zeros(len(STATES), dtype=torch.float64)
    law[-1] = 1.0  # all masked
    laws = [law]
    for k in range(policy.steps):
        laws.append(laws[-1] @ by_hand(policy, stages, k))
    return laws


@chains
def test_a_rollout_visits_the_law_and_one_without_stages_does_not(reveal, stages, grid):
    """H0 as in :func:`p_value`, once in 10^6 seeds for each time. The twin runs the same network without stages."""
    policy, twin = make_policy(reveal, stages, grid), make_policy(reveal, None, grid)
    laws = occupancy(policy, stages)
    right, wrong = (rollout(p, N, torch.Generator().manual_seed(0)).states for p in (policy, twin))
    assert all(p_value(x_t, law) > FALSE_ALARM for x_t, law in zip(right, laws, strict=True))
    assert min(p_value(x_t, law) for x_t, law in zip(wrong, laws, strict=True)) < FALSE_ALARM


@reveals
def test_relax_follows_the_same_law(reveal):
    policy = make_policy(reveal, OVERLAPPING, ENDS)
    states = policy.prior(N, torch.Generator())
    law = by_hand(policy, OVERLAPPING, 0)[-1]
    relaxed = policy.step(states, policy.grid[0], policy.grid[1]).relax(torch.Generator().manual_seed(0), tau=0.5)
    assert p_value(relaxed.argmax(-1), law) > FALSE_ALARM


@reveals
def test_fixed_positions_are_held(reveal):
    policy = make_policy(reveal, APART).holding(torch.tensor([-1, 1, -1, 0]))
    x_0 = sample_states(policy, 64, torch.Generator().manual_seed(0))
    assert (x_0[:, 1] == 1).all()
    assert (x_0[:, 3] == 0).all()


# --- grids, settings -------------------------------------------------------------------------------------------------


def test_grids_include_the_ends_of_windows():
    process = Masked(2, stages=APART)
    assert process.grid(3).tolist() == [1, 0.75, 0.5, 0]
    assert process.grid([1, 1, 3]).tolist() == pytest.approx([1, 0.75, 0.5, 1 / 3, 1 / 6, 0])
    assert process.grid(4).tolist() == [1, 0.75, 0.625, 0.5, 0]  # one position a step: no more is to be had
    assert process.grid(6).tolist() == [1, 0.875, 0.75, 0.625, 0.5, 0.25, 0]
    independent = Masked(2, "independent", APART)
    assert independent.grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]  # the widest step is halved
    for steps in range(3, 40):
        grid = process.grid(steps)
        assert len(grid) == steps + 1
        assert {1.0, 0.75, 0.5, 0.0} <= set(grid.tolist())
    with pytest.raises(ConfigError, match="at least 3 steps, one for each stage; got 2"):
        process.grid(2)
    with pytest.raises(ConfigError, match="expected 3 numbers of steps"):
        process.grid([1, 2])
    assert Masked(2).grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_a_policy_asks_the_process_for_its_times():
    policy = make_policy("count", APART, steps=8).with_steps(5)
    assert policy.steps == 5
    assert {0.75, 0.5} <= set(policy.grid.tolist())


def test_settings_are_kept_and_checked():
    process = Masked(2, "independent", APART)
    assert process.config() == {"vocabulary": 2, "reveal": "independent", "stages": [list(stage) for stage in APART]}
    assert Masked(**process.config()).stages == process.stages
    for stages in ([(1, 0.5, 0.5)], [(0, 1.0, 0.0)], [(1, 1.2, 0.0)], [(1, 1.0)]):
        with pytest.raises(ConfigError, match="expected a stage"):
            Masked(2, stages=stages)
    with pytest.raises(ShapeError, match="states of 4 positions"):
        process.corrupt(torch.zeros(2, 3, dtype=torch.long), torch.rand(2), torch.Generator())
    with pytest.raises(UnsupportedError, match="without stages"):
        EnumeratedChain(make_policy("count", APART))


def test_a_tilted_step_has_tilted_tokens_and_the_same_reveal_law():
    law = make_policy("count", APART).step(STATES, torch.tensor(0.7), torch.tensor(0.6))
    tilt = torch.randn(law.logits.shape, generator=torch.Generator().manual_seed(0))
    tilted = law.tilted(tilt)
    assert isinstance(tilted, MaskedStep)
    assert torch.equal(tilted.logits, law.logits + tilt)
    assert torch.equal(tilted.shown, law.shown)
    x_s = law.sample(torch.Generator().manual_seed(0))
    assert tilted.log_prob(x_s).isfinite().all()
