"""``prepare`` against a mirror on this machine: what an outsider gets is what this project has."""

from __future__ import annotations

import gzip
import io
import math
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import difftilt.data as data
from difftilt.data import registry
from difftilt.data.sets import enhancers, gb1, gfp, tfbind8, utr_mrl, yeast_promoter
from difftilt.data.writers import csv_text
from difftilt.errors import ConfigError, DataError

# First rows of the origin files, verbatim.
UTR = """,utr,total,rl,energy_5utr
0,GTGATCAGCTCCTGATCCACGCGTTTAAGCAAAGTAGGTGAAGCTCGATC,0.000848688,5.515445537000001,-11.2
1,CATGCGTAATACTACGCAAGCTATGACATTGGCCGCAAACGCCGCGGCTC,0.000740788,2.612016212,-16.7
2,CCCTGAACTGTAGAACATCGGAAGAGCGCATTAGGAAATCCAAGGAACAG,0.000693418,6.828056167000001,-4.0
19,CACGATCCTCGGCACTTGATAACAGTACAGTCCTTGTAGCGTCGTGAAAT,0.00039588199999999996,7.110143859,-8.4
"""
ARX = """8-mer\t8-mer\tE-score\tMedian\tZ-score
AAAAAAAA\tTTTTTTTT\t-0.22777\t21368.03\t-0.5968
AAAAAAAC\tGTTTTTTT\t-0.18333\t20009.41\t-1.0417
AAAATTTT\tAAAATTTT\t0.13959\t29728.19\t1.6398
"""
PLAIN = ",sequence,Measured Expression,Predicted Expression\n"
FULL = (
    ",seq110,expt,meanEL,proTotal,representation,sdEL,relativeSD,sdScale,origID,edvPred,tiling,baseSeq,motif,"
    "positionSpike,isRC,designed,designedCond,designedDir,designedID,designedSNPDEV,designedSNPDEVMin,mutDesc,ED,gini,HQ,"
    "rand,randMut,native,nativeGene,nativeProPart,nativeMut,trajectory,trajDir,trajOpt\n"
)
DRIFT = (
    ",expt,baseSeq,meanEL.base,edvPred.base,representation.base,seq110,meanEL.mut,proTotal,representation.mut,sdEL,"
    "relativeSD,sdScale,origID,edvPred.mut,tiling,motif,positionSpike,isRC,designed,designedCond,designedDir,designedID,"
    "designedSNPDEV,designedSNPDEVMin,mutDesc,ED,gini,HQ,rand,randMut,native,nativeGene,nativeProPart,nativeMut,trajectory,"
    "trajDir,trajOpt,meanEL.delta,edvPred.delta,minAbundance,sampled_noise,edvPred.delta_noise\n"
)
HEADERS = (FULL, PLAIN, FULL, PLAIN, DRIFT, DRIFT, FULL, FULL)  # in the order of yeast_promoter.SOURCES
RANDOM_COMPLEX = (
    "0,NNNNNNNNNNTGCATTTTTTTCACAAGAGCACTTGAAGGGCGCCTATGACAAGGGAGAGAAGAAAGTGCGCGGGCCCCGCGGCACGACTGGAGCGTGGGTTACGGCTGTT,"
    "13.7085923363219,13.144622261582771\n"
    "18,TGCATTTTTTTCACATCAAAACAGGGATGGTATTTGCTCACTTGTATAATAAATGGGATTCGAGCCTCTAGTGATTTGTATTATCGGCTCGCACTGGGGTTACGGCTGTT,"
    "6.04667112940372,6.659069362702306\n"
)
GFP = """aaMutations\tuniqueBarcodes\tmedianBrightness\tstd
wt\t3645\t3.7192121319\t0.106991789588
SA108D\t1\t1.30103000388\t
SA108D:SN144D:SI186V:SM231T:SL234P\t1\t1.30103123972\t
SA108G\t2\t3.70847807573\t0.0206126750976
SA152V:SK156*:SH229L\t1\t3.08218926003\t
"""
SSWM_COMPLEX = "".join(
    f"{i},TGCATTTTTTTCACATCAAAAAAAAAAAAAAAAAAAAAAACTAGCAAACCAATGAAGCGGCTTGGCTTACAGGTACATTTTACCTTAGCGCTAAATGGGTTACGGCTGTT,"
    "NBT_S288CdU_YPD,11.0,1,8.2664921312584e-09,0.0,0.0,1.02076994838426,Glu.traj.dec.11.ED0,11.3537481529981,False,11,,,,"
    f"False,,,,False,False,,0.0,False,False,False,False,False,,,False,True,{way},Glu\n"
    for i, way in ((2, "min"), (3, "max"))
)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder served on the loopback interface: ``(folder, base address)``."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _publish(folder: Path, name: str, texts: list[str]) -> None:
    for origin, text in zip(data.dataset(name).origins, texts, strict=True):
        path = folder / origin.repository / origin.commit / origin.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_packed(text, path.suffix))


