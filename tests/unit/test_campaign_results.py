"""Results files as spreadsheets leave them: what is read, and everything that is refused, line by line."""

from __future__ import annotations

import csv
import datetime
import io
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign_parts import begin, letters, rows
from difftilt.campaigns import facts
from difftilt.campaigns import results as module
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.history import CampaignSettings, Design, History
from difftilt.campaigns.matching import match
from difftilt.campaigns.proposer import Candidate, Proposal
from difftilt.campaigns.results import Fault, ResultsError, parse, read_rows
from difftilt.errors import ConfigError, DataError

SEQUENCES = ["ACGT", "ACGG", "TTTT", "[C][=O]", "[c][=O]", "GGGG"]
KNOWN = History(
    CampaignSettings(name="lab", task="none"),
    designs=tuple(Design(i, text, 1, "m", f"A{i}", 0.5, 0.1, f"guess {i}") for i, text in enumerate(SEQUENCES, 1)),
)


@pytest.fixture
def lab(tmp_path: Path) -> Campaign:
    """Six designs, all pending."""
    campaign = begin(str(tmp_path / "lab"), batch=6)
    campaign.propose(proposer=lambda history, n, rng: Proposal([Candidate(text) for text in SEQUENCES], "m"))
    return campaign


def read(data: bytes | str, tmp_path: Path, *, name: str = "results.csv") -> list[tuple]:
    """Design, replicate, value and failure of each row that is new."""
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    results, faults = parse(read_rows(path))
    matched, unmatched = match(results, KNOWN, correct=False)
    if faults or unmatched:
        raise ResultsError(path.name, [*faults, *unmatched])
    return [(f"d{row['design']:05d}", row["replicate"], row["value"], row["failure"]) for row in matched.rows]


TWO = [("d00001", "1", 0.5, None), ("d00002", "1", None, "no expression")]


@pytest.mark.parametrize(
    "text",
    [
        "id,value,status\nd00001,0.5,\nd00002,,failed: no expression\n",
        "ID , Value,STATUS\r\n D00001 ,0.5,measured\r\nd00002,,Failed:no expression\r\n",
        "id;value;status\nd00001;0,5;\nd00002;;failed: no expression\n",
        "id\tvalue\tstatus\nd00001\t0,5\t\nd00002\t\tfailed: no expression\n",
        "sep=;\nid;value;status\nd00001;0,5;\nd00002;;failed: no expression\n",
        'id,value,status\n"d00001","0,5",ok\n"d00002","","failed: no expression"\n',
        "id,value,status\rd00001,0.5,\rd00002,,failed: no expression\r",
        "sequence,status,value\nacgt,,0.5\nACGG,failed: no expression,\n",
        "value,sequence,id,status,reason\n.5,ACGT,d00001,,guess 1\n,ACGG,d00002,failed,no expression\n",
        "# of plate 1\n# by A. B.\nPlate 1\n\nid,value,status\nd00001,0.5,\nd00002,,failed: no expression\n",
        "id,value,status,,\nd00001,0.5,,,\nd00002,,failed: no expression,,\n,,,,\n,,,,\n",
        "id,OD600,value,status\nd00001,n/a,5e-1,\nd00002,0.1,#DIV/0!,failed: no expression\nd00003,,,pending\n",
        "id,value,status\n'd00001,+0.50,\nd00002,NaN,failed: no expression\n",
        '"id","value","status"\n"d00001","0.5",""\n"d00002","","failed: no expression"',
    ],
)
def test_every_dialect_says_the_same(text: str, tmp_path: Path) -> None:
    assert read(text, tmp_path) == TWO
    if text.isascii():
        for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"):
            assert read(text.encode(encoding), tmp_path) == TWO


@pytest.mark.parametrize(
    ("data", "reason"),
    [("wässrig, 5 µl", "utf-8"), ("wässrig, 5 µl", "cp1252"), ("wässrig — µ 空", "utf-16"), ("空", "utf-8-sig")],
)
def test_reasons_keep_their_letters(data: str, reason: str, tmp_path: Path) -> None:
    assert read(f'id,value,status\nd00001,,"failed: {data}"\n'.encode(reason), tmp_path)[0][3] == data


