"""Hooks of MkDocs: made pages go in, links out of ``docs`` are led right, formulas become MathML, figures are set in.

The build stops at what a strict MkDocs warns of (a link or a reference to nothing), at a public symbol without a
docstring, at a formula that cannot be set, at a notebook that has not been run as it now stands, and at a number that
is not what its source says (``quotes.py``).
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import mathml
import notebooks
import pages
import quotes
import sources
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FIGURE = re.compile(r'<div data-figure="([\w./-]+)"></div>')
FROM_ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/notes.md",
}
"""Files of the repository that are pages of the site."""
log = logging.getLogger("mkdocs.hooks.difftilt")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The reference's navigation, and stops for what is not documented."""
    lost = pages.undocumented()
    if lost:
        raise PluginError(f"expected a docstring for every public symbol; got none for {', '.join(lost)}; write them")
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Reference" in entry:
            entry["Reference"] = [*pages.navigation(), *entry["Reference"]]
        if isinstance(entry, dict) and "Tutorial" in entry:
            lessons = [notebook.page for notebook in notebooks.all_notebooks() if notebook.name.startswith("tutorial/")]
            entry["Tutorial"] = [*entry["Tutorial"], *lessons]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds made pages, executed notebooks, and files of the repository that pages lead to."""
    made: dict[str, str | bytes] = dict(pages.reference())
    made["equations.md"] = pages.equations()
    outside: set[str] = set()
    for source, page in FROM_ELSEWHERE.items():
        text = pages.repository(source).replace("# Benchmarks\n", "# Notes on the benchmarks\n", 1)
        made[page] = pages.relinked(text, page, base=source)
        outside |= set(pages.linked_files(text, source))
    for notebook in notebooks.all_notebooks():
        result = notebooks.stored(notebook)
        if result is None:
            raise PluginError(f"expected {notebook.name} to have been run as it stands; got no result; run `make docs`")
        made[notebook.page] = result.markdown
        for name, content in result.downloads.items():
            made[posixpath.join(posixpath.dirname(notebook.page), name)] = content
    for file in files.documentation_pages():
        if file.abs_src_path:
            outside |= set(
                pages.linked_files(Path(file.abs_src_path).read_text(encoding="utf-8"), f"docs/{file.src_uri}")
            )
    for path in sorted(outside):
        if not pages.place(path).startswith(("reference/", "changelog", "contributing", "index", "benchmarks/")):
            target, content = pages.shown_file(path)
            made.setdefault(target, content)
    for target, content in made.items():
        existing = files.get_file_from_path(target)
        if existing is not None:
            files.remove(existing)
        files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of ``docs`` become links within the site; numbers are those of their sources."""
    try:
        lost = quotes.stale(markdown) if quotes.MARK.search(markdown) else []
    except quotes.SourceError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from None
    if lost:
        raise PluginError(f"{page.file.src_uri}: {lost[0]}; run `python tools/docs/quotes.py --write`")
    return quotes.shown(pages.relinked(markdown, page.file.src_uri))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas and figures."""
    try:
        html = mathml.replace(html)
    except mathml.UnknownTeXError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from None
    return FIGURE.sub(lambda found: notebooks.figure(found[1]), html)


def on_env(env: Any, config: MkDocsConfig, files: Files) -> Any:
    """Says how much there is."""
    log.info("%d reference pages, %d notebooks", len(sources.modules()), len(notebooks.all_notebooks()))
    return env
