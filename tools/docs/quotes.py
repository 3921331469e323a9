"""Numbers of pages: each one names, in a comment behind it, the committed results that it is, and is checked by them.

A reader of the repository sees a plain number, a reader of the site sees its source when pointing at it:

    `ppo` ends at a judge of 6.947<!--= median("methods/utr-mrl-ppo-?", "judge") -->.

A source is a call of :data:`FUNCTIONS`, a number, or sums, differences, products and quotients of those. The first
argument names result files below ``benchmarks``, without ``.json`` and with ``*`` and ``?`` for several, or the card of
a shipped model, ``zoo/TASK/PART``. The second is the way to a number in each, keys with dots; a list on the way is gone
through, and further arguments, ``method="ppo"``, say which of its entries. Of committed tables
(``campaigns/gb1/summary.md``) the way is heading, row and column, with ``±`` behind the column for what stands there
behind that sign; ``*`` in a key stands for any. How many decimals, ``%`` (times 100), and commas are those of the
number as it stands.

A table that a benchmark makes stands between ``<!--: NAME -->`` and ``<!--/-->``, of :data:`TABLES`.

    python tools/docs/quotes.py            # fails for what is out of date; so do the tests, and the build of the site
    python tools/docs/quotes.py --write    # puts it right
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import html
import importlib
import io
import json
import operator
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS, ZOO = ROOT / "benchmarks", ROOT / "src" / "difftilt"
NUMBER = re.compile(r"(?P<typed>[-−+]?\d[\d,]*(?:\.\d+)?(?P<percent> ?%)?)<!--= (?P<source>.+?) -->", re.DOTALL)
TABLE = re.compile(r"<!--: (?P<name>[\w/-]+) -->\n(?P<typed>.*?)\n<!--/-->", re.DOTALL)
MARK = re.compile(r"<!--[=:/]")
FUNCTIONS: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "low": min,
    "high": max,
    "sum": sum,
    "count": len,
}
"""By name; and ``one``, of results that have exactly one."""
OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class SourceError(ValueError):
    """A source that names nothing, or a mark that is none."""


def results(files: str, way: str, **where: Any) -> list[float]:
    """Numbers of committed results, in the order of their files.

    Args:
        files: below ``benchmarks`` without ``.json``, or ``zoo/TASK/PART``.
        way: keys to the number, with dots.
        where: values of keys that the entries of lists on the way must have.

    Raises:
        SourceError: nothing is there, or something else than a number.
    """
    found = [number for document in _documents(files) for number in _walk(document, way.split("."), where)]
    if not found or not all(isinstance(number, int | float) for number in found):
        raise SourceError(f"expected numbers at {way} of {files} {where or ''}; got {found or 'none'}; mend the source")
    return found


@functools.cache
def _documents(files: str) -> list[Any]:
    if files.startswith("zoo/"):
        file = ZOO / files / "config.json"
        return [json.loads(file.read_text(encoding="utf-8"))["card"]] if file.is_file() else []
    if files.endswith(".md"):
        return [_tables(path.read_text(encoding="utf-8")) for path in sorted(BENCHMARKS.glob(files))]
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(BENCHMARKS.glob(f"{files}.json"))]


def _tables(text: str) -> dict[str, dict[str, dict[str, float]]]:
    """Numbers of the tables of a Markdown file, by heading, first cell of the row, and column."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in section.splitlines() if "|" in line]
        rows = found.setdefault(section.splitlines()[0].strip(), {})
        for row in lines[2:]:
            for name, cell in zip(lines[0], row, strict=False):
                for suffix, number in zip(("", " ±"), re.findall(r"-?\d+(?:\.\d+)?(?: %)?", cell), strict=False):
                    scale = 100 if "%" in number else 1
                    rows.setdefault(row[0], {})[name + suffix] = float(number.removesuffix(" %")) / scale
    return found


def _walk(place: Any, way: list[str], where: dict[str, Any]) -> Iterator[Any]:
    if isinstance(place, list):
        if way and way[0].lstrip("-").isdigit():
            yield from _walk(place[int(way[0])], way[1:], where)
            return
        for entry in place:
            if not isinstance(entry, dict) or all(entry.get(key, value) == value for key, value in where.items()):
                yield from _walk(entry, way, where)
    elif not way:
        yield place
    elif isinstance(place, dict):
        for key in place:
            if key == way[0] or ("*" in way[0] and fnmatchcase(key, way[0])):
                yield from _walk(place[key], way[1:], where)


def value(source: str) -> float:
    """What a source says.

    Raises:
        SourceError: it is no source, or names nothing.
    """
    try:
        return _value(ast.parse(" ".join(source.split()), mode="eval").body)
    except (SyntaxError, TypeError, statistics.StatisticsError) as error:
        raise SourceError(f"expected a source as {Path(__file__).name} has them; got {source} ({error})") from None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {*FUNCTIONS, "one"}:
        where = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
        found = results(*map(ast.literal_eval, node.args), **where)
        if node.func.id != "one":
            return float(FUNCTIONS[node.func.id](found))
        if len(found) != 1:
            raise SourceError(f"expected one number at {ast.unparse(node)}; got {len(found)}; say which, or use mean")
        return found[0]
    raise SourceError(f"expected a call of {', '.join((*FUNCTIONS, 'one'))}, or arithmetic; got {ast.unparse(node)}")