@pytest.mark.parametrize(
    ("cells", "separator", "values"),
    [
        (["1,234", "0,5"], ";", [1.234, 0.5]),
        (["1,234", "2,345"], ";", [1.234, 2.345]),
        (["1,234", "0,5"], "\t", [1.234, 0.5]),
        (["1.234", "2.345"], "\t", [1.234, 2.345]),
        (["1.234", "0.5"], ";", [1.234, 0.5]),
        (["1,234", "7"], "\t", None),
        (['"1,234"', "7"], ",", None),
        (["1.234", "7"], ";", None),
        (["1.234", "0,5"], ";", None),
        (["1.234.567", "7"], ",", None),
        (["1.234,5", "7"], ";", None),
        (['"1,234.5"', "7"], ",", None),
        (["1 234", "7"], ",", None),
        (["-0,5", "1,25E-3"], ";", [-0.5, 0.00125]),
        (["\N{MINUS SIGN}0,5", "7"], ";", [-0.5, 7.0]),
        (["12345", "-7"], ";", [12345.0, -7.0]),
    ],
)
def test_a_decimal_sign_is_never_guessed(cells: list, separator: str, values: list | None, tmp_path: Path) -> None:
    lines = [separator.join(line) for line in (("id", "value"), ("d00001", cells[0]), ("d00002", cells[1]))]
    if values is None:
        with pytest.raises(ResultsError, match="line 2: expected"):
            read("\n".join(lines), tmp_path)
    else:
        assert [row[2] for row in read("\n".join(lines), tmp_path)] == values


@pytest.mark.parametrize("right", ["reason", "note", "replicate"])
@given(hundredths=st.lists(st.integers(-300, 300), min_size=1, max_size=len(SEQUENCES)))
@settings(max_examples=60)
def test_decimals_that_a_comma_cut_off_are_never_dropped(
    tmp_path_factory: pytest.TempPathFactory, hundredths: list[int], right: str
) -> None:
    """0,62 without quotes between commas: refused in each line that has decimals, never read as 0."""
    written = [f"{number / 100:g}".replace(".", ",") for number in hundredths]
    lines = [f"id,value,{right}", *(f"d{i:05d},{text}" for i, text in enumerate(written, start=1))]
    wrong = [line for line, text in enumerate(written, start=2) if "," in text]
    faults = faults_of("\n".join(lines).encode(), tmp_path_factory.mktemp("sheet"))
    assert [fault.line for fault in faults] == wrong
    assert all("decimal sign" in fault.problem and written[fault.line - 2] in fault.problem for fault in faults)


def test_decimals_beside_a_sequence_and_cells_that_follow_are_not_dropped_either(tmp_path: Path) -> None:
    lines = ["id,sequence,value,reason,mine", "d00001,ACGT,0,62,guess 1", "d00002,ACGG,1,guess 2,"]
    faults = faults_of("\n".join([*lines, "d00003,TTTT,\N{MINUS SIGN}1,5e-3,"]).encode(), tmp_path)
    assert [fault.line for fault in faults] == [2, 4]
    assert ["0,62 may be meant" in faults[0].problem, "-1,5e-3 may be meant" in faults[1].problem] == [True, True]
    for decimals in ("5%", "5 %", "5E-3"):
        (fault,) = faults_of(f"id,value,mine\nd00001,12,{decimals}\n".encode(), tmp_path)
        assert f"12,{decimals} may be meant" in fault.problem


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("id,value,reason\nd00001,3,\nd00002,5,\n", [3, 5]),
        ("id,value,mine\nd00001,3,12 h\nd00002,5,A1\n", [3, 5]),
        ("id,value,replicate\nd00001,3.0,1\nd00001,5,2\n", [3, 5]),
        ("id,value,replicate\nd00001,120,1\nd00001,130,2\nd00002,90,1\n", [120, 130, 90]),
        ("id,replicate,value\nd00001,1,3\nd00001,2,5\n", [3, 5]),
        ("id;value;replicate\nd00001;3;1\nd00001;5;2\n", [3, 5]),
        ('id,value,mine\nd00001,"0,62",4\nd00002,1,4\n', [0.62, 1]),
    ],
)
def test_whole_numbers_are_read_where_no_decimals_can_be_missing(text: str, values: list, tmp_path: Path) -> None:
    assert [row[2] for row in read(text, tmp_path)] == values


