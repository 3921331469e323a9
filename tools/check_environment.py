"""Fail with one line when the environment would run wrongly; silent about everything else.

Run after each install and by ``make check``. It reads package metadata and imports nothing, so it takes 0.1 s:

- torchvision is absent: its binaries must match torch exactly; when they do not, diffusers and transformers break
  as well, because they import it whenever it is there;
- numpy is at least 2: some packages quietly take it back to 1.26;
- there is one torch, the one Python would import, and it is the version named in the constraints file, if one is
  given. A build tag such as ``+cpu`` does not count.

Usage: ``python tools/check_environment.py [--constraints FILE]``
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

ADVICE = "delete .venv and run make again"


def installed(name: str) -> list[Distribution]:
    """Distributions of that name on the import path, one per place."""
    found = {
        Path(str(dist.locate_file(""))).resolve(): dist
        for dist in distributions(name=name)
        if dist.metadata is not None and dist.metadata["Name"]
    }
    return list(found.values())


def pinned(constraints: Path, name: str) -> str | None:
    """The version that a line ``name==version`` of the constraints file asks for, or None."""
    text = constraints.read_text(encoding="utf-8")
    match = re.search(rf"^{name}\s*==\s*([^\s;#]+)", text, re.MULTILINE | re.IGNORECASE)
    return match.group(1) if match else None


def public(version: str) -> str:
    """``2.13.0`` of ``2.13.0+cpu``."""
    return version.partition("+")[0]


def problem(constraints: Path | None) -> str | None:
    """One line, expected; got; what to do, or None when all is well."""
    if installed("torchvision"):
        version = installed("torchvision")[0].version
        return f"expected no torchvision; got {version}, which breaks diffusers and transformers; {ADVICE}"

    numpy = installed("numpy")
    if not numpy or int(numpy[0].version.partition(".")[0]) < 2:
        return f"expected numpy 2 or newer; got {numpy[0].version if numpy else 'none'}; {ADVICE}"

    torch = installed("torch")
    if len(torch) != 1:
        places = ", ".join(f"{dist.version} in {dist.locate_file('')}" for dist in torch) or "none"
        return f"expected one torch; got {places}; unset PYTHONPATH, or {ADVICE}"
    home = Path(str(torch[0].locate_file(""))).resolve()
    spec = find_spec("torch")
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != home:
        return f"expected torch to be imported from {home}; got {spec and spec.origin}; unset PYTHONPATH, or {ADVICE}"

    if constraints is not None:
        wanted = pinned(constraints, "torch")
        if wanted is not None and public(wanted) != public(torch[0].version):
            return (
                f"expected torch {wanted}, as {constraints.name} says; got {torch[0].version}; {ADVICE}, "
                "or choose your own torch with CONSTRAINTS="
            )
    return None


def main() -> int:
    """Exit status 0 when the environment is sound, 1 with one line on stderr when not."""
    parser = argparse.ArgumentParser(description="Check the installed torch, numpy and torchvision.")
    parser.add_argument("--constraints", type=Path, default=None, help="the file the install was made with")
    message = problem(parser.parse_args().constraints)
    if message is not None:
        print(f"environment: {message}", file=sys.stderr)
    return 0 if message is None else 1


if __name__ == "__main__":
    raise SystemExit(main())
