"""`difftilt campaign`: from the first plate to the last result, by people who mistype, double-click and pull plugs."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

import difftilt as dt
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.history import CampaignSettings
from difftilt.campaigns.settings import Picking, Tuning
from difftilt.campaigns.strategies import READS, STRATEGIES
from difftilt.errors import DiffTiltError

from .conftest import spawn

NEW = ["campaign", "new", "lab", "--batch", "3", "--budget", "7", "--task"]


@pytest.fixture
def task(models: Path) -> str:
    """A task of one's own: an untrained model."""
    return str(models / "denoiser")


def filled(plate: Path, results: Path, values: list[str]) -> Path:
    """The plate with values typed in."""
    header, *lines = plate.read_text().splitlines()
    results.write_text("\n".join([header + ",value", *(f"{a},{b}" for a, b in zip(lines, values, strict=True))]))
    return results


def test_a_campaign_from_the_first_plate_to_the_last_result(difftilt, work, task):
    assert difftilt(*NEW, task).out == f"lab: 7 designs of {task} by random, 3 a plate\n"
    for number, left in ((1, 4), (2, 1), (3, 0)):
        plate = Path(f"plate-{number}.csv")
        outcome = difftilt("campaign", "propose", "lab", "-o", plate)
        assert (outcome.out.endswith(f"; {left} of 7 left\n"), outcome.err) == (True, "")
        wells = len(plate.read_text().splitlines()) - 1
        results = filled(plate, Path(f"results-{number}.csv"), [str(0.1 * i) for i in range(wells)])
        told = f"{results}: {wells} measured, 0 failed, 0 corrected; 0 on record already, 0 pending\n"
        assert difftilt("campaign", "record", "lab", results).out == told
    outcome = difftilt("campaign", "propose", "lab")
    assert (outcome.code, outcome.out) == (2, "")
    assert "all 7 spent (0 pending, 7 measured, 0 failed, 0 withdrawn)" in outcome.err
    assert difftilt("campaign", "status", "lab").out.count("7 measured") == 1
    assert len(difftilt("campaign", "history", "lab").out.splitlines()) == 6
    assert difftilt("campaign", "export", "lab", "-o", "all.csv").out == "7 rows in all.csv\n"
    assert difftilt("campaign", "report", "lab").out == "3 rounds in campaigns/lab/report.html\n"


def test_a_second_plate_by_mistake_costs_nothing_and_a_lost_one_is_written_again(difftilt, work, task):
    difftilt(*NEW, task)
    first = difftilt("campaign", "propose", "lab").out
    again = difftilt("campaign", "propose", "lab")
    assert again.code == 2
    assert "--round 1" in again.err
    assert difftilt("campaign", "propose", "lab", "--round", "1").out == first
    assert difftilt("campaign", "propose", "campaigns/lab", "--more", "-n", "2").code == 0
    assert Campaign.open("campaigns/lab").status().pending == 5
    difftilt("campaign", "withdraw", "lab", "d00002", "--reason", "no oligo")
    less = difftilt("campaign", "propose", "lab", "--round", "1")
    assert less.out.splitlines() == [line for line in first.splitlines() if "d00002" not in line]
    assert less.err == "difftilt: round 1: 1 withdrawn left out\n"


def test_a_data_base_of_ones_own_is_named_by_its_url(difftilt, work, task, place):
    url = place if "://" in place else f"sqlite:///{work}/own.db"
    assert difftilt(*NEW, task, "--url", url).code == 0
    assert len(difftilt("campaign", "propose", url).out.splitlines()) == 4
    assert difftilt("campaign", "withdraw", url, "d00002", "--reason", "lost").out == "1 withdrawn; 5 of 7 left\n"
    assert "2 pending" in difftilt("campaign", "status", url).out
    assert "expected -o FILE with the URL" in difftilt("campaign", "report", url).err
    assert difftilt("campaign", "report", url, "-o", "own.html").out == "1 round in own.html\n"
    assert not Path("campaigns").exists()


def test_every_faulty_line_is_printed_and_nothing_is_recorded(difftilt, work, task):
    difftilt(*NEW, task)
    difftilt("campaign", "propose", "lab", "-o", "plate.csv")
    filled(Path("plate.csv"), Path("results.csv"), ["0.5", "high", "#N/A"])
    outcome = difftilt("campaign", "record", "lab", "results.csv")
    assert outcome.code == 2
    assert [line.split(": ")[1] for line in outcome.err.splitlines()] == [
        "results.csv, line 3", "results.csv, line 4", "results.csv",
    ]  # fmt: skip
    assert Campaign.open("campaigns/lab").status().measured == 0