def _packed(text: str, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(text.encode())
    if suffix != ".zip":
        return text.encode()
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("four_mutations_full_data.csv", text)
        archive.writestr("__MACOSX/._four_mutations_full_data.csv", "finder")
    return whole.getvalue()


def _shipped(name: str) -> tuple[data.Table, str]:
    path = data.find(name)
    if path is None:
        pytest.skip(f"{name} is not on this machine")
    return data.read_designs(path), gzip.decompress(path.read_bytes()).decode()


def _utr_origin(table: data.Table) -> str:
    columns = [table.column(name) for name in ("total_normalised", "score", "mfe_kcal_mol")]
    rows = zip(table.sequences, *(column.tolist() for column in columns), strict=True)
    return ",utr,total,rl,energy_5utr\n" + "".join(
        f"{i},{s},{t!r},{r!r},{e!r}\n" for i, (s, t, r, e) in enumerate(rows)
    )


def _tfbind8_origin(table: data.Table) -> str:
    complement = str.maketrans("ACGT", "TGCA")
    lines = ["8-mer\t8-mer\tE-score\tMedian\tZ-score"]
    values = [table.column(name).tolist() for name in ("e_score", "median_intensity", "z_score", "listed_strand")]
    for s, e, m, z, listed in zip(table.sequences, *values, strict=True):
        if listed:
            lines.append(f"{s}\t{s[::-1].translate(complement)}\t{e:.5f}\t{m:.2f}\t{z:.4f}")
    return "\n".join(lines) + "\n"


def _yeast_origin(table: data.Table) -> list[str]:
    texts = []
    for (_, medium, category), header in zip(yeast_promoter.SOURCES, HEADERS, strict=True):
        part = table.take((table.column("medium") == medium) & (table.column("category") == category))
        names = header.rstrip("\n").split(",")
        of = {
            "seq110" if "seq110" in names else "sequence": [
                f"TGCATTTTTTTCACATC{s}GGTTACGGCTGTT" for s in part.sequences
            ],
            next(n for n in ("meanEL.mut", "meanEL", "Measured Expression") if n in names): part.scores.tolist(),
            "sdEL": part.column("std").tolist(),
            "proTotal": [int(n) if n == n else "" for n in part.column("n_reads").tolist()],
        }
        short = "NNTGCATTTTTTTCACATC" + "A" * 78 + "GGTTACGGCTGTT"
        junk = ["9.9" if name not in ("seq110", "sequence") else short for name in names]
        rows = [[str(of[name][i]) if name in of else "" for name in names] for i in range(len(part))]
        rows = [junk, *rows, rows[0]]  # a padded insert in front, a repeat behind
        texts.append(header + "".join(",".join(row) + "\n" for row in rows))
    return texts


def test_tidy_gives_the_utr_rows_we_have():
    columns = utr_mrl.tidy([UTR])
    assert tuple(columns) == data.dataset("utr-mrl").columns
    _, text = _shipped("utr-mrl")
    lines = text.splitlines()
    assert csv_text(columns).splitlines()[:4] == lines[:4]
    assert csv_text(columns).splitlines()[4] in lines


def _gb1_origin(table: data.Table) -> str:
    """In another order, and with columns that are not taken."""
    names = ("n_mutations", "count_input", "count_selected", "score", "flip_keep")
    splits = [table.column(f"flip_{name}") for name in gb1.SPLITS]
    rows = zip(table.sequences, *(table.column(name).tolist() for name in names), *splits, strict=True)
    lines = [
        f"{v},{hd:g},{a:g},{b:g},{fitness!r},{'WHOLE' + v},{bool(keep)},{','.join(x or 'train' for x in parts)}\n"
        for v, hd, a, b, fitness, keep, *parts in rows
    ]
    header = f"Variants,HD,Count input,Count selected,Fitness,sequence,keep,{','.join(gb1.SPLITS)}\n"
    return header + "".join(reversed(lines))


def _splicing_origins(table: data.Table) -> list[str]:
    texts = []
    for suffix in ("", "_replicate"):
        names = (f"total_count{suffix}", f"included_count{suffix}", f"score{suffix}", "split")
        rows = zip(*(table.column(name).tolist() for name in names), table.sequences, strict=True)
        texts.append("set,tot_ct,ex_ct,y,x\n" + "".join(
            f"{part},{total:g},{included:g},{score!r},{site}\n"
            for total, included, score, part, site in rows if score == score
        ))  # fmt: skip
    return texts


def _gfp_origin(table: data.Table) -> str:
    names = ("n_barcodes", "score", "std")
    rows = zip(table.column("mutations").tolist(), *(table.column(name).tolist() for name in names), strict=True)
    return "aaMutations\tuniqueBarcodes\tmedianBrightness\tstd\n" + "".join(
        f"{'wt' if not m else 'S' + m.replace(':', ':S')}\t{n:g}\t{score!r}\t{'' if std != std else repr(std)}\n"
        for m, n, score, std in rows
    )


def test_tidy_gives_the_gfp_rows_we_have_with_whole_sequences():
    columns = gfp.tidy([GFP])
    assert tuple(columns) == data.dataset("gfp").columns
    assert columns["mutations"] == ["", "A108D", "A108D:N144D:I186V:M231T:L234P", "A108G", "A152V:K156*:H229L"]
    assert columns["n_mutations"] == [0, 1, 5, 1, 3]
    assert columns["has_stop"] == [0, 0, 0, 0, 1]
    _, text = _shipped("gfp")
    assert set(csv_text(columns).splitlines()) <= set(text.splitlines())


def test_a_gfp_mutation_of_a_residue_that_is_not_there_is_refused():
    with pytest.raises(DataError, match="'C108D'"):
        gfp.tidy([GFP.replace("SA108D\t", "SC108D\t")])


def test_the_chromophore_is_at_its_usual_numbers_and_the_folding_mutation_is_there():
    assert gfp.WILD_TYPE[65 - 2 : 68 - 2] == "SYG"
    assert gfp.WILD_TYPE[64 - 2] == "L"
    assert len(gfp.WILD_TYPE) == 238 - 1


def test_tidy_writes_out_both_strands_of_an_8_mer_and_a_palindrome_once():
    columns = tfbind8.tidy([ARX])
    assert tuple(columns) == data.dataset("tfbind8").columns
    assert columns["sequence"] == ["AAAAAAAA", "AAAAAAAC", "AAAATTTT", "GTTTTTTT", "TTTTTTTT"]
    assert columns["listed_strand"] == [1, 1, 1, 0, 0]
    assert columns["score"] == [0.0, round(0.04444 / 0.36736, 6), 1.0, round(0.04444 / 0.36736, 6), 0.0]
    table, _ = _shipped("tfbind8/ARX_REF_R1")
    for name in ("e_score", "z_score", "median_intensity", "listed_strand"):  # `score` depends on the whole file
        ours = dict(zip(table.sequences, table.column(name), strict=True))
        assert columns[name] == [ours[s] for s in columns["sequence"]]


def test_tidy_keeps_whole_inserts_and_the_first_value_in_a_medium():
    texts = [header + {1: RANDOM_COMPLEX, 7: SSWM_COMPLEX}.get(i, "") for i, header in enumerate(HEADERS)]
    again = RANDOM_COMPLEX.splitlines()[1].split(",")[1]
    texts[3] += f"5,{again},1.0,1.0\n"
    texts[0] += f"7,{again}" + ",1.0" * 34 + "\n"
    texts[3] += f"6,TGCATTTTTTTCACATC{'A' * 79}GGTTACGGCTGTT,1.0,1.0\n"  # the right flanks, one letter short
    columns = yeast_promoter.tidy(texts)
    assert tuple(columns) == data.dataset("yeast-promoter").columns
    rows = csv_text(columns).splitlines()[1:]
    assert rows[0].endswith(",1.0,1.0,1,defined,random")
    _, text = _shipped("yeast-promoter")
    assert len(rows) == 3
    assert set(rows[1:]) <= set(text.splitlines())


def _between(expression: float, score: float) -> float:
    """An unrounded expression of which both rounded numbers are those given."""
    near = [expression + shift * 1e-8 for shift in range(-50, 51)]
    for value in (2**score - enhancers.FLOOR, *near):
        if round(value, 6) == expression and round(math.log2(value + enhancers.FLOOR), 6) == score:
            return value
    raise AssertionError((expression, score))


def _crx_origins(table: data.Table) -> list[str]:
    """A table without sequences, a label that was not measured, and FASTA in another order."""
    names = ("expression", "expression_std", "n_reps", "q_value", "library", "group", "label")
    lines = ["label\texpression\texpression_std\texpression_reps\texpression_qvalue\tlibrary\tgroup_name\n"]
    rows = zip(table.scores.tolist(), *(table.column(name).tolist() for name in names), strict=True)
    for score, expression, std, reps, q, library, group, label in rows:
        value = _between(expression, score)
        lines.append(f"{label}\t{value!r}\t{std!r}\t{reps!r}\t{q!r}\t{library:g}\t{group or 'NaN'}\n")
    lines.append("chr1-1-165_CPPE_WT\tNaN\tNaN\tNaN\tNaN\t1\tNaN\n")
    labels = table.column("label").tolist()
    records = [f">{label}\n{s}\n" for label, s in zip(labels, table.sequences, strict=True)]
    return ["".join(lines), "".join(reversed(records)) + f">chr1-1-165_CPPE_WT\n{'A' * 164}\n"]


def _k562_origin(table: data.Table) -> str:
    rows = zip(table.sequences, table.column("group").tolist(), strict=True)
    return "Sequence,Group,SeqID\n" + "".join(f"{s},{g.title()},{i}\n" for i, (s, g) in enumerate(rows))


@pytest.mark.parametrize(
    "name",
    ["utr-mrl", "tfbind8/ARX_REF_R1", "yeast-promoter", "gb1", "gfp", "splicing", "crx-enhancer", "k562-enhancer"],
)
def test_an_outsider_gets_what_we_have(name, mirror, tmp_path):
    folder, base = mirror
    table, text = _shipped(name)
    texts = {
        "utr-mrl": lambda: [_utr_origin(table)],
        "tfbind8/ARX_REF_R1": lambda: [_tfbind8_origin(table)],
        "yeast-promoter": lambda: _yeast_origin(table),
        "gb1": lambda: [_gb1_origin(table)],
        "gfp": lambda: [_gfp_origin(table)],
        "splicing": lambda: _splicing_origins(table),
        "crx-enhancer": lambda: _crx_origins(table),
        "k562-enhancer": lambda: [_k562_origin(table)],
    }[name]()
    _publish(folder, name, texts)
    path = data.prepare(name, origin=base, root=tmp_path / "root")
    assert path == tmp_path / "root" / data.dataset(name).file
    assert gzip.decompress(path.read_bytes()).decode() == text
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_utr_origin_may_hold_more_rows_than_ours(mirror, tmp_path):
    folder, base = mirror
    table, _ = _shipped("utr-mrl")
    rng = np.random.default_rng(0)
    lines = _utr_origin(table).splitlines(keepends=True)
    for _ in range(2000):  # made up, in place of the rows we do not have
        lines.append(f"0,{''.join(rng.choice(list('ACGT'), 50))},0.0001,{rng.normal(5.63, 1.0)!r},-5.0\n")
    _publish(folder, "utr-mrl", ["".join(lines)])
    path = data.prepare("utr-mrl", origin=base, root=tmp_path / "root")
    got = data.read_designs(path)
    assert len(got) == 20_000
    assert set(table.sequences) <= set(got.sequences)


def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``utr-mrl`` whose whole origin is the four rows above."""
    record = data.dataset("utr-mrl")
    monkeypatch.setitem(registry.SETS, "utr-mrl", replace(record, rows=(4,), mean_score=(5.51641525, 1e-6)))


def test_the_mirror_may_be_named_in_the_environment(mirror, tmp_path, monkeypatch):
    folder, base = mirror
    _tiny(monkeypatch)
    _publish(folder, "utr-mrl", [UTR])
    monkeypatch.setenv("DIFFTILT_DATA_MIRROR", base)
    path = data.prepare("utr-mrl", root=tmp_path / "root")
    assert data.read_designs(path).scores.tolist() == [5.515446, 2.612016, 6.828056, 7.110144]


def test_a_second_prepare_needs_no_network_and_a_damaged_file_is_prepared_again(mirror, tmp_path, monkeypatch):
    folder, base = mirror
    _tiny(monkeypatch)
    _publish(folder, "utr-mrl", [UTR])
    path = data.prepare("utr-mrl", origin=base, root=tmp_path / "root")
    whole = path.read_bytes()
    assert data.prepare("utr-mrl", origin="http://127.0.0.1:9", root=tmp_path / "root") == path
    path.write_bytes(whole[:-20])
    data.prepare("utr-mrl", origin=base, root=tmp_path / "root")
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (UTR, "rows; got 4"),
        (UTR.replace("rl", "MRL"), "a column rl"),
        (UTR.replace("-11.2", "a lot"), "could not convert"),
        ("<html>404</html>", "a column utr"),
        (None, "404"),
    ],
)
def test_an_origin_that_is_not_what_it_was_leaves_nothing_behind(texts, message, mirror, tmp_path):
    folder, base = mirror
    if texts is not None:
        _publish(folder, "utr-mrl", [texts])
    with pytest.raises(DataError, match=message) as caught:
        data.prepare("utr-mrl", origin=base, root=tmp_path / "root")
    assert base in str(caught.value)
    assert "DIFFTILT_DATA_MIRROR" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [p for p in (tmp_path / "root").rglob("*") if p.is_file()]


def test_a_wrong_checksum_is_refused(mirror, tmp_path, monkeypatch):
    folder, base = mirror
    record = data.dataset("utr-mrl")
    origin = replace(record.origins[0], sha256="0" * 64)
    monkeypatch.setitem(registry.SETS, "utr-mrl", replace(record, origins=(origin,)))
    _publish(folder, "utr-mrl", [UTR])
    with pytest.raises(DataError, match="hash"):
        data.prepare("utr-mrl", origin=base, root=tmp_path / "root")


def test_no_network_is_one_line_that_says_so(tmp_path):
    with pytest.raises(DataError, match="check the network") as caught:
        data.prepare("utr-mrl", origin="http://127.0.0.1:9", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unwritable_place_is_named(mirror, tmp_path, monkeypatch):
    folder, base = mirror
    _tiny(monkeypatch)
    _publish(folder, "utr-mrl", [UTR])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected to write"):
        data.prepare("utr-mrl", origin=base, root=tmp_path / "file")


def test_an_unknown_name_is_refused_before_anything_else():
    with pytest.raises(ConfigError, match="did you mean"):
        data.prepare("tfbind")