FAULTS = [
    ("d77,,0.5,,,,", "expected an id of this campaign, such as d00001; got 'd77'"),
    ("1,,0.5,,,,", "got '1'"),
    ("2026-05-01,,0.5,,,,", "got '2026-05-01'"),
    ("1.00E+05,ACGT,0.5,,,,", "its sequence is d00001's"),
    (",AAAA,0.5,,,,", "expected a sequence of this campaign; got 'AAAA'"),
    (",[C][=o],0.5,,,,", "expected a sequence of this campaign"),
    (",,0.5,,,,", "expected an id or a sequence"),
    ("d00001,ACGG,0.5,,,,", "expected the sequence of d00001; got that of d00002"),
    ("d00001,CCCC,0.5,,,,", "'CCCC', which was not proposed"),
    ("d00001,,high,,,,", "expected a number; got 'high'"),
    ("d00001,,0.5 nM,,,,", "expected a number; got '0.5 nM'"),
    ("d00001,,<0.1,,,,", "expected a number; got '<0.1'"),
    ("d00001,,50%,,,,", "expected a number; got '50%'"),
    ("d00001,,#N/A,,,,", "spreadsheet's error '#N/A'"),
    ("d00001,,#WERT!,,,,", "spreadsheet's error '#WERT!'"),
    ("d00001,,nan,,,,", "expected a number; got 'nan'"),
    ("d00001,,inf,,,,", "expected a number; got 'inf'"),
    ("d00001,,1e999,,,,", "expected a finite number"),
    ("d00001,,1_000,,,,", "expected a number; got '1_000'"),
    ("d00001,,١,,,,", "expected a number"),
    ("d00001,,,,,,", "expected a value; got none"),
    ("d00001,,-,,,,", "expected a value; got none"),
    ("d00001,,2e100,,,,", "expected a value between -1e+100 and 1e+100; got 2e+100 for d00001"),
    (",ACGT,-1e308,,,,", "got -1e+308 for ACGT"),
    ("d00001,,,measured,,,", "expected a value; got none"),
    ("d00001,,0.5,failed: no expression,,,", "expected no value for a failed design; got '0.5'"),
    ("d00001,,0.5,pending,,,", "expected no value for a pending design; got '0.5'"),
    ("d00001,,0.5,fine,,,", "expected a known status; got 'fine'"),
    ("d00001,,0.5,ok: nearly,,,", "expected a known status"),
    ("d00001,,0.5,withdrawn,,,", "expected a known status"),
    ("d00001,,0.5,,,,mM", "expected the unit 'nM'; got 'mM'"),
    ("d00001,,0,5,,,,", "expected a known status; got '5'"),
    ("d00001,,0,5,,,,nM", "expected at most 7 cells, as in the header; got 8; a decimal comma?"),
    ("d00006,,0.75,,,,", "expected one line for replicate 1 of d00006; got another in line 2"),
]
HEADER = "id,sequence,value,status,reason,replicate,unit"
FINE = "d00006,,0.5,,,,nM"


@pytest.mark.parametrize(("line", "said"), FAULTS)
def test_a_faulty_line_is_named_with_what_to_do(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ResultsError) as caught:
        read("\n".join([HEADER, FINE, line]), tmp_path)
    (fault,) = caught.value.faults
    assert fault.line == 3
    assert said in fault.problem
    assert fault.problem.startswith("expected ")
    assert len(fault.problem.split("; ")) >= 3, "expected; got; what to do"


