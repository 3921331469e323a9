"""Weights, twists and errors of steering that once were wrong; one test per bug."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from difftilt.core.codec import TokenCodec
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.reward import score
from difftilt.core.trajectory import rollout
from difftilt.errors import ConfigError
from difftilt.metrics.gap import optimality_gap
from difftilt.metrics.log_z import from_samples, tempered_log_z
from difftilt.metrics.weighted import log_z_error, tilted_kl
from difftilt.problems.landscapes import TableReward, TabularDenoiser, random_pairwise
from difftilt.problems.library import linear_gaussian
from difftilt.problems.tilted import TiltedProblem, kl_divergence, kl_from_log
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked
from difftilt.samplers.smc import SMC
from difftilt.values.estimate import Estimate
from difftilt.values.monte_carlo import MonteCarlo
from difftilt.values.plug_in import OneJump
from difftilt.values.regression import Regression

ALPHA = 0.5


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Third:
    """A black box that knows a third of the designs: which ones shows only with the last letter."""

    def __init__(self, problem: TiltedProblem) -> None:
        self.problem = problem

    def __call__(self, designs: Sequence[Any]) -> torch.Tensor:
        total = self.problem.pretrained.codec.encode(designs).sum(1)
        return torch.as_tensor(self.problem.reward(designs)).where(total % 3 == 1, math.nan)


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


# --- a twist from drawn designs said "nothing feasible can follow" wherever it had drawn nothing feasible -------------


class Hasty:
    """Twin: an estimate as it was, minus infinity as often as none of four designs is feasible by chance."""

    def __init__(self, value: Estimate) -> None:
        self.value = value

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        seen = self.value(x_t, t, cond)
        gone = torch.rand(len(x_t), generator=rng(int(1e6 * t))) < (2 / 3) ** 4
        return seen.where(~gone | (t == 0), -torch.inf)


@pytest.mark.parametrize("kind", [OneJump, MonteCarlo])
def test_no_drawn_value_kills_a_particle_that_becomes_feasible(problem: TiltedProblem, kind: Any) -> None:
    """Alone and so never resampled, every feasible design weighs e^{r/alpha}: telescoping, exact, no sampling error."""
    reward = Third(problem)

    def worst(value: Any) -> float:
        kept = SMC(alpha=ALPHA, particles=1)(problem.pretrained, reward, 500, rng(), value=value)
        found = score(reward, problem.pretrained.codec, kept.x_0).value / ALPHA
        assert torch.isneginf(kept.log_weight[found.isnan()]).all()
        return (kept.log_weight - found)[~found.isnan()].abs().max().item()

    value = kind(problem.pretrained, reward, rng(1), ALPHA, 4)
    assert worst(value) < 1e-9
    assert worst(Hasty(value)) == math.inf


def test_a_state_without_a_feasible_draw_counts_as_one_mean_design_in_n_plus_one(problem: TiltedProblem) -> None:
    """By hand, condition by condition; a constant added to one condition's reward moves its own values alone."""

    class Told:
        def __init__(self, shift: float) -> None:
            self.shift = shift

        def __call__(self, designs: Sequence[Any]) -> torch.Tensor:
            raise AssertionError("asked without conditions")

        def under(self, cond: Any) -> Any:
            level = 10.0 * cond["c"] + self.shift * (cond["c"] == 1)
            return lambda designs: level + torch.tensor([{"AA": 1.0, "AC": 2.0}.get(d, math.nan) for d in designs])

    policy = Policy(TabularDenoiser(2, 2), Masked(2), TokenCodec("AC", 2), (2,), steps=2).eval()
    x_t = torch.tensor([[0, 0], [0, 1], [1, 1], [0, 1], [1, 0], [1, 1]])
    cond = {"c": torch.tensor([0, 0, 0, 1, 1, 2])}
    half = torch.tensor(0.5, dtype=torch.float64)
    got = {s: OneJump(policy, Told(s), rng(), ALPHA, 3)(x_t, half, cond) for s in (0.0, 7.0)}
    lost = ALPHA * math.log(4)
    assert got[0.0].tolist() == pytest.approx([1.0, 2.0, 1.5 - lost, 12.0, 12.0 - lost, -lost])
    assert (got[7.0] - got[0.0]).tolist() == pytest.approx([0, 0, 0, 7, 7, 0])


