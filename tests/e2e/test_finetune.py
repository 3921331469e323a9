"""``difftilt finetune`` from flags to report, on a tiny task."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from pathlib import Path

import pytest

from difftilt.cli.demo import DEMOS, DemoFlags, finetune_words
from difftilt.cli.kinds import plan_from

from .conftest import facts, records


def test_a_run_leaves_every_file_and_prints_before_and_after(difftilt, tiny):
    outcome = difftilt(*tiny, "--run", "r")
    assert outcome.code == 0
    assert outcome.err == ""
    for word in ("before", "after", "reward", "judge", "equal calls", "equal KL", "nats", "certified", "r/report.html"):
        assert word in outcome.out
    run = Path("r")
    record = facts(run)
    assert record["cost"]["oracle_calls"] == records(run / "metrics.jsonl")[-1]["oracle_calls"]
    assert set(record["position_frequencies"]) == {"before", "after", "alphabet"}
    assert "position_frequencies" not in record["after"]
    with (run / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "sequence", "reward", "judge", "log_weight", "pretrained_log_likelihood"]
    assert len(rows) == 32
    assert (run / "model" / "config.json").is_file()
    assert "<html" in (run / "report.html").read_text()


def test_evaluation_calls_are_counted_apart_and_nothing_is_bought_twice(difftilt, tiny, work):
    assert difftilt(*tiny, "--reward", "scorer.py:content", "--run", "r").code == 0
    bought = [record["design"] for record in records(Path("r/oracle.jsonl"))]
    cost = facts(Path("r"))["cost"]
    called = (work / "calls.log").read_text().split()
    assert len(set(called)) == len(called) == len(bought)
    assert cost["evaluation_calls"] == sum(r["purpose"] == "evaluation" for r in records(Path("r/oracle.jsonl")))
    assert 0 < cost["oracle_calls"] <= 4 * 16


def test_the_resolved_config_can_be_fed_back_in_and_flags_win(difftilt, tiny):
    assert difftilt(*tiny, "--alpha", "0.5", "--fix", "2:CG", "--seed", "3", "--run", "a").code == 0
    assert difftilt("finetune", "--config", "a/config.toml", "--run", "b").code == 0
    assert records(Path("a/metrics.jsonl")) == records(Path("b/metrics.jsonl"))
    settings = tomllib.loads(Path("b/config.toml").read_text())
    assert settings["settings"]["seed"] == 3
    assert settings["algorithm"]["alpha"] == 0.5
    assert difftilt("finetune", "--config", "a/config.toml", "--run", "c", "--alpha", "2", "--fix", "1:A").code == 0
    settings = tomllib.loads(Path("c/config.toml").read_text())
    assert (settings["algorithm"]["alpha"], settings["settings"]["fix"]) == (2.0, ["1:A"])


def test_config_names_the_command_without_the_folders_of_this_machine(difftilt, tiny, work):
    assert difftilt(*tiny, "--run", str(work / "inside" / "r")).code == 0
    origin = tomllib.loads(Path("inside/r/config.toml").read_text())["provenance"]
    assert str(work) not in origin["command"]
    assert origin["command"].startswith("difftilt finetune utr-mrl --models")
    assert {"seed", "difftilt", "commit", "python", "torch", "date"} <= set(origin)


@pytest.mark.parametrize("algorithm", ["ppo", "reward_backprop", "trajectory-balance"])
def test_fixed_letters_stay_in_every_design(difftilt, tiny, algorithm):
    outcome = difftilt(*tiny, "--algorithm", algorithm, "--fix", "2:ATG", "--fix", "8:u", "--run", "r")
    assert outcome.code == 0, outcome.err
    with Path("r/samples.csv").open() as file:
        designs = [row["sequence"] for row in csv.DictReader(file)]
    assert {(design[1:4], design[7]) for design in designs} == {("ATG", "T")}
    drawn = difftilt("sample", "r", "-n", "5", "--fix", "1:C").out.splitlines()[1:]
    assert {(row.split(",")[1][:4], row.split(",")[1][7]) for row in drawn} == {("CATG", "T")}


def test_a_kl_budget_finds_its_alpha_and_the_gap_is_taken_there(difftilt, tiny):
    outcome = difftilt(*tiny, "--kl-budget", "0.5", "--run", "r")
    assert outcome.code == 0
    record = facts(Path("r"))
    estimate = json.loads(Path("r/log_z.json").read_text())
    assert record["alpha"] == estimate["alpha"] != 0.1
    assert record["gap"]["log_z_independent"] in (estimate["value"], pytest.approx(record["gap"]["log_z_independent"]))
    assert f"{record['alpha']:.4g} reward units per nat, found for a KL budget of 0.5 nats" in outcome.out
    alphas = [line["alpha"] for line in records(Path("r/metrics.jsonl"))]
    assert len(set(alphas)) == len(alphas)


def test_infeasible_designs_are_recorded_with_their_reason(difftilt, tiny):
    outcome = difftilt(*tiny, "--reward", "scorer.py:picky", "--run", "r")
    assert outcome.code == 0, outcome.err
    assert "feasible" in outcome.out
    reasons = {record["reason"] for record in records(Path("r/oracle.jsonl"))}
    assert reasons == {None, "ValueError: starts with A", "returned None"}


def test_a_reward_function_is_not_called_for_log_z_unless_asked(difftilt, models):
    job = ["finetune", "utr-mrl", "--models", models, "--reward", "scorer.py:content", "--steps", "1", "--batch", "8"]
    assert difftilt(*job, "--designs", "8", "--run", "a").code == 0
    assert not Path("a/log_z.json").exists()
    assert difftilt(*job, "--designs", "8", "--log-z-samples", "16", "--run", "b").code == 0
    assert Path("b/log_z.json").exists()


def test_runs_are_numbered(difftilt, tiny):
    assert difftilt(*tiny).code == 0
    assert difftilt(*tiny).code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["utr-mrl-ppo-1", "utr-mrl-ppo-2"]


def test_own_data_can_be_the_reward(difftilt, tiny, work):
    letters = "ACGT"
    designs = [a + b + c + "AAAAA" for a in letters for b in letters for c in letters]
    (work / "own.csv").write_text("sequence,score\n" + "".join(f"{d},{d.count('G')}\n" for d in designs))
    job = [*tiny, "--data", "own.csv", "--reward", "table", "--fix", "4:AAAAA"]
    outcome = difftilt(*job, "--run", "r")
    assert outcome.code == 0, outcome.err
    values = {record["design"]: record["value"] for record in records(Path("r/oracle.jsonl"))}
    assert values
    assert all(value == design.count("G") for design, value in values.items())


def test_demo_is_a_finetune_run(difftilt, models, monkeypatch):
    monkeypatch.setitem(DEMOS, "rna", {**DEMOS["rna"], "steps": 2, "batch": 8, "designs": 16, "log_z_samples": 16})
    outcome = difftilt("demo", "--models", models)
    assert outcome.code == 0, outcome.err
    assert "runs/demo-1/report.html" in outcome.out
    config = tomllib.loads(Path("runs/demo-1/config.toml").read_text())
    assert config["provenance"]["command"].startswith("difftilt finetune utr-mrl --algorithm")


@pytest.mark.parametrize("domain", DEMOS)
def test_the_settings_of_every_demo_are_flags_of_finetune(domain):
    own = DEMOS[domain]
    plan = plan_from(finetune_words(DemoFlags(domain=domain, seed=3)))
    assert (plan.settings.task, plan.settings.algorithm, plan.loop.steps) == (
        own["task"],
        own["algorithm"],
        own["steps"],
    )
    assert (plan.method.alpha, plan.loop.seed) == (own["alpha"], 3)


def test_all_fields_of_the_algorithm_are_flags(difftilt, tiny):
    flags = ["--learning-rate", "0.01", "--epochs", "1", "--minibatches", "2", "--steps-per-path", "2"]
    assert difftilt(*tiny, *flags, "--algorithm", "trajectory_balance", "--log-z", "learned", "--run", "r").code == 0
    algorithm = tomllib.loads(Path("r/config.toml").read_text())["algorithm"]
    assert algorithm["learning_rate"] == 0.01
    assert algorithm["log_z"] == "learned"
    assert algorithm["steps_per_path"] == 2


def test_steps_per_sample_sets_the_chain(difftilt, tiny):
    assert difftilt(*tiny, "--steps-per-sample", "7", "--run", "r").code == 0
    assert len(json.loads(Path("r/model/config.json").read_text())["grid"]) == 8


SUM = ["--reward", "scorer.py:content,-0.5*model", "--require", "model<=100"]


def test_several_objectives_are_told_apart_and_nothing_is_bought_twice(difftilt, tiny, work):
    outcome = difftilt(*tiny, *SUM, "--run", "r")
    assert outcome.code == 0, outcome.err
    assert "dominates a volume of" in outcome.out
    several = facts(Path("r"))["objectives"]
    assert [(term["name"], term["weight"]) for term in several["objectives"]] == [("content", 1.0), ("model", -0.5)]
    with Path("r/samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row["content"]) == row["sequence"].count("G") + row["sequence"].count("C")
        assert float(row["reward"]) == pytest.approx(float(row["content"]) - 0.5 * float(row["model"]), abs=1e-9)
    called = (work / "calls.log").read_text().split()
    assert len(set(called)) == len(called)
    page = Path("r/report.html").read_text()
    assert "Each objective by itself" in page
    assert "content − 0.5 × model where model ≤ 100" in page
    before = facts(Path("r"))
    Path("r/evaluation.json").unlink()
    assert difftilt("finetune", "--resume", "r").code == 0
    assert facts(Path("r"))["objectives"] == before["objectives"]
    assert (work / "calls.log").read_text().split() == called, "numbers that were known were asked for again"


def test_runs_of_the_same_objectives_are_compared_in_each(difftilt, tiny):
    """The objectives of both runs are drawn, and volumes are above one reference: equal runs have equal ones."""
    for name, weight in (("a", "-0.5"), ("b", "-0.5"), ("c", "-2")):
        assert difftilt(*tiny, "--reward", f"scorer.py:content,{weight}*model", "--run", name).code == 0
    assert difftilt("compare", "a", "b", "c", "-o", "c.html").code == 0
    page = Path("c.html").read_text()
    assert "Objectives of each run" in page
    volumes = dict(re.findall(r"\b([abc]) ([\d.]+)[,.]", page.partition("above one reference:")[2]))
    assert volumes["a"] == volumes["b"]
    assert difftilt("compare", "a", "-o", "one.html").code == 0
    assert "Objectives of each run" not in Path("one.html").read_text()


def test_a_bound_that_no_design_meets_ends_the_run_with_its_reason(difftilt, tiny):
    outcome = difftilt(*tiny, "--require", "model>=100", "--run", "r")
    assert outcome.code != 0
    assert "below 100" in outcome.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--reward", "model,"], "separated by commas"),
        (["--reward", "model,-0.1*modle"], "model"),
        (["--require", "model=3"], "NAME>=NUMBER"),
        (["--reward", "0*model"], "not 0"),
        (["--reward", "model,2*model"], "different names"),
    ],
)
def test_sums_and_bounds_that_make_no_sense_are_refused_before_anything_is_paid(difftilt, tiny, flags, said):
    outcome = difftilt(*tiny, *flags, "--run", "r")
    assert outcome.code != 0
    assert said in outcome.err
    assert not Path("r").exists()
