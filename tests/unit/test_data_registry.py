"""Named data sets: records, aliases, and where the files are looked for."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

import difftilt.data as data
from difftilt.data import places as locations
from difftilt.errors import ConfigError, DataError


def _here(name: str) -> Path:
    path = data.find(name)
    if path is None:
        pytest.skip(f"{name} is not on this machine")
    return path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three places, all empty: an own folder, shared/data beside a checkout, and the cache."""
    roots = {place: tmp_path / place for place in ("own", "shared/data", "cache")}
    monkeypatch.setenv("DIFFTILT_DATA", str(roots["own"]))
    monkeypatch.setattr(locations, "SOURCE_ROOT", tmp_path / "checkout" / "src")
    monkeypatch.setattr("pooch.os_cache", lambda project: roots["cache"])
    return roots


def _put(root: Path, name: str) -> Path:
    path = root / data.dataset(name).file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_files_are_looked_for_in_the_own_folder_then_shared_then_the_cache(places):
    for place in ("cache", "shared/data", "own"):
        path = _put(places[place], "utr-mrl")
        assert data.locate("utr-mrl") == path


def test_without_the_variable_and_outside_a_checkout_only_the_cache_is_searched(places, monkeypatch, tmp_path):
    _put(places["own"], "utr-mrl")
    _put(places["shared/data"], "utr-mrl")
    monkeypatch.delenv("DIFFTILT_DATA")
    monkeypatch.setattr(locations, "SOURCE_ROOT", tmp_path / "site-packages")
    assert list(data.data_roots()) == [places["cache"]]
    assert data.find("utr-mrl") is None


def test_a_missing_file_is_one_line_with_the_file_the_places_and_the_command(places):
    with pytest.raises(DataError) as caught:
        data.locate("yeast-promoter")
    message = str(caught.value)
    assert "\n" not in message
    assert "yeast_promoter/vaishnav2022.csv.gz" in message
    assert all(str(root) in message for root in places.values())
    assert message.endswith("run: difftilt data prepare yeast-promoter")


def test_tfbind8_alone_means_six6():
    assert data.dataset("tfbind8") is data.dataset("tfbind8/SIX6_REF_R1")


def test_an_unknown_name_proposes_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'utr-mrl'"):
        data.dataset("utr_mrl")
    with pytest.raises(ConfigError, match="tfbind8/CRX_REF_R1"):
        data.locate("tfbind8/CRX_REF_R9")


def test_every_record_names_an_origin_a_licence_and_a_citation():
    assert len(data.names()) == 21
    for name in data.names():
        record = data.dataset(name)
        assert record.name == name
        assert record.columns[0] in ("sequence", "smiles")
        assert record.scored is None or record.columns[1] == record.scored
        assert record.licence
        assert "doi" in record.citation or "bioRxiv" in record.citation
        for origin in record.origins:
            assert len(origin.commit) == 40
            assert origin.url().startswith(f"https://raw.githubusercontent.com/{origin.repository}/{origin.commit}/")
            assert origin.url("http://mirror/") == f"http://mirror/{origin.repository}/{origin.commit}/{origin.path}"


@pytest.mark.parametrize("name", data.names())
def test_the_files_here_have_the_recorded_checksum_and_pass_the_check(name):
    path = _here(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == data.dataset(name).sha256
    data.check(data.dataset(name), data.load(name))


def test_load_reads_columns_in_their_units():
    _here("utr-mrl")
    table = data.load("utr-mrl")
    assert len(table) == 18_000
    assert table.score_column == "score"
    assert table.scores[0] == 5.515446
    assert table.column("n_uatg")[:2].tolist() == [0.0, 2.0]
    _here("yeast-promoter")
    yeast = data.load("yeast-promoter")
    complex_random = yeast.take((yeast.column("medium") == "complex") & (yeast.column("category") == "random"))
    assert len(complex_random) == 2375
    assert np.isnan(complex_random.column("std")).all()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b"sequence,score", b"sequence,mrl", "expected columns"),
        (b"\nGTGATC", b"\nGTGATN", "expected 50 letters"),
        (b",5.515446,", b",55.15446,", "expected scores from"),
        (b",5.515446,", b",5.525446,", "expected score 5.515446"),
        (b"-11.2,0\n", b"-11.2,1\n", "number of ATG"),
        (b"-11.2,0\n", b"11.2,0\n", "positive folding"),
        (b"CCCTGAACTGTAGAACATCGGAAGAGCGCATTAGGAAATCCAAGGAACAG,6.828056,0.000693418,-4.0,0\n", b"", "rows; got 17999"),
    ],
)
def test_the_check_notices_a_changed_file(tmp_path, old, new, fault):
    import gzip

    text = gzip.decompress(_here("utr-mrl").read_bytes())
    assert old in text
    path = tmp_path / "changed.csv"
    path.write_bytes(text.replace(old, new, 1))
    with pytest.raises(DataError, match=fault) as caught:
        data.check(data.dataset("utr-mrl"), data.read_designs(path))
    assert str(path) in str(caught.value)


def test_prepare_finds_what_is_here_and_asks_no_network(places, monkeypatch):
    source = Path(__file__).resolve().parents[3] / "shared" / "data" / data.dataset("utr-mrl").file
    if not source.is_file():
        pytest.skip("utr-mrl is not beside this checkout")
    target = _put(places["shared/data"], "utr-mrl")
    shutil.copy(source, target)
    monkeypatch.setattr("pooch.retrieve", lambda *args, **kwargs: pytest.fail("asked the network"))
    assert data.prepare("utr-mrl") == target
