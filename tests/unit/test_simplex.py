"""Simplex diffusion: forward laws, score, step density and KL, loss, decoding."""

from __future__ import annotations

import math

import pytest
import torch

from difftilt.core.codec import SimplexCodec
from difftilt.core.jacobi import lines_of_descent, log_densities
from difftilt.core.sticks import break_sticks, sticks_of
from difftilt.errors import ConfigError
from difftilt.processes.simplex import CLOCK, Simplex

V = 4
PROCESS = Simplex(V)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def time(t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


def weighted_score(logits: torch.Tensor, u: torch.Tensor, t: float) -> torch.Tensor:
    return PROCESS._weighted_score(logits, PROCESS._scores(u, time(t).reshape(-1, 1, 1)))


def log_forward(u: torch.Tensor, t: float) -> torch.Tensor:
    """Log q(u | letter) of one position, [B, V], from the mixtures themselves."""
    total = torch.zeros(len(u), V, dtype=torch.float64)
    for i in range(V - 1):
        b = PROCESS.b[i].item()
        weight = lines_of_descent(1 + b, [PROCESS.horizon * t**2 * PROCESS.speed[i].item()])[0]
        zero, one = (terms.logsumexp(0) for terms in log_densities(u[:, i], 1.0, b, weight))
        free = math.log(b) + (b - 1) * torch.log1p(-u[:, i])
        for letter in range(V):
            total[:, letter] += zero if i < letter else one if i == letter else free
    return total


@pytest.mark.parametrize("t", [0.02, 0.1, 0.5])
def test_corruption_has_the_moments_of_the_diffusion(rng, t):
    """Mean of each stick, exact, within 5 standard errors; sticks behind the letter are stationary."""
    n = 20_000
    for letter in range(V):
        u = PROCESS.corrupt(torch.full((n, 1), letter), time(t).expand(n), rng)[:, 0].double()
        for i in range(V - 1):
            rest = 1 / (1 + PROCESS.b[i].item())
            kept = math.exp(-PROCESS.horizon * t**2)  # balanced speed: one rate for all
            start = rest if i > letter else float(i == letter)
            wanted = rest + (start - rest) * kept
            assert abs(u[:, i].mean().item() - wanted) < 5 * u[:, i].std().item() / n**0.5 + 2e-3 * abs(start - wanted)


def test_the_score_is_the_derivative_of_the_mixture_over_letters(rng):
    u = 0.02 + 0.96 * torch.rand(64, V - 1, generator=rng, dtype=torch.float64)
    logits = torch.randn(64, V, generator=rng, dtype=torch.float64)
    for t in (0.2, 0.4, 0.8):
        inside = u.clone().requires_grad_()
        terms = log_forward(inside, t)
        slopes = torch.stack(
            [torch.autograd.grad(terms[:, c].sum(), inside, retain_graph=True)[0] for c in range(V)]
        )  # [V, B, i]
        wanted = (logits.softmax(-1).T[..., None] * slopes).sum(0) * u * (1 - u)
        found = weighted_score(logits[:, None], u[:, None], t)[:, 0]
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=5e-3)


def test_the_step_is_the_reversed_diffusion(rng):
    """Mean and variance per unit of diffusion time are those of equation (4), with the state itself as the base."""
    u = 0.1 + 0.8 * torch.rand(8, 2, V - 1, generator=rng, dtype=torch.float64)
    logits = torch.randn(8, 2, V, generator=rng, dtype=torch.float64)
    law, step = PROCESS.transition(logits, u, time(0.5), time(0.4)), 4 * (0.25 - 0.16)
    b, speed = PROCESS.b, PROCESS.speed
    forward, square = speed / 2 * (1 - u - b * u), speed * u * (1 - u)
    pull = speed * weighted_score(logits, u, 0.5)
    torch.testing.assert_close((law.mean - u) / step, -forward + speed * (1 - 2 * u) + pull)
    torch.testing.assert_close(law.std**2 / step, square)


def test_states_outside_are_kept_and_only_the_coefficients_are_clamped():
    out = torch.tensor([[[-0.2, 1.3, 0.5]]], dtype=torch.float64)
    edge = out.clamp(PROCESS.edge, 1 - PROCESS.edge)
    logits = torch.zeros(1, 1, V, dtype=torch.float64)
    law, inside = (PROCESS.transition(logits, u, time(0.5), time(0.4)) for u in (out, edge))
    torch.testing.assert_close(law.mean - out, inside.mean - edge)
    torch.testing.assert_close(law.std, inside.std)
    assert (law.std > 0).all()
    assert law.log_prob(law.sample(torch.Generator().manual_seed(0))).isfinite().all()


def test_log_prob_is_the_density_of_the_draw_and_kl_its_mean_log_ratio(rng):
    n = 40_000
    u = (0.1 + 0.8 * torch.rand(1, 2, V - 1, generator=rng, dtype=torch.float64)).expand(n, -1, -1)
    mine, theirs = (
        PROCESS.transition(torch.randn(1, 2, V, generator=rng).double().expand(n, -1, -1), u, time(0.5), time(0.4))
        for _ in range(2)
    )
    x_s = mine.sample(rng)
    normal = torch.distributions.Normal(mine.mean, mine.std)
    torch.testing.assert_close(mine.log_prob(x_s), normal.log_prob(x_s).sum((1, 2)))
    ratio, kl = mine.log_prob(x_s) - theirs.log_prob(x_s), mine.kl(theirs)
    assert kl[0] > 0.01
    assert abs(ratio.mean() - kl[0]).item() < 5 * ratio.std().item() / n**0.5
    assert (mine.kl(mine) == 0).all()


