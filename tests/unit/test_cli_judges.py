"""Which judge a run has, and what its page calls it."""

from __future__ import annotations

from difftilt.cli.job import load_job
from difftilt.cli.kinds import plan_from
from difftilt.rewards.combined import CombinedReward
from difftilt.rewards.ensemble import EnsembleReward


def test_a_run_toward_two_media_is_judged_in_both_and_says_so() -> None:
    """Twin: the run toward one medium has the plain judge."""
    both = load_job(plan_from(["yeast-promoter", "--reward", "defined,-1*complex", "--log-z-samples", "0"]))
    assert isinstance(both.judge, CombinedReward)
    facts = both.facts()
    assert facts["reward_name"] == facts["score_name"] == "defined − complex"
    assert facts["judge_name"] == "defined − complex, each by a judge of its own"
    one = load_job(plan_from(["yeast-promoter", "--reward", "complex", "--log-z-samples", "0"]))
    assert isinstance(one.judge, EnsembleReward)
    assert one.judge.card["part"] == "complex-judge"
    assert one.facts()["score_name"] == "expression in complex medium (log-scale bin units)"
    assert one.facts()["judge_name"].startswith("a network trained on 8,519 designs")
    assert one.facts()["reward_name"].startswith("mean of 2 networks trained on 8,537 designs")
