"""One's own files: what is read, and the one line each bad file gets."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from difftilt.data import merge_repeats, read_designs, validate
from difftilt.errors import ConfigError, DataError


def _write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


PLAIN = "sequence,score,medium\nACGT,1.5,complex\nTTTT,,defined\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", PLAIN),
        ("a.csv.gz", PLAIN),
        ("A.CSV", PLAIN),
        ("bom.csv", b"\xef\xbb\xbf" + PLAIN.encode()),
        ("crlf.csv", PLAIN.replace("\n", "\r\n")),
        ("mac.csv", PLAIN.replace("\n", "\r")),
        ("semicolon.csv", PLAIN.replace(",", ";")),
        ("comma.csv", PLAIN.replace(",", ";").replace("1.5", "1,5")),
        ("tab.csv", PLAIN.replace(",", "\t")),
        ("a.tsv", PLAIN.replace(",", "\t")),
        ("quotes.csv", '"sequence","score","medium"\n"ACGT","1.5","complex"\n"TTTT","","defined"\n'),
        ("blank.csv", "\n" + PLAIN.replace("\n", "\n\n")),
        ("spaces.csv", "sequence, score ,medium\n ACGT , 1.5 ,complex\nTTTT,NA,defined\n"),
        ("noend.csv", PLAIN.rstrip("\n")),
        ("order.csv", "score,medium,Sequence\n1.5,complex,ACGT\nnan,defined,TTTT\n"),
        ("index.csv", ",sequence,score,medium\n0,ACGT,1.5,complex\n1,TTTT,None,defined\n"),
        ("a.fasta", ">x score=1.5 medium=complex\nAC\nGT\n\n>y medium=defined\nTTTT\n"),
        ("a.fa.gz", ">x|score=1.5|medium=complex\r\nAC GT\r\n>y medium=defined\r\nTTTT"),
    ],
)
def test_the_same_designs_are_read_from_every_dialect(name, content, tmp_path):
    table = read_designs(_write(tmp_path, name, content))
    assert table.sequences == ["ACGT", "TTTT"]
    assert table.score_column == "score"
    assert np.array_equal(table.scores, [1.5, np.nan], equal_nan=True)
    assert table.scores.dtype == np.float64
    assert table.column("medium").tolist() == ["complex", "defined"]
    assert "" not in table.columns


@pytest.mark.parametrize(
    ("header", "sequence", "score"),
    [
        ("seq,value", "seq", "value"),
        ("SMILES,Reward", "SMILES", "Reward"),
        ("design,mrl", "design", None),
        ("value,sequence", "sequence", "value"),
        ("reward,score,seq", "seq", "score"),
        ("score", "score", None),
    ],
)
def test_columns_are_found_by_name(header, sequence, score, tmp_path):
    row = ",".join("CCO" if name == sequence else "1" for name in header.split(","))
    table = read_designs(_write(tmp_path, "a.csv", f"{header}\n{row}\n"))
    assert (table.sequence_column, table.score_column) == (sequence, score)
    assert table.sequences == ["CCO"]


def test_lines_are_those_of_the_file(tmp_path):
    table = read_designs(_write(tmp_path, "a.csv", "\nsequence,score\nAC,1\n\nGT,2\n"))
    assert table.lines is not None
    assert table.lines.tolist() == [3, 5]
    table = read_designs(_write(tmp_path, "a.fasta", ">x\nA\nC\n>y\nGT\n"))
    assert table.lines is not None
    assert table.lines.tolist() == [1, 4]
    assert table.column("id").tolist() == ["x", "y"]
    assert table.score_column is None


def test_ids_stay_text_and_numbers_with_underscores_are_text(tmp_path):
    table = read_designs(_write(tmp_path, "a.csv", "id,sequence,batch,n\n007,AC,1_2,1e3\n8,GT,1_3,-2\n"))
    assert table.column("id").tolist() == ["007", "8"]
    assert table.column("batch").tolist() == ["1_2", "1_3"]
    assert table.column("n").tolist() == [1000.0, -2.0]


BAD = [
    ("empty.csv", "", "empty file"),
    ("space.csv", " \n\n", "empty file"),
    ("header.csv", "sequence,score\n", "a header only"),
    ("header.csv", "sequence,score\n,\n", "a header only"),
    ("noheader.csv", "ACGT,1\nTTGC,2\nAGCT,3\n", "line 1: expected a header"),
    ("nonames.csv", " , ,\nA,B,C\n", "no column names"),
    ("twice.csv", "sequence,score,score\nAC,1,2\n", "'score' twice"),
    ("text.csv", "sequence,score\nAC,1\nGT,high\n", "line 3: expected a finite number in column 'score'; got 'high'"),
    ("inf.csv", "sequence,score\nAC,inf\n", "line 2: expected a finite number"),
    ("comma.csv", 'sequence,score\nAC,"1,5"\n', "line 2: expected a finite number"),
    ("ragged.csv", "sequence,score\nAC,1\nGT,1,5\n", "line 3: expected 2 fields"),
    ("short.csv", "sequence,score\nAC,1\nGT\n", "line 3: expected 2 fields"),
    ("quote.csv", 'sequence,score\n"AC"T,1\n', "line 2: expected CSV"),
    ("hole.csv", "sequence,score\nAC,1\n,2\n", "line 3: expected a design; got an empty one"),
    ("latin.csv", b"sequence,score\nAC,1\nGT,2 \xb5\n", "line 3: expected UTF-8 text; got byte 0xb5"),
    ("utf16.csv", PLAIN.encode("utf-16"), "got UTF-16"),
    ("binary.csv", b"\x00\x01\x02", "a binary file"),
    ("text.fasta", "ACGT\n>x\nACGT\n", "line 1: expected a FASTA header"),
    ("empty.fasta", ">x\nAC\n>y\n>z\nGT\n", "line 3: expected a design; got an empty one"),
    ("last.fasta", ">x\nAC\n>y\n", "line 3: expected a design"),
    ("score.fasta", ">x score=1\nAC\n>y score=good\nGT\n", "line 3: expected a finite number"),
    ("empty.fasta", "", "empty file"),
    ("a.parquet", "sequence,score\nAC,1\n", "expected a Parquet file"),
    ("a.xlsx", "x", "expected a .csv, .tsv, .fasta or .parquet file; got"),
    ("a.parquet.gz", "x", "expected a .csv"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_file_gets_one_line_with_the_place_and_the_fix(name, content, message, tmp_path):
    path = _write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read_designs(path)
    text = str(caught.value)
    assert message in text
    assert name in text
    assert "\n" not in text
    assert text.count(";") >= 2 or name == "comma.csv"


def test_missing_files_folders_and_cut_gzip_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_designs(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="directory"):
        read_designs(tmp_path / "folder.csv")
    whole = gzip.compress(PLAIN.encode() * 100)
    for data in (whole[: len(whole) // 2], PLAIN.encode(), whole[:-4] + b"abcd"):
        (tmp_path / "cut.csv.gz").write_bytes(data)
        with pytest.raises(DataError, match="damaged or cut"):
            read_designs(tmp_path / "cut.csv.gz")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "empty table"),
        ({"sequence": []}, "empty table"),
        ({"sequence": [1, 2]}, "expected text in column 'sequence'"),
        ({"sequence": ["AC", None]}, "row 2: expected a design"),
        ({"sequence": ["AC", "GT"], "score": ["1", "x"]}, "row 2: expected a finite number"),
    ],
)
def test_a_bad_parquet_file_names_the_row(columns, message, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        read_designs(tmp_path / "a.parquet")


def test_without_pyarrow_the_error_names_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'difftilt\[tables\]'"):
        read_designs(_write(tmp_path, "a.parquet", "x"))


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    table = read_designs(_write(tmp_path, "a.csv", "sequence,medium\nAC,defined\n"))
    with pytest.raises(DataError, match="did you mean 'medium'"):
        table.column("medum")
    with pytest.raises(DataError, match="expected a column score or value or reward; got columns sequence, medium"):
        _ = table.scores


def test_lower_case_and_both_of_t_and_u_are_read():
    assert validate(["acgu", "ACGT"], "ACGT") == ["ACGT", "ACGT"]
    assert validate(["acgu", "ACGT"], "ACGU") == ["ACGU", "ACGU"]
    with pytest.raises(DataError, match="'U'"):  # selenocysteine, not uracil
        validate(["MU"], "ACDEFGHIKLMNPQRSTVWY")
    assert validate(["Clc1"], "Clc1") == ["Clc1"]


@pytest.mark.parametrize(
    ("sequences", "kwargs", "message"),
    [
        ([], {}, "expected designs; got none"),
        (["ACGT", "ACNT"], {}, "row 2: expected the letters ACGT; got 'N' at position 3"),
        (["ACGT", "AC-T"], {"path": "a.csv", "lines": np.array([2, 7])}, "a.csv, line 7: expected the letters ACGT"),
        (["ACGT", "ACG"], {"length": 4}, "row 2: expected 4 letters; got 3"),
        (["ACG", "ACGT", "ACGT"], {}, "row 1: expected 4 letters like most of the others; got 3"),
        (["ACGT"], {"length": 5, "path": "a.csv"}, "a.csv, row 1: expected 5 letters; got 4"),
    ],
)
def test_wrong_letters_and_lengths_name_the_place(sequences, kwargs, message):
    with pytest.raises(DataError) as caught:
        validate(sequences, "ACGT", **kwargs)
    assert message in str(caught.value)


def test_repeats_become_one_row_with_the_mean_of_the_scores_that_are_there(tmp_path):
    text = "sequence,score,batch\nAC,1,a\nGT,,b\nAC,2,c\nTT,,d\nGT,5,e\nAC,,f\n"
    table = merge_repeats(read_designs(_write(tmp_path, "a.csv", text)))
    assert table.sequences == ["AC", "GT", "TT"]
    assert np.array_equal(table.scores, [1.5, 5.0, np.nan], equal_nan=True)
    assert table.column("batch").tolist() == ["a", "b", "d"]
    assert table.lines is not None
    assert table.lines.tolist() == [2, 3, 5]
