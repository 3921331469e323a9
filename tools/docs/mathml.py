r"""TeX to MathML when the site is built: no JavaScript, no fonts from elsewhere, and text that screen readers read.

Arithmatex finds formulas and leaves them as ``\(...\)`` and ``\[...\]``; here they become MathML by latex2mathml. What
it does not know it would print as it stands, so a formula that still has a backslash stops the build.
"""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
LABEL = re.compile(r"\\q?quad\s*(\(\d+[a-z]?\))\s*$")
WORDS = re.compile(r"\\(?:mathrm|operatorname)\{([A-Za-z ]+)\}")
SUBSCRIPT = re.compile(r"([_^])\{([a-z]{2,})\}")
FUNCTION = re.compile(r"<mi>(log|exp|min|max|cos|sin|det)</mi>")
"""Names of functions, which want a little space, as TeX gives them."""
KL = re.compile(r"(?<![A-Za-z\\])KL(?![A-Za-z])")


class UnknownTeXError(ValueError):
    """A formula that latex2mathml does not know."""


def tidy(tex: str) -> str:
    """Words as words: ``p_{pre}`` has an index "pre", not p times r times e."""
    tex = (
        tex.replace(r"\arg\max", r"\mathrm{argmax}")
        .replace(r"\Big\lfloor", r"\lfloor")
        .replace(r"\Big\rfloor", r"\rfloor")
    )
    tex = tex.replace(r"\Big/", "/").replace(r"\_", "_")
    tex = WORDS.sub(r"\\text{\1}", tex)
    tex = SUBSCRIPT.sub(r"\1{\\text{\2}}", tex)
    return KL.sub(r"\\text{KL}", tex)


def rows(tex: str) -> list[tuple[str, str]]:
    r"""Lines of a displayed formula, split at ``\\`` outside of braces, each with its number ``(1)`` or nothing."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(tex):
        if tex.startswith("\\begin", i) or tex[i] == "{":
            depth += 1
        elif tex.startswith("\\end", i) or tex[i] == "}":
            depth -= 1
        elif tex.startswith("\\\\", i):
            if depth == 0:
                parts.append(tex[start:i])
                start = i + 2
            i += 2
            continue
        elif tex[i] == "\\":
            i += 2
            continue
        i += 1
    parts.append(tex[start:])
    found = []
    for part in (part.strip() for part in parts):
        label = LABEL.search(part)
        found.append((part[: label.start()].rstrip() if label else part, label[1] if label else ""))
    return found


def mathml(tex: str, *, block: bool) -> str:
    """MathML of a formula; of a displayed one with its lines aligned at ``&`` and its numbers at the right.

    Raises:
        UnknownTeXError: a command that latex2mathml does not know.
    """
    if not block:
        return _convert(tidy(tex.strip()), "inline")
    lines = rows(tidy(tex.strip()))
    if len(lines) == 1 and "&" not in lines[0][0]:
        body = "".join(_convert(part, "block") for part in _beside(lines[0][0]))
        number = lines[0][1]
        return f'<div class="formula"><div>{body}</div><span class="number">{number}</span></div>'
    body = _convert(r"\begin{align*}" + r" \\ ".join(line for line, _ in lines) + r"\end{align*}", "block")
    numbers = "<br>".join(label for _, label in lines if label)
    return f'<div class="formula"><div>{body}</div><span class="number">{numbers}</span></div>'


def _beside(line: str) -> list[str]:
    r"""Formulas side by side, ``\qquad`` between them: where the page is narrow, they stand one below another."""
    parts = line.split(r"\qquad")
    whole = all(part.count("{") == part.count("}") and part.strip() for part in parts)
    return [part.strip() for part in parts] if whole else [line]


def _convert(tex: str, display: str) -> str:
    made = convert(tex, display=display)
    if "\\" in made or "&</" in made or ">&<" in made:
        raise UnknownTeXError(f"expected TeX that latex2mathml knows; got {tex!r}; write it with simpler commands")
    return FUNCTION.sub(r'<mo lspace="0.16em" rspace="0.16em">\1</mo>', made)


def replace(page: str) -> str:
    """All formulas of an HTML page."""

    def one(found: re.Match[str]) -> str:
        return mathml(html.unescape(found[3]), block=found[2] == "[")

    return FORMULA.sub(one, page)
