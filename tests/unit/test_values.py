"""Soft values: estimates against exact ones, and the regression's minimiser against its definition."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.core.trajectory import rollout
from difftilt.core.value import Value
from difftilt.errors import ConfigError, DataError, UnsupportedError
from difftilt.networks.conditioned import conditioned
from difftilt.problems.landscapes import TableReward, TabularDenoiser, random_pairwise
from difftilt.problems.linear_gaussian import LinearGaussian, Quadratic
from difftilt.problems.tilted import TiltedProblem
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked
from difftilt.rewards.likelihood import LabelLikelihood
from difftilt.values import regression
from difftilt.values.calibration import calibration
from difftilt.values.monte_carlo import MonteCarlo
from difftilt.values.plug_in import OneJump, PlugIn, default_value
from difftilt.values.regression import Regressed, Regression, fit_value, soft_value_loss

ALPHA = 0.5


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """3 tokens, 3 letters, one token per step."""
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=0.7, seed=2)


def states(problem: TiltedProblem, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All states that the chain can visit at a step, with their time and exact values."""
    table = problem.soft_values()[step]
    visited = ~table.isnan()
    return problem.chain.states[visited], problem.pretrained.grid[step], table[visited]


def one_hot(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(x, 4).double()


# --- what a process thinks of x_0 -------------------------------------------------------------------------------------


def test_the_denoised_tokens_are_the_token_laws_where_masked_and_the_tokens_where_shown() -> None:
    process = Masked(3)
    logits = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = torch.tensor([[0, 3, 2], [3, 3, 1]])
    hard = process.denoised(logits, x_t, torch.tensor(0.5))
    for row, position in ((0, 1), (1, 0), (1, 1)):
        torch.testing.assert_close(hard[row, position], logits[row, position].softmax(0))
    assert hard[0, 0].tolist() == [1, 0, 0]
    assert hard[1, 2].tolist() == [0, 1, 0]
    relaxed = one_hot(x_t).requires_grad_()
    soft = process.denoised(logits, relaxed, torch.tensor(0.5))
    torch.testing.assert_close(soft, hard)
    (slope,) = torch.autograd.grad(soft[0, 1, 2], relaxed)
    assert slope[0, 1].tolist() == pytest.approx([0, 0, 1, logits[0, 1].softmax(0)[2].item()])


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_the_denoised_vector_is_the_posterior_mean_of_gaussian_data(prediction: str) -> None:
    """Exact denoiser in any parametrisation: E[x_0 | x_t] by the normal equations."""
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.7]], dtype=torch.float64)
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    process = Gaussian(Cosine(0.02), prediction=prediction)
    policy = LinearGaussian(mean, covariance, process, uniform_grid(5)).pretrained()
    x_t = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in policy.grid[:-1]:
        alpha, sigma = process.schedule.scales(t)
        gain = (
            alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64))
        )
        expected = mean + (x_t - alpha * mean) @ gain.T
        got = process.denoised(policy.denoiser(x_t, t.expand(4)), x_t, t)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


# --- exact values as callables ----------------------------------------------------------------------------------------


def test_exact_values_are_found_by_state_and_time(problem: TiltedProblem) -> None:
    value = problem.value()
    assert isinstance(value, Value)
    for step in range(4):
        x_t, t, exact = states(problem, step)
        torch.testing.assert_close(value(x_t, t), exact)
        torch.testing.assert_close(value(one_hot(x_t), t), exact)
    x_t = torch.cat([states(problem, 1)[0], states(problem, 2)[0]])
    times = torch.cat([states(problem, k)[1].expand(len(states(problem, k)[0])) for k in (1, 2)])
    torch.testing.assert_close(value(x_t, times), torch.cat([states(problem, k)[2] for k in (1, 2)]))
    with pytest.raises(ConfigError, match="expected times of the grid"):
        value(x_t, torch.tensor(0.123, dtype=torch.float64))


