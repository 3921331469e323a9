"""Flags from dataclasses: what is accepted, and what is said of the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from difftilt.cli import flags
from difftilt.cli.record import shown
from difftilt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    """Of learning."""
    limit: int | None = None
    """Or none."""


@dataclass(frozen=True, kw_only=True)
class Job:
    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    """What."""
    number: Annotated[int, flags.short("-n")] = 1
    """How many."""
    place: Path | None = None
    """Where."""
    fix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Held."""
    loud: bool = False
    """Whether."""
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Checked:
    rate: float = 0.5
    """Below 1."""

    def __post_init__(self) -> None:
        if self.rate >= 1:
            raise ConfigError("expected a rate below 1; got " + "more and " * 40 + "more; lower it")


@dataclass(frozen=True, kw_only=True)
class Outer:
    checked: Checked = field(default_factory=Checked)
    own: int = 0
    """Not 7."""

    def __post_init__(self) -> None:
        if self.own == 7:
            raise ConfigError("expected another than 7; got 7; change it")


def parse(*words: str) -> Job:
    return flags.parse(Job, words, command="tool", summary="Does it.", foreign={"--tau": "--algorithm other"})


@pytest.mark.parametrize(
    ("words", "job"),
    [
        (["x"], Job(name="x")),
        (["x", "-n", "3", "--rate", "1e-3"], Job(name="x", number=3, inner=Inner(rate=1e-3))),
        (["--number=4", "x"], Job(name="x", number=4)),
        (["x", "--number", "-4", "--rate", "-.5"], Job(name="x", number=-4, inner=Inner(rate=-0.5))),
        (["x", "--loud", "--limit", "None"], Job(name="x", loud=True)),
        (["x", "--no-loud", "--limit", "9"], Job(name="x", inner=Inner(limit=9))),
        (["x", "--fix", "1:A", "--fix", "2:C"], Job(name="x", fix=("1:A", "2:C"))),
        (["x", "--place", "a/b"], Job(name="x", place=Path("a/b"))),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_become_fields(words, job):
    assert parse(*words) == job


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected `tool NAME`; got no NAME; see tool --help"),
        (["x", "y"], "expected `tool NAME`; got 'y' too; leave it out, or quote what has spaces"),
        (["x", "--nubmer", "3"], "expected a known flag of `tool`; got '--nubmer'; did you mean '--number'?"),
        (
            ["x", "--qqqqqqq"],
            "expected a known flag of `tool`; got '--qqqqqqq'; the nearest is '--fix'; see tool --help",
        ),
        (["x", "-n5"], "expected a known flag of `tool`; got '-n5'; did you mean '-n'?"),
        (
            ["x", "--tau", "1"],
            "expected a known flag of `tool`; got '--tau'; it needs --algorithm other, or did you mean '--rate'?",
        ),
        (["x", "-n"], "expected a whole number after -n; got nothing; write -n VALUE"),
        (["x", "-n", "--loud"], "expected a whole number after -n; got '--loud'; write -n VALUE"),
        (["x", "-n", "2.5"], "expected a whole number for -n; got '2.5'; correct it"),
        (["x", "--rate", "fast"], "expected a number for --rate; got 'fast'; correct it"),
        (["x", "--limit="], "expected a whole number for --limit; got ''; correct it"),
        (["x", "--loud=yes"], "expected no value after --loud; got 'yes'; leave it out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_line(words, said):
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert str(caught.value) == said


def test_what_only_the_parser_objects_to_is_one_line_too(monkeypatch):
    monkeypatch.setattr(flags, "check", lambda *args, **options: None)
    with pytest.raises(ConfigError) as caught:
        parse("x", "--nubmer", "3")
    assert "\n" not in str(caught.value)
    assert "--nubmer" in str(caught.value)


def test_flags_are_seen_before_they_are_parsed():
    words = ["x", "--learning-rate=3", "--run", "a", "--run", "b", "--resume", "--loud"]
    assert flags.given(words) == {"learning_rate", "run", "resume", "loud"}
    assert flags.value_of(words, "run") == "b"
    assert flags.value_of(words, "learning_rate") == "3"
    assert flags.value_of(words, "resume") is None
    assert flags.value_of(words, "seed") is None


def test_a_recorded_command_keeps_no_folders_of_the_machine():
    words = [
        "difftilt",
        "finetune",
        "--data=/home/me/x.csv",
        "--run",
        "/srv/runs/r 1",
        "--reward",
        "here/f.py:g",
        "~/x",
    ]
    assert shown(words) == "difftilt finetune --data=x.csv --run 'r 1' --reward here/f.py:g x"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rate", "2"], "expected a rate below 1; got more.* lower it"),
        (["--own", "7"], "expected another than 7.*it"),
    ],
)
def test_what_settings_say_of_their_values_is_said_whole_and_alone(words, line):
    with pytest.raises(ConfigError) as caught:
        flags.parse(Outer, words, command="tool", summary="Does it.")
    assert re.fullmatch(line, str(caught.value))
