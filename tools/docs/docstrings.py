"""Extension of Griffe: docstrings of the sources become Markdown, and lead to the equations they compute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

import rst
from sources import find, modules


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
            linked = {n for n in module.numbers if f"[{module.name}.eq{n}]" in text}
            computes = [n for n in sorted(module.numbers - linked) if obj.path in module.computed_by(n)]
            if computes:
                links = ", ".join(f"[({n})][{module.name}.eq{n}]" for n in computes)
                first, _, rest = text.partition("\n\n")
                text = f"{first} Equation {links}.\n\n{rest}".rstrip()
        obj.docstring.value = text
