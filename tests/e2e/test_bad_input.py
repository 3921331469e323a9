"""Bad input: one line that says what was expected, what came and what to do; exit status 2; nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import Outcome, records


def explained(outcome: Outcome) -> str:
    """The line, after checking its form."""
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("difftilt: ")
    assert "expected" in outcome.err
    assert "; got " in outcome.err
    assert outcome.err.count(";") >= 2, "what to do is missing"
    return outcome.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["finetun"], "did you mean 'finetune'?"),
        (["--hlep"], "did you mean '--help'?"),
        (["finetune"], "for example `difftilt finetune utr-mrl`"),
        (["finetune", "utr-mlr"], "did you mean 'utr-mrl'?"),
        (["finetune", "utr-mrl", "tfbind8"], "got 'tfbind8' too"),
        (["finetune", "utr-mrl", "--alhpa", "1"], "did you mean '--alpha'?"),
        (["finetune", "utr-mrl", "--algorithm", "pop"], "did you mean 'ppo'?"),
        (["finetune", "utr-mrl", "--truncation", "3"], "it needs --algorithm reward_backprop"),
        (["finetune", "utr-mrl", "--replay", "0.5"], "it needs --algorithm trajectory_balance, "),
        (["finetune", "utr-mrl", "--algorithm", "adjoint_matching"], "expected a chain of Gaussian steps"),
        (["finetune", "utr-mrl", "--alpha"], "expected a number after --alpha; got nothing"),
        (["finetune", "utr-mrl", "--alpha", "--batch", "8"], "expected a number after --alpha; got '--batch'"),
        (["finetune", "utr-mrl", "--alpha", "much"], "expected a number for --alpha; got 'much'"),
        (["finetune", "utr-mrl", "--batch", "8.5"], "expected a whole number for --batch; got '8.5'"),
        (["finetune", "utr-mrl", "--alpha", "0"], "expected more than 0 for --alpha; got 0"),
        (["finetune", "utr-mrl", "--alpha", "-1"], "expected more than 0 for --alpha; got -1"),
        (["finetune", "utr-mrl", "--alpha", "nan"], "expected more than 0 for --alpha; got nan"),
        (["finetune", "utr-mrl", "--alpha=inf"], "expected more than 0 for --alpha; got inf"),
        (["finetune", "utr-mrl", "--kl-budget", "0"], "expected a KL budget above 0"),
        (["finetune", "utr-mrl", "--kl-budget", "nan"], "expected a KL budget above 0"),
        (["finetune", "utr-mrl", "--kl-budget", "8", "--alpha", "0.1"], "expected --alpha or --kl-budget; got both"),
        (["finetune", "utr-mrl", "--steps", "0"], "raise --steps"),
        (["finetune", "utr-mrl", "--steps-per-sample", "0"], "more than 0 for --steps-per-sample"),
        (["finetune", "utr-mrl", "--designs", "1"], "--designs 2 or more"),
        (["finetune", "utr-mrl", "--threads", "0"], "more than 0 for --threads"),
        (["finetune", "utr-mrl", "--batch", "1"], "--batch 2 or more"),
        (["finetune", "utr-mrl", "--batch", "4", "--minibatches", "8"], "at most as many --minibatches"),
        (["finetune", "utr-mrl", "--clip", "-1"], "more than 0 for --clip"),
        (["finetune", "utr-mrl", "--device", "gpu"], "expected --device cpu or cuda"),
        (["finetune", "utr-mrl", "--algorithm", "trajectory_balance", "--log-z", "x"], "expected a known log_z"),
        (["finetune", "utr-mrl", "--config", "none.toml"], "got no such file"),
        (["finetune", "--resume", "."], "got no config.toml in it"),
        (["finetune", "--resume", "nowhere"], "got no such folder"),
        (["finetune", "--resume"], "expected a path after --resume; got nothing"),
        (["sample"], "got no SOURCE"),
        (["sample", "utr-mlr"], "did you mean 'utr-mrl'?"),
        (["sample", "tfbind8/SIX"], "did you mean 'tfbind8"),
        (["sample", "."], "without config.toml or config.json"),
        (["sample", "utr-mrl", "-n", "0"], "expected -n 1 or more; got 0"),
        (["sample", "utr-mrl", "-n", "ten"], "expected a whole number for -n"),
        (["sample", "utr-mrl", "-o", "designs.txt"], ".csv, .fasta, .parquet"),
        (["sample", "utr-mrl", "-o", "scorer.py/designs.csv"], "choose another place"),
        (["sample", "utr-mrl", "-m", "3"], "expected a known flag of `difftilt sample`; got '-m'"),
        (["report"], "got no RUN"),
        (["report", "nowhere"], "got no such folder"),
        (["evaluate", "."], "got no config.toml in it"),
        (["compare"], "got no RUN"),
        (["compare", "nowhere", "-o", "x.html"], "got no such folder"),
        (["compare", ".", "-o", "x.csv"], "ending in .html"),
        (["data", "prepair", "utr-mrl"], "did you mean 'prepare'?"),
        (["data", "prepare", "utr"], "did you mean 'utr-mrl'?"),
        (["data", "prepare"], "choose one of: utr-mrl"),
        (["pretrain"], "got no TASK"),
        (["pretrain", "utr-mrl", "--only", "jugde"], "did you mean 'judge'?"),
        (["pretrain", "utr-mrl", "--updates", "0"], "--updates 1 or more"),
        (["pretrain", "utr-mrl", "--data", "nowhere.csv"], "nowhere.csv"),
        (["pretrain", "utr-mrl", "--output", "scorer.py/models", "--data", "own.csv"], "choose --output"),
        (["list", "--all"], "expected a known flag of `difftilt list`; got '--all'"),
        (["demo", "rnas"], "expected a known domain of `difftilt demo`; got 'rnas'; did you mean 'rna'"),
        (["demo", "--steps", "3"], "expected a known flag of `difftilt demo`; got '--steps'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_explained(difftilt, work, words, hint):
    (work / "own.csv").write_text(
        "sequence\n" + "".join(f"{a}{b}{c}ACGTA\n" for a in "ACGT" for b in "ACGT" for c in "ACGT")
    )
    assert hint in explained(difftilt(*words))
    assert not (work / "runs").exists()


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("8:AC", "expected --fix within positions 1 to 8; got '8:AC', positions 8 to 9"),
        ("0:A", "positions 0 to 0"),
        ("3:AXC", "expected letters ACGT in --fix; got 'X'"),
        ("3", "expected --fix POSITION:LETTERS; got '3'"),
        ("A:3", "expected --fix POSITION:LETTERS; got 'A:3'"),
        ("-3:A", "expected --fix POSITION:LETTERS; got '-3:A'"),
        ("3:", "expected --fix POSITION:LETTERS; got '3:'"),
        ("1:ACGTACGT", "got all 8 fixed"),
        ("3:T", "expected one letter for position 3; got T from --fix 3:T and G from another"),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "sample"])
def test_a_wrong_fix_is_explained(difftilt, tiny, models, command, spec, hint):
    words = tiny if command == "finetune" else ["sample", models]
    first = ["--fix", "2:AG"] if spec == "3:T" else []
    assert hint in explained(difftilt(*words, *first, "--fix", spec))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("reward", "hint"),
    [
        ("nowhere.py:f", "expected a Python file 'nowhere.py'; got no such file"),
        ("scorer.py:contents", "did you mean 'content'?"),
        ("scorer.py", "did you mean 'scorer.py:my_function'?"),
        ("modle", "did you mean 'model'?"),
        ("scorer.py:raises", "got RuntimeError: the scorer is broken for every one"),
        ("scorer.py:too_few", "expected 'scorer.py:too_few' to return 16 numbers, one per design; got 1"),
        ("scorer.py:texts", "to return numbers; got str 'high'"),
        ("scorer.py:nothing", "got NaN for all (returned nan)"),
        ("scorer.py:no_list", "got float; return a list"),
        ("scorer.py:rows", "to return numbers; got ndarray"),
        ("broken.py:f", "expected 'broken.py' to run; got ZeroDivisionError"),
    ],
)
def test_a_wrong_reward_is_explained_and_leaves_no_run(difftilt, tiny, work, reward, hint):
    (work / "broken.py").write_text("1 / 0\n")
    assert hint in explained(difftilt(*tiny, "--reward", reward))
    assert not any(Path("runs").glob("*"))


def test_a_reward_without_gradients_is_refused_before_anything_is_paid(difftilt, tiny):
    line = explained(difftilt(*tiny, "--algorithm", "reward_backprop", "--reward", "scorer.py:content"))
    assert "use ppo or trajectory_balance" in line
    assert not Path("calls.log").exists()


TRIPLES = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("own.fasta", "ACGTACGT\n>a\nACGTACGT\n", "own.fasta, line 1"),
        ("own.csv", "sequence,score\n" + "ACGTACGT,1\n" * 25 + "ACGTXCGT,1\n", "line 27: expected the letters ACGT"),
        ("own.csv", "sequence,score\nACGT,high\n", "expected a finite number in column 'score'"),
        ("own.csv", "sequence,score\n" + "".join(f"{t}A,1\n" for t in TRIPLES), "letters, as the model makes; got 4"),
        ("own.csv", "sequence\n" + "".join(f"{t}AAAAA\n" for t in TRIPLES), "a column score"),
        ("own.csv", "", "got an empty file"),
        ("own.xlsx", "x", "expected a .csv, .tsv, .fasta or .parquet file"),
    ],
    ids=["malformed fasta", "wrong letter", "score is text", "wrong length", "no scores", "empty", "unknown kind"],
)
def test_wrong_data_are_explained(difftilt, tiny, work, name, text, hint):
    (work / name).write_text(text)
    line = explained(difftilt(*tiny, "--data", name, "--reward", "table"))
    assert hint in line
    assert not Path("runs").exists()


def test_a_run_folder_that_cannot_be_written_is_explained(difftilt, tiny):
    line = explained(difftilt(*tiny, "--run", "scorer.py/run"))
    assert "expected a run folder that can be written at 'scorer.py/run'; got 'Not a directory'" in line
    Path("runs").write_text("in the way")
    assert "expected a run folder that can be written" in explained(difftilt(*tiny))


def test_a_folder_that_holds_a_run_is_not_overwritten(difftilt, tiny):
    assert difftilt(*tiny, "--run", "r").code == 0
    before = {path: path.read_bytes() for path in Path("r").rglob("*") if path.is_file()}
    assert "continue it with --resume r" in explained(difftilt(*tiny, "--seed", "1", "--run", "r"))
    assert before == {path: path.read_bytes() for path in Path("r").rglob("*") if path.is_file()}


def test_a_truncated_model_is_explained(difftilt, tiny, models, work):
    shutil.copytree(models, work / "models")
    weights = work / "models" / "denoiser" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    line = explained(difftilt(*tiny, "--models", "models"))
    assert "models/denoiser" in line
    shutil.rmtree(work / "models" / "denoiser")
    assert "expected a denoiser model for 'utr-mrl' in 'models'; got none" in explained(
        difftilt(*tiny, "--models", "models")
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[settings]\nalhpa = 1\n", "expected a known setting in [settings] of 'my.toml'"),
        ("[settings]\nstep = 1\n", "did you mean 'steps'?"),
        ("[algorithm]\ntau = 1\n", "expected a known setting in [algorithm] of 'my.toml' for ppo; got 'tau'"),
        ("[algoritm]\nalpha = 1\n", "did you mean 'algorithm'?"),
        ("alpha = 1\n", "got the key 'alpha' outside of them"),
        ("settings = 1\n", "expected a table [settings]"),
        ("[settings]\nsteps = 'many'\n", "expected int for [settings] of 'my.toml'.steps; got 'many'"),
        ("[settings]\nsteps = 0\n", "raise --steps"),
        ("[algorithm]\nalpha = -1\n", "expected more than 0 for --alpha; got -1"),
        ("[settings\n", "expected TOML in 'my.toml'; got"),
    ],
)
def test_a_wrong_settings_file_is_explained(difftilt, work, text, hint):
    (work / "my.toml").write_text(text)
    assert hint in explained(difftilt("finetune", "utr-mrl", "--config", "my.toml"))


def test_evaluating_an_unfinished_run_says_how_to_finish_it(difftilt, tiny):
    words = [*tiny, "--log-z-samples", "0", "--reward", "scorer.py:stop_at_third_batch", "--run", "r"]
    assert difftilt(*words).code == 130
    assert "first run: difftilt finetune --resume r" in explained(difftilt("evaluate", "r"))


def test_a_scorer_that_breaks_in_the_middle_loses_nothing(difftilt, tiny, work):
    (work / "flaky.py").write_text(
        "from scorer import content\nfrom pathlib import Path\n"
        "def f(designs):\n"
        "    if Path('metrics').exists() or not Path('down').exists(): return content(designs)\n"
        "    raise ConnectionError('no route to host')\n"
        "def g(designs, calls=[]):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3: Path('down').touch()\n"
        "    return f(designs)\n"
    )
    words = [*tiny, "--log-z-samples", "0", "--checkpoint-every", "1", "--reward", "flaky.py:g", "--run", "r"]
    line = explained(difftilt(*words))
    assert "ConnectionError: no route to host" in line
    assert "then go on with: difftilt finetune --resume r" in line
    assert len(records(Path("r/metrics.jsonl"))) == 2
    Path("down").unlink()
    (work / "flaky.py").write_text("from scorer import content as g\n")
    assert difftilt("finetune", "--resume", "r").code == 0
    assert all(record["value"] is not None for record in records(Path("r/oracle.jsonl")))
