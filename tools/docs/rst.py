"""Docstrings as the sources have them (Google style, a little reStructuredText) to Markdown that mkdocstrings renders.

What is translated is what the sources use: roles, math blocks, literal blocks and simple tables. References become
links that the build checks; ``Equation (1)`` in a docstring leads to the formula in the index of equations.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection

ROLE = re.compile(r":(attr|class|data|func|meth|mod):`(~?)([^`]+)`")
MATH = re.compile(r":math:`((?:[^`\\]|\\.)+)`", re.DOTALL)
CODE = re.compile(r"``(.+?)``", re.DOTALL)
BLOCK = re.compile(r"^( *)\.\. math::([^\n]*)\n((?:\1 +[^\n]*\n|[ ]*\n)*)", re.MULTILINE)
LITERAL = re.compile(r"^( *)(\S[^\n]*?)::\n((?:\1 +[^\n]*\n|[ ]*\n)+)", re.MULTILINE)
TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n(.*?)\n\1\2\n(.*?)\n\1\2$", re.MULTILINE | re.DOTALL)
EQUATION = re.compile(r"\b([Ee]quations?) ((?:\(\d+[a-z]?\)(?:, | and | or | to )?)+)")
BARE = re.compile(r"(?<![\w`\])])\((\d[a-z]?)\)(?![\w`])")
NUMBER = re.compile(r"\((\d+[a-z]?)\)")
ADDRESS = re.compile(r"(?<![(<\"'\[])\bhttps?://[^\s<>)\]]*[^\s<>)\],.;:]")


def formulas(text: str) -> list[str]:
    """TeX of the displayed formulas of a docstring, in order."""
    return [_tex(found) for found in BLOCK.finditer(_ended(text))]


def labels(tex: str) -> list[str]:
    """Numbers of the equations of a displayed formula."""
    return re.findall(r"\\q?quad\s*\((\d+[a-z]?)\)", tex)


def mentioned(text: str) -> list[str]:
    """Numbers of the equations that a docstring names, ranges filled."""
    found: list[str] = []
    for match in EQUATION.finditer(text):
        numbers = NUMBER.findall(match[2])
        if " to " in match[2] and all(number.isdigit() for number in numbers[:2]):
            numbers = [str(n) for n in range(int(numbers[0]), int(numbers[1]) + 1)]
        found += numbers
    return [*found, *BARE.findall(text)]


def markdown(
    text: str,
    *,
    module: str,
    find: Callable[[str, str], str | None],
    equations: Collection[str] = (),
    linked: bool = True,
) -> str:
    """A docstring as Markdown.

    Args:
        text: the docstring, without its indentation.
        module: dotted name of its module.
        find: from a name as written and its module to the dotted name that has an anchor, ``None`` if there is none.
        equations: numbers of the equations of the module's docstring.
        linked: whether ``Equation (1)`` is made a link.
    """
    kept: list[str] = []

    def keep(made: str) -> str:
        kept.append(made)
        return f"\x02{len(kept) - 1}\x03"

    def block(found: re.Match[str]) -> str:
        made = f"\n$$\n{_tex(found)}\n$$\n\n"
        return textwrap.indent(keep(made), found[1]) + "\n"

    def role(found: re.Match[str]) -> str:
        short, name = found[2] == "~", found[3]
        target = find(name, module)
        shown = name.lstrip(".").rpartition(".")[2] if short else name.lstrip(".")
        shown += "()" if found[1] in ("func", "meth") else ""
        return keep(f"[`{shown}`][{target}]" if target else f"`{shown}`")

    def table(found: re.Match[str]) -> str:
        return keep(_table(found, find, module))

    def equation(found: re.Match[str]) -> str:
        def one(number: re.Match[str]) -> str:
            n = number[1]
            return f"[({n})][{module}.eq{n}]" if n in equations else number[0]

        return f"{found[1]} " + NUMBER.sub(one, found[2])

    text = _ended(text)
    text = BLOCK.sub(block, text)
    text = TABLE.sub(table, text)
    text = LITERAL.sub(lambda m: f"{m[1]}{m[2]}:\n\n" + textwrap.indent(keep(_fenced(m)), m[1]) + "\n\n", text)
    text = CODE.sub(lambda m: keep(f"`{' '.join(m[1].split())}`"), text)
    text = MATH.sub(lambda m: keep(f"${' '.join(m[1].split())}$"), text)
    text = ROLE.sub(role, text)
    if linked:
        text = EQUATION.sub(equation, text)
    text = ADDRESS.sub(lambda m: f"<{m[0]}>", text)
    text = re.sub(r"(?<![\\*])\*(?=[A-Za-z_]+[,:])", r"\\*", text)
    while "\x02" in text:
        text = re.sub(r"^( *)\x02(\d+)\x03$", lambda m: textwrap.indent(kept[int(m[2])], m[1]), text, flags=re.M)
        text = re.sub(r"\x02(\d+)\x03", lambda m: kept[int(m[1])], text)
    return text.rstrip("\n")


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def _tex(found: re.Match[str]) -> str:
    lines = [found[2].strip(), textwrap.dedent(found[3]).strip("\n")]
    return re.sub(r"\n\s*\n", "\n", "\n".join(line for line in lines if line.strip())).strip()


def _fenced(found: re.Match[str]) -> str:
    return "```python\n" + textwrap.dedent(found[3]).strip("\n") + "\n```"


def _table(found: re.Match[str], find: Callable[[str, str], str | None], module: str) -> str:
    starts = [match.start() for match in re.finditer(r"=+", found[2])]
    ends = [*starts[1:], None]

    def cells(line: str) -> list[str]:
        line = line[len(found[1]) :]
        return [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]

    rows: list[list[str]] = []
    for line in found[4].splitlines():
        row = cells(line)
        if not row[0] and rows:
            rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], row, strict=True)]
        else:
            rows.append(row)
    lines = [cells(found[3]), ["---"] * len(starts), *rows]
    made = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
    made = CODE.sub(lambda m: f"`{m[1]}`", made)
    made = MATH.sub(lambda m: f"${m[1]}$".replace("\\|", r"\mid "), made)
    return "\n" + ROLE.sub(lambda m: f"`{m[3].lstrip('~.')}`", made) + "\n"
