"""Notebooks: run those whose result is out of date, and make pages of results.

A notebook is a Python file in jupytext's percent format below ``docs``. It is run by nbclient in a fresh process and an
empty folder, and its result is kept in ``.cache/docs``. Kept with it are the hashes of its source, of *every file of
this repository that it opened or imported* (so it is run again when a module that it uses changes, and not when another
one does), of the shipped models that it loads, and the versions of Python and torch, numpy and matplotlib.

    python tools/docs/notebooks.py [-j JOBS] [--fresh] [NAME ...]

runs what is out of date; names are as ``tutorial/01-chain``.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "src" / "difftilt" / "zoo"
DOCS, CACHE = ROOT / "docs", ROOT / ".cache" / "docs"
VERSIONS = ("torch", "numpy", "matplotlib")
SIZE = re.compile(r"\bsize\((\d[\d_]*), \d[\d_]*\)")
"""``size(full, reduced)`` of the tutorial: a page shows the full number alone."""
SHORTER = re.compile(r"([\[(][\d., ]+[\])])\[: ?size\([\d_]+, \d+\)\]")
"""A list of numbers of which less is taken when reduced: a page shows the list."""
SECONDS = 900
"""Longest that a cell may take."""

WATCH = """
import sys, json, os, time
_opened, _told = set(), os.path.abspath("opened.json")
def _watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        _opened.add(os.path.abspath(os.fsdecode(arguments[0])))
sys.addaudithook(_watch)
"""
TELL = """
_opened.update(m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None))
with open(_told, "w") as _file:
    json.dump({"files": sorted(_opened), "seconds": time.process_time()}, _file)
"""


@dataclass(frozen=True)
class Notebook:
    """A file below ``docs``."""

    path: Path

    @property
    def name(self) -> str:
        """Path below ``docs``, without suffix."""
        return self.path.relative_to(DOCS).with_suffix("").as_posix()

    @property
    def page(self) -> str:
        """Path of its page."""
        return f"{self.name}.md"

    @property
    def folder(self) -> Path:
        """Where its result is kept."""
        return CACHE / self.name


@dataclass(frozen=True)
class Result:
    """What a run has left."""

    markdown: str
    downloads: dict[str, bytes]
    """Files beside the page."""


def all_notebooks() -> list[Notebook]:
    """Files below ``docs`` with cells, by name."""
    paths = (path for path in sorted(DOCS.rglob("*.py")) if "# %%" in path.read_text(encoding="utf-8"))
    return [Notebook(path) for path in paths]


def stored(notebook: Notebook) -> Result | None:
    """The kept result, ``None`` if it is not that of the notebook as it stands."""
    file = notebook.folder / "result.json"
    if not file.is_file():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    if kept["versions"] != versions() or any(_hash(ROOT / path) != value for path, value in kept["files"].items()):
        return None
    page = (notebook.folder / "page.md").read_text(encoding="utf-8")
    downloads = {path.name: path.read_bytes() for path in sorted((notebook.folder / "downloads").iterdir())}
    helpers = [ROOT / path for path in kept["files"] if (ROOT / path).parent == DOCS / "tutorial"]
    for name in downloads:
        downloads[name] = standing_alone(downloads[name], [path for path in helpers if path != notebook.path])
    return Result(page, downloads)


def standing_alone(book: bytes, helpers: list[Path]) -> bytes:
    """A notebook that runs in an empty folder: its first cells write the modules of the tutorial that it imports."""
    import nbformat

    made = nbformat.reads(book.decode("utf-8"), as_version=4)
    cells = []
    for path in sorted(helpers):
        cell = nbformat.v4.new_code_cell(f"%%writefile {path.name}\n{path.read_text(encoding='utf-8')}")
        cell.id, cell.metadata["jupyter"] = path.stem, {"source_hidden": True}
        cells.append(cell)
    made.cells = [*cells, *made.cells]
    return nbformat.writes(made).encode("utf-8")


def figure(path: str) -> str:
    """HTML of a kept figure, to be set into a page."""
    return (CACHE / path).read_text(encoding="utf-8")


def versions() -> dict[str, str]:
    """Of what numbers depend on besides the repository."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: importlib.metadata.version(name) for name in VERSIONS}}


