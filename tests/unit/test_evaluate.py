"""What a tuned policy is said to be worth: reward and judge side by side, KL, gap and the best-of-N yardsticks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from difftilt.core.noise import Cosine
from difftilt.core.schedule import uniform_grid
from difftilt.metrics.best_of_n import best_of_n_weights
from difftilt.metrics.log_z import LogZ
from difftilt.problems.landscapes import TableReward, random_pairwise
from difftilt.problems.linear_gaussian import LinearGaussian, Quadratic
from difftilt.problems.tilted import TiltedProblem
from difftilt.processes.gaussian import Gaussian
from difftilt.rewards.oracle import as_oracle
from difftilt.samplers.best_of_n import BestOfN
from difftilt.training.designs import interval
from difftilt.training.evaluate import TunedEvaluation, evaluate

ALPHA = 0.5


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


def tuned(problem: TiltedProblem, size: float = 0.5) -> Any:
    policy, noise = problem.tunable().eval(), torch.Generator().manual_seed(0)
    policy.denoiser.logits.data += size * torch.randn(
        policy.denoiser.logits.shape, generator=noise, dtype=torch.float64
    )
    return policy.requires_grad_(False)


def judge(designs: list[str]) -> list[float]:
    return [float(design.count("A")) for design in designs]


@pytest.fixture(scope="module")
def evaluation(problem: TiltedProblem) -> TunedEvaluation:
    return evaluate(
        tuned(problem), problem.pretrained, problem.reward, alpha=ALPHA, judge=judge, designs=3000, pool=3000, seed=1
    )


def test_an_interval_is_normal_and_of_finite_values_only() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan], dtype=torch.float64)
    half = 1.96 * math.sqrt(5 / 3 / 4)
    assert interval(values) == {"mean": 2.5, "low": pytest.approx(2.5 - half), "high": pytest.approx(2.5 + half)}
    assert math.isnan(interval(torch.full((3,), math.nan))["mean"])


def test_before_and_after_are_the_exact_means(problem: TiltedProblem, evaluation: TunedEvaluation) -> None:
    """H0 per number: the mean of 3,000 designs is the exact one; 6 standard errors (false alarm 1e-8 in all)."""
    values = torch.tensor(judge(problem.pretrained.codec.decode(problem.chain.designs)), dtype=torch.float64)
    for side, policy in (("before", problem.pretrained), ("after", tuned(problem))):
        law = problem.chain.marginal(policy)
        for name, table in (("reward", problem.table), ("judge", values)):
            mean = (law @ table).item()
            error = ((law @ (table - mean) ** 2).item() / 3000) ** 0.5
            stated = evaluation.facts[side][name]
            assert abs(stated["mean"] - mean) < 6 * error, (side, name)
            assert stated["high"] - stated["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert evaluation.facts["before"]["reward"] != evaluation.facts["after"]["reward"]


def test_kl_gap_and_likelihood_agree_with_exact_ones(problem: TiltedProblem, evaluation: TunedEvaluation) -> None:
    policy, facts = tuned(problem), evaluation.facts
    kl = problem.chain.path_kl(policy, problem.pretrained).item()
    assert abs(facts["kl_nats"]["mean"] - kl) < 6 * facts["kl_nats"]["error"]
    assert abs(facts["gap"]["gap_nats"] - problem.gap(policy)) < 6 * facts["gap"]["error"]
    assert facts["gap"]["verdict"] == "certified"
    likelihood = (problem.chain.marginal(policy) @ problem.pretrained_law.log()).item()
    stated = facts["after"]["pretrained_log_likelihood"]
    assert abs(stated["mean"] - likelihood) < 6 * (stated["high"] - stated["low"]) / 3.92
    assert (evaluation.before.path_log_ratio == 0).all()
    assert evaluation.after.designs == policy.codec.decode(evaluation.after.x_0)


def test_designs_depend_on_the_seed_only(problem: TiltedProblem) -> None:
    def run(seed: int) -> list[str]:
        done = evaluate(
            problem.pretrained, problem.pretrained, problem.reward, alpha=ALPHA, designs=40, pool=40, seed=seed
        )
        return done.after.designs

    assert run(1) == run(1) != run(2)


def test_best_of_n_is_given_at_equal_calls_and_equal_kl(problem: TiltedProblem) -> None:
    done = evaluate(
        tuned(problem), problem.pretrained, problem.reward, alpha=ALPHA, judge=judge, designs=100, pool=400,
        training_calls=650,
    )  # fmt: skip
    best = done.facts["best_of_n"]
    assert best["equal_calls"]["n"] == best["equal_calls"]["wanted"] == 7, "(650 + 100) / 100 calls for each design"
    kl = done.facts["kl_nats"]["mean"]
    assert best["equal_kl"]["n"] == BestOfN.candidates_for(kl)
    assert best["equal_kl"]["kl_bound_nats"] <= kl
    weights = best_of_n_weights(done.before.reward, 7)
    assert best["equal_calls"]["reward"] == pytest.approx((weights * done.before.reward).sum().item())
    assert best["equal_calls"]["judge"] == pytest.approx((weights * done.before.judge).sum().item())
    assert best["equal_calls"]["reward"] > done.facts["before"]["reward"]["mean"]


def test_an_n_that_the_pool_cannot_tell_is_cut_and_said(problem: TiltedProblem) -> None:
    done = evaluate(
        problem.pretrained, problem.pretrained, problem.reward, alpha=ALPHA, designs=10, pool=40, training_calls=10_000
    )
    best = done.facts["best_of_n"]["equal_calls"]
    assert (best["n"], best["wanted"]) == (10, 1001)
    assert best["kl_bound_nats"] == pytest.approx(math.log(10) - 0.9)
    assert math.isnan(best["judge"])
    assert math.isnan(done.facts["after"]["judge"]["mean"])


# --- infeasible designs --------------------------------------------------------------------------------------------


def partial(problem: TiltedProblem) -> TiltedProblem:
    """The same problem with every design that starts with A infeasible."""
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    values = {d: v for d, v in zip(designs, problem.table.tolist(), strict=True) if not d.startswith("A")}
    return TiltedProblem(problem.pretrained, TableReward(values), alpha=ALPHA)


def test_kl_and_gap_of_a_partly_infeasible_policy_are_those_of_its_feasible_part(problem: TiltedProblem) -> None:
    """Theory 1: KL(p_theta(.|F) || p_pre) = E_F[sum l] - log P(F); without the last term it is off by 0.3 nats."""
    hard, policy = partial(problem), tuned(problem)
    done = evaluate(policy, problem.pretrained, hard.reward, alpha=ALPHA, designs=4000, pool=4000)
    fraction = hard.feasibility(policy)
    assert 0.5 < fraction < 0.9
    assert abs(done.facts["after"]["feasible_fraction"] - fraction) < 6 * math.sqrt(fraction * (1 - fraction) / 4000)
    law = hard.chain.marginal(policy).where(hard.feasible, 0) / fraction
    mean_reward = (law * hard.table.nan_to_num()).sum()
    exact = ((mean_reward - hard.objective(policy)) / ALPHA).item()  # J = E_F[r] - alpha KL
    stated = done.facts["kl_nats"]
    assert abs(stated["mean"] - exact) < 6 * stated["error"]
    assert abs(stated["mean"] + math.log(fraction) - exact) > 6 * stated["error"]
    assert abs(done.facts["gap"]["gap_nats"] - hard.gap(policy)) < 6 * done.facts["gap"]["error"]


def test_no_number_is_invented_for_an_infeasible_best(problem: TiltedProblem) -> None:
    """Few feasible designs: the best-of-N has their reward and judge, whatever the judge says of the others."""
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    likely = {designs[i]: 100.0 for i in problem.pretrained_law.argsort()[-4:].tolist()}

    def odd(asked: list[str]) -> list[float]:
        return [5.0 if design in likely else -1000.0 for design in asked]

    p_pre = problem.pretrained
    done = evaluate(p_pre, p_pre, TableReward(likely), alpha=ALPHA, judge=odd, designs=60, pool=60, training_calls=60)
    assert 0 < done.facts["before"]["feasible_fraction"] < 0.9
    best = done.facts["best_of_n"]["equal_calls"]
    assert best["n"] == 2
    assert best["reward"] == pytest.approx(100.0)
    assert best["judge"] == pytest.approx(5.0)


def test_an_independent_log_z_wins_if_it_knows_more(problem: TiltedProblem) -> None:
    def used(independent: LogZ) -> float:
        done = evaluate(
            problem.pretrained, problem.pretrained, problem.reward, alpha=ALPHA, designs=50, pool=50,
            independent=independent,
        )  # fmt: skip
        assert done.facts["evaluation_calls"] == 50 + 50 + independent.oracle_calls
        return done.gap.log_z_independent

    assert used(LogZ(5.0, 0.01, 1e4, 70, 0)) == 5.0
    assert used(LogZ(5.0, 0.9, 1.5, 70, 0)) != 5.0


# --- rewards and processes of other kinds --------------------------------------------------------------------------


def test_a_plain_function_is_scored_once_per_design(problem: TiltedProblem) -> None:
    asked: list[str] = []

    def scorer(designs: list[str]) -> list[float | None]:
        asked.extend(designs)
        return [None if design.startswith("A") else 1.0 for design in designs]

    done = evaluate(problem.pretrained, problem.pretrained, scorer, alpha=ALPHA, judge=scorer, designs=100, pool=100)
    assert done.facts["after"]["reward"]["mean"] == 1.0
    oracle = as_oracle(problem.reward)
    with oracle.evaluating():
        evaluate(problem.pretrained, problem.pretrained, oracle, alpha=ALPHA, designs=100, pool=100)
    assert oracle.calls == 0
    assert 0 < oracle.evaluation_calls <= 27


def test_a_process_without_a_likelihood_bound_gets_no_likelihood() -> None:
    """The squared error of a Gaussian denoiser is no log-likelihood, and is not shown as one."""
    eye = torch.eye(2, dtype=torch.float64)
    problem = LinearGaussian(eye[0], eye, Gaussian(Cosine(0.05), sigma_min=0.1), uniform_grid(4))
    policy, reward = problem.pretrained().frozen_copy(), Quadratic.reward(eye, eye[1], eye[0])
    done = evaluate(policy, policy, reward, alpha=ALPHA, designs=20, pool=20)
    assert math.isnan(done.facts["after"]["pretrained_log_likelihood"]["mean"])
    assert math.isfinite(done.facts["after"]["reward"]["mean"])
    assert len(done.after.designs) == 20


def test_domain_metrics_are_taken_of_both_sides(problem: TiltedProblem) -> None:
    counter = itertools.count()
    done = evaluate(
        problem.pretrained, problem.pretrained, problem.reward, alpha=ALPHA, designs=20, pool=30,
        describe=lambda x_0: {"call": next(counter), "rows": len(x_0)},
    )  # fmt: skip
    assert (done.facts["before"]["rows"], done.facts["after"]["rows"]) == (30, 20)
    assert (done.facts["before"]["call"], done.facts["after"]["call"]) == (0, 1)