def test_every_faulty_line_is_reported_at_once_and_nothing_is_recorded(lab: Campaign, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text("\n".join([HEADER, FINE, *(line for line, _ in FAULTS)]))
    before = rows(lab)
    with pytest.raises(ResultsError) as caught:
        lab.record(file)
    named = {fault.line for fault in caught.value.faults}
    assert named == set(range(3, 3 + len(FAULTS)))
    assert f"{len(FAULTS)} faulty lines" in caught.value.summary
    assert all(f"results.csv, line {number}: " in str(caught.value) for number in named)
    assert rows(lab) == before


def test_replicates_stand_in_lines_of_their_own(tmp_path: Path) -> None:
    text = "id,replicate,value\nd00001,1,0.5\nd00001,2,0.6\nd00001,b,0.7\nd00002,,0.8\n"
    assert [row[:3] for row in read(text, tmp_path)] == [
        ("d00001", "1", 0.5), ("d00001", "2", 0.6), ("d00001", "b", 0.7), ("d00002", "1", 0.8),
    ]  # fmt: skip
    with pytest.raises(ResultsError, match="in line 2; number replicates in a column 'replicate'"):
        read("id,value\nd00001,0.5\nd00001,0.6\n", tmp_path)


@pytest.mark.parametrize("kind", ["csv", "semicolons", "workbook", "python", "python texts"])
def test_a_whole_number_names_the_same_replicate_however_it_is_written(
    lab: Campaign, tmp_path: Path, kind: str
) -> None:
    """1, 1.0 and nothing; also of a measurement whose replicate is on record as 1.0."""
    lab.record([{"id": "d00001", "value": 0.5}, {"id": "d00001", "value": 0.6, "replicate": "2"}])
    with lab._store.writing() as connection:
        facts.add_measurements(connection, 1, [
            {"design": 2, "replicate": "1.0", "value": 0.7, "failure": None, "unit": None, "line": 9, "corrects": None}
        ])  # fmt: skip
    lines = [["d00001", 1.0, 0.5], ["d00001", 2.0, 0.6], ["d00002", 1.0, 0.7]]
    file = tmp_path / ("r.xlsx" if kind == "workbook" else "r.csv")
    if kind == "workbook":
        file.write_bytes(workbook({"a": [["id", "replicate", "value"], *lines]}))
    elif kind == "semicolons":
        text = "\n".join(f"{name};{replicate};{value}".replace(".", ",") for name, replicate, value in lines)
        file.write_text(f"id;replicate;value\n{text}\n")
    else:
        file.write_text("id,replicate,value\n" + "".join(f"{a},{b},{c}\n" for a, b, c in lines))
    told = [{"id": a, "replicate": str(b) if kind == "python texts" else b, "value": c} for a, b, c in lines]
    added = lab.record(told if kind.startswith("python") else file)
    assert (added.measured, added.corrected, added.known) == (0, 0, 3)
    assert len(lab.history().data()[0]) == 3


def test_other_names_of_replicates_stay_as_they_are(tmp_path: Path) -> None:
    text = "id,replicate,value\nd00001,1.5,0.5\nd00001,0,0.6\nd00001,b.0,0.7\nd00001,10,0.8\nd00001,100.0,0.9\n"
    assert [row[1] for row in read(text, tmp_path)] == ["1.5", "0", "b.0", "10", "100"]


@pytest.mark.parametrize(("first", "saved_again"), [("01", "1"), ("1", "001"), ("A", "a"), ("b", "B")])
def test_a_replicate_whose_name_a_spreadsheet_or_a_person_changed_is_not_counted_twice(
    lab: Campaign, tmp_path: Path, first: str, saved_again: str
) -> None:
    """Twin: another name is another replicate."""
    for name, known in ((first, 0), (saved_again, 1), ("twin", 0)):
        file = tmp_path / f"{name}-{known}.csv"
        file.write_text(f"id,replicate,value\nd00001,{name},0.5\n")
        assert lab.record(file).known == known
    assert len(lab.history().data()[0]) == 2
    file.write_text(f"id,replicate,value\nd00002,{first},0.5\nd00002,{saved_again},0.6\n")
    with pytest.raises(ResultsError, match="expected one line for replicate"):
        lab.record(file)
    file.write_text(f"id,replicate,value\nd00001,{saved_again},0.7\n")
    assert lab.record(file, correct=True).corrected == 1
    assert lab.history().designs[0].values == (0.5, 0.7)


@pytest.mark.parametrize("unit", ["\N{MICRO SIGN}M", "\N{GREEK SMALL LETTER MU}M", " \N{MICRO SIGN}M "])
def test_the_two_signs_for_micro_are_one_unit(tmp_path: Path, unit: str) -> None:
    """The campaign's own, as typed at its beginning, too. Twins: another unit; no unit at all."""
    lab = begin(str(tmp_path / "lab"), unit=unit)
    lab.propose(proposer=letters)
    for letter, design in (("\N{MICRO SIGN}", "d00001"), ("\N{GREEK SMALL LETTER MU}", "d00002")):
        assert lab.record([{"id": design, "value": 0.5, "unit": f"{letter}M"}]).measured == 1
    with pytest.raises(ResultsError, match="expected the unit"):
        lab.record([{"id": "d00003", "value": 0.5, "unit": "nM"}])
    free = begin(str(tmp_path / "free"), unit="")
    free.propose(proposer=letters)
    free.record([{"id": "d00001", "value": 0.5, "unit": "nM"}])
    assert free.history().unit == "nM"


@pytest.mark.parametrize("wrong", [{"budget": True}, {"batch": False}, {"batch": 0}, {"budget": -3}])
def test_a_batch_or_budget_that_is_no_number_of_designs_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="1 or more, a whole number; got"):
        CampaignSettings(**{"name": "lab", "task": "none", **wrong})


