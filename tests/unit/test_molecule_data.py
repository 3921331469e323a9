"""The molecule sets from a mirror: properties are computed, and are those of the files that this project has."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import difftilt.data as data
from difftilt.data import registry
from difftilt.data.files import read_text
from difftilt.data.sets import molecules
from difftilt.errors import DataError

pytest.importorskip("rdkit")


def _archive(members: dict[str, str]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(whole.getvalue())


@pytest.mark.parametrize("name", ["zinc250k", "qm9"])
def test_an_outsider_computes_the_properties_that_we_have(name, tmp_path, monkeypatch):
    path = data.find(name)
    if path is None:
        pytest.skip(f"{name} is not on this machine")
    whole = data.read_designs(path)
    rows = np.linspace(0, len(whole) - 1, 40).astype(int)
    table = whole.take(np.unique(rows))
    mean = (float(table.column("qed").mean()), 1e-6)
    record = replace(data.dataset(name), rows=(len(table),), mean_score=mean, landmarks={})
    monkeypatch.setitem(registry.SETS, name, record)
    numbered = [f"{i},{smiles}" if name == "qm9" else smiles for i, smiles in enumerate(table.sequences)]
    text = "smiles\n" + "\n".join(numbered) + "\n"

    def download(url: str, *, known_hash: str | None, path: Path, fname: str) -> None:
        assert url == record.origins[0].url()
        (Path(path) / fname).write_bytes(_archive({"zinc.txt": text}) if fname.endswith(".gz") else text.encode())

    monkeypatch.setattr("pooch.retrieve", download)
    got = data.read_designs(data.prepare(name, root=tmp_path))
    assert got.sequences == table.sequences
    for column in molecules.COLUMNS[1:]:
        np.testing.assert_allclose(got.column(column), table.column(column), rtol=0, atol=2e-4)


def test_an_archive_of_several_files_is_refused(tmp_path):
    path = tmp_path / "two.txt.gz"
    path.write_bytes(_archive({"one.txt": "C\n", "two.txt": "N\n"}))
    with pytest.raises(DataError, match="one file in it; got 2"):
        read_text(path)
    path.write_bytes(_archive({"one.txt": "C\n", "./._one.txt": "finder"}))
    assert read_text(path) == "C\n"


def test_what_is_no_smiles_in_an_origin_is_named():
    with pytest.raises(ValueError, match="'hello', which is no SMILES"):
        molecules.tidy(["CC\nhello\n"])
    assert molecules.tidy(["CC\n"])["n_heavy_atoms"] == [2]
