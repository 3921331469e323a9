"""Pages that are made, not written: reference, equations, and the files of the repository that pages lead to."""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

import rst
from sources import ROOT, Module, modules

LINK = re.compile(r"(!?\[[^\]\n]*\]\()([^)#\s:]+)(#[^)\s]*)?(\))")
TITLES = {
    "core": "Core: policies, transitions, rewards",
    "processes": "Processes",
    "algorithms": "Algorithms",
    "samplers": "Samplers",
    "values": "Soft values",
    "rewards": "Rewards",
    "surrogates": "Surrogates",
    "campaigns": "Campaigns",
    "lab": "Campaigns in one object",
    "problems": "Problems with exact answers",
    "verification": "The truth table",
    "metrics": "Metrics",
    "networks": "Networks and adapters",
    "domains": "Domains",
    "data": "Data sets",
    "training": "Training and evaluation",
    "tracking": "Run folders",
    "report": "Reports",
}


def public_names() -> dict[str, str]:
    """Of each name of ``difftilt``, the dotted name of what it is, read from the table in ``__init__``."""
    tree = ast.parse((ROOT / "src" / "difftilt" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_PUBLIC":
            return {name: ".".join(place) for name, place in ast.literal_eval(node.value).items()}
    raise ValueError("expected a table _PUBLIC in difftilt/__init__.py; got none; name it so or change this tool")


def undocumented() -> list[str]:
    """Public symbols without a docstring: names of ``difftilt``, and what the modules with a reference page define."""
    texts = {symbol.name: symbol.text for module in modules().values() for symbol in module.symbols}
    lost = [name for name, target in public_names().items() if not texts.get(_defined(target))]
    lost += [module.name for module in modules().values() if not module.text]
    for name, text in texts.items():
        last = name.rpartition(".")[2]
        if not text and name in modules_names() and not last.startswith("_"):
            lost.append(name)
    return lost


def modules_names() -> set[str]:
    """Every dotted name that has an anchor."""
    return set().union(*(module.names for module in modules().values()))


def _defined(target: str) -> str:
    """Where a name that a package hands on is defined."""
    package, _, last = target.rpartition(".")
    if target in modules_names():
        return target
    near = [name for name in modules_names() if name.startswith(f"{package}.") and name.endswith(f".{last}")]
    return min(near, key=len, default=target)


def reference() -> dict[str, str]:
    """The reference: a page for each module, and one with the names that ``import difftilt as dt`` gives."""
    made = {module.page: _module_page(module) for module in modules().values() if module.name != "difftilt"}
    lines = [
        "# Public names",
        "",
        "What `import difftilt as dt` gives. Everything else has its own page, by module, at the left.",
        "",
    ]
    for name, target in sorted(public_names().items(), key=lambda item: item[0].lower()):
        first = _first_line(_defined(target))
        lines.append(f"- [`dt.{name}`][{_defined(target)}]: {first}")
    made["reference/index.md"] = "\n".join(lines) + "\n"
    return made


def _first_line(name: str) -> str:
    for module in modules().values():
        for symbol in module.symbols:
            if symbol.name == name and symbol.text:
                line = " ".join(symbol.text.split("\n\n")[0].split())
                return rst.markdown(line, module=module.name, find=lambda *_: None, linked=False).strip()
    return ""


def _module_page(module: Module) -> str:
    short = module.name.removeprefix("difftilt.")
    front = f"---\ntitle: {short.rpartition('.')[2]}\nsearch:\n  boost: 0.5\n---\n\n"
    return f"{front}# `{short}` {{ #{module.name} }}\n\n::: {module.name}\n"


def navigation() -> list[object]:
    """The reference as navigation: packages in the order of :data:`TITLES`, then the rest."""
    by_package: dict[str, list[Module]] = {}
    for module in modules().values():
        if module.name != "difftilt":
            by_package.setdefault(module.name.split(".")[1], []).append(module)
    order = [*TITLES, *sorted(set(by_package) - set(TITLES))]
    entries: list[object] = ["reference/index.md"]
    for package in order:
        if package in by_package:
            pages = [module.page for module in by_package[package]]
            entries.append({TITLES.get(package, package): pages} if len(pages) > 1 else pages[0])
    return entries


def equations() -> str:
    """The index of equations: each with its number, what computes it, and the way back."""
    lines = [
        "---",
        "search:",
        "  boost: 0.5",
        "---",
        "",
        "# Equations",
        "",
        "Every numbered equation of the sources, module by module, with the functions that compute it. Their",
        "docstrings lead back here. Which paper an equation is from is in [papers](papers.md); symbols are in the",
        "[glossary](glossary.md).",
        "",
    ]
    package = ""
    for module in sorted(modules().values(), key=lambda m: (_rank(m), m.name)):
        if not module.equations:
            continue
        own = module.name.split(".")[1]
        if own != package:
            package = own
            lines += [f"## {TITLES.get(own, own)}", ""]
        title = module.text.split("\n\n")[0].replace("\n", " ").rstrip(".:")
        title = rst.markdown(title, module=module.name, find=lambda *_: None, linked=False)
        lines += [f"### `{module.name.removeprefix('difftilt.')}`", "", f"{title}. [Module][{module.name}].", ""]
        for equation in module.equations:
            lines += ["".join(f"[](){{ #{module.name}.eq{number} }}" for number in equation.numbers), ""]
            lines += ["$$", equation.tex, "$$", ""]
            for number in equation.numbers:
                places = module.computed_by(number)
                told = ", ".join(f"[`{place.removeprefix(module.name + '.')}`][{place}]" for place in places)
                lines.append(f"- ({number}): {told or 'computed by nothing'}")
            lines.append("")
    return "\n".join(lines)


def _rank(module: Module) -> int:
    package = module.name.removeprefix("difftilt.").partition(".")[0]
    order = list(TITLES)
    return order.index(package) if package in order else len(order)


def _target(link: str, base: str) -> str:
    """The repository's path that a link in the file ``base`` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), link))


def place(path: str) -> str:
    """Where in the site a file of the repository is shown.

    Raises:
        FileNotFoundError: there is no such file.
    """
    known = {
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "README.md": "index.md",
        "benchmarks/README.md": "benchmarks/notes.md",
        "benchmarks": "benchmarks/notes.md",
    }
    if path in known:
        return known[path]
    file = ROOT / path
    if not file.exists():
        raise FileNotFoundError(f"expected a file of the repository; got a link to {path}; mend the link")
    if path.startswith("src/difftilt"):
        name = path.removeprefix("src/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if name in modules():
            return modules()[name].page
    if file.suffix == ".py" or file.name == "LICENSE":
        return f"files/{path}.md"
    return f"files/{path}"


def relinked(markdown: str, page: str, *, base: str | None = None) -> str:
    """A page with its links to files of the repository led to where the site shows those.

    Args:
        markdown: the page.
        page: its path in the site's sources.
        base: path in the repository of the file it is made from; that of the page itself unless given.
    """
    source = base or f"docs/{page}"

    def one(found: re.Match[str]) -> str:
        path = _target(found[2], source)
        if path.startswith("docs/"):
            if base is None:
                return found[0]
            shown = path.removeprefix("docs/")
        elif path.startswith("../") or not (base or found[2].startswith("../")):
            return found[0]
        else:
            shown = place(path)
        return f"{found[1]}{posixpath.relpath(shown, posixpath.dirname(page))}{found[3] or ''}{found[4]}"

    return LINK.sub(one, markdown)


def linked_files(markdown: str, base: str) -> list[str]:
    """Files of the repository, outside of ``docs``, that the file ``base`` of it leads to."""
    own = base.startswith("docs/")
    found = [_target(match[2], base) for match in LINK.finditer(markdown) if not own or match[2].startswith("../")]
    return [path for path in found if not path.startswith(("docs/", "../"))]


def shown_file(path: str) -> tuple[str, str | bytes]:
    """Page or file of the site that shows a file of the repository."""
    target, file = place(path), ROOT / path
    if file.is_dir():
        raise IsADirectoryError(f"expected a file; got a link to the folder {path}; link to a file in it")
    if target.endswith(".md") and not path.endswith(".md"):
        kind = "python" if file.suffix == ".py" else "text"
        text = file.read_text(encoding="utf-8")
        return target, f"---\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n````{kind}\n{text}\n````\n"
    return target, file.read_bytes()


def repository(path: str | Path) -> str:
    """Text of a file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")
