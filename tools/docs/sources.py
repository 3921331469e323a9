"""What the package says of itself, read without importing it: modules, docstrings, equations and who computes them."""

from __future__ import annotations

import ast
import functools
import inspect
import json
from dataclasses import dataclass
from pathlib import Path

import rst

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
LISTED: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent / "equations.json").read_text(encoding="utf-8")
)
"""What computes an equation where no docstring says so: module, number, dotted names."""
LEFT_OUT = ("difftilt.cli", "difftilt.zoo", "difftilt.campaigns.migrations", "difftilt.__main__")
"""Parts without a reference page: commands have ``--help``."""


@dataclass(frozen=True)
class Symbol:
    """A function, class or method with a docstring."""

    name: str
    """Dotted."""
    text: str
    """Its docstring, without indentation; empty if it has none."""
    comments: frozenset[str] = frozenset()
    """Numbers ``(1)`` in the comments of its body."""


@dataclass(frozen=True)
class Equations:
    """A displayed formula of a module's docstring that has numbers."""

    module: str
    tex: str
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class Module:
    """A source file."""

    name: str
    path: Path
    text: str
    """Docstring, without indentation."""
    symbols: tuple[Symbol, ...]
    names: frozenset[str]
    """Dotted names that a reference page has anchors for: everything public that is defined here, and the module."""

    @property
    def page(self) -> str:
        """Path of its reference page in the site's sources."""
        parts = self.name.split(".")
        return f"reference/{'/'.join(parts)}{'/index' if self.path.name == '__init__.py' else ''}.md"

    @functools.cached_property
    def equations(self) -> tuple[Equations, ...]:
        """Numbered formulas of the module's docstring."""
        found = (Equations(self.name, tex, tuple(rst.labels(tex))) for tex in rst.formulas(self.text))
        return tuple(equation for equation in found if equation.numbers)

    @functools.cached_property
    def numbers(self) -> frozenset[str]:
        """Numbers of all its equations."""
        return frozenset(number for equation in self.equations for number in equation.numbers)

    def computed_by(self, number: str) -> list[str]:
        """Dotted names of the symbols that compute an equation: by docstring, else by a comment, else as listed.

        Raises:
            ValueError: nothing says what computes it.
        """
        docs = [symbol.name for symbol in self.symbols if number in rst.mentioned(symbol.text)]
        told = docs or [symbol.name for symbol in self.symbols if number in symbol.comments]
        told = told or LISTED.get(self.name, {}).get(number, [])
        found = [name for name in dict.fromkeys(map(_shown, told)) if name in self.names]
        return found


@functools.cache
def modules() -> dict[str, Module]:
    """All modules with a reference page, by dotted name."""
    found = {}
    for path in sorted(SOURCE.glob("difftilt/**/*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name.startswith(LEFT_OUT) or any(part.startswith("_") for part in name.split(".")):
            continue
        found[name] = _read(name, path)
    return found


def public(path: str) -> bool:
    """Whether a dotted name has no private part."""
    return not any(part.startswith("_") for part in path.split("."))


def find(name: str, module: str) -> str | None:
    """The dotted name with an anchor that a docstring's reference means, ``None`` if there is none."""
    name = name.removesuffix("()")
    if name.startswith("."):
        name = f"{module.rpartition('.')[0]}{name}"
    owner = modules().get(module)
    if owner:
        for own in (f"{module}.{name}", *(f"{symbol.name}.{name}" for symbol in owner.symbols)):
            if own in owner.names:
                return own
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        other = modules().get(".".join(parts[:cut]))
        if other and name in other.names:
            return name
    return None


def _read(name: str, path: Path) -> Module:
    source = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    symbols, names = [], {name}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                own = f"{prefix}.{child.name}"
                symbols.append(Symbol(own, _docstring(child), _comments(child, lines)))
                if public(own):
                    names.add(own)
                if isinstance(child, ast.ClassDef):
                    walk(child, own)
            elif isinstance(child, ast.Assign | ast.AnnAssign):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                names.update(f"{prefix}.{t.id}" for t in targets if isinstance(t, ast.Name) and public(t.id))

    walk(tree, name)
    return Module(name, path, _docstring(tree), tuple(symbols), frozenset(names))


def _docstring(node: ast.FunctionDef | ast.ClassDef | ast.Module) -> str:
    return inspect.cleandoc(ast.get_docstring(node) or "")


def _comments(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> frozenset[str]:
    if isinstance(node, ast.ClassDef):
        return frozenset()
    body = lines[node.lineno - 1 : node.end_lineno]
    return frozenset(n for line in body if "# " in line for n in rst.NUMBER.findall(line.partition("# ")[2]))


def _shown(name: str) -> str:
    """A private function's owner, which is what a page has."""
    parts = name.split(".")
    kept = [part for part in parts if not part.startswith("_")]
    return ".".join(
        kept if len(kept) == len(parts) else parts[: parts.index(next(p for p in parts if p.startswith("_")))]
    )