@functools.cache
def _hash(path: Path) -> str:
    if not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(notebook: Notebook) -> float:
    """Run a notebook and keep its result; CPU seconds."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    source = _hash(notebook.path)  # of what is run, should it be edited meanwhile
    book = jupytext.read(notebook.path, fmt="py:percent")
    book.metadata.pop("kernelspec", None)
    book.cells = [nbformat.v4.new_code_cell(WATCH), *book.cells, nbformat.v4.new_code_cell(TELL)]
    paths = [str(ROOT / "src"), str(DOCS / "tutorial"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(book, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute(env=environment)
        told = json.loads((Path(folder) / "opened.json").read_text(encoding="utf-8"))
    seconds, book.cells = told["seconds"], book.cells[1:-1]
    used = {Path(name) for name in told["files"]}
    models = {path.parent for path in used if path.is_relative_to(ZOO)}  # weights are not opened by Python
    used |= {path for folder in models for path in folder.iterdir()}
    inside = sorted({path for path in used if _kept(path)})
    folder = notebook.folder
    (folder / "downloads").mkdir(parents=True, exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    (folder / "page.md").write_text(page(book, notebook, seconds), encoding="utf-8")
    (folder / "downloads" / f"{notebook.path.stem}.ipynb").write_text(nbformat.writes(book), encoding="utf-8")
    files = {path.relative_to(ROOT).as_posix(): _hash(path) for path in inside}
    files[notebook.path.relative_to(ROOT).as_posix()] = source
    kept = {"versions": versions(), "seconds": round(seconds, 1), "files": files}
    (folder / "result.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return seconds


def _kept(path: Path) -> bool:
    inside = path.is_file() and path.is_relative_to(ROOT) and path.suffix != ".pyc"
    return inside and not path.relative_to(ROOT).parts[0].startswith((".", "build", "site"))


def page(book: Any, notebook: Notebook, seconds: float) -> str:
    """The Markdown of an executed notebook; figures are kept beside it."""
    parts: list[str] = []
    count = 0
    for cell in book.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        if cell.cell_type != "code":
            continue
        if cell.source.strip() and "remove" not in cell.metadata.get("tags", []):
            code = f"```python\n{_full(cell.source.strip())}\n```"
            hidden = "hide" in cell.metadata.get("tags", [])
            parts.append('??? code "Code"\n\n' + textwrap.indent(code, "    ") if hidden else code)
        for output in _joined(cell.outputs):
            shown, count = _shown(output, notebook, count)
            parts.append(shown)
    stem = notebook.path.stem
    parts.append(
        f"---\n\n<small>All of this page was run when the site was built, in {seconds:.0f} CPU seconds of one core. "
        f"As a notebook: [{stem}.ipynb]({stem}.ipynb).</small>"
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _full(code: str) -> str:
    """Code without its reduced sizes."""
    for pattern in (SHORTER, re.compile(rf"\{{{SIZE.pattern}\}}"), SIZE):  # the second in texts
        code = pattern.sub(lambda found: found[1], code)
    return code


def _joined(outputs: list[Any]) -> Iterator[Any]:
    """Outputs, neighbouring streams as one."""
    held: Any = None
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            held = output if held is None else {**held, "text": held["text"] + output.text}
            continue
        if held is not None:
            yield held
            held = None
        yield output
    if held is not None:
        yield held


def _shown(output: Any, notebook: Notebook, count: int) -> tuple[str, int]:
    if output["output_type"] == "stream":
        return f"```{{ .text .output }}\n{output['text'].rstrip()}\n```", count
    if output["output_type"] == "error":
        raise ValueError(f"expected {notebook.name} to run; got {output['ename']}: {output['evalue']}; mend the cell")
    data = output["data"]
    if "text/markdown" in data:
        return data["text/markdown"], count
    if "text/html" in data:
        name = f"{notebook.name}/figure-{count}.html"
        (CACHE / name).parent.mkdir(parents=True, exist_ok=True)
        (CACHE / name).write_text(data["text/html"], encoding="utf-8")
        return f'<div data-figure="{name}"></div>', count + 1
    return f"```{{ .text .output }}\n{data.get('text/plain', '').rstrip()}\n```", count


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--fresh", action="store_true", help="run also what is up to date")
    asked = parser.parse_args()
    known = {notebook.name: notebook for notebook in all_notebooks()}
    unknown = [name for name in asked.names if name not in known]
    if unknown:
        sys.exit(f"expected notebooks among {', '.join(known)}; got {', '.join(unknown)}")
    chosen = [known[name] for name in asked.names] if asked.names else list(known.values())
    stale = [notebook for notebook in chosen if asked.fresh or stored(notebook) is None]
    print(f"{len(chosen) - len(stale)} of {len(chosen)} notebooks are up to date", flush=True)
    failed = []
    with ProcessPoolExecutor(max_workers=max(1, asked.jobs)) as pool:
        waiting = {pool.submit(run, notebook): notebook for notebook in stale}
        for done in as_completed(waiting):
            name = waiting[done].name
            try:
                print(f"{name}: {done.result():.0f} CPU s", flush=True)
            except Exception as error:
                failed.append(name)
                print(f"{name}: {re.sub(chr(27) + r'[^m]*m', '', str(error))[-3000:]}", flush=True)
    if failed:
        sys.exit(f"{', '.join(failed)} did not run")


if __name__ == "__main__":
    main()