@pytest.mark.parametrize("value", [10**400, torch.zeros(2), [1.0], 1j])
def test_what_is_no_number_in_python_is_a_faulty_line(lab: Campaign, value: object) -> None:
    with pytest.raises(ResultsError, match="rows, line 1: expected a"):
        lab.record([{"id": "d00001", "value": value}])


def campaign_of(sequences: Sequence[str], place: Path) -> Campaign:
    """These designs, pending."""
    campaign = begin(str(place), batch=len(sequences))
    campaign.propose(proposer=lambda history, n, rng: Proposal([Candidate(text) for text in sequences], "m"))
    return campaign


@pytest.mark.parametrize(("ours", "theirs"), [("T", "U"), ("U", "T")])
@pytest.mark.parametrize("case", [str.upper, str.lower])
@pytest.mark.parametrize("with_id", [True, False])
def test_t_and_u_are_one_letter_of_nucleic_acids(
    tmp_path: Path, ours: str, theirs: str, case: Any, with_id: bool
) -> None:
    designs = [text.replace("T", ours) for text in ("ACGT", "TTAA", "GGGG")]
    campaign = campaign_of(designs, tmp_path)
    told = [{"sequence": case(text.replace(ours, theirs)), "value": i / 8} for i, text in enumerate(designs)]
    if with_id:
        told = [{"id": f"d{i:05d}", **row} for i, row in enumerate(told, start=1)]
    assert campaign.record(told).measured == 3
    assert campaign.history().data()[0] == designs
    assert campaign.history().data()[1].tolist() == [0.0, 0.125, 0.25]
    with pytest.raises(ResultsError, match="expected the sequence of d00001; got that of d00002"):
        campaign.record([{"id": "d00001", "sequence": designs[1].replace(ours, theirs), "value": 1.0}])


@pytest.mark.parametrize("designs", [["ACGT", "MKLV"], ["ACGT", "ACGU"], ["[C][=O]", "ACGT"]])
def test_t_and_u_are_two_letters_elsewhere(tmp_path: Path, designs: list[str]) -> None:
    campaign = campaign_of([*designs, "TTTT"], tmp_path)
    with pytest.raises(ResultsError, match="expected a sequence of this campaign; got 'UUUU'"):
        campaign.record([{"sequence": "UUUU", "value": 1.0}])
    assert campaign.record([{"sequence": "tttt", "value": 1.0}]).measured == 1