def test_kl_is_half_speed_times_the_squared_score_difference(rng):
    """Theory 5, per coordinate."""
    u = 0.1 + 0.8 * torch.rand(8, 2, V - 1, generator=rng, dtype=torch.float64)
    one, other = (torch.randn(8, 2, V, generator=rng).double() for _ in range(2))
    step = 4 * (0.25 - 0.16)
    laws = [PROCESS.transition(logits, u, time(0.5), time(0.4)) for logits in (one, other)]
    score = [weighted_score(x, u, 0.5) / (u * (1 - u)) for x in (one, other)]
    wanted = 0.5 * PROCESS.speed * u * (1 - u) * (score[0] - score[1]) ** 2 * step
    torch.testing.assert_close(laws[0].kl(laws[1]), wanted.sum((1, 2)))


def test_pathwise_gradient_is_that_of_finite_differences(rng):
    u = (0.1 + 0.8 * torch.rand(1, 1, V - 1, generator=rng, dtype=torch.float64)).requires_grad_()
    logits = torch.randn(1, 1, V, generator=rng, dtype=torch.float64, requires_grad=True)

    def draw(state, prediction):
        return PROCESS.transition(prediction, state, time(0.5), time(0.4)).rsample(torch.Generator().manual_seed(3))

    assert torch.autograd.gradcheck(draw, (u, logits), eps=1e-7, atol=1e-3)


def test_the_loss_is_least_at_the_posterior_and_bounds_the_likelihood(rng):
    """One position, a data law over letters: at the exact posterior the mean loss is the entropy, no less."""
    data = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    n = 40_000
    index = 10 * torch.randint(1, CLOCK // 10 + 1, (n,), generator=rng) - 5  # midpoints of 50 parts
    t, letters = index.double() / CLOCK, torch.multinomial(data, n, replacement=True, generator=rng)[:, None]
    u = PROCESS.corrupt(letters, t, rng)
    logits = torch.zeros(n, V, dtype=torch.float64)
    for k in index.unique().tolist():
        rows = index == k
        logits[rows] = log_forward(u[rows, 0].double().clamp(1e-5, 1 - 1e-5), k / CLOCK) + data.log()
    losses = [
        PROCESS.denoising_loss((logits + extra)[:, None], letters, u, t)
        for extra in (torch.zeros(V), torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0]))
    ]
    entropy = -(data * data.log()).sum().item()
    assert abs(losses[0].mean().item() - entropy) < 5 * losses[0].std().item() / n**0.5 + 0.01
    for other in losses[1:]:
        worse = other - losses[0]
        assert worse.mean() > 5 * worse.std() / n**0.5


def test_the_exact_posterior_carries_noise_to_the_data(rng):
    """Letters of 2,000 chains of 25 steps within 5 standard errors and a percent; twin: guesses from the data alone."""
    data, n, steps = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64), 2000, 25
    for pull, right in ((1.0, True), (0.0, False)):
        u = PROCESS.prior((n, 1, V - 1), rng).double()
        for k in range(steps):
            t, s = 1 - k / steps, 1 - (k + 1) / steps
            logits = pull * log_forward(u[:, 0].clamp(1e-5, 1 - 1e-5), t) + data.log()
            u = PROCESS.transition(logits[:, None], u, time(t), time(max(s, 0.0))).sample(rng)
        law = break_sticks(u.clamp(0, 1)).argmax(-1).flatten().bincount(minlength=V) / n
        near = ((law - data).abs() < 5 * (data * (1 - data) / n).sqrt() + 0.01).all()
        corners = break_sticks(u.clamp(0, 1)).amax(-1).mean() > 0.99
        assert bool(near and corners) == right


def test_sticks_break_to_points_of_the_simplex(rng):
    u = torch.rand(16, 3, V - 1, generator=rng)
    x = break_sticks(u)
    torch.testing.assert_close(x.sum(-1), torch.ones(16, 3))
    letters = torch.randint(0, V, (16, 3), generator=rng)
    assert torch.equal(break_sticks(sticks_of(letters, V)).argmax(-1), letters)


def test_designs_are_read_off_by_argmax_and_no_position_is_empty(rng):
    codec = SimplexCodec("ACGT", 5)
    designs = ["ACGTA", "TTGCA"]
    assert codec.decode(codec.encode(designs)) == designs
    anywhere = 3 * torch.randn(64, 5, V - 1, generator=rng)
    assert all(len(design) == 5 and set(design) <= set("ACGT") for design in codec.decode(anywhere))
    flat = codec.decode(torch.full((1, 5, V - 1), 0.3))  # no letter above a threshold of 0.5
    assert len(flat[0]) == 5
    read = codec.readable(anywhere.requires_grad_())
    assert torch.equal(read.argmax(-1), break_sticks(anywhere.clamp(0, 1)).argmax(-1))
    torch.testing.assert_close(read.detach().amax(-1), torch.ones(64, 5))
    read[..., 0].sum().backward()
    assert anywhere.grad.abs().sum() > 0


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="edge"):
        Simplex(4, edge=0.5)