def test_the_slope_of_an_exact_value_is_the_value_of_the_state_with_one_letter_more(problem: TiltedProblem) -> None:
    value = problem.value()
    x_t = states(problem, 1)[0]
    s = problem.pretrained.grid[2]
    relaxed = one_hot(x_t).requires_grad_()
    (slope,) = torch.autograd.grad(value(relaxed, s).sum(), relaxed)
    for row, x in enumerate(x_t):
        for position in (x == 3).nonzero()[:, 0]:
            for letter in range(3):
                after = x.clone()
                after[position] = letter
                torch.testing.assert_close(slope[row, position, letter], value(after[None], s)[0])


def test_held_positions_and_infeasible_designs_are_found_too() -> None:
    policy = Policy(TabularDenoiser(2, 3), Masked(2), TokenCodec("AC", 3), (3,), steps=2).eval()
    policy = policy.holding(torch.tensor([-1, 1, -1]))
    problem = TiltedProblem(policy, TableReward({"ACA": 1.0, "CCA": 2.0}), alpha=1.0)
    value, zero = problem.value(), torch.tensor(0.0, dtype=torch.float64)
    x_0 = torch.tensor([[0, 1, 0], [1, 1, 0], [1, 1, 1]])
    assert value(x_0, zero).tolist() == [1.0, 2.0, -math.inf]
    assert value(nn.functional.one_hot(x_0, 3).double(), zero)[2] < -1e5
    start = value(torch.tensor([[2, 1, 2]]), torch.ones((), dtype=torch.float64)).item()
    assert start == pytest.approx(math.log((math.e + math.e**2) / 4))


# --- estimates --------------------------------------------------------------------------------------------------------


def test_the_plug_in_value_is_the_reward_of_the_mean(problem: TiltedProblem) -> None:
    """By hand, token laws from the table; and hard, relaxed and finished states agree."""
    value = PlugIn(problem.pretrained, problem.reward)
    for step in (0, 1, 2):
        x_t, t, _ = states(problem, step)
        laws = problem.pretrained.denoiser(x_t, t.expand(len(x_t))).softmax(-1)
        mean = torch.where((x_t == 3)[..., None], laws, one_hot(x_t)[..., :3])
        torch.testing.assert_close(value(x_t, t), problem.reward.on_probabilities(mean))
        torch.testing.assert_close(value(one_hot(x_t), t), value(x_t, t))
    x_0, zero, exact = states(problem, 3)
    torch.testing.assert_close(value(x_0, zero), exact)
    torch.testing.assert_close(value(one_hot(x_0), zero), exact)