@pytest.mark.parametrize(
    "name", ['="d00001"', "d00001\u200b", "\ufeff d00001 ", "'d00001", "d00\u00ad001\u00a0", "D00001"]
)
@pytest.mark.parametrize("kind", ["csv", "quoted", "python"])
def test_what_programs_put_around_an_id_is_not_of_it(lab: Campaign, tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / "r.csv"
    cell = '"' + name.replace('"', '""') + '"' if kind == "quoted" else name
    file.write_text(f"id,value\n{cell},0.5\n", encoding="utf-8")
    lab.record([{"id": name, "value": 0.5}] if kind == "python" else file)
    assert lab.history().designs[0].values == (0.5,)


def test_reasons_and_units_keep_their_unseen_letters(lab: Campaign) -> None:
    lab.record([{"id": "d00001", "status": "failed: re\u00addo", "unit": "n\u200bM"}])
    (row,) = lab.history().designs[0].measurements
    assert (row.failure, row.unit) == ("re\u00addo", "n\u200bM")


def test_a_value_too_large_to_be_squared_is_refused_and_a_large_one_is_not(lab: Campaign) -> None:
    lab.record([{"id": "d00001", "value": 1e100}, {"id": "d00002", "value": -1e100}])
    with pytest.raises(ResultsError, match="rows, line 2: expected a value between"):
        lab.record([{"id": "d00003", "value": 0.5}, {"id": "d00004", "value": 1e101}])
    assert lab.status().measured == 2


def test_a_unit_is_the_campaigns_or_that_of_the_first_results(lab: Campaign, tmp_path: Path) -> None:
    lab.record([{"id": "d00001", "value": 1.0, "unit": "µM"}])  # the micro sign, and the Greek letter, are one
    lab.record([{"id": "d00002", "value": 1.0, "unit": "\N{GREEK SMALL LETTER MU}M"}, {"id": "d00003", "value": 2.0}])
    with pytest.raises(ResultsError, match="expected the unit"):
        lab.record([{"id": "d00004", "value": 1.0, "unit": "nM"}])
    other = begin(str(tmp_path / "other"), batch=1, unit="mg/l")
    other.propose(proposer=lambda history, n, rng: Proposal([Candidate("A")], "m"))
    with pytest.raises(ResultsError, match="expected the unit 'mg/l'; got 'g/l'"):
        other.record([{"id": "d00001", "value": 1.0, "unit": "g/l"}])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty file"),
        (" \n\n", "empty file"),
        ("id,value\n", "got none; fill in the values"),
        ("name,score\nd00001,0.5\n", r"expected a header with the columns id \(or sequence\) and value"),
        ("d00001,0.5\n", "expected a header"),
        ("id,value,value\nd00001,0.5,0.6\n", "expected one column 'value'; got 2"),
        ("id,value,stauts\nd00001,0.5,failed\n", "expected a column 'status'; got 'stauts'"),
        ("id,value,replicates\nd00001,0.5,1\n", "expected a column 'replicate'; got 'replicates'"),
        ("id,value,units\nd00001,0.5,nM\n", "expected a column 'unit'; got 'units'"),
        ("id,value,Unit (conc.)\nd00001,0.5,nM\n", r"expected a column 'unit'; got 'unit \(conc.\)'"),
        ("id,value,Units [nM]\nd00001,0.5,nM\n", "expected a column 'unit'; got 'units"),
        ("id,value,unit_of_value\nd00001,0.5,nM\n", "expected a column 'unit'; got 'unit_of_value'"),
        ("d00001,0.5\nid,value\nd00002,0.5\n", "line 1: expected the header"),
        ('id,value\nd00001,0.5\nd00002,"0.5\nd00003,1\n', "line 3: expected CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 old", "old .xls workbook"),
        (b"id,value\nd00001,0.5\x81\n", "line 2: expected text in UTF-8"),
        (b"\xff\xfei", "expected text in UTF-8"),
        (b"id,value\0\0\nd00001,1\n", "binary"),
        (b"PK\x03\x04 but no workbook", "damaged or different file"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read(text, tmp_path)


def test_a_file_that_is_not_there_is_refused(lab: Campaign, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(DataError, match="readable file"):
            lab.record(path)


def test_columns_of_ones_own_may_stand_beside_ours(tmp_path: Path) -> None:
    text = "id,value_raw,values,value,OD units\nd00001,9,9,0.5,9\n"
    assert read(text, tmp_path) == [TWO[0]]


def test_a_reason_of_the_plate_is_no_reason_of_failure(tmp_path: Path) -> None:
    assert read("id,reason,value,status\nd00001,guess 1,,failed\n", tmp_path)[0][3] == "no reason given"
    assert read("id,reason,value,status\nd00001,guess 1,,failed: dry\n", tmp_path)[0][3] == "dry"
    assert read("id,reason,value,status\nd00001,dry,,failed\n", tmp_path)[0][3] == "dry"


def workbook(sheets: dict[str, Sequence[Sequence[Any]]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, lines in sheets.items():
        sheet = book.create_sheet(title)
        for line in lines:
            sheet.append(list(line))
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


LINES = [
    ["Plate 1"],
    [],
    ["id", "value", "status", None],
    ["d00001", 0.5, None],
    ["d00002", None, "failed: no expression"],
]


@pytest.mark.parametrize("name", ["results.xlsx", "results.csv"])
def test_a_workbook_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    assert read(workbook({"notes": [["made by", "us"]], "results": LINES}), tmp_path, name=name) == TWO


def test_cells_of_a_workbook_are_what_they_are_typed_as(tmp_path: Path) -> None:
    lines = [["id", "value", "replicate"], ["d00001", 1, 1], ["d00001", "0,5", 2], ["d00002", 1234.5, "x"]]
    assert [row[1:3] for row in read(workbook({"a": lines}), tmp_path)] == [("1", 1.0), ("2", 0.5), ("x", 1234.5)]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([datetime.datetime(2026, 5, 1), 0.5], "got '2026-05-01T00:00:00'"),
        ([17, 0.5], "got '17'"),
        (["d00001", "#N/A"], "spreadsheet's error"),
        (["d00001", True], "expected a number; got 'True'"),
        (["d00001", datetime.date(2026, 5, 1)], "expected a number; got '2026-05-01"),
        (["d00001", None], "expected a value"),
    ],
)
def test_what_a_workbook_made_of_a_cell_is_named(cells: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="line 2") as caught:
        read(workbook({"a": [["id", "value"], cells]}), tmp_path)
    assert said in str(caught.value)


def test_results_in_two_sheets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one sheet; got a, b"):
        read(workbook({"a": LINES, "b": LINES}), tmp_path)
    with pytest.raises(DataError, match="header"):
        read(workbook({"a": [["nothing"]]}), tmp_path)


def test_a_damaged_workbook_is_refused_in_words(tmp_path: Path) -> None:
    whole, rng = workbook({"results": LINES}), random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(4, len(whole))] = rng.randrange(256)
        faults = faults_of(bytes(damaged[: rng.randrange(4, 2 * len(whole))]), tmp_path)
        assert all("expected" in fault.problem for fault in faults)


def test_without_openpyxl_a_workbook_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = workbook({"a": LINES})
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(ConfigError, match=r"difftilt\[tables\]"):
        read(data, tmp_path)


def test_rows_of_python_are_results_too(lab: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [
        {"id": "d00001", "value": 0.5},
        {"sequence": "ACGG", "value": math.nan, "status": "failed: no expression"},
        {"id": "d00003", "value": None, "status": "pending"},
    ]
    added = lab.record(told)
    assert (added.measured, added.failed, added.pending) == (1, 1, 1)
    assert lab.record(told).known == 2
    for wrong in ({"value": math.nan}, {"value": math.inf}, {"value": "high"}, {"value": None}):
        with pytest.raises(ResultsError, match="line 1"):
            lab.record([{"id": "d00004", **wrong}])
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what people without these checks are told
    for none, got in (
        (None, "NoneType"),
        (7, "int"),
        ({"id": "d00004", "value": 0.5}, "dict"),
        ([("d00004", 1)], "list of tuple"),
        ({"d00004"}, "set of str"),
        (b"id", "bytes of int"),
    ):
        with pytest.raises(DataError, match=f"^expected a file, or rows as .*; got {got}; write it so"):
            lab.record(none)  # ty: ignore[invalid-argument-type]
    for empty in ([], [{"id": "d00004"}]):
        with pytest.raises(DataError, match="expected rows"):
            lab.record(empty)


# ---------------------------------------------------------------------------------------------- any file at all

NUMBERS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: abs(x) < 1e15)
TEXTS = st.text(st.characters(codec="cp1252", exclude_categories=("Cc", "Zs", "Zl", "Zp")), max_size=8)
RESULTS = st.dictionaries(
    st.tuples(st.integers(0, len(SEQUENCES) - 1), st.integers(1, 3)),
    st.one_of(NUMBERS, TEXTS.map(lambda text: text or "dry")),
    min_size=1,
)


@st.composite
def spreadsheets(draw: st.DrawFn) -> tuple[bytes, dict[tuple[int, int], float | str], list[int]]:
    """A file in some dialect, what it says, and the line of each result."""
    told = draw(RESULTS)
    comma = draw(st.booleans())
    delimiter = draw(st.sampled_from(";" if comma else ",;\t"))
    names = draw(st.permutations(["id", "sequence", "value", "status", "replicate", "mine"]))
    if draw(st.booleans()):
        names.remove(draw(st.sampled_from(["id", "sequence"])))
    out, lines = io.StringIO(), []
    comments = draw(st.integers(0, 2))
    out.write("# a comment\n" * comments)
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(out, delimiter=delimiter, lineterminator=newline)
    empty = draw(st.integers(0, 2))
    writer.writerow([draw(st.sampled_from([name, name.upper(), f" {name}"])) for name in names] + [""] * empty)
    for line, ((design, replicate), result) in enumerate(told.items(), start=comments + 2):
        number = "" if isinstance(result, str) else repr(result)
        cells = {
            "id": f"d{design + 1:05d}",
            "sequence": SEQUENCES[design],
            "value": number.replace(".", ",") if comma else number,
            "status": f"failed: {result}" if isinstance(result, str) else "",
            "replicate": replicate,
            "mine": draw(TEXTS),
        }
        writer.writerow([cells[name] for name in names] + [""] * empty)
        lines.append(line)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
    return out.getvalue().encode(encoding), told, lines


@given(spreadsheets())
@settings(max_examples=150)
def test_any_dialect_comes_back(tmp_path_factory: pytest.TempPathFactory, made: tuple[bytes, Any, Any]) -> None:
    data, told, _ = made
    found = read(data, tmp_path_factory.mktemp("sheet"))
    assert {(int(name[1:]) - 1, int(replicate)): failure if value is None else value
            for name, replicate, value, failure in found} == told  # fmt: skip


BAD = ["x", "1,2,3", "#N/A", "NaN", "inf", "", "0.5 nM", "1e999"]


@given(st.lists(st.one_of(st.none(), st.sampled_from(BAD)), min_size=1, max_size=len(SEQUENCES)))
@settings(max_examples=100)
def test_the_faulty_lines_are_exactly_those_reported(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str | None]
) -> None:
    lines = ["id;value", *(f"d{i:05d};{'0.25' if cell is None else cell}" for i, cell in enumerate(cells, start=1))]
    wrong = {line for line, cell in enumerate(cells, start=2) if cell is not None}
    assert {fault.line for fault in faults_of("\n".join(lines).encode(), tmp_path_factory.mktemp("sheet"))} == wrong


def faults_of(data: bytes, folder: Path) -> list[Fault]:
    """What is reported of a file's lines; anything but words about the file or its lines is an error."""
    try:
        read(data, folder)
    except ResultsError as error:
        return error.faults
    except DataError as error:
        return [Fault(0, str(error))]
    return []


@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: f"id,value\n{text}".encode())))
@settings(max_examples=300)
def test_any_bytes_are_results_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    assert all("expected" in fault.problem for fault in faults_of(data, tmp_path_factory.mktemp("sheet")))


def test_a_reader_that_guesses_is_seen(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twins: one takes every comma for a decimal sign, one none, and one stops at the first faulty line."""
    monkeypatch.setattr(module, "decimal_comma", lambda cells, semicolons: True)
    with pytest.raises((AssertionError, ResultsError)):
        test_any_dialect_comes_back(tmp_path_factory)
    monkeypatch.undo()
    monkeypatch.setattr(module, "cut_decimals", lambda rows, place: {})
    with pytest.raises(AssertionError):
        test_decimals_that_a_comma_cut_off_are_never_dropped(tmp_path_factory, right="reason")
    monkeypatch.undo()
    whole = module.parse

    def first_only(sheet: Any) -> Any:
        results, faults = whole(sheet)
        return results, faults[:1]

    monkeypatch.setitem(read.__globals__, "parse", first_only)
    with pytest.raises(AssertionError):
        test_the_faulty_lines_are_exactly_those_reported(tmp_path_factory)