# --- an estimate of log Z whose groups did not all find a feasible design was an unfinished product -------------------


def test_a_tempered_log_z_is_whole_where_a_group_has_nothing_feasible(problem: TiltedProblem) -> None:
    """Rewards are 50 or 60 nats: with 1 particle of 64 feasible it is at least 50 - log 64, whatever is drawn.

    Twin: products broken off at the first stage that left a group without weight are below 5.
    """
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    some = [d for d in designs if d.startswith("A") and d[1] == d[2]]
    reward = TableReward({d: 0.5 + 0.1 * (k % 2) for k, d in enumerate(some)})
    exact = TiltedProblem(problem.pretrained, reward, alpha=0.01)
    dead = 0
    for seed in range(6):
        first = score(reward, problem.pretrained.codec, rollout(problem.pretrained, 64, rng(seed)).x_0).value
        dead += int(first.view(16, 4).isnan().all(1).any())
        found = tempered_log_z(problem.pretrained, reward, rng(seed), alpha=0.01, particles=64)
        assert found.value == -math.inf or 50 - math.log(64) <= found.value <= 60
    assert dead > 0
    many = tempered_log_z(problem.pretrained, reward, rng(), alpha=0.01, particles=1024, groups=64)
    assert abs(many.value - exact.log_z) < 5 * many.error < 2


# --- the KL to a law that is too small for a float was infinite -------------------------------------------------------


def test_kl_to_a_very_sharp_law_is_finite(problem: TiltedProblem) -> None:
    """At alpha = 1e-3 by hand: E log p - E log p_pre - E[r] / alpha + log Z. Twin: of the law itself, infinite."""
    sharp = TiltedProblem(problem.pretrained, problem.reward, alpha=1e-3)
    law = problem.pretrained_law
    expected = sharp.log_z - (law @ problem.table).item() / 1e-3
    assert sharp.kl(problem.pretrained) == pytest.approx(expected, rel=1e-9)
    assert kl_divergence(law, sharp.tilted) == math.inf
    assert sharp.kl(problem.pretrained) == pytest.approx(sharp.gap(problem.pretrained), rel=1e-9)
    once = torch.zeros_like(law).index_fill(0, sharp.tilted.argmax(), 1.0)
    assert kl_from_log(once, sharp.log_tilted) == pytest.approx(kl_divergence(once, sharp.tilted), abs=1e-12)


# --- at small alpha early values killed the ancestors of what carries Z, and the stated error did not say so ----------


@pytest.fixture(scope="module")
def small_alpha() -> tuple[TiltedProblem, Any]:
    """5 tokens at alpha 0.1, by a black box."""
    base = random_pairwise(5, 4, alpha=0.5, target_kl=2.0, seed=0)

    def reward(designs: Sequence[Any]) -> list[float]:
        return base.reward(designs).tolist()

    return TiltedProblem(base.pretrained, reward, alpha=0.1), reward


def test_default_settings_find_log_z_of_a_black_box_at_small_alpha(small_alpha: tuple[TiltedProblem, Any]) -> None:
    """Off by less than 1 nat in the mean over 6 runs (0.25 over 10 when written). Twin: early values trusted, by 4.

    The error is unknown, or the truth is within five of it.
    """
    problem, reward = small_alpha

    def runs(**settings: Any) -> list[tuple[float, float]]:
        found = []
        for seed in range(6):
            kept = SMC(alpha=0.1, **settings)(problem.pretrained, reward, 1024, rng(seed))
            found.append((kept.log_z - problem.log_z, log_z_error(kept.log_weight, population=64)))
        return found

    tempered, trusting = runs(), runs(tempering=0.0)
    assert abs(sum(off for off, _ in tempered)) / 6 < 1
    assert sum(off for off, _ in trusting) / 6 < -4
    assert all(abs(off) < 5 * error for off, error in tempered + trusting)