def test_relaxed_tokens_at_the_end_are_filled_as_before_the_last_step(problem: TiltedProblem) -> None:
    asked = []

    class Timed(TabularDenoiser):
        def forward(self, x_t: Any, t: Any, cond: Any = None) -> torch.Tensor:
            asked.append(t.tolist())
            return super().forward(x_t, t, cond)

    own = problem.pretrained
    policy = Policy(Timed(3, 3), own.process, own.codec, own.event_shape, steps=4).eval()
    x = one_hot(torch.tensor([[0, 3, 1], [2, 2, 2]]))
    PlugIn(policy, problem.reward)(x, torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert asked == [[0.25], [0.5]]


def test_black_boxes_have_no_plug_in_value_and_get_one_jump_by_default(problem: TiltedProblem) -> None:
    rng = torch.Generator().manual_seed(0)
    box = TableReward({})
    x_t, t, _ = states(problem, 1)
    with pytest.raises(UnsupportedError, match="black box"):
        PlugIn(problem.pretrained, box)(x_t, t)
    assert isinstance(default_value(problem.pretrained, box, rng, alpha=ALPHA), OneJump)
    assert isinstance(default_value(problem.pretrained, problem.reward, rng, alpha=ALPHA), PlugIn)


def test_drawn_estimates_have_no_gradient(problem: TiltedProblem) -> None:
    x_t, t, _ = states(problem, 1)
    for kind in (OneJump, MonteCarlo):
        value = kind(problem.pretrained, problem.reward, torch.Generator(), ALPHA)
        with pytest.raises(UnsupportedError, match="differentiable value"):
            value(one_hot(x_t).requires_grad_(), t)


def test_one_jump_is_the_soft_mean_over_independent_letters(problem: TiltedProblem) -> None:
    """H0: exp(v / alpha) averages to that over the product of the token laws, 5.5 s.e.; it is not the soft value."""
    x_t, t, exact = states(problem, 1)
    x_t, exact = x_t[:1], exact[0]
    laws = problem.pretrained.denoiser(x_t, t.expand(1)).softmax(-1)[0]
    laws = torch.where((x_t[0] == 3)[:, None], laws, one_hot(x_t)[0, :, :3])
    chance = torch.einsum("a,b,c->abc", *laws).flatten()
    mean_field = (chance @ (problem.table / ALPHA).exp()).item()
    rng = torch.Generator().manual_seed(0)
    single = OneJump(problem.pretrained, problem.reward, rng, ALPHA, 1)
    draws = (single(x_t.expand(20_000, -1), t) / ALPHA).exp()
    error = (draws.std() / 20_000**0.5).item()
    assert abs(draws.mean().item() - mean_field) < 5.5 * error
    assert abs(math.exp(exact.item() / ALPHA) - mean_field) > 5.5 * error


@pytest.mark.parametrize("step", [0, 1, 2])
def test_monte_carlo_is_unbiased_in_exp_and_biased_low_in_logs(problem: TiltedProblem, step: int) -> None:
    """H0: E exp(v-hat / alpha) = exp(v / alpha), 5.5 s.e. Twin: v-hat itself is low, less so with more rollouts."""
    x_t, t, exact = states(problem, step)
    x_t, exact = x_t[:1].expand(3000, -1), exact[0].item()
    bias = []
    for rollouts in (2, 8):
        value = MonteCarlo(problem.pretrained, problem.reward, torch.Generator().manual_seed(0), ALPHA, rollouts)(
            x_t, t
        )
        lifted = (value / ALPHA).exp()
        assert abs(lifted.mean() - math.exp(exact / ALPHA)) < 5.5 * lifted.std() / 3000**0.5
        assert value.mean() < exact - 5.5 * value.std() / 3000**0.5 or step == 2
        bias.append(exact - value.mean().item())
    assert bias[1] < 0.5 * bias[0] or step == 2


def test_every_estimate_ends_in_the_reward_with_infeasible_designs_at_minus_infinity() -> None:
    policy = Policy(TabularDenoiser(2, 2), Masked(2), TokenCodec("AC", 2), (2,), steps=2).eval()
    reward, rng = TableReward({"AA": 1.0, "AC": -2.0}), torch.Generator().manual_seed(0)
    fitted = fit_value(policy, reward, rng, Regression(alpha=1.0, paths=64, updates=5, batch=8))
    every = [OneJump(policy, reward, rng, 1.0), MonteCarlo(policy, reward, rng, 1.0), fitted]
    x_t = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 2]])
    times = torch.tensor([0.0, 0.0, 0.0, 0.5], dtype=torch.float64)
    for value in every:
        got = value(x_t, times)
        assert got[:3].tolist() == [1.0, -2.0, -math.inf]
        assert got.dtype == torch.float64
        if value is not fitted:
            n = 4 if isinstance(value, OneJump) else 16
            assert got[3] == pytest.approx(-math.log(n + 1)), "nothing feasible was drawn, which proves nothing"


def test_conditions_reach_the_network_row_by_row() -> None:
    seen = []

    class Told(TabularDenoiser):
        def forward(self, x_t: Any, t: Any, cond: Any = None) -> torch.Tensor:
            seen.append(cond["c"].tolist())
            return super().forward(x_t, t, cond)

    policy = Policy(Told(2, 2), Masked(2), TokenCodec("AC", 2), (2,), steps=2).eval()
    reward = TableReward({})
    value = MonteCarlo(policy, reward, torch.Generator(), 1.0, 2)
    times = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)
    value(torch.tensor([[2, 2], [0, 2], [2, 2]]), times, {"c": torch.tensor([7, 8, 9])})
    assert seen == [[8, 8], [7, 9, 7, 9], [7, 9, 7, 9]]


