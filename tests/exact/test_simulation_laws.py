"""Simulated campaigns are judged exactly: J, regret and laws against a second code path and by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difftilt.campaigns.history import History
from difftilt.campaigns.keeping import MODELS, keep
from difftilt.campaigns.proposer import Proposal
from difftilt.campaigns.random_picks import RandomPicks
from difftilt.campaigns.simulation.landscape import DRAWN, Landscape
from difftilt.campaigns.simulation.runner import Simulated, run
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.trajectory import rollout
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.problems.joint import JointDenoiser
from difftilt.problems.landscapes import TabularDenoiser
from difftilt.problems.markov import markov_prior
from difftilt.problems.tilted import TiltedProblem
from difftilt.rewards.table import TableReward
from difftilt.types import Tensor

CODEC, ALPHA = TokenCodec("ACGT", 4), 0.2
EVERY = torch.cartesian_prod(*[torch.arange(4)] * 4)


def landscape(*, infeasible: bool = True) -> Landscape:
    """256 designs, a value each; without the best half in what p_pre has seen, and a fifth of them infeasible."""
    rng = torch.Generator().manual_seed(0)
    value = torch.rand(len(EVERY), generator=rng, dtype=torch.float64)
    prior = markov_prior(CODEC, EVERY[value < 0.5])
    if infeasible:
        value[torch.rand(len(EVERY), generator=rng) < 0.2] = math.nan
    oracle = TableReward(dict(zip(CODEC.decode(EVERY), value.tolist(), strict=True)), "tiny")
    return Landscape("tiny", prior, oracle, ALPHA, value)


def with_law(own: Landscape, law: Tensor) -> Policy:
    return own.prior.with_denoiser(JointDenoiser.of(law.view([4] * 4))).frozen_copy()


def some_law(seed: int = 1) -> Tensor:
    return torch.rand(len(EVERY), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(0)


def tilted(own: Landscape) -> Tensor:
    return (own.log_pre + (own.table / ALPHA).nan_to_num(nan=-math.inf)).softmax(0)


@pytest.mark.parametrize("infeasible", [True, False])
def test_j_is_that_of_the_enumerated_problem(infeasible: bool) -> None:
    own = landscape(infeasible=infeasible)
    problem = TiltedProblem(own.prior, own.oracle, alpha=ALPHA)
    policy = with_law(own, some_law())
    judged = own.judge(policy, torch.Generator())
    assert judged.objective == pytest.approx(problem.objective(policy).item(), abs=1e-10)
    assert judged.reward == pytest.approx(problem.mean_reward(policy), abs=1e-10)
    assert judged.feasible == pytest.approx(problem.feasibility(policy), abs=1e-10)
    assert own.best_value == pytest.approx(ALPHA * problem.log_z, abs=1e-10)
    start = problem.objective(own.prior).item()
    regret = ALPHA * problem.kl(policy) / (ALPHA * problem.log_z - start)
    assert judged.regret == pytest.approx(regret, abs=1e-9)
    assert judged.objective == pytest.approx(judged.reward - ALPHA * judged.kl, abs=1e-12)


def test_regret_is_0_at_the_tilted_law_1_at_p_pre_and_more_beyond() -> None:
    own = landscape()
    assert own.judge_law(tilted(own)).regret == pytest.approx(0, abs=1e-12)
    assert own.judge(own.prior, torch.Generator()).regret == pytest.approx(1, abs=1e-12)
    worst = (own.log_pre - (own.table / ALPHA).nan_to_num(nan=math.inf)).softmax(0)
    assert own.judge_law(worst).regret > 1
    assert 0 < own.judge_law(0.5 * tilted(own) + 0.5 * own.log_pre.exp()).regret < 1


def test_a_judge_that_gives_infeasible_designs_a_value_is_seen() -> None:
    """Twin: 0 in place of NaN is another number, for the objective and for the best."""
    own = landscape()
    wrong = Landscape("tiny", own.prior, own.oracle, ALPHA, own.table.nan_to_num(0))
    right, other = own.judge_law(some_law()), wrong.judge_law(some_law())
    assert abs(right.objective - other.objective) > 0.01
    assert right.feasible < 0.9 < other.feasible


def test_the_law_of_a_joint_policy_is_that_of_its_chain_whatever_its_denoiser() -> None:
    own, law = landscape(), some_law()
    joint = with_law(own, law)
    table = own.prior.with_denoiser(TabularDenoiser.from_joint(law.view([4] * 4))).frozen_copy()
    chain = EnumeratedChain(own.prior).marginal(joint)
    for policy in (joint, table):
        assert (own.law(policy) - chain).abs().max() < 1e-12
    held = joint.holding(torch.tensor([2, -1, -1, -1]))
    with pytest.raises(Exception, match="expected the chain"):
        own.law(held)


def test_without_a_list_of_designs_a_law_is_judged_by_draws() -> None:
    """H0: the mean of 512 values in [0, 1] is E[r | F]; Hoeffding at 1e-6. The twin judges another law by the bar."""
    own = landscape(infeasible=False)
    drawn = Landscape("tiny", own.prior, own.oracle, ALPHA)
    policy = with_law(own, tilted(own))
    exact, found = own.judge(policy, torch.Generator()), drawn.judge(policy, torch.Generator().manual_seed(0))
    bar = math.sqrt(math.log(2e6) / (2 * DRAWN))
    assert abs(found.reward - exact.reward) < bar
    assert abs(own.judge(own.prior, torch.Generator()).reward - exact.reward) > bar
    log_ratio = policy.denoiser.law().flatten().log() - own.log_pre
    width = (log_ratio.max() - log_ratio.min()).item()
    assert abs(found.kl - exact.kl) < width * bar
    x_0 = rollout(policy, DRAWN, torch.Generator().manual_seed(0)).x_0
    place = x_0 @ torch.tensor([4**i for i in (3, 2, 1, 0)])
    assert found.kl == pytest.approx(log_ratio[place].mean().item(), abs=1e-6), "one letter a step: that of the designs"
    assert found.objective == pytest.approx(found.reward - ALPHA * found.kl)
    assert found.regret is None
    assert drawn.judge(own.prior, torch.Generator().manual_seed(0)).kl == 0


class Knows:
    """Draws from p_pre, but keeps the tilted policy as the model of rounds from the third on.

    Its forecasts of those have std 1; of ten, three are right, four are off by 1 and three by 2.
    """

    def __init__(self, own: Landscape, folder: Path) -> None:
        self.own, self.folder, self.draw = own, folder, RandomPicks(own.prior, folder)

    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        picks = self.draw(history, n, rng)
        if history.next_round < 3:
            return picks
        policy = with_law(self.own, tilted(self.own).clamp(min=1e-40))
        name = keep(self.folder / MODELS, f"round-{history.next_round}", policy.save_pretrained)
        value = self.own.oracle([pick.design for pick in picks.candidates]).tolist()
        off = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
        told = [
            replace(pick, mean=v + far, std=1.0) for pick, v, far in zip(picks.candidates, value, off, strict=False)
        ]
        return Proposal(told, name, {"factor": 2.0, "misfit": 0.0, "noise": 0.0})


def test_a_row_is_of_the_policy_that_learned_from_its_round(tmp_path: Path) -> None:
    own = landscape(infeasible=False)
    settings = Simulated(rounds=3, batch=10, noise=0.01)
    rows = run(own, "knows", lambda policy, folder: Knows(own, folder), tmp_path, settings, 0)
    assert [row.regret for row in rows] == pytest.approx([1, 0, 0], abs=1e-9)
    assert [row.coverage_50 for row in rows] == [None, None, pytest.approx(0.3)], "of the round's own forecasts"
    assert [row.coverage_90 for row in rows] == [None, None, pytest.approx(0.7)]
    assert rows[-1].reward == pytest.approx(own.judge_law(tilted(own)).reward, abs=1e-9)
