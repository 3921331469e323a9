"""Extension of Griffe: docstrings of the sources become Markdown, and lead to the equations they compute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

import rst
from sources import Module, find, modules


class Docstrings(griffe.Extension):
    """See the module."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of every object once it is known."""
        if obj.docstring is None or obj.is_alias:
            return
        owner = obj if isinstance(obj, griffe.Module) else obj.module
        module = modules().get(owner.path)
        if module is None:
            return
        text = rst.markdown(obj.docstring.value, module=module.name, find=find, equations=module.numbers)
        if not isinstance(obj, griffe.Module):
            text = with_equations(text, obj.path, module)
        obj.docstring.value = text


def with_equations(text: str, path: str, module: Module) -> str:
    """Markdown of a symbol's docstring with links to the equations that it computes, where it has none yet."""
    lost = [n for n in sorted(module.numbers) if f"[{module.name}.eq{n}]" not in text and path in module.computed_by(n)]
    if not lost:
        return text
    first, _, rest = text.partition("\n\n")
    links = ", ".join(f"[({n})][{module.name}.eq{n}]" for n in lost)
    return f"{first} Equation {links}.\n\n{rest}".rstrip()