class Label:
    """A conditional reward that is worth the condition alone, whatever the design, relaxed or not."""

    def __call__(self, designs: Any) -> Any:
        raise AssertionError("asked without conditions")

    def under(self, cond: Any) -> Any:
        class Under:
            def __call__(self, designs: Any) -> torch.Tensor:
                assert len(designs) == len(cond["c"])
                return cond["c"].double()

            def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
                assert len(p) == len(cond["c"])
                return cond["c"].double()

        return Under()


def test_every_estimate_asks_a_conditional_reward_about_the_condition_of_each_row(problem: TiltedProblem) -> None:
    """Rows of several conditions and times: the value is the condition, exactly, drawn or not, at the end too."""
    policy, rng = problem.pretrained, torch.Generator().manual_seed(0)
    x_t = torch.tensor([[3, 3, 3], [0, 3, 3], [1, 2, 0], [3, 1, 3], [2, 2, 2]])
    times = torch.tensor([1.0, 2 / 3, 0.0, 2 / 3, 0.0], dtype=torch.float64)
    cond = {"c": torch.tensor([5, 7, 11, 13, 17])}
    fitted = fit_value(policy, Label(), rng, Regression(alpha=1.0, paths=60, updates=3), cond={"c": torch.ones(60)})
    for value in (
        PlugIn(policy, Label()),
        OneJump(policy, Label(), rng, ALPHA, 3),
        MonteCarlo(policy, Label(), rng, ALPHA, 3),
        default_value(policy, Label(), rng, alpha=ALPHA, cond=cond),
    ):
        torch.testing.assert_close(value(x_t, times, cond), cond["c"].double())
    assert isinstance(default_value(policy, Label(), rng, alpha=ALPHA, cond=cond), PlugIn)
    done = times == 0
    torch.testing.assert_close(fitted(x_t[done], times[done], {"c": cond["c"][done]}), cond["c"][done].double())


# --- regression -------------------------------------------------------------------------------------------------------


def minimiser(loss: Any, target: torch.Tensor, chance: torch.Tensor) -> float:
    """Of the exact expectation of a loss over one number, by Newton's method."""
    f = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        value = sum(p * loss(f.expand(1), y.expand(1)) for p, y in zip(chance, target, strict=True))
        (g,) = torch.autograd.grad(value, f, create_graph=True)
        (h,) = torch.autograd.grad(g, f)
        f = (f - (g / h).clamp(-0.3, 0.3)).detach().requires_grad_()
    return f.item()


