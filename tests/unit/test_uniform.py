"""Uniform diffusion: kernels equal brute-force enumeration, the loss is the bound it says it is."""

from __future__ import annotations

import itertools

import pytest
import torch

from difftilt.processes.uniform import Uniform, UniformStep

V, L = 3, 2


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def time(t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


def every() -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(V)] * L)


def forward(t: float) -> torch.Tensor:
    """q(x_t | x_0) of one token, [x_0, x_t]."""
    return (1 - t) * torch.eye(V).double() + t / V


def brute_force(law: torch.Tensor, x_t: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """Posterior kernel of one state by Bayes' rule, token by token: [V**L]."""
    between = (1 - t) / (1 - s)
    move = between * torch.eye(V).double() + (1 - between) / V  # [x_s, x_t]
    rows = []
    for x_s in every():
        total = 1.0
        for i in range(L):
            total = total * sum(
                law[i, a] * move[x_s[i], x_t[i]] * forward(s)[a, x_s[i]] / forward(t)[a, x_t[i]] for a in range(V)
            )
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.75), (0.6, 0.2), (0.3, 0.0), (1.0, 0.0)])
def test_the_kernel_is_the_posterior_by_enumeration(rng, t, s):
    logits = torch.randn(1, L, V, generator=rng, dtype=torch.float64)
    for x_t in every():
        step = Uniform(V).transition(logits, x_t[None], time(t), time(s))
        found = torch.stack([step.log_prob(x_s[None])[0] for x_s in every()]).exp()
        torch.testing.assert_close(found, brute_force(logits[0].softmax(-1), x_t, t, s), rtol=1e-12, atol=1e-14)
        assert found.sum().item() == pytest.approx(1, abs=1e-12)


def test_exact_posteriors_reverse_the_noising_law(rng):
    """With one token and the exact law of x_0 given x_t, each step carries q(x_t) into q(x_s)."""
    data = torch.rand(V, generator=rng, dtype=torch.float64)
    data /= data.sum()
    for t, s in itertools.pairwise([1.0, 0.7, 0.3, 0.0]):
        before, after = data @ forward(t), data @ forward(s)
        joint = data[:, None] * forward(t)  # [x_0, x_t]
        logits = (joint / before).T.log()[:, None]  # [x_t, 1, x_0]
        step = UniformStep(logits, torch.arange(V)[:, None], time(1 - t), time(1 - s))
        torch.testing.assert_close(before @ step.log_law[:, 0].exp(), after, rtol=1e-12, atol=1e-14)


def test_kl_is_the_expected_log_ratio(rng):
    x_t = every()
    mine, theirs = (
        Uniform(V).transition(torch.randn(len(x_t), L, V, generator=rng).double(), x_t, time(0.7), time(0.3))
        for _ in range(2)
    )
    expected = torch.zeros(len(x_t)).double()
    for x_s in every():
        here = x_s.expand_as(x_t)
        expected += mine.log_prob(here).exp() * (mine.log_prob(here) - theirs.log_prob(here))
    torch.testing.assert_close(mine.kl(theirs), expected, rtol=1e-12, atol=1e-14)
    assert (mine.kl(theirs) > 0).all()
    assert (mine.kl(mine) == 0).all()


def test_samples_follow_the_law(rng):
    """Frequencies of 100,000 draws within 5 standard errors; relaxed draws are the same tokens."""
    logits = torch.randn(1, L, V, generator=rng).double()
    n, x_t = 100_000, torch.tensor([[0, 2]])
    step = Uniform(V).transition(logits.expand(n, -1, -1), x_t.expand(n, -1), time(0.8), time(0.4))
    drawn = step.sample(torch.Generator().manual_seed(1))
    found = torch.bincount(drawn @ torch.tensor([V, 1]), minlength=V**L) / n
    law = brute_force(logits[0].softmax(-1), x_t[0], 0.8, 0.4)
    assert ((found - law).abs() < 5 * (law * (1 - law) / n).sqrt()).all()
    relaxed = step.relax(torch.Generator().manual_seed(1), tau=0.5)
    assert relaxed.shape == (n, L, V + 1)
    assert torch.equal(relaxed.argmax(-1), drawn)