def test_a_plate_is_not_written_over_a_file_and_nothing_is_proposed_for_it(difftilt, work, task):
    difftilt(*NEW, task)
    Path("plate.csv").write_text("results of last week\n")
    assert "may hold results" in difftilt("campaign", "propose", "lab", "-o", "plate.csv").err
    assert Path("plate.csv").read_text() == "results of last week\n"
    assert Campaign.open("campaigns/lab").status().rounds == 0


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["prpose", "lab"], "did you mean 'propose'?"),
        (["status", "lap"], "did you mean 'lab'?"),
        (["status"], "got no NAME"),
        (["record", "lab"], "got no FILE"),
        (["record", "lab", "absent.csv"], "check the path"),
        (["propose", "lab", "--numbr", "3"], "did you mean '--number'?"),
        (["propose", "lab", "-n", "8"], "1 to 7 designs"),
        (["propose", "lab", "-n", "0"], "1 to 7 designs"),
        (["propose", "lab", "--round", "1"], "expected a round"),
        (["propose", "lab", "--round", "1", "-n", "2"], "--round alone"),
        (["propose", "lab", "-o", "plate.xlsx"], ".csv for a plate"),
        (["withdraw", "lab", "d00001"], "expected --reason"),
        (["withdraw", "lab", "--reason", "x"], "got no IDS"),
        (["withdraw", "lab", "d00001", "--reason", "x"], "d00001 (unknown)"),
        (["export", "lab", "-o", "all.doc"], "all.doc"),
        (["report", "lab", "-o", "plate.csv"], ".html for a report"),
        (["new", "other"], "expected --task"),
        (["new", "other", "--task", "utr-mlr"], "did you mean 'utr-mrl'?"),
        (["new", "other", "--task", "utr-mrl", "--strategy", "rnadom"], "did you mean 'random'?"),
        (["new", "other", "--task", "utr-mrl", "--url", "own"], "such as postgresql://HOST/DATABASE or sqlite:///own/"),
        (["new", "a/b", "--task", "utr-mrl"], "letters, digits"),
        (["new", "other", "--task", "utr-mrl", "--budget", "0"], "budget 1 or more"),
        (["new", "lab", "--task", "utr-mrl"], "holds one"),
        (["new", "other", "--task", "utr-mrl", "--url", "nosuch://x"], "driver"),
    ],
)
def test_a_mistake_is_one_line_with_what_to_do_and_changes_nothing(difftilt, work, task, words, hint):
    difftilt(*NEW, task)
    before = Campaign.open("campaigns/lab").history()
    outcome = difftilt("campaign", *words)
    assert outcome.code == 2, outcome.out
    assert hint in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert Campaign.open("campaigns/lab").history() == before
    assert not Path("campaigns/other").exists()


START = {
    "none.csv": "sequence\nACGTACGT\n",
    "letters.csv": "sequence,score\nACGTACGT,0.1\nACGTACGX,0.4\n",
    "short.csv": "sequence,score\nACGTACGT,0.1\nACGT,0.4\n",
    "text.csv": "sequence,score\nACGTACGT,high\nACGTACGA,0.4\n",
    "empty.csv": "",
    "one.csv": "sequence,score\nACGTACGT,0.1\n",
    "same.csv": "sequence,score\nACGTACGT,0.1\nACGTACGA,0.1\n",
    "repeats.csv": "sequence,score\nACGTACGT,0.1\nacguacgu,0.2\n",
    "good.csv": "sequence,score\nACGTACGT,0.1\nacguacga,0.2\n",
}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--strategy", "greedy", "--algorithm", "dpo"], "algorithm of campaigns; got 'dpo'"),
        (["--strategy", "greedy", "--start", "none.csv"], "none.csv: expected designs with a score"),
        (["--strategy", "greedy", "--start", "letters.csv"], "letters.csv: expected letters ACGT; got 'X' in design 2"),
        (["--strategy", "greedy", "--start", "short.csv"], "short.csv: expected designs of 8 letters; got 4"),
        (["--strategy", "greedy", "--start", "text.csv"], "text.csv, line 2"),
        (["--strategy", "genetic", "--start", "empty.csv"], "empty.csv: expected designs"),
        (["--strategy", "genetic", "--start", "one.csv"], "one.csv: expected 2 designs or more of different scores"),
        (["--strategy", "batch-bo", "--start", "same.csv"], "same.csv: expected 2 designs or more of different scores"),
        (["--strategy", "greedy", "--start", "repeats.csv"], "repeats.csv: expected 2 designs or more"),
        (["--strategy", "greedy", "--start", "absent.csv"], "check the path"),
        (["--avoid", "letters.csv"], "letters.csv: expected letters ACGT; got 'X' in design 2"),
        (["--avoid", "short.csv"], "short.csv: expected designs of 8 letters; got 4"),
        (["--start", "good.csv"], "got --start, without effect there"),
        (["--strategy", "online-ppo", "--start", "good.csv"], "got --start, without effect there"),
        (["--alpha", "0.1", "--pool", "4"], "got --alpha, --pool, without effect there"),
        (["--strategy", "conservative", "--kl-budget", "1"], "got --kl-budget, without effect there"),
        (["--strategy", "non-adaptive", "--beta", "1"], "got --beta, without effect there"),
        (["--strategy", "seiko-bootstrap", "--surrogate", "gp"], "got --surrogate, without effect there"),
        (["--surrogate", "xgb"], "difftilt: expected a known surrogate; got 'xgb'; choose one of: auto, ensemble, gp"),
        (["--alpha", "-1"], "difftilt: expected alpha above 0"),
        (["--gc-min", "0.9", "--gc-max", "0.1"], "difftilt: expected a range of GC"),
    ],
)
def test_settings_with_which_a_plate_would_fail_later_are_refused_at_new(difftilt, work, task, words, hint):
    for name, text in START.items():
        Path(name).write_text(text)
    outcome = difftilt("campaign", "new", "other", "--task", task, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert hint in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("campaigns").exists()


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"strategy": "conservative", "tuning": Tuning(kl_budget=1.0)}, "--kl-budget, without effect there"),
        ({"strategy": "greedy", "tuning": Tuning(algorithm="dpo")}, "algorithm of campaigns; got 'dpo'"),
        ({"strategy": "greedy", "picking": Picking(start="one.csv")}, "one.csv: expected 2 designs or more"),
        ({"strategy": "gredy"}, "got 'gredy'"),
        ({"task": "none"}, "none"),
    ],
)
def test_python_refuses_the_same_settings_before_anything_is_written(work, task, wrong, hint):
    """Twin: the same without what is wrong begins a campaign."""
    Path("one.csv").write_text(START["one.csv"])
    with pytest.raises(DiffTiltError, match=hint):
        dt.Campaign.create("campaigns/lab", CampaignSettings(**{"name": "lab", "task": task, **wrong}))
    assert not Path("campaigns").exists()
    dt.Campaign.create("campaigns/lab", CampaignSettings(name="lab", task=task))
    assert dt.Campaign.open("campaigns/lab").status().remaining == 480