def test_the_minimiser_is_the_soft_value_and_not_the_mean(problem: TiltedProblem) -> None:
    """Exact expectation at t = 1, and the same through one soft Bellman step. Twin: squared error gives E[r]."""
    exact = problem.soft_values()[0, -1].item()
    chance, reward = problem.pretrained_law, problem.table

    def loss(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return soft_value_loss(f, y, alpha=ALPHA)

    assert minimiser(loss, reward, chance) == pytest.approx(exact, abs=1e-8)
    squared = minimiser(lambda f, y: (f - y).square().mean(), reward, chance)
    assert squared == pytest.approx((chance @ reward).item(), abs=1e-8)
    assert abs(squared - exact) > 0.2
    occupancy = problem.chain.occupancy(problem.reference)[1]
    after = problem.soft_values()[1]
    visited = occupancy > 0
    assert minimiser(loss, after[visited], occupancy[visited]) == pytest.approx(exact, abs=1e-8)


def test_infeasible_targets_count_as_weight_zero(problem: TiltedProblem) -> None:
    reward, chance = problem.table.clone(), problem.pretrained_law
    reward[::3] = -math.inf
    expected = ALPHA * (chance.log() + reward / ALPHA).logsumexp(0).item()
    found = minimiser(lambda f, y: soft_value_loss(f, y, alpha=ALPHA), reward, chance)
    assert found == pytest.approx(expected, abs=1e-8)


def test_the_loss_is_convex_zero_at_its_target_and_never_overflows() -> None:
    target = torch.zeros(1, dtype=torch.float64)

    def at(f: float, most: float = 10.0) -> torch.Tensor:
        return soft_value_loss(torch.tensor([f], dtype=torch.float64), target, alpha=0.5, most=most)

    assert at(0.0) == 0
    assert at(0.3) == pytest.approx(math.exp(-0.6) + 0.6 - 1)
    assert at(-0.3) == pytest.approx(math.exp(0.6) - 0.6 - 1)
    assert at(-3.0, most=4.0) == pytest.approx(math.exp(4.0) * (1 + 2) - 6 - 1)
    assert at(-1e6).isfinite()
    grid = torch.stack([at(-0.1 * k) for k in range(-20, 80)])
    assert (grid.diff().diff() > 0).all() or (grid.diff().diff() >= -1e-9).all()


@pytest.mark.parametrize("target", ["reward", "bellman"])
def test_a_fitted_value_is_calibrated_where_the_exact_one_is_known(problem: TiltedProblem, target: str) -> None:
    """Twin: the same network fitted to the mean reward has the bias of that number."""
    rng = torch.Generator().manual_seed(0)
    settings = Regression(alpha=ALPHA, target=target, paths=4000, updates=1200, batch=256)
    value = fit_value(problem.pretrained, problem.reward, rng, settings)
    path = rollout(problem.pretrained, 1000, torch.Generator().manual_seed(1))
    rows = calibration(value, problem.value(), path)
    assert [row.t for row in rows] == problem.pretrained.grid[:-1].tolist()
    for row in rows:
        assert abs(row.bias) < 0.04
        assert row.rmse < 0.12
    assert rows[1].correlation > 0.98
    assert rows[2].correlation > 0.98
    mean = fit_value(
        problem.pretrained, problem.reward, rng, Regression(alpha=100.0, paths=4000, updates=600, batch=256)
    )
    assert abs(calibration(mean, problem.value(), path)[0].bias) > 0.2


@pytest.mark.parametrize("target", ["reward", "bellman"])
def test_a_fitted_value_tells_conditions_apart(target: str) -> None:
    """Two labels, r = log p(y | x): calibrated against the exact value of each. Twin: told the other label."""
    policy = conditioned(random_pairwise(3, 3, alpha=1.0, target_kl=0.7, seed=2).pretrained, 2).frozen_copy()
    weight = 1.5 * torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def log_likelihood(designs: list[str]) -> torch.Tensor:
        return weight[torch.arange(3), policy.codec.encode(designs)].sum(1).log_softmax(-1)

    reward, rng = LabelLikelihood(log_likelihood), torch.Generator().manual_seed(0)
    settings = Regression(alpha=1.0, target=target, paths=4000, updates=1200, batch=256)
    value = fit_value(policy, reward, rng, settings, cond={"y": torch.arange(4000) % 2})
    for label in (0, 1):
        y = torch.tensor([label])
        exact = TiltedProblem(policy, reward.under({"y": y.expand(27)}), alpha=1.0, cond={"y": y}).value()
        path = rollout(policy, 500, torch.Generator().manual_seed(1), cond={"y": y.expand(500)})
        for row in calibration(value, exact, path):
            assert abs(row.bias) < 0.06
            assert row.rmse < 0.15
        other = dataclasses.replace(path, cond={"y": 1 - y.expand(500)})
        assert max(row.rmse for row in calibration(value, exact, other)) > 0.5


def test_conditions_that_a_fitted_value_does_not_know_are_refused(problem: TiltedProblem) -> None:
    rng, settings = torch.Generator().manual_seed(0), Regression(alpha=1.0, paths=300, updates=2, batch=8)
    cond = {"c": torch.arange(300) % 3, "d": torch.zeros(300, 2)}
    value = fit_value(problem.pretrained, problem.reward, rng, settings, cond=cond)
    x_t, t, _ = states(problem, 1)
    known = {"d": torch.zeros(len(x_t), 2), "c": torch.full((len(x_t),), 2)}
    assert value(x_t, t, known).isfinite().all()
    for unknown, came in ((None, "none"), ({**known, "c": known["c"] + 1}, "another")):
        with pytest.raises(UnsupportedError, match=f"one of the 3 conditions that the value was fitted to; got {came}"):
            value(x_t, t, unknown)
    with pytest.raises(UnsupportedError, match=r"at most 256 different conditions.*got 300"):
        fit_value(problem.pretrained, problem.reward, rng, settings, cond={"c": torch.arange(300)})


def test_a_black_box_is_learnt_at_the_end_too_where_a_gradient_is_asked_for() -> None:
    """A single step, so that nothing is learnt of designs elsewhere.

    The network stands in for the reward of relaxed designs, and only there; a reward with gradients needs none.
    """
    problem = random_pairwise(3, 3, alpha=ALPHA, target_kl=0.7, seed=2, steps=1)
    rng, settings = torch.Generator().manual_seed(0), Regression(alpha=ALPHA, paths=4000, updates=800, batch=256)
    x_0, zero, exact = states(problem, 1)
    box = TableReward(dict(zip(problem.pretrained.codec.decode(x_0), exact.tolist(), strict=True)))
    value = fit_value(problem.pretrained, box, rng, settings)
    torch.testing.assert_close(value(x_0, zero), exact)
    learnt = value(one_hot(x_0), zero)
    weight = problem.pretrained_law
    assert not torch.equal(learnt, exact)
    assert (weight @ (learnt - exact).square()).sqrt() < 0.15 < 0.3 * exact.std()
    smooth = fit_value(problem.pretrained, problem.reward, rng, Regression(alpha=ALPHA, paths=50, updates=2, batch=8))
    torch.testing.assert_close(smooth(one_hot(x_0), zero), exact)


@pytest.mark.parametrize("target", ["reward", "bellman"])
def test_soft_bellman_learns_from_the_step_after_and_the_reward_from_the_end(
    problem: TiltedProblem, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network starts at log Z: but for the last of 3 steps a Bellman target is that; a reward never is."""
    seen: list[torch.Tensor] = []

    def spy(value: torch.Tensor, aim: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append((value - aim).detach())
        return soft_value_loss(value, aim, **options)

    monkeypatch.setattr(regression, "soft_value_loss", spy)
    settings = Regression(alpha=ALPHA, target=target, paths=500, updates=1, batch=900)
    fit_value(problem.pretrained, problem.reward, torch.Generator().manual_seed(0), settings)
    share = (seen[0].abs() < 1e-6).double().mean().item()
    assert share == pytest.approx(2 / 3 if target == "bellman" else 0, abs=0.1)


def test_a_fitted_value_is_the_same_for_equal_seeds_and_costs_its_paths() -> None:
    policy = Policy(TabularDenoiser(2, 2), Masked(2), TokenCodec("AC", 2), (2,), steps=2).eval()

    class Counted(TableReward):
        calls = 0

        def __call__(self, designs: Any) -> list[float]:
            Counted.calls += len(designs)
            return super().__call__(designs)

    reward = Counted({"AA": 1.0, "CC": 0.5})
    values, before = [], torch.random.get_rng_state()
    for seed in (0, 0, 1):
        fitted = fit_value(
            policy, reward, torch.Generator().manual_seed(seed), Regression(paths=50, updates=20, batch=8)
        )
        values.append(fitted(torch.tensor([[2, 2]]), torch.ones((), dtype=torch.float64)).item())
    assert values[0] == values[1] != values[2]
    assert Counted.calls == 150
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(DataError, match="expected a feasible design among 50 samples"):
        fit_value(policy, TableReward({}), torch.Generator(), Regression(paths=50))


def test_settings_of_the_regression_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="alpha > 0"):
        Regression(alpha=0.0)
    with pytest.raises(ConfigError, match="reward, bellman; got 'mse'"):
        Regression(target="mse")


# --- calibration and Gaussian chains ----------------------------------------------------------------------------------


def test_calibration_numbers_are_those_of_their_definitions(problem: TiltedProblem) -> None:
    """The exact value shifted by 0.3 and scaled: bias, rmse and correlation by hand."""
    exact = problem.value()
    path = rollout(problem.pretrained, 200, torch.Generator().manual_seed(0))

    def shifted(x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        value = 0.3 - exact(x, t)
        return value.where(x[:, 0] != 1, -torch.inf)

    rows = calibration(shifted, exact, path)
    row = rows[2]
    truth = torch.tensor(row.exact)
    assert row.excluded == (path.states[2][:, 0] == 1).sum().item()
    assert row.excluded + len(row.estimate) == 200
    assert row.bias == pytest.approx((0.3 - 2 * truth).mean().item(), abs=1e-6)
    assert row.rmse == pytest.approx((0.3 - 2 * truth).square().mean().sqrt().item(), abs=1e-6)
    assert row.correlation == pytest.approx(-1.0)
    assert math.isnan(rows[0].correlation)


def test_the_plug_in_value_of_a_linear_reward_misses_the_spread_of_x_0() -> None:
    """Gaussian chain: v_t - plug-in = Var(x_0 | x_t) g^2 / (2 alpha), the same at every state: bias, correlation 1."""
    one = torch.ones(1, dtype=torch.float64)
    process = Gaussian(Cosine(0.02), prediction="x_0", sigma_min=0.01)
    problem = LinearGaussian(0.3 * one, 0.6 * one[:, None], process, uniform_grid(200))
    reward = Quadratic.reward(torch.zeros(1, 1, dtype=torch.float64), 0 * one, 0.8 * one)
    policy = problem.pretrained()
    path = rollout(policy, 50, torch.Generator().manual_seed(0))
    rows = calibration(PlugIn(policy, reward), problem.value(reward, ALPHA), path)
    for k in (0, 60, 120):
        alpha, sigma = process.schedule.scales(policy.grid[k])
        spread = 1 / (1 / 0.6 + (alpha / sigma) ** 2).item()
        assert rows[k].bias == pytest.approx(-spread * 0.8**2 / (2 * ALPHA), rel=0.05)
        assert rows[k].correlation > 0.9999 or k == 0
    jump = OneJump(policy, reward, torch.Generator(), ALPHA)(path.states[60], policy.grid[60])
    torch.testing.assert_close(jump, torch.tensor(rows[60].estimate, dtype=torch.float64), atol=0.1, rtol=0)


def test_a_regressed_value_differentiates_to_tokens_and_vectors() -> None:
    """The slope along a relaxed letter is that of a finite difference."""
    policy = Policy(TabularDenoiser(2, 2), Masked(2), TokenCodec("AC", 2), (2,), steps=2).eval()
    reward = TableReward({"AA": 1.0, "AC": 0.0, "CA": 0.0, "CC": 2.0})
    value = fit_value(policy, reward, torch.Generator().manual_seed(0), Regression(alpha=1.0, paths=256, updates=200))
    assert isinstance(value, Regressed)
    x = nn.functional.one_hot(torch.tensor([[0, 2]]), 3).double().requires_grad_()
    half = torch.tensor(0.5, dtype=torch.float64)
    (slope,) = torch.autograd.grad(value(x, half).sum(), x)
    step = torch.zeros_like(x)
    step[0, 1, 1] = 1e-2
    difference = (value(x.detach() + step, half) - value(x.detach() - step, half)) / 2e-2
    assert slope[0, 1, 1].item() == pytest.approx(difference.item(), rel=0.01)
