"""Examples of docs/proteins.md run, on a tiny model in place of the Hub's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from difftilt.data import find

for library in ("transformers", "peft"):
    pytest.importorskip(library)

import tiny  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "proteins.md"
SMALLER = {
    "steps=60": "steps=1",
    "sample(100)": "sample(2)",
    "steps=100": "steps=1",
    "batch=32": "batch=8, minibatches=1",
    "steps_per_path=4": "steps_per_path=1, batch=8, minibatches=1",
}


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find("gb1") is None:
        pytest.skip("gb1 is not on this machine")
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny.protein_model(tmp_path)
    stand_ins = {"AutoModelForMaskedLM": model, "AutoTokenizer": tokenizer}
    code = "\n".join(blocks())
    for large, small in SMALLER.items():
        assert large in code
        code = code.replace(large, small)
    code = re.sub(r"(\w+)\.from_pretrained\([^()]*\)", r'stand_ins["\1"]', code)
    names: dict[str, Any] = {"stand_ins": stand_ins}
    exec(compile(code, "proteins.md", "exec"), names)
    wild_type = names["wild_type"]
    assert all(sum(map(str.__ne__, d, wild_type)) <= 3 for d in names["result"].policy.sample(16))
