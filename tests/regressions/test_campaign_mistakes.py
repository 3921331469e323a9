"""What people at the bench typed, and what a campaign made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign_parts import begin, letters
from difftilt.campaigns.campaign import Campaign
from difftilt.cli import main
from difftilt.cli.campaign_told import short_plate
from difftilt.lab.landscapes import GROUPS, MAKERS


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """A campaign's command in a directory with one campaign, ``lab``, of one plate; what it prints."""
    monkeypatch.chdir(tmp_path)
    begin("campaigns/lab").propose(3, proposer=letters)

    def run(*words: str) -> str:
        main(["campaign", *words])
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


def test_the_data_base_of_a_campaign_names_it_too(said):
    assert said("status", "campaigns/lab/campaign.db") == said("status", "lab")
    assert len(Campaign.open("campaigns/lab/campaign.db").history().designs) == 3
    assert Campaign.open(Path("campaigns/lab/campaign.db")).folder == Path("campaigns/lab")


def test_a_folder_that_is_called_as_the_data_base_is_no_campaign(said):
    Path("campaigns/D/campaign.db").mkdir(parents=True)
    assert said("status", "D") == "difftilt: expected a known campaign; got 'D'; choose one of: lab\n"


def test_a_reason_of_several_lines_is_one_line_of_the_history(said):
    said("withdraw", "lab", "d00002", "--reason", " no oligo,\n  again ")
    assert said("history", "lab").splitlines()[1].endswith("  1 withdrawn: no oligo, again")
    assert len(said("history", "lab").splitlines()) == 2


def test_a_plate_before_the_first_is_not_sought_between_1_and_0(said):
    begin("campaigns/new")
    assert "got 1, and none was yet; leave out --round" in said("propose", "new", "--round", "1")


def test_a_history_without_events_says_so(said):
    begin("campaigns/new")
    assert said("history", "new") == "no round was proposed yet\n"


def test_strands_without_a_forbidden_word_are_refused_since_nothing_would_be_kept(said):
    words = ("new", "strands", "--task", "tfbind8", "--both-strands", "--longest-run", "3")
    assert "expected --forbid with --both-strands" in said(*words)
    assert not Path("campaigns/strands").exists()


def test_help_is_written_for_people_who_do_not_read_the_source(said):
    told = said("new", "--help")
    assert ":mod:" not in told
    assert "docs/strategies.md compares them" in " ".join(told.replace("│", " ").split())


def test_help_names_every_landscape(said):
    told = set(said("simulate", "--help").replace("│", " ").replace(",", " ").replace(";", " ").split())
    assert {name for name in (*MAKERS, *GROUPS) if not name.startswith("tfbind8/")} <= told


def test_decimals_that_a_comma_cut_off_are_seen_before_a_unit(said):
    plate = [design.id for design in Campaign.open("campaigns/lab").history().designs]
    rows = [f"{plate[0]},0,62 nM", f"{plate[1]},0,7 nM", f"{plate[2]},1,"]
    Path("cut.csv").write_text("\n".join(["id,value,notes", *rows]) + "\n")
    told = said("record", "lab", "cut.csv")
    assert "0,62 nM may be meant" in told
    assert "0,7 nM may be meant" in told
    assert "nothing" in told
    said_words = [f"{plate[0]},0,62 cells seen", f"{plate[1]},0,sick", f"{plate[2]},1,"]
    Path("notes.csv").write_text("\n".join(["id,value,notes", *said_words]) + "\n")
    assert "3 measured" in said("record", "lab", "notes.csv")


def test_no_weight_of_the_round_before_is_a_setting(said):
    assert "by greedy" in said("new", "free", "--task", "tfbind8", "--strategy", "greedy", "--beta", "0")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--apart", "9"), "at most all 8 letters; got --apart 9"),
        (("--kl-budget", "inf"), "correct --kl-budget"),
    ],
)
def test_settings_that_would_fail_or_mean_nothing_later_are_refused_at_once(said, words, fault):
    assert fault in said("new", "late", "--task", "tfbind8", "--strategy", "greedy", *words)
    assert not Path("campaigns/late").exists()


def test_a_short_plate_is_not_laid_to_a_setting_that_its_strategy_does_not_read():
    assert "alpha" not in short_plate(3, 9, "random")
    assert "larger alpha" in short_plate(3, 9, "greedy")


def test_a_simulation_that_was_killed_while_it_began_goes_on(said, monkeypatch):
    """A data base without tables, as a kill leaves it, is begun again."""
    folder = Path("s/tfbind8-SIX6_REF_R1/random/seed-0")
    folder.mkdir(parents=True)
    (folder / "campaign.db").touch()
    words = (
        "simulate",
        "tfbind8",
        "--strategies",
        "random",
        "--rounds",
        "1",
        "--batch",
        "4",
        "--seeds",
        "1",
        "-o",
        "s",
    )
    assert "summary" in said(*words)
    assert (folder / "result.json").is_file()


def test_images_are_no_designs_of_a_plate(said):
    pytest.importorskip("diffusers")
    assert "that a plate can name in text; got those of ImageCodec" in said("new", "faces", "--task", "emoji")
    assert not Path("campaigns/faces").exists()
