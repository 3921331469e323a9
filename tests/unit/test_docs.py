"""The documentation says what the code does: a page for each method, with its settings, numbers and lines of code."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from difftilt import build
from difftilt.campaigns.learning import SPREAD
from difftilt.campaigns.settings import Constraints, Picking, Tuning
from difftilt.campaigns.strategies import STRATEGIES
from difftilt.campaigns.update import ALGORITHMS as TWO_ANCHORS
from difftilt.core.algorithm import Weighted
from difftilt.surrogates import calibration as surrogates
from difftilt.surrogates.ensemble import Ensemble
from difftilt.surrogates.feasibility import Logistic
from difftilt.surrogates.gaussian_process import GaussianProcess
from difftilt.surrogates.linear import Linear
from difftilt.surrogates.training import Training
from difftilt.values.calibration import Calibration
from difftilt.values.regression import Regression

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "algorithms"
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
METHODS = {**build.ALGORITHMS, **build.SAMPLERS}
SOFT_VALUES = {"soft_values": Regression}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def info_of(method: Any) -> Any:
    """The record of what an algorithm logs, or of what a sampler returns."""
    if method in build.SAMPLERS.values():
        return Weighted
    return getattr(method, "info", None) or typing.get_type_hints(method.step)["return"]


def missing_settings(text: str, settings: Any) -> list[str]:
    """Fields that ``text`` does not name with their default, as ``name = value`` in code."""
    wanted = [f"{field.name} = {_written(field.default)}" for field in dataclasses.fields(settings)]
    return [entry for entry in wanted if f"`{entry}`" not in text]


def _written(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else str(value)


def missing_numbers(text: str, info: Any) -> list[str]:
    """Fields that ``text`` does not name in code."""
    return [field.name for field in dataclasses.fields(info) if f"`{field.name}`" not in text]


def foreign_lines(page: Path) -> list[str]:
    """Blocks of Python on a page that are not, line after line, in a source file that the page links to."""
    text = page.read_text(encoding="utf-8")
    links = [page.parent / target for target in LINK.findall(text) if target.endswith(".py")]
    sources = [_squeezed(link.read_text(encoding="utf-8")) for link in links]
    blocks = [_squeezed(block) for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    return [block for block in blocks if not any(f"\n{block}\n" in f"\n{source}\n" for source in sources)]


def _squeezed(code: str) -> str:
    """Without indentation and empty lines."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


def anchors(text: str) -> set[str]:
    """What ``#...`` can point to on a page: its headings, as a renderer names them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(page: Path) -> list[str]:
    """Relative links of a page that point to no file, or to no heading of it.

    A page that `make docs` makes of a notebook is there where the notebook is.
    """
    dead = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        if not heading and file.suffix == ".md" and file.with_suffix(".py").is_file():
            continue
        if not file.exists() or (heading and heading not in anchors(file.read_text(encoding="utf-8"))):
            dead.append(target)
    return dead


def page_of(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*METHODS, *SOFT_VALUES])
def test_every_method_has_a_page(name: str) -> None:
    assert (PAGES / f"{name}.md").is_file(), f"write docs/algorithms/{name}.md; docs/methods.md says what is on it"
    assert f"(algorithms/{name}.md)" in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), (
        "add it to the index"
    )


def test_every_page_is_of_a_method() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} <= {*METHODS, *SOFT_VALUES}


@pytest.mark.parametrize("name", [*METHODS, *SOFT_VALUES])
def test_a_page_names_every_setting_with_its_default(name: str) -> None:
    missing = missing_settings(page_of(name), {**METHODS, **SOFT_VALUES}[name])
    assert not missing, f"write under Settings: {', '.join(f'`{entry}`' for entry in missing)}"


@pytest.mark.parametrize("name", [*METHODS, *SOFT_VALUES])
def test_a_page_names_every_number(name: str) -> None:
    info = Calibration if name in SOFT_VALUES else info_of(METHODS[name])
    assert not missing_numbers(page_of(name), info)


@pytest.mark.parametrize("part", ["Problem", "Equations and code", "Differs", "Benchmark", "Fails when"])
@pytest.mark.parametrize("name", [*METHODS, *SOFT_VALUES])
def test_a_page_has_every_part(name: str, part: str) -> None:
    assert f"\n## {part}\n" in page_of(name) or f"\n**{part}.**" in page_of(name)


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_code_on_a_page_is_in_the_file_that_it_links_to(page: Path) -> None:
    assert "```python" in page.read_text(encoding="utf-8")
    assert foreign_lines(page) == []


def test_the_page_of_surrogates_names_settings_and_numbers_and_quotes_the_code() -> None:
    page = ROOT / "docs" / "surrogates.md"
    text = page.read_text(encoding="utf-8")
    kinds = (GaussianProcess, Linear, Ensemble, Training, Logistic)
    settings = [f"{f.name} = {_written(f.default)}" for kind in kinds for f in dataclasses.fields(kind)
                if f.default is not dataclasses.MISSING]  # fmt: skip
    assert [entry for entry in settings if f"`{entry}`" not in text] == []
    assert missing_numbers(text, surrogates.Calibration) == []
    assert "```python" in text
    assert foreign_lines(page) == []


def test_the_page_of_strategies_names_settings_and_facts_and_quotes_the_code() -> None:
    page = ROOT / "docs" / "strategies.md"
    text = page.read_text(encoding="utf-8")
    assert [name for kind in (Tuning, Picking, Constraints) for name in missing_settings(text, kind)] == []
    assert [name for name in (*STRATEGIES, *SPREAD, "drawn", "pool", "rows", "held_out", "last_round")
            if f"`{name}`" not in text] == []  # fmt: skip
    by_name = text.replace("its two kin", "detailed_balance, subtrajectory_balance")
    assert [name for name in TWO_ANCHORS if name not in by_name] == []
    assert foreign_lines(page) == []


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_point_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_every_estimate_of_the_soft_value_is_on_its_page() -> None:
    assert [name for name in build.VALUES if f"`{name}`" not in page_of("soft_values")] == []


def test_the_checks_see_what_is_missing(tmp_path: Path) -> None:
    """Twin: a setting, a number, a line of code, a file and a heading that are not there."""

    @dataclasses.dataclass(frozen=True)
    class Some:
        alpha: float = 0.1
        kind: str = "plain"

    assert missing_settings('`alpha = 0.1` `kind = "plain"`', Some) == []
    assert missing_settings('`alpha = 0.2` `kind = "plain"`', Some) == ["alpha = 0.1"]
    assert missing_numbers("`alpha`, kind", Some) == ["kind"]
    (tmp_path / "code.py").write_text("def f(x):\n    y = x + 1\n    return y\n")
    page = tmp_path / "page.md"
    page.write_text("# A page\n[code](code.py) [here](#a-page)\n```python\ny = x + 1\nreturn y\n```\n")
    assert foreign_lines(page) == [] == dead_links(page)
    page.write_text("[code](code.py) [gone](none.md) [there](#a-page)\n```python\ny = x - 1\nreturn y\n```\n")
    assert foreign_lines(page) == ["y = x - 1\nreturn y"]
    assert dead_links(page) == ["none.md", "#a-page"]
