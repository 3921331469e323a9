"""The tools of the site: docstrings become Markdown, equations lead to functions and back, formulas become MathML."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "docs"))

import mathml
import pages
import rst
import sources

NUMBERED = [(module, number) for module in sources.modules().values() for number in sorted(module.numbers)]


def test_every_numbered_equation_names_a_function_that_computes_it():
    lost = [f"{module.name} ({number})" for module, number in NUMBERED if not module.computed_by(number)]
    assert not lost, "name the function in its docstring, or in tools/docs/equations.json"


def test_what_computes_an_equation_has_an_anchor_in_the_reference():
    for module, number in NUMBERED:
        assert set(module.computed_by(number)) <= module.names


def test_what_is_listed_by_hand_is_of_an_equation_that_is_there():
    for name, listed in sources.LISTED.items():
        module = sources.modules()[name]
        assert set(listed) <= module.numbers, name
        for places in listed.values():
            assert set(places) <= module.names | {symbol.name for symbol in module.symbols}, name


def test_no_number_is_used_twice_in_a_module():
    for module in sources.modules().values():
        numbers = [number for equation in module.equations for number in equation.numbers]
        assert len(numbers) == len(set(numbers)), module.name


def test_every_equation_is_led_to_from_the_reference():
    """From the docstring of what computes it, however that names it."""
    griffe = pytest.importorskip("griffe")
    import docstrings

    package = griffe.load(
        "difftilt",
        search_paths=[str(Path(__file__).resolve().parents[2] / "src")],
        extensions=griffe.load_extensions(docstrings.Docstrings()),
    )
    written, left = [], [package]
    while left:
        obj = left.pop()
        if obj.docstring is not None and not obj.is_module:
            written.append(obj.docstring.value)
        left += [member for member in obj.members.values() if not member.is_alias]
    text = "\n".join(written)
    assert [f"{m.name} ({n})" for m, n in NUMBERED if f"[({n})][{m.name}.eq{n}]" not in text] == []


def test_the_index_has_an_anchor_for_every_equation():
    page = pages.equations()
    for module, number in NUMBERED:
        assert f"#{module.name}.eq{number} " in page
    assert "computed by nothing" not in page


def test_every_public_symbol_has_a_docstring():
    assert pages.undocumented() == []


def test_a_symbol_without_a_docstring_is_found(monkeypatch):
    bare = sources.Module(
        "difftilt.bare",
        Path("bare.py"),
        "Text.",
        (sources.Symbol("difftilt.bare.f", ""),),
        frozenset({"difftilt.bare.f"}),
    )
    monkeypatch.setattr(pages, "modules", lambda: {**sources.modules(), "difftilt.bare": bare})
    assert pages.undocumented() == ["difftilt.bare.f"]


def test_docstrings_lead_to_their_equations_and_references():
    text = "Equation (1), nats, of ``x``; see :func:`~difftilt.core.stats.log_mean_exp` and :math:`a \\sim b`."
    made = rst.markdown(text, module="difftilt.m", find=sources.find, equations={"1"})
    assert "Equation [(1)][difftilt.m.eq1]" in made
    assert "[`log_mean_exp()`][difftilt.core.stats.log_mean_exp]" in made
    assert "`x`" in made
    assert "$a \\sim b$" in made


def test_a_reference_to_nothing_stays_plain():
    assert rst.markdown(":func:`gone`", module="difftilt.core.stats", find=sources.find) == "`gone()`"


def test_numbers_of_a_displayed_formula_are_read():
    text = "A law.\n\n.. math::\n    a &= b \\qquad (1) \\\\\n    c &= d \\quad (2)\n\nEnd."
    (tex,) = rst.formulas(text)
    assert rst.labels(tex) == ["1", "2"]
    assert "$$" in rst.markdown(text, module="m", find=sources.find)


def test_ranges_of_equations_are_filled():
    assert rst.mentioned("Equations (1) to (3).")[:3] == ["1", "2", "3"]


def test_links_out_of_the_docs_lead_to_pages_of_the_site():
    made = pages.relinked("[a](../src/difftilt/algorithms/ppo.py) [b](../CHANGELOG.md)", "choose.md")
    assert made == "[a](reference/difftilt/algorithms/ppo.md) [b](changelog.md)"


def test_a_link_to_a_file_that_is_not_there_is_refused():
    with pytest.raises(FileNotFoundError, match="mend the link"):
        pages.relinked("[a](../src/difftilt/nothing.py)", "choose.md")


def test_every_link_out_of_the_docs_leads_to_a_file_or_a_package():
    guides = sorted((pages.ROOT / "docs").rglob("*.md"))
    for base in (*(path.relative_to(pages.ROOT).as_posix() for path in guides), "CHANGELOG.md", "CONTRIBUTING.md"):
        for path in pages.linked_files(pages.repository(base), base):
            assert pages.place(path).startswith("reference/") or (pages.ROOT / path).is_file(), f"{base}: {path}"


def test_every_formula_of_the_sources_can_be_set():
    for module in sources.modules().values():
        for text in (module.text, *(symbol.text for symbol in module.symbols)):
            for tex in rst.formulas(text):
                assert "<math" in mathml.mathml(tex, block=True)
            for tex in rst.MATH.findall(text):
                assert "<math" in mathml.mathml(tex, block=False)


def test_a_formula_with_an_unknown_command_is_refused():
    with pytest.raises(mathml.UnknownTeXError, match="simpler commands"):
        mathml.mathml(r"a = \nosuchthing{b}", block=True)


def test_lines_are_split_outside_of_braces_only():
    found = mathml.rows(r"a &= b \qquad (1) \\ c &= \begin{cases} d \\ e \end{cases} \quad (2)")
    assert [number for _, number in found] == ["(1)", "(2)"]


def test_formulas_side_by_side_may_stand_one_below_another():
    assert mathml.mathml(r"a = b, \qquad c = d \qquad (1)", block=True).count("<math") == 2
    assert mathml.mathml(r"\frac{a \qquad b}{c}", block=True).count("<math") == 1
