"""DRaFT-LV: what redone last steps are on average, where that is DRaFT-1's gradient, and what they save in noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from difftilt.algorithms.pathwise import differentiable_rollout, last_step_again
from difftilt.algorithms.reward_backprop import RewardBackprop, reward_backprop_loss
from difftilt.core.algorithm import Anchor
from difftilt.core.codec import VectorCodec
from difftilt.core.conditions import Conditions
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.errors import ConfigError
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.problems.tilted import TiltedProblem
from difftilt.processes.gaussian import Gaussian

ALPHA, MORE, BATCHES = 0.5, 3, 64


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


REWARD = Quadratic.reward(torch.stack([vector(0.5, 0.1), vector(0.1, 0.3)]), vector(2.0, 1.0), vector(0.3, -0.2))
PLANE = LinearGaussian(
    vector(1.0, -0.5),
    torch.stack([vector(1.0, 0.4), vector(0.4, 0.7)]),
    Gaussian(Cosine(0.05), sigma_min=0.1),
    uniform_grid(2),
)
REFERENCE = PLANE.pretrained().frozen_copy()
SCALES = PLANE.process.schedule.scales(PLANE.grid[-2])


def jolted() -> Policy:
    """A policy somewhere else: its designs, noised, are not what its last step meets."""
    policy, noise = PLANE.pretrained(), torch.Generator().manual_seed(5)
    for parameter in policy.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return policy


def noised(mean: torch.Tensor, covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments at the last step's time of designs with these, noised afresh."""
    alpha, sigma = SCALES
    return alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)


@torch.no_grad()
def consistent() -> Policy:
    """The same last step, after a first step that leads to the law of the chain's own designs, noised."""
    chain = Chain.read(jolted())
    mean, covariance = vector(0.0, 0.0), torch.eye(2, dtype=torch.float64)
    for _ in range(200):
        designs = chain.gain[1] @ covariance @ chain.gain[1].T + chain.noise[1]
        mean, covariance = noised(chain.gain[1] @ mean + chain.shift[1], designs)
    size, axes = torch.linalg.eigh(covariance - chain.noise[0])
    first = axes @ torch.diag(size.sqrt()) @ axes.T / PLANE.process.prior_std
    return PLANE.policy(
        replace(chain, gain=torch.stack([first, chain.gain[1]]), shift=torch.stack([mean, chain.shift[1]]))
    )


def flat(scalar: torch.Tensor, policy: Policy) -> torch.Tensor:
    parts = torch.autograd.grad(scalar, list(policy.parameters()))
    return torch.cat([part.flatten() for part in parts])


