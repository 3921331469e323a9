"""What a sampler is said to be worth: means by weight, KL as far as it is known, log Z beside an independent one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from difftilt.cli.outcome import summary_lines
from difftilt.core.algorithm import Weighted
from difftilt.metrics.log_z import LogZ
from difftilt.metrics.weighted import weighted_mean
from difftilt.problems.landscapes import TableReward, random_pairwise
from difftilt.problems.tilted import TiltedProblem
from difftilt.rewards.oracle import as_oracle
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.refine import Refine
from difftilt.samplers.smc import SMC
from difftilt.training.designs import representative, scored
from difftilt.training.evaluate import Evaluation, evaluate, evaluate_steered

ALPHA, N = 0.5, 2000
COST = {"oracle_calls": 1, "evaluation_calls": 1, "seconds": 1.0, "evaluation_seconds": 1.0}


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


def judge(designs: list[str]) -> list[float]:
    return [float(design.count("A")) for design in designs]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weighted(problem: TiltedProblem, n: int = N) -> Weighted:
    """Plain importance sampling: independent designs of p_pre, weights exp(r / alpha)."""
    return SMC(alpha=ALPHA, kind="bootstrap", ess_fraction=0.0, particles=n)(
        problem.pretrained, problem.reward, n, rng()
    )


def judged(problem: TiltedProblem, steered: Weighted, **options: Any) -> Evaluation:
    given = {"alpha": ALPHA, "judge": judge, "pool": 400, **options}
    return evaluate_steered(steered, problem.pretrained, problem.reward, **given)


@pytest.fixture(scope="module")
def evaluation(problem: TiltedProblem) -> Evaluation:
    return judged(problem, weighted(problem), independent=LogZ(problem.log_z, 0.01, 1e4, 0, 0))


def test_weighted_means_are_those_of_the_tilted_law(problem: TiltedProblem, evaluation: Evaluation) -> None:
    """H0 per number: the exact mean, within 6 stated standard errors (false-alarm rate 1e-8 in all).

    Twin: without the weights the reward is off by more than that.
    """
    likelihood = problem.pretrained_law.log()
    tokens = torch.tensor(judge(problem.pretrained.codec.decode(problem.chain.designs)), dtype=torch.float64)
    after, facts = evaluation.after, evaluation.facts
    parts = {
        "reward": (problem.table, after.reward),
        "judge": (tokens, after.judge),
        "pretrained_log_likelihood": (likelihood, after.pretrained_log_likelihood),
    }
    for name, (table, values) in parts.items():
        stated, exact = facts["after"][name], (problem.tilted @ table).item()
        error = (stated["high"] - stated["low"]) / 3.92
        assert abs(stated["mean"] - exact) < 6 * error, name
        if name == "reward":
            assert abs(values.mean().item() - exact) > 6 * error, name
    kl = (problem.tilted @ (problem.tilted / problem.pretrained_law).log()).item()
    assert facts["kl_nats"]["sense"] == "estimate"
    assert abs(facts["kl_nats"]["mean"] - kl) < 6 * facts["kl_nats"]["error"]
    log_z = facts["log_z"]
    assert abs(log_z["sampler"] - problem.log_z) < 6 * log_z["sampler_error"]
    assert (log_z["independent"], log_z["independent_ess"]) == (problem.log_z, 1e4)
    assert 0 < facts["effective_designs"] < 0.9 * N


def test_what_has_no_weights_is_taken_of_designs_drawn_by_weight(problem: TiltedProblem) -> None:
    """H0: shares of the designs that stand for the law are the tilted law's, within 6 s.e. of as many equal designs."""
    designs = judged(problem, weighted(problem)).after
    drawn = representative(designs, rng())
    codec, chain = problem.pretrained.codec, problem.chain
    index = {design: i for i, design in enumerate(codec.decode(chain.designs))}
    shares = torch.zeros(len(index), dtype=torch.float64)
    for design in codec.decode(drawn):
        shares[index[design]] += 1 / N
    worth = 300.0  # designs, a lower bound on the effective sample size
    bound = 6 * (problem.tilted * (1 - problem.tilted) / worth).sqrt() + 1 / N
    assert ((shares - problem.tilted).abs() < bound).all()
    assert not ((shares - problem.pretrained_law).abs() < bound).all()
    equal = scored(designs.x_0, problem.pretrained, problem.reward, None, rng())
    assert representative(equal, rng()) is equal.x_0


def test_repeats_made_by_weights_are_told_from_those_of_the_sampler(problem: TiltedProblem) -> None:
    """27 designs: as drawn most are there; by uneven weights fewer distinct ones stand for the law."""

    def describe(x_0: torch.Tensor) -> dict[str, float]:
        return {"unique_fraction": len(x_0.unique(dim=0)) / len(x_0)}

    few = judged(problem, weighted(problem, 60), describe=describe)
    drawn, redrawn = few.facts["after"]["distinct_drawn"], few.facts["after"]["unique_fraction"]
    assert drawn == len(few.after.x_0.unique(dim=0)) / 60
    assert redrawn < drawn
    assert "distinct_drawn" not in few.facts["before"]
    lines = summary_lines({"task": "", "cost": COST, "sampler": "smc", **few.facts})
    assert f"unique      {redrawn:.1%} of 60 designs drawn again by weight; {drawn:.1%} before" in lines


