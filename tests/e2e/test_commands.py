"""Every command beside ``finetune``, on a tiny task."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from difftilt.cli import COMMANDS
from difftilt.data import read_designs
from difftilt.domains.task import MASKED, Prior

from .conftest import LENGTH, facts, records


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_help_names_every_command_and_no_arguments_print_it(difftilt):
    shown = difftilt()
    assert shown.code == 0
    assert shown == difftilt("--help")
    for name in COMMANDS:
        assert f"\n  {name} " in shown.out
        page = difftilt(name, "--help")
        assert page.code == 0
        assert f"usage: difftilt {name}" in page.out
    assert difftilt("--version").out.startswith("difftilt ")


def test_help_of_an_algorithm_shows_its_own_flags(difftilt):
    assert "--tau " in difftilt("finetune", "--algorithm", "reward_backprop", "--help").out
    shown = difftilt("finetune", "--help").out
    assert "--tau " not in shown
    assert "--clip" in shown
    assert "--checkpoint-every" in shown


def test_help_imports_nothing_it_does_not_need():
    code = (
        "import sys; from difftilt.cli import main; main(['--help']);"
        "heavy = {'tyro', 'rich', 'matplotlib', 'jinja2', 'difftilt.build', 'pyarrow'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_list_and_data_name_what_there_is(difftilt):
    shown = difftilt("list")
    assert shown.code == 0
    for name in ("utr-mrl", "yeast-promoter", "tfbind8", "ppo", "trajectory_balance", "best_of_n", "FILE.py:FUNCTION"):
        assert f"  {name} " in shown.out
    assert "utr-mrl" in difftilt("data").out


def test_commands_need_no_network(difftilt, models, monkeypatch):
    def refuse(*args: object) -> None:
        raise AssertionError("a command asked for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert difftilt("list").code == 0
    assert difftilt("data").code == 0
    assert difftilt("sample", models, "-n", "3").code == 0


def test_samples_come_with_reward_and_judge_and_the_same_seed_repeats_them(difftilt, models):
    first = difftilt("sample", models, "-n", "10", "--seed", "4")
    assert first.code == 0
    table = rows(first.out)
    assert list(table[0]) == ["id", "sequence", "reward", "judge"]
    assert len({row["sequence"] for row in table}) > 5
    assert {len(row["sequence"]) for row in table} == {LENGTH}
    assert first == difftilt("sample", models, "-n", "10", "--seed", "4")
    assert first.out != difftilt("sample", models, "-n", "10", "--seed", "5").out


@pytest.mark.parametrize("suffix", ["csv", "fasta", "parquet"])
def test_samples_of_a_run_are_written_in_each_format(difftilt, tiny, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    assert difftilt(*tiny, "--run", "r").code == 0
    assert difftilt("sample", "r", "-n", "7", "-o", f"inside/designs.{suffix}").code == 0
    table = read_designs(Path(f"inside/designs.{suffix}"))
    assert len(table) == 7
    assert set(table.columns) >= {"reward", "judge"}
    assert sorted(path.name for path in Path("inside").iterdir()) == [f"designs.{suffix}"]


def test_sampling_never_pays_an_oracle_but_uses_what_was_paid(difftilt, tiny, work):
    assert difftilt(*tiny, "--reward", "scorer.py:content", "--fix", "1:ACGTAC", "--run", "r").code == 0
    paid = (work / "calls.log").read_text()
    table = rows(difftilt("sample", "r", "-n", "30").out)
    assert (work / "calls.log").read_text() == paid
    values = {record["design"]: record["value"] for record in records(Path("r/oracle.jsonl"))}
    assert any(row["reward"] for row in table)
    for row in table:
        assert row["reward"] == ("" if row["sequence"] not in values else repr(values[row["sequence"]]))


def test_an_unfinished_run_is_sampled_at_its_checkpoint(difftilt, tiny):
    words = [*tiny, "--log-z-samples", "0", "--checkpoint-every", "1", "--reward", "scorer.py:stop_at_third_batch"]
    assert difftilt(*words, "--run", "r").code == 130
    outcome = difftilt("sample", "r", "-n", "3")
    assert outcome.code == 0
    assert outcome.err == "difftilt: 'r' is not finished; these designs are from update 2\n"
    assert len(rows(outcome.out)) == 3


def test_evaluate_measures_again_and_buys_only_new_designs(difftilt, tiny, work):
    assert difftilt(*tiny, "--reward", "scorer.py:content", "--run", "r").code == 0
    before, bought = facts(Path("r")), records(Path("r/oracle.jsonl"))
    assert difftilt("evaluate", "r").code == 0
    assert facts(Path("r")) == before
    assert records(Path("r/oracle.jsonl")) == bought
    assert difftilt("evaluate", "r", "--designs", "20", "--seed", "9").code == 0
    after = facts(Path("r"))
    assert after["designs"] == 20
    assert after["cost"]["oracle_calls"] == before["cost"]["oracle_calls"]
    assert after["after"]["reward"] != before["after"]["reward"]
    called = (work / "calls.log").read_text().split()
    assert len(called) == len(set(called)) == len(records(Path("r/oracle.jsonl")))


def test_report_and_compare_read_the_folders_only(difftilt, tiny):
    assert difftilt(*tiny, "--run", "a").code == 0
    assert difftilt(*tiny, "--algorithm", "trajectory_balance", "--run", "b").code == 0
    Path("a/report.html").unlink()
    outcome = difftilt("report", "a")
    assert (outcome.code, outcome.out) == (0, "a/report.html\n")
    assert Path("a/report.html").is_file()
    outcome = difftilt("compare", "a", "b", "-o", "both.html")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split()[:5] == ["run", "method", "alpha", "reward", "judge"]
    assert [line.split()[0] for line in lines[1:3]] == ["a", "b"]
    assert "both.html" in lines[-1]
    assert "<html" in Path("both.html").read_text()


def test_pretrain_makes_models_that_finetune_takes(difftilt, work, monkeypatch):
    from dataclasses import replace

    from difftilt import build
    from difftilt.training.regress import RegressConfig

    quick = RegressConfig(epochs=1, members=1)
    small = {"type": "conv", "width": 8, "kernel": 3, "dilations": [1]}
    task = replace(
        build.TASKS["utr-mrl"],
        priors={MASKED: Prior(denoiser=small)},
        reward=small,
        judge={"type": "recurrent", "width": 8, "kernel": 3},
        reward_training=quick,
        judge_training=quick,
        cluster_distance=None,
    )
    monkeypatch.setitem(build.TASKS, "utr-mrl", task)
    letters = "ACGT"
    designs = [a + b + c + d + "ACGT" for a in letters for b in letters for c in letters for d in letters]
    (work / "own.csv").write_text("sequence,score\n" + "".join(f"{d},{d.count('G')}\n" for d in designs))
    words = ["pretrain", "utr-mrl", "--data", "own.csv", "--updates", "5", "-o", "mine"]
    outcome = difftilt(*words)
    assert outcome.code == 0, outcome.err
    assert "next: difftilt finetune utr-mrl --models mine" in outcome.out
    weights = Path("mine/denoiser/model.safetensors").read_bytes()
    assert "got a finished denoiser in 'mine'; add --resume" in difftilt(*words).err
    assert difftilt(*words, "--resume").code == 0
    assert Path("mine/denoiser/model.safetensors").read_bytes() == weights
    card = json.loads(Path("mine/reward/config.json").read_text())["card"]
    assert card["training"]["command"] == "difftilt pretrain utr-mrl --data own.csv --updates 5 -o mine"
    job = [
        "finetune",
        "utr-mrl",
        "--models",
        "mine",
        "--data",
        "own.csv",
        "--steps",
        "1",
        "--batch",
        "8",
        "--designs",
        "16",
    ]
    assert difftilt(*job, "--log-z-samples", "16", "--run", "r").code == 0
    assert "novelty" in facts(Path("r"))["after"]


def test_pretrain_without_scores_trains_the_denoiser_only(difftilt, work, monkeypatch):
    from dataclasses import replace

    from difftilt import build

    small = {"type": "conv", "width": 8, "kernel": 3, "dilations": [1]}
    task = replace(build.TASKS["utr-mrl"], priors={MASKED: Prior(denoiser=small)}, cluster_distance=None)
    monkeypatch.setitem(build.TASKS, "utr-mrl", task)
    letters = "ACGT"
    designs = [a + b + c + "ACGT" for a in letters for b in letters for c in letters]
    (work / "own.fasta").write_text("".join(f">d{i}\n{design}\n" for i, design in enumerate(designs)))
    words = ["pretrain", "utr-mrl", "--data", "own.fasta", "--updates", "3", "-o", "mine"]
    outcome = difftilt(*words)
    assert outcome.code == 0, outcome.err
    assert "only the denoiser is trained" in outcome.out
    assert [path.name for path in Path("mine").iterdir() if (path / "config.json").exists()] == ["denoiser"]
    assert "expected a column 'score' for the judge" in difftilt(*words, "--only", "judge").err
