"""Where campaigns are: by name in the working directory, by folder, by URL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from difftilt.campaigns.store import FILE
from difftilt.errors import ConfigError, StateError, nearest

ROOT = Path("campaigns")
"""Where campaigns are, in the working directory."""
Name: TypeAlias = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]


def find(name: str) -> str | Path:
    """Where a campaign is, by its name, its folder or its URL.

    Raises:
        ConfigError: there is none of that name; the nearest is named.
        StateError: there is none at all.
    """
    if "://" in name:
        return name
    for folder in (ROOT / name, Path(name), *([Path(name).parent] if Path(name).name == FILE else [])):
        if (folder / FILE).is_file():
            return folder
    known = [path.parent.name for path in ROOT.glob(f"*/{FILE}") if path.is_file()]
    if not known:
        raise StateError(
            f"expected a campaign '{name}' in ./{ROOT}; got none there; begin one with `difftilt campaign new`"
        )
    raise nearest(name, known, what="campaign")


def check_url(url: str) -> None:
    """Refuse a name in place of a URL, which would be taken for a folder.

    Raises:
        ConfigError: it is none.
    """
    if "://" not in url:
        raise ConfigError(
            f"expected a URL; got '{url}'; write one such as postgresql://HOST/DATABASE or sqlite:///{url}/{FILE}"
        )