def test_best_of_n_spends_at_most_its_bound(problem: TiltedProblem) -> None:
    sampler = BestOfN(candidates=4)
    oracle = as_oracle(problem.reward)
    drawn = sampler(problem.pretrained, oracle, 1000, rng())
    options = {"alpha": None, "kl_bound": sampler.kl_bound, "pool": 4000, "steering_calls": 4000}
    done = judged(problem, drawn, **options)
    facts = done.facts
    assert facts["kl_nats"] == {"mean": sampler.kl_bound, "error": 0.0, "sense": "at most"}
    assert (facts["alpha"], facts["log_z"]) == (None, None)
    assert facts["effective_designs"] == pytest.approx(1000)
    for kind in ("equal_calls", "equal_kl"):
        best = facts["best_of_n"][kind]
        assert best["n"] == 4, "the yardstick of best of 4 is best of 4"
        half = (facts["after"]["reward"]["high"] - facts["after"]["reward"]["low"]) / 2
        assert abs(best["reward"] - facts["after"]["reward"]["mean"]) < 4 * half


def test_a_law_without_log_z_has_its_kl_bounded_from_below(problem: TiltedProblem) -> None:
    """E_p[r] / alpha - log Z is KL(p || p_pre) - KL(p || p*): below the KL of any law, and equal for p* itself."""
    drawn = Refine(alpha=ALPHA, moves=10)(problem.pretrained, problem.reward, N, rng())
    exact = LogZ(problem.log_z, 0.0, math.inf, 0, 0)
    facts = judged(problem, drawn, independent=exact).facts
    kl = facts["kl_nats"]
    assert kl["sense"] == "at least"
    assert facts["best_of_n"]["equal_kl"] is None, "a lower bound is no KL to be equal to"
    shares = problem.law_of(drawn.x_0, drawn.log_weight).observed
    known = torch.special.xlogy(shares, shares / problem.pretrained_law).sum().item()
    assert kl["mean"] < known
    most = (problem.tilted @ (problem.tilted / problem.pretrained_law).log()).item()
    assert 0 < kl["mean"] < most + 6 * kl["error"]
    plain = Refine(alpha=ALPHA, moves=0)(problem.pretrained, problem.reward, N, rng())
    assert judged(problem, plain, independent=exact).facts["kl_nats"]["mean"] == 0.0, "below 0 the bound says nothing"
    blind = judged(problem, drawn, independent=LogZ(9.0, 0.5, 4.0, 0, 0), pool=20).facts
    assert blind["kl_nats"]["sense"] == "unknown"
    assert math.isnan(blind["kl_nats"]["mean"])
    assert blind["best_of_n"]["equal_kl"] is None


def test_infeasible_designs_have_no_weight_in_any_mean(problem: TiltedProblem) -> None:
    """Reward, judge and likelihood are means over the same designs, of tuned policies and samplers alike."""
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    values = {d: v for d, v in zip(designs, problem.table.tolist(), strict=True) if not d.startswith("A")}
    hard = TiltedProblem(problem.pretrained, TableReward(values), alpha=ALPHA)
    drawn = Refine(alpha=ALPHA, moves=0)(hard.pretrained, hard.reward, N, rng())
    steered = judged(hard, drawn)
    tuned = evaluate(hard.pretrained, hard.pretrained, hard.reward, alpha=ALPHA, judge=judge, designs=N, pool=400)
    for done in (steered, tuned):
        after = done.after
        kept = [d for d in after.designs if not d.startswith("A")]
        assert 0.3 < len(kept) / N < 0.95
        assert done.facts["after"]["judge"]["mean"] == pytest.approx(sum(judge(kept)) / len(kept))
        assert done.facts["after"]["judge"]["mean"] != pytest.approx(sum(judge(after.designs)) / N, abs=0.05)
        assert done.facts["after"]["feasible_fraction"] == len(kept) / N
    assert steered.facts["effective_designs"] == pytest.approx(steered.facts["after"]["feasible_fraction"] * N)


def test_the_bound_of_best_of_n_is_not_claimed_where_it_kept_infeasible_designs(problem: TiltedProblem) -> None:
    best = next(iter(problem.pretrained.codec.decode(problem.chain.designs[problem.tilted.argmax()][None])))
    rare = TiltedProblem(problem.pretrained, TableReward({best: 1.0}), alpha=ALPHA)
    sampler = BestOfN(candidates=2)
    drawn = sampler(rare.pretrained, rare.reward, 200, rng())
    facts = judged(rare, drawn, alpha=None, kl_bound=sampler.kl_bound).facts
    assert facts["after"]["feasible_fraction"] < 1
    assert facts["kl_nats"]["sense"] == "unknown"
    assert facts["effective_designs"] == pytest.approx(200 * facts["after"]["feasible_fraction"])


def test_intervals_of_smc_are_those_between_its_populations(problem: TiltedProblem) -> None:
    """Copies within a population are not independent: taken so, the interval is narrower."""
    sampler = SMC(alpha=ALPHA, particles=16, ess_fraction=1.0)
    drawn = sampler(problem.pretrained, problem.reward, 960, rng())  # resampled at every step
    facts = judged(problem, drawn, population=16).facts
    naive = judged(problem, drawn, population=1).facts
    after = judged(problem, drawn, population=16).after
    assert facts["after"]["reward"]["mean"] == pytest.approx(naive["after"]["reward"]["mean"])
    error = weighted_mean(after.reward, after.log_weight, population=16)[1]
    assert facts["after"]["reward"]["high"] - facts["after"]["reward"]["low"] == pytest.approx(3.92 * error)
    assert facts["log_z"]["sampler_error"] != pytest.approx(naive["log_z"]["sampler_error"])
    few = judged(problem, Weighted(drawn.x_0[:64], drawn.log_weight[:64], 0.0), population=16).facts
    assert math.isnan(few["after"]["reward"]["low"])
    assert math.isnan(few["log_z"]["sampler_error"])
    assert math.isfinite(few["after"]["reward"]["mean"])