def expected(policy: Policy, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Gradient of the last step's own part of J, by closed form, from states with these moments."""
    mine, theirs = Chain.read(policy), Chain.read(REFERENCE)
    gain, shift, noise = mine.gain[1], mine.shift[1], mine.noise[1]
    reward = REWARD.expectation(gain @ mean + shift, gain @ covariance @ gain.T + noise)
    away, offset = gain - theirs.gain[1], (gain - theirs.gain[1]) @ mean + shift - theirs.shift[1]
    kl = ((away @ covariance @ away.T).trace() + offset @ offset) / (2 * noise[0, 0])
    return flat(reward - ALPHA * kl, policy)


def both_means(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact mean gradient of DRaFT-1 and of redone last steps."""
    with torch.no_grad():
        means, covariances = Chain.read(policy).marginals()
    return expected(policy, means[1], covariances[1]), expected(policy, *noised(means[2], covariances[2]))


def drawn(policy: Policy, batches: int = BATCHES) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the trajectories' own last steps, and of redone ones, by batches of 128 trajectories."""
    rng, own, again = torch.Generator().manual_seed(0), [], []
    for _ in range(batches):
        cut = torch.ones(128, dtype=torch.long)
        x_0, kl, _ = differentiable_rollout(policy, 128, rng, [REFERENCE], tau=1.0, cut=cut)
        own.append(-ALPHA * flat(reward_backprop_loss(REWARD(x_0), kl, vector(ALPHA)), policy))
        x_0, kl = last_step_again(policy, x_0.detach(), MORE, rng, [REFERENCE], tau=1.0)
        again.append(-ALPHA * flat(reward_backprop_loss(REWARD(x_0), kl, vector(ALPHA)), policy))
    return torch.stack(own), torch.stack(again)


def worst(sample: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest error of a mean, in standard errors, over the parameters of the last step (the others are exactly 0)."""
    moved = exact != 0
    error = (sample.mean(0) - exact)[moved].abs() / (sample.std(0)[moved] / BATCHES**0.5)
    assert (sample[:, ~moved] == 0).all()
    return error.max().item()


def test_redone_steps_have_the_mean_gradient_of_noised_designs() -> None:
    """H0: mean gradients over 64 batches are the closed forms, of noised designs and of the chain's own states.

    False alarm below 1e-6 in all (7 standard errors of a t with 63 degrees of freedom). Away from a consistent chain
    the two differ, here by 0.74 of DRaFT-1's gradient, and are told apart (twin).
    """
    policy = jolted()
    (own, again), (chain, renoised) = drawn(policy), both_means(policy)
    assert worst(own, chain) < 7
    assert worst(again, renoised) < 7
    assert worst(again, chain) > 7
    assert worst(own, renoised) > 7
    assert ((renoised - chain).norm() / chain.norm()).item() == pytest.approx(0.743, abs=1e-3)


def test_on_a_chain_consistent_with_its_noise_the_mean_is_that_of_one_step_and_the_noise_lower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The two closed forms are one; so are the sampled means (H0 as above). Noise to another time misses it (twin)."""
    policy = consistent()
    chain, renoised = both_means(policy)
    torch.testing.assert_close(renoised, chain, rtol=1e-9, atol=1e-10)
    own, again = drawn(policy)
    assert worst(own, chain) < 7
    assert worst(again, chain) < 7
    together = (own + MORE * again) / (1 + MORE)
    assert worst(together, chain) < 7
    assert together.var(0).sum() < 0.6 * own.var(0).sum()
    corrupt = PLANE.process.corrupt
    monkeypatch.setattr(PLANE.process, "corrupt", lambda x_0, t, rng: corrupt(x_0, t + 0.25, rng))
    assert worst(drawn(policy)[1], chain) > 7


def test_an_update_descends_the_mean_over_own_and_redone_designs() -> None:
    """By the same random numbers."""
    policy, seen = jolted(), []
    algorithm = RewardBackprop(batch=128, truncation=1, low_variance=MORE)
    state = algorithm.init(policy, [Anchor(REFERENCE, ALPHA)])
    state.descend = lambda loss, norm: seen.append(-ALPHA * flat(loss, policy)) or torch.ones(())
    rng = torch.Generator().manual_seed(0)
    for _ in range(2):
        algorithm.step(state, REWARD, rng)
    own, again = (rows[:2] for rows in drawn(policy, 2))
    torch.testing.assert_close(torch.stack(seen), (own + MORE * again) / (1 + MORE))


@pytest.fixture(scope="module")
def tokens() -> TiltedProblem:
    """3 tokens, 3 letters, one token per step."""
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


def moved(tokens: TiltedProblem, **settings: int) -> list[bool]:
    """Whether an update changes the laws of states with 3, 2, 1 tokens to show."""
    algorithm = RewardBackprop(batch=64, truncation=1, **settings)
    state = algorithm.init(tokens.tunable(), [Anchor(tokens.pretrained, ALPHA)])
    info = algorithm.step(state, tokens.reward, torch.Generator().manual_seed(0))
    assert info.oracle_calls == 64 * (1 + settings.get("low_variance", 0))
    assert state.x_0.shape == (64, 3)
    masked = (tokens.chain.states == 3).sum(-1)
    change = (state.policy.denoiser.logits - tokens.pretrained.denoiser.logits).abs()
    return [bool(change[masked == m].max() > 0) for m in (3, 2, 1)]


def test_counted_reveals_are_not_what_the_noising_law_masks(tokens: TiltedProblem) -> None:
    """Each token is masked by itself: states that a last step of one token never meets are trained too."""
    assert moved(tokens) == [False, False, True]
    assert moved(tokens, low_variance=8) == [True, True, True]


def test_with_one_token_the_redone_step_has_the_mean_of_the_last_one() -> None:
    """H0: 64 batches, means of both differ by nothing, at 7 standard errors. Twin: noise of all tokens, t = 1."""
    problem = random_pairwise(1, 3, alpha=ALPHA, target_kl=0.3, seed=0, reveal="independent")
    reference = problem.pretrained.with_steps(3)
    policy, rng = problem.tunable().with_steps(3), torch.Generator().manual_seed(0)
    noise = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)

    def gradients(batch: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        rows = []
        for _ in range(BATCHES):
            x_0, kl = batch()
            value = problem.reward.on_probabilities(x_0[..., :-1])
            rows.append(flat(reward_backprop_loss(value, kl, vector(ALPHA)), policy))
        return torch.stack(rows)

    def last() -> tuple[torch.Tensor, torch.Tensor]:
        cut = torch.full((512,), 2)
        return differentiable_rollout(policy, 512, rng, [reference], tau=0.5, cut=cut)[:2]

    def redone() -> tuple[torch.Tensor, torch.Tensor]:
        return last_step_again(policy, last()[0].detach().argmax(-1), MORE, rng, [reference], tau=0.5)

    own, again = gradients(last), gradients(redone)

    def apart(one: torch.Tensor, other: torch.Tensor) -> float:
        error = ((one.var(0) + other.var(0)) / BATCHES).sqrt()
        return ((one.mean(0) - other.mean(0)).abs() / error.clamp(min=1e-12)).max().item()

    assert apart(own, again) < 7
    process = policy.process
    policy.process = type("Masked", (type(process),), {"corrupt": lambda self, x, t, rng: 0 * x + self.mask})(
        process.vocabulary, process.reveal
    )
    assert apart(own, gradients(redone)) > 7


def test_redone_designs_keep_their_condition() -> None:
    """A network that draws 10 y, and a reward that is told y: both see it row by row, redone or not."""
    seen: list[torch.Tensor] = []

    class Tenfold(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(10.0))

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.factor * cond["y"][:, None].expand_as(x_t)

    class Told:
        def under(self, cond: dict[str, torch.Tensor]) -> Told:
            self.y = cond["y"]
            return self

        def __call__(self, designs: list[object]) -> torch.Tensor:
            return torch.zeros(len(designs))

        def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
            seen.append(p.detach() - 10 * self.y[:, None])
            return p.sum(1)

    process = Gaussian(Cosine(0.05), prediction="x_0", sigma_min=0.1)
    policy = Policy(Tenfold(), process, VectorCodec(), (2,), steps=2)
    algorithm = RewardBackprop(batch=16, truncation=1, low_variance=MORE)
    state = algorithm.init(policy, [Anchor(policy.frozen_copy(), ALPHA)], Conditions({"y": torch.arange(5.0)}))
    algorithm.step(state, Told(), torch.Generator().manual_seed(0))
    assert seen[0].shape == (16 * (1 + MORE), 2)
    assert seen[0].abs().max() < 1


@pytest.mark.parametrize("settings", [{}, {"truncation": 2}, {"random_truncation": True}])
def test_it_is_of_the_last_step_alone(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected low_variance together with truncation 1"):
        RewardBackprop(low_variance=2, **settings)
