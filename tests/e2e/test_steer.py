"""``difftilt steer`` from flags to report: any sampler leaves what a tuned policy leaves."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path

import pytest

from difftilt import build
from difftilt.report import comparison_rows
from difftilt.report.citations import SAMPLERS
from difftilt.tracking.run import RunFolder

from .conftest import facts, records, spawn

SMALL = {
    "best_of_n": ["--candidates", "4"],
    "value_weighted": ["--candidates", "3"],
    "smc": ["--particles", "4"],
    "refine": ["--moves", "3"],
    "classifier_guidance": [],
}
"""Samplers that are defined for tokens, made cheap."""


@pytest.fixture
def steer(models):
    """A steering job of about a second."""
    return ["steer", "utr-mrl", "--models", str(models), "-n", "32", "--log-z-samples", "16"]


def table(run: str) -> list[dict[str, str]]:
    """Rows of ``samples.csv``."""
    with (Path(run) / "samples.csv").open() as file:
        return list(csv.DictReader(file))


def designs(run: str) -> list[str]:
    return [row["sequence"] for row in table(run)]


def explained(outcome) -> str:
    """The one line that an error is."""
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("difftilt: ")
    assert "expected" in outcome.err
    assert "; got " in outcome.err
    return outcome.err


@pytest.mark.parametrize("sampler", SMALL)
def test_every_sampler_leaves_every_file_a_page_and_the_table(difftilt, steer, sampler):
    outcome = difftilt(*steer, "--sampler", sampler, *SMALL[sampler], "--run", "r")
    assert (outcome.code, outcome.err) == (0, "")
    for word in (f"steered by {sampler}", "before", "after", "reward", "judge", "equal calls", "KL", "r/report.html"):
        assert word in outcome.out
    run = Path("r")
    left = {path.name for path in run.iterdir()} - {"log_z.json"}
    assert left == {"config.toml", "oracle.jsonl", "samples.csv", "evaluation.json", "report.html"}
    record = facts(run)
    rows = table("r")
    assert list(rows[0]) == ["id", "sequence", "reward", "judge", "log_weight", "pretrained_log_likelihood"]
    assert len(rows) == record["designs"] == 32
    assert (record["log_z"] is not None) == (sampler == "smc")
    assert (record["kl_nats"]["sense"] == "at most") == (sampler == "best_of_n")
    assert record["value"] == ("plug_in" if sampler not in ("best_of_n", "refine") else None)
    assert 0 < record["effective_designs"] <= 32 + 1e-9
    assert {"unique_fraction", "diversity", "reward", "judge"} <= set(record["after"])
    bought = records(run / "oracle.jsonl")
    assert record["cost"]["evaluation_calls"] == sum(row["purpose"] == "evaluation" for row in bought)
    assert record["cost"]["oracle_calls"] >= 1
    assert record["cost"]["network_evaluations"] >= 32 * 4
    text = (run / "report.html").read_text()
    method = {"smc": "SMC", "best_of_n": "best of N"}.get(sampler, sampler.replace("_", " "))
    for part in (
        "Before and after",
        "KL spent and the law that was sampled",
        "Best designs",
        "logo",
        f"Steered, {method}",
    ):
        assert part in text, part
    assert all(paper.url in text for paper in SAMPLERS[sampler])
    for word in ("tuning", "Tuned", "tuned", "training batch"):
        assert word not in text.partition('id="settings"')[0], word


def test_a_sampler_stands_beside_a_tuned_policy_in_the_comparison(difftilt, steer, tiny):
    assert difftilt(*tiny, "--run", "tuned").code == 0
    names = ["tuned"]
    for sampler in ("best_of_n", "smc", "refine"):
        assert difftilt(*steer, "--sampler", sampler, *SMALL[sampler], "--run", sampler).code == 0
        names.append(sampler)
    rows = {row["run"]: row for row in comparison_rows([RunFolder(Path(name)) for name in names])}
    assert len({tuple(row) for row in rows.values()}) == 1, "the same columns"
    assert rows["smc"]["method"] == "SMC"
    assert rows["smc"]["gap_nats"] is None
    for row in rows.values():
        assert None not in (row["reward"], row["judge"], row["unique"], row["oracle_calls"], row["seconds"])
    assert rows["best_of_n"]["kl_nats"] == pytest.approx(build.sampler("best_of_n")(candidates=4).kl_bound)
    outcome = difftilt("compare", *names, "-o", "all.html")
    assert outcome.code == 0, outcome.err
    line = next(line for line in outcome.out.splitlines() if line.startswith("best_of_n"))
    assert "≤ 0.64" in line
    page = Path("all.html").read_text()
    assert "at most 0.636" in page
    assert "steered: no gap" in page


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["steer"], "for example `difftilt steer utr-mrl`"),
        (["steer", "utr-mrl", "--sampler", "smd"], "did you mean 'smc'?"),
        (["steer", "utr-mrl", "--algorithm", "ppo"], "expected a known flag of `difftilt steer`; got '--algorithm'"),
        (["steer", "utr-mrl", "--moves", "3"], "it needs --sampler"),
        (["steer", "utr-mrl", "--sampler", "best_of_n", "--alpha", "1"], "it needs --sampler"),
        (["steer", "utr-mrl", "--proposal", "x"], "expected a known flag"),
        (["steer", "utr-mrl", "--alpha", "0"], "expected alpha > 0"),
        (["steer", "utr-mrl", "--alpha", "inf"], "expected more than 0 for --alpha; got inf"),
        (["steer", "utr-mrl", "-n", "1"], "--designs 2 or more"),
        (["steer", "utr-mrl", "-n", "many"], "expected a whole number for -n"),
        (["steer", "utr-mrl", "--kind", "cold"], "expected kind to be one of twisted, bootstrap"),
        (["steer", "utr-mrl", "--ess-fraction", "2"], "ess_fraction in [0, 1]"),
        (["steer", "utr-mrl", "--value", "plugin"], "did you mean 'plug_in'?"),
        (["steer", "utr-mrl", "--sampler", "refine", "--value", "one_jump"], "a sampler that looks at soft values"),
        (["steer", "utr-mrl", "--kind", "bootstrap", "--value", "one_jump"], "a sampler that looks at soft values"),
        (["steer", "utr-mrl", "--value-samples", "8"], "with --value-samples; got None"),
        (["steer", "utr-mrl", "--value", "regression", "--value-samples", "0"], "more than 0 for --value-samples"),
        (["steer", "utr-mrl", "--sampler", "mcmc"], "expected a process with a score"),
        (["steer", "--resume", "nowhere"], "got no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_explained(difftilt, words, hint):
    assert hint in explained(difftilt(*words))
    assert not list(Path().glob("runs/*"))


def test_each_sampler_shows_its_flags_and_what_they_cost(difftilt):
    for sampler in build.SAMPLERS:
        out = difftilt("steer", "--sampler", sampler, "--help").out
        assert "A design costs" in out
        assert ("--alpha" in out) == (sampler != "best_of_n")
        assert "--proposal" not in out
        assert "smc:" not in out
        assert sampler in difftilt("list").out


def test_the_config_fed_back_gives_the_same_designs_and_flags_win(difftilt, steer):
    job = [*steer, "--alpha", "2", "--fix", "2:CG", "--seed", "3", "--particles", "8"]
    assert difftilt(*job, "--run", "a").code == 0
    assert difftilt("steer", "--config", "a/config.toml", "--run", "b").code == 0
    assert designs("a") == designs("b")
    assert (Path("a/samples.csv")).read_text() == Path("b/samples.csv").read_text()
    assert difftilt("steer", "--config", "a/config.toml", "--run", "c", "--seed", "4", "--fix", "1:A").code == 0
    settings = tomllib.loads(Path("c/config.toml").read_text())
    assert (settings["settings"]["fix"], settings["sampler"]["alpha"]) == (["1:A"], 2.0)
    assert designs("a") != designs("c")
    assert difftilt("steer", "--config", "a/config.toml", "--run", "d", "--sampler", "refine", "--moves", "1").code == 0
    other = tomllib.loads(Path("d/config.toml").read_text())
    assert other["sampler"] == {"alpha": 2.0, "moves": 1, "restart": "stored"}
    assert difftilt("steer", "--config", "a/config.toml", "--run", "e", "--sampler", "best-of-n").code == 0
    assert tomllib.loads(Path("e/config.toml").read_text())["sampler"] == {"candidates": 16}


def test_a_run_of_the_other_command_is_refused(difftilt, steer, tiny):
    assert difftilt(*steer, "--run", "steered").code == 0
    assert difftilt(*tiny, "--run", "tuned").code == 0
    for words in (
        ["finetune", "--config", "steered/config.toml"],
        ["finetune", "--resume", "steered"],
        ["evaluate", "steered"],
        ["sample", "steered"],
    ):
        assert "expected settings of `difftilt finetune`" in explained(difftilt(*words))
    assert "expected settings of `difftilt steer`" in explained(difftilt("steer", "--resume", "tuned"))


@pytest.mark.parametrize("sampler", SMALL)
def test_fixed_letters_stay_in_every_design(difftilt, steer, sampler):
    job = [*steer, "--sampler", sampler, *SMALL[sampler], "--fix", "2:ATG", "--fix", "8:u", "--run", "r"]
    assert difftilt(*job).code == 0
    assert {(design[1:4], design[7]) for design in designs("r")} == {("ATG", "T")}


@pytest.mark.parametrize("sampler", ["best_of_n", "value_weighted", "smc", "refine"])
def test_a_function_is_a_reward_of_samplers_that_need_no_gradient(difftilt, steer, sampler, work):
    job = [*steer, "--sampler", sampler, *SMALL[sampler], "--reward", "scorer.py:content", "--run", "r"]
    assert difftilt(*job).code == 0
    record, bought = facts(Path("r")), records(Path("r/oracle.jsonl"))
    called = (work / "calls.log").read_text().split()
    assert len(set(called)) == len(called) == len(bought), "no design is paid for twice"
    assert record["value"] == ("one_jump" if sampler in ("value_weighted", "smc") else None)
    assert record["cost"]["oracle_calls"] == sum(row["purpose"] == "training" for row in bought)
    assert record["after"]["reward"]["mean"] > record["before"]["reward"]["mean"]


def test_guidance_says_that_it_needs_a_gradient_before_anything_is_paid_for(difftilt, steer, work):
    job = [*steer, "--sampler", "classifier_guidance", "--reward", "scorer.py:content", "--run", "r"]
    said = explained(difftilt(*job))
    assert "expected a reward with gradients for classifier_guidance; got --reward scorer.py:content" in said
    assert "--value plug_in" in explained(difftilt(*steer, "--reward", "scorer.py:content", "--value", "plug_in"))
    assert not (work / "calls.log").exists()
    assert not Path("r").exists()
    assert difftilt(*job, "--tokens", "exact", "--steps-per-sample", "8", "--alpha", "1").code == 0
    assert facts(Path("r"))["value"] == "one_jump"


@pytest.mark.slow
def test_guidance_learns_a_black_box_by_regression(difftilt, steer):
    job = [*steer, "--sampler", "classifier_guidance", "--reward", "scorer.py:content", "--value", "regression"]
    assert difftilt(*job, "--value-samples", "256", "--alpha", "0.1", "--run", "r").code == 0
    record = facts(Path("r"))
    assert record["value"] == "regression"
    assert record["after"]["reward"]["mean"] > record["before"]["reward"]["mean"]


@pytest.mark.parametrize("value", ["one_jump", "monte_carlo", pytest.param("regression", marks=pytest.mark.slow)])
def test_any_value_can_be_named(difftilt, steer, value):
    job = [*steer, "--value", value, "--value-samples", "8", "--run", "r"]
    assert difftilt(*job).code == 0
    assert facts(Path("r"))["value"] == value
    assert tomllib.loads(Path("r/config.toml").read_text())["settings"]["value_samples"] == 8


@pytest.mark.parametrize("sampler", ["best_of_n", "value_weighted", "smc", "refine"])
def test_infeasible_designs_are_left_out_and_named(difftilt, steer, sampler):
    job = [*steer, "--sampler", sampler, *SMALL[sampler], "--reward", "scorer.py:picky", "--run", "r"]
    outcome = difftilt(*job)
    assert outcome.code == 0, outcome.err
    assert "feasible" in outcome.out
    record = facts(Path("r"))
    assert record["before"]["feasible_fraction"] < 1
    for row in table("r"):
        assert (row["reward"] == "") == row["sequence"].startswith(("A", "C"))
        assert row["reward"] != "" or row["log_weight"] == "-inf"
    reasons = {record["reason"] for record in records(Path("r/oracle.jsonl"))}
    assert reasons == {None, "ValueError: starts with A", "returned None"}
    assert "got no reward" in Path("r/report.html").read_text()


def test_a_reward_without_feasible_designs_leaves_no_run(difftilt, steer):
    assert "expected a number" in explained(difftilt(*steer, "--reward", "scorer.py:nothing", "--run", "r"))
    assert not Path("r").exists()


def test_ctrl_c_says_how_to_go_on_and_nothing_is_bought_twice(difftilt, steer, work):
    job = [*steer, "--sampler", "refine", "--moves", "6", "--reward", "scorer.py:stop_at_third_batch"]
    outcome = difftilt(*job, "--run", "r")
    assert (outcome.code, outcome.out.count("steered by")) == (130, 0)
    assert "go on with: difftilt steer --resume r" in outcome.err
    assert records(Path("r/oracle.jsonl"))
    assert difftilt("steer", "--resume", "r").code == 0
    called = (work / "calls.log").read_text().split()
    assert len(set(called)) == len(called)
    again = difftilt("steer", "--resume", "r")
    assert again.code == 0
    assert (work / "calls.log").read_text().split() == called
    assert "steered by refine" in again.out
    assert difftilt(*job, "--run", "whole").code == 0
    assert designs("r") == designs("whole")
    assert {k: v for k, v in facts(Path("r")).items() if k != "cost"} == {
        k: v for k, v in facts(Path("whole")).items() if k != "cost"
    }
    assert facts(Path("r"))["cost"]["oracle_calls"] == facts(Path("whole"))["cost"]["oracle_calls"]


def test_a_killed_run_is_resumed_from_its_folder_with_its_own_settings(difftilt, steer, work):
    job = [*steer, "--sampler", "refine", "--moves", "20", "--reward", "scorer.py:content", "--run", "r"]
    process = spawn(*job)
    while process.poll() is None and len(records(Path("r/oracle.jsonl"))) < 100:
        pass
    process.kill()
    process.communicate()
    said = explained(difftilt("steer", "--resume", "r", "--alpha", "3"))
    assert "expected the run's own --alpha 0.1; got 3.0" in said
    assert difftilt("steer", "--resume", "r").code == 0
    called = (work / "calls.log").read_text().split()
    assert len(called) - len(set(called)) <= 32, "at most the batch in flight when the process was killed"
    assert len(records(Path("r/oracle.jsonl"))) == len(set(called))
    assert json.loads(Path("r/evaluation.json").read_text())["sampler"] == "refine"


def test_the_page_warns_of_uneven_weights_and_of_a_log_z_that_disagrees(difftilt, steer):
    assert difftilt(*steer, "-n", "64", "--particles", "4", "--run", "r").code == 0
    run = RunFolder(Path("r"))
    record = run.read_json(run.evaluation)
    log_z = {"sampler": 3.0, "sampler_error": 0.1, "independent": 3.4, "independent_error": 0.1, "independent_ess": 100}
    calm = {**record, "effective_designs": 60.0, "log_z": log_z, "kl_nats": {"mean": 2.5, "error": 0.12}}

    def page(**changes) -> str:
        run.write_json(run.evaluation, calm | changes)
        assert difftilt("report", "r").code == 0
        return run.report.read_text().replace("\u00a0", " ")

    warnings = "The two estimates of log Z disagree.", "A few designs carry the weight."
    assert not any(warning in page(kl_nats=calm["kl_nats"] | {"sense": "estimate"}) for warning in warnings)
    assert warnings[0] in page(log_z=log_z | {"independent": 3.5})
    assert warnings[0] not in page(log_z=log_z | {"independent": 3.5, "sampler_error": None})
    assert warnings[1] in page(effective_designs=6.0)
    for sense, said in (("estimate", "2.50 ± 0.12"), ("at most", "at most 2.50"), ("at least", "at least 2.50 ± 0.12")):
        assert f"It spent {said}" in page(kl_nats=calm["kl_nats"] | {"sense": sense})
    nothing = {"mean": None, "error": None, "sense": "unknown"}
    assert "How much KL it spent is not known" in page(kl_nats=nothing)
    run.evaluation.unlink()
    assert difftilt("report", "r").code == 0
    text = run.report.read_text()
    assert "There is no evaluation yet. Continue with --resume" in text
    assert "Steering with SMC was set up, but it has not finished." in text


def test_runs_are_numbered_by_task_and_sampler(difftilt, steer):
    assert difftilt(*steer, "--sampler", "best_of_n", "--candidates", "2").code == 0
    assert [path.name for path in Path("runs").iterdir()] == ["utr-mrl-best_of_n-1"]