@pytest.mark.parametrize("name", STRATEGIES)
def test_settings_that_a_strategy_reads_are_taken(difftilt, work, task, name):
    """Each with a value that is no default; which they are is said in one place, for every strategy."""
    Path("good.csv").write_text(START["good.csv"])
    told = {"alpha": 0.1, "beta": 0.1, "kl_budget": 1.0, "algorithm": "vargrad", "updates": 3, "paths": 16,
            "learning_rate": 1e-3, "surrogate": "linear", "c": 2.0, "rule": "as_drawn", "pool": 4, "apart": 2,
            "start": "good.csv"}  # fmt: skip
    words = [word for field in READS[name] for word in (f"--{field.replace('_', '-')}", told[field])]
    assert difftilt("campaign", "new", "lab", "--task", task, "--strategy", name, *words).code == 0
    kept = Campaign.open("campaigns/lab").settings
    for field in (*vars(kept.tuning), *vars(kept.picking)):
        part = kept.tuning if hasattr(kept.tuning, field) else kept.picking
        assert getattr(part, field) == (told[field] if field in READS[name] else getattr(type(part)(), field))


def test_designs_to_avoid_are_read_as_the_task_reads_them(difftilt, work, task):
    """RNA in lower case, of a model of DNA; the twin without the file proposes them."""
    near = ["--parent", "ACGTACGA", "--mutations", "1"]
    Path("avoid.csv").write_text("sequence\n" + "\n".join(f"acguacg{letter}" for letter in "acgu") + "\n")
    for name, more in (("lab", ["--avoid", "avoid.csv"]), ("twin", [])):
        difftilt("campaign", "new", name, "--task", task, "--budget", "25", "--batch", "25", *near, *more)
        outcome = difftilt("campaign", "propose", name)
        avoided = {f"ACGTACG{letter}" for letter in "ACGT"} & {
            design.design for design in Campaign.open(f"campaigns/{name}").history().designs
        }
        assert bool(avoided) == (name == "twin")
        assert ("expected 25 new designs from random; got 21" in outcome.err) == (name == "lab"), (
            "a short plate says so"
        )


@pytest.mark.parametrize("scale", ["1e100", "1e-300", "5e-324"])
def test_values_as_far_as_numbers_go_give_no_trace_back(difftilt, work, task, scale):
    difftilt(*NEW, task, "--strategy", "greedy")
    difftilt("campaign", "propose", "lab", "-o", "plate.csv")
    filled(Path("plate.csv"), Path("results.csv"), [scale, f"-{scale}", "0"])
    assert difftilt("campaign", "record", "lab", "results.csv").code == 0
    assert difftilt("campaign", "report", "lab").code == 0
    outcome = difftilt("campaign", "propose", "lab")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "expected values with a standard deviation" in outcome.err
    assert difftilt("campaign", "status", "lab").code == 0


def test_help_names_every_action(difftilt, work):
    for words in (["campaign"], ["campaign", "--help"]):
        assert all(
            name in difftilt(*words).out for name in ("new", "propose", "record", "withdraw", "export", "report")
        )


def test_a_command_that_is_killed_leaves_a_whole_round_or_none(difftilt, work, task):
    difftilt(*NEW, task)
    for attempt, delay in enumerate((2.0, 2.5, 3.0)):
        process = spawn("campaign", "propose", "lab", "-o", f"plate-{attempt}.csv")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        status = Campaign.open("campaigns/lab").status()
        assert (status.rounds, status.pending) in ((0, 0), (1, 3))
    if status.rounds == 0:
        assert difftilt("campaign", "propose", "lab").code == 0
    assert len(difftilt("campaign", "propose", "lab", "--round", "1").out.splitlines()) == 4
