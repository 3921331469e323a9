"""The benchmark of methods leaves none out, and its parts are run once."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from difftilt import build

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    monkeypatch.syspath_prepend(FOLDER)
    return load


def test_every_method_is_in_the_benchmark(benchmark):
    methods = benchmark("methods")
    named = {name.partition("-")[0] for name in (*methods.METHODS["utr-mrl"], *methods.SAME)}
    assert named == {*build.ALGORITHMS, *build.SAMPLERS}
    for name, settings in methods.TRAINED.items():
        build.algorithm(name)(**settings)


def test_finished_parts_are_not_run_again_and_a_failure_does_not_stop_the_others(benchmark, tmp_path):
    parts = benchmark("parts")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, pathlib\n"
        "_, _, out, _, name, seed = sys.argv\n"
        "path = pathlib.Path(out) / f'{name}-{seed}.json'\n"
        "assert not path.exists() and name != 'bad'\n"
        "path.write_text('{}')\n"
    )
    (tmp_path / "done-0.json").write_text("kept")
    with pytest.raises(SystemExit, match="bad-0"):
        parts.run_missing(str(script), tmp_path, [["bad", "0"], ["done", "0"], ["new", "0"]], 1)
    assert (tmp_path / "done-0.json").read_text() == "kept"
    assert (tmp_path / "new-0.json").is_file()


def test_every_kind_of_surrogate_is_in_the_benchmark(benchmark):
    learners = benchmark("surrogates").LEARNERS
    assert {name.partition("-")[0] for name in learners} == {"gaussian_process", "linear", "ensemble"}
    assert len({repr(learner) for learner in learners.values()}) == len(learners)


def test_the_value_on_the_other_strand_is_that_of_the_reverse_complement(benchmark):
    designs = ["".join(letters) for letters in itertools.product("ACGT", repeat=3)]
    other = benchmark("conservative").other_strand(torch.arange(64.0), 3)
    assert [designs[int(i)] for i in other] == [d.translate(str.maketrans("ACGT", "TGCA"))[::-1] for d in designs]


def test_the_table_of_pessimism_is_made_of_the_committed_rows(benchmark):
    conservative = benchmark("conservative")
    rows = json.loads((FOLDER / "conservative.json").read_text())["rows"]
    there = {(row["what"], row["task"], row["coverage"], row["surrogate"], row["seed"]) for row in rows}
    assert there <= set(conservative.parts())
    _, _, *lines = conservative.table(rows).splitlines()
    assert lines
    assert "\n".join(lines) in (FOLDER / "README.md").read_text()