def written(number: float, typed: str) -> str:
    """A number in the form of what stands there: decimals, percent, commas, and a sign where there is one."""
    percent = "%" in typed
    digits = typed.replace("%", "").strip()
    decimals = len(digits.partition(".")[2])
    sign = "+" if digits.startswith("+") else ""
    comma = "," if "," in digits or (abs(number) >= 1e4 and not decimals) else ""
    number = round(100 * number if percent else number, decimals) + 0.0  # no minus before a zero
    made = f"{number:{sign}{comma}.{decimals}f}"
    made = made.replace("-", "−") if digits.startswith("−") else made
    return made + (typed[len(digits) :] if percent else "")


def _benchmark(name: str) -> Any:
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module(name)


def _of_folder(name: str) -> Callable[[], str]:
    return lambda: _benchmark(name).table(BENCHMARKS / name)


def _conservative() -> str:
    return _benchmark("conservative").table(_documents("conservative")[0]["rows"])


def _with_lead(what: str, *columns: str) -> str:
    """Rows of the same at the landscape's own alpha, of mutants of a lead on the seven landscapes held out."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in _conservative().splitlines()]
    key = {"law": what, "landscapes": "tfbind8, 7 held out", "data": "lead", "alpha": "x 1"}
    chosen = [row for row in rows if all(row[head.index(name)] == value for name, value in key.items())]
    lines = [columns, ["---"] * len(columns), *([row[head.index(name)] for name in columns] for row in chosen)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _surrogates() -> str:
    with contextlib.redirect_stdout(io.StringIO()) as told:
        _benchmark("surrogates").table(_documents("surrogates")[0])
    return told.getvalue().partition("\n\n")[2]


FOUND = ("judge", "over-optimisation", "judge, difference", "over-optimisation, difference")
TABLES: dict[str, Callable[[], str]] = {
    **{name: _of_folder(name) for name in ("methods", "utr_mrl", "molecules", "proteins", "images", "lab_images")},
    "conservative": _conservative,
    "conservative/law": lambda: _with_lead("law", "surrogate", *FOUND),
    "conservative/tuned": lambda: _with_lead("tuned", "surrogate", "KL to (1)", *FOUND),
    "surrogates": _surrogates,
}
"""What makes each table, by name."""


@functools.cache
def table(name: str) -> str:
    """A table of :data:`TABLES`.

    Raises:
        SourceError: there is none of that name.
    """
    if name not in TABLES:
        raise SourceError(f"expected a table among {', '.join(TABLES)}; got {name}; add it to TABLES")
    return TABLES[name]().strip()


def renewed(text: str) -> str:
    """A page with every number and table that names a source as its source says.

    Raises:
        SourceError: a source says nothing, or a mark stands behind no number.
    """
    known = len(NUMBER.findall(text)) + 2 * len(TABLE.findall(text))
    if known != len(MARK.findall(text)):
        lost = [text[m.start() - 20 : m.end() + 40] for m in MARK.finditer(NUMBER.sub("", TABLE.sub("", text)))]
        raise SourceError(f"expected a number before a source, and an end of a table; got {lost}; mend the page")
    text = NUMBER.sub(
        lambda m: f"{written(value(m['source']), m['typed'])}{m[0][len(m['typed']) :]}",
        text,
    )
    return TABLE.sub(lambda m: f"<!--: {m['name']} -->\n{table(m['name'])}\n<!--/-->", text)


def shown(text: str) -> str:
    """A page of the site: sources as what is seen when one points at a number."""
    text = NUMBER.sub(lambda m: f'<span title="{html.escape(" ".join(m["source"].split()))}">{m["typed"]}</span>', text)
    return TABLE.sub(lambda m: m["typed"], text)


def pages() -> list[Path]:
    """Files that may have numbers with sources."""
    own = [ROOT / "README.md", BENCHMARKS / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in own if MARK.search(path.read_text(encoding="utf-8"))]


def stale(text: str) -> list[str]:
    """Lines that are not as their sources say, each with what they should be."""
    return [
        f"{line.strip()[:160]} -> {new.strip()[:160]}"
        for line, new in zip(text.splitlines(), renewed(text).splitlines(), strict=False)
        if line != new
    ] or ([] if text == renewed(text) else ["a table has other lines"])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put right what is out of date")
    asked, failed = parser.parse_args(), False
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for line in stale(text):
            failed = not asked.write
            print(f"{path.relative_to(ROOT)}: {line}")
        if asked.write:
            path.write_text(renewed(text), encoding="utf-8")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