# --- the stated error of log Z never exceeded about 1 nat -------------------------------------------------------------


def test_an_error_of_log_z_that_nothing_supports_is_unknown(small_alpha: tuple[TiltedProblem, Any]) -> None:
    """8 designs at alpha 1e-9: effectively one, and log Z off by some 1e8 nats; the delta method says 0.94 (twin)."""
    problem, _ = small_alpha
    rows = torch.multinomial(problem.pretrained_law, 8, generator=rng())
    reward = problem.table[rows]
    own = from_samples(reward / 1e-9)
    assert own.ess == pytest.approx(1)
    assert math.sqrt((8 / own.ess - 1) / 8) == pytest.approx(0.94, abs=0.01)
    assert own.error == math.inf
    assert log_z_error(reward / 1e-9) == math.inf
    assert tilted_kl(reward, reward / 1e-9, own.value, alpha=1e-9)[1] == math.inf
    assert from_samples(torch.zeros(8)).error == 0
    gap = optimality_gap(reward / 1e-9, from_samples(torch.zeros(500).double()))
    assert "error of log Z is not known" in gap.reason


def test_populations_that_disagree_by_nats_have_a_larger_error_than_their_weights_say() -> None:
    """Log Z-hat of 16 populations is normal with a spread of 0.7 nats: (5) by hand, above (4); 3 nats: unknown.

    Twin: equal estimates have none, whatever happens within populations.
    """
    spread = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(16) + 0.5) / 16).double()
    spread = spread / spread.std()
    log_weight = (0.7 * spread).repeat_interleave(4)
    share = (0.7 * spread).softmax(0)
    delta = math.sqrt(16 / 15 * (share - 1 / 16).square().sum().item())
    by_hand = math.sqrt(0.49 / 16 + 0.49**2 / 30)
    assert log_z_error(log_weight, population=4) == pytest.approx(max(delta, by_hand))
    assert by_hand > delta
    assert log_z_error((3 * spread).repeat_interleave(4), population=4) == math.inf
    assert log_z_error(torch.randn(1, 4, dtype=torch.float64).expand(16, 4).flatten(), population=4) < 1e-12
    assert log_z_error(log_weight[:-2], population=4) == pytest.approx(log_z_error(log_weight, population=4), rel=0.1)
    partly = log_weight.where(torch.arange(64) >= 8, -torch.inf)
    assert log_z_error(partly, population=4) > log_z_error(log_weight[8:], population=4)


# --- states of another type than the prior's; settings that gave raw errors -------------------------------------------


@pytest.mark.parametrize("paths", [False, True])
def test_a_network_may_answer_in_another_type_than_the_prior(paths: bool) -> None:
    """Gaussian states of a float64 network on a float32 prior, in several batches: each row keeps its own weight."""
    exact = linear_gaussian(Gaussian(Cosine(), sigma_min=0.05), 3, alpha=ALPHA)
    policy = exact.pretrained.frozen_copy()

    class Wide(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
            return self.network(x_t, t, None).double()

    policy.denoiser = Wide(policy.denoiser)
    assert policy.prior(1, rng()).dtype == torch.float32
    asked = SMC(alpha=ALPHA, particles=2, ess_fraction=0.0)
    cond = {"c": torch.tensor([0, 1, 0, 1, 0])}
    kept = asked(policy, exact.reward, 5, rng(), cond=cond, paths=paths)
    assert kept.x_0.dtype == torch.float64
    found = score(exact.reward, policy.codec, kept.x_0).value / ALPHA
    torch.testing.assert_close(kept.log_weight, found, rtol=0, atol=1e-6)


def test_estimates_of_no_designs_are_refused(problem: TiltedProblem) -> None:
    for kind in (OneJump, MonteCarlo):
        for n, alpha in ((0, 1.0), (2, 0.0)):
            with pytest.raises(ConfigError, match=f"at least 1 design for each state.*got {n} and {alpha}"):
                kind(problem.pretrained, problem.reward, rng(), alpha, n)
    for name in ("paths", "updates", "batch"):
        with pytest.raises(ConfigError, match="paths, updates and batch of at least 1"):
            Regression(**{name: 0})