def test_relaxed_states_give_the_same_law_and_a_gradient_to_the_state(rng):
    logits, x_t = torch.randn(4, L, V, generator=rng).double(), torch.randint(0, V, (4, L), generator=rng)
    relaxed = torch.nn.functional.one_hot(x_t, V + 1).double().requires_grad_()
    t, s = time(0.6), time(0.5)
    hard, soft = (Uniform(V).transition(logits, state, t, s) for state in (x_t, relaxed))
    torch.testing.assert_close(soft.log_law, hard.log_law)
    soft.relax(rng, tau=1.0).square().sum().backward()
    assert relaxed.grad.abs().sum() > 0


def test_the_last_step_is_the_networks_law_and_has_a_finite_gradient(rng):
    logits = torch.randn(2, L, V, generator=rng).double().requires_grad_()
    step = Uniform(V).transition(logits, torch.tensor([[0, 1], [2, 2]]), time(0.25), time(0.0))
    torch.testing.assert_close(step.log_law, logits.log_softmax(-1))
    step.log_prob(torch.tensor([[1, 1], [0, 2]])).sum().backward()
    assert logits.grad.isfinite().all()


def posterior(table: torch.Tensor, t: float) -> torch.Tensor:
    """Logits of x_0 given each x_t for data of law softmax(table), [x_t, 1, x_0]: right for that data only."""
    return (table[:, None] + forward(t).log()).T[:, None]


def chain_bound(table: torch.Tensor, x_0: int, steps: int) -> float:
    """-ELBO of one token by the K-step chain: the sum of KLs between true and model posteriors."""
    total, x_t, own = 0.0, torch.arange(V)[:, None], torch.full((V, 1, V), -1e9).double()
    own[:, 0, x_0] = 0
    for t, s in itertools.pairwise(torch.linspace(1, 0, steps + 1).double()):
        true = Uniform(V).transition(own, x_t, t, s)
        model = Uniform(V).transition(posterior(table, t.item()), x_t, t, s)
        total += (forward(t.item())[x_0] * true.kl(model)).sum().item()
    return total


def test_the_loss_is_the_limit_of_the_chains_bound_and_that_of_the_exact_model_is_the_entropy(rng):
    """Mean of (4) over t and x_t, by quadrature, against the K-step bound for many steps; for the right law, -log p."""
    table = torch.randn(V, generator=rng).double()
    for factor in (1.0, 0.5):  # the data's own law, and another one
        wrong, bounds = factor * table, []
        for x_0 in range(V):
            total, n = 0.0, 1000
            for t in (torch.arange(n).double() + 0.5) / n:
                x_t, truth = torch.arange(V)[:, None], torch.full((V, 1), x_0)
                loss = Uniform(V).denoising_loss(posterior(wrong, t.item()), truth, x_t, t.expand(V))
                total += (forward(t.item())[x_0] * loss).sum().item() / n
            bounds.append(total)
            assert total == pytest.approx(chain_bound(wrong, x_0, 1000), rel=5e-3)
        mean = (table.softmax(0) * torch.tensor(bounds)).sum().item()
        least = -(table.softmax(0) * wrong.log_softmax(0)).sum().item()  # one token: the bound is tight
        assert mean == pytest.approx(least, rel=5e-3)


def test_the_loss_is_least_at_the_exact_posterior(rng):
    """Mean over x_0 and x_t of (4), one token, at one time: gradient 0 at the posterior, and not at the prior."""
    data, t = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4])
    joint = data[:, None] * forward(0.4)
    posterior = (joint / joint.sum(0)).T.log()
    for logits, zero in ((posterior, True), (data.log().expand(V, V), False)):
        logits = logits.clone().requires_grad_()
        total = 0.0
        for x_0 in range(V):
            loss = Uniform(V).denoising_loss(
                logits[:, None], torch.full((V, 1), x_0), torch.arange(V)[:, None], t.expand(V)
            )
            total = total + (joint[x_0] * loss).sum()
        total.backward()
        assert (logits.grad.abs().max().item() < 1e-9) == zero
