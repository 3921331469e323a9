"""The worked example of docs/campaigns.md runs as it stands there, and what the page says is what is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from difftilt.campaigns.history import STATES
from difftilt.campaigns.results import COLUMNS
from difftilt.campaigns.store import PATIENCE
from difftilt.campaigns.strategies import STRATEGIES
from difftilt.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "campaigns.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_worked_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in zip(("results-1.csv", "typing-error.csv"), blocks("csv"), strict=True):
        Path(name).write_text(text)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 10
    said = {}
    for line in commands:
        command, *words = shlex.split(line)
        assert command == "difftilt"
        assert main(words) == 0, line
        said[words[1]] = capsys.readouterr().out
    assert said["status"] == blocks("text")[0]
    assert Path("plate-1.csv").read_text().splitlines()[0] == "id,sequence,round,well,mean,std,reason"
    assert "1 withdrawn: no oligo" in said["history"]
    assert "typing-error.csv: 1 results, 0 failed, 1 corrections" in said["history"]
    assert len(Path("all.csv").read_text().splitlines()) == 1 + 8 + 1
    assert Path("campaigns/sites/report.html").read_text(encoding="utf-8").count("d00006") == 1, "withdrawn, told once"
    Path("bad.csv").write_text("id,value\n2026-05-01,0.5\nd00005,#N/A\n")
    assert main(["campaign", "record", "sites", "bad.csv"]) == 2
    assert capsys.readouterr().err == blocks("text")[1]
    names: dict = {}
    exec(compile("\n".join(blocks("python")), "campaigns.md", "exec"), names)
    assert names["values"].tolist() == [0.26, 0.41, 0.93, 0.55]
    assert len(names["plate"]) == 2


def test_the_page_names_everything() -> None:
    for name in (*COLUMNS, *STATES, *STRATEGIES):
        assert f"`{name}`" in PAGE
    assert f"up to {PATIENCE} seconds" in PAGE
