r"""``crx-enhancer``: activity of genomic sequences bound by the factor CRX, and of mutants of them, in mouse retinas.

164-bp sequences before a *Rho* promoter (Friedman et al. 2021). The activity is relative to the basal promoter, and

.. math:: \text{score} = \log_2 ( \text{expression} + 0.001 )                                       \qquad (1)

243 sequences without any expression sit at its floor, -9.966. The origin is a table of activities and a FASTA file with
the sequences of its labels; sequences that were not measured are left out.

``k562-enhancer``: 200-bp elements for K562 cells, 2,000 each native, random and made by three design methods: a second
reference for what elements look like. Nothing in it is a score.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from difftilt.data.record import Columns, DataSet, Origin, pick
from difftilt.data.table import Table

FLOOR = 0.001
CONSTRUCTS = ("WT", "MUT-allCrxSites", "MUT-shape")
GROUPS = ("native", "random", "adalead", "fastseqprop", "simulated_annealing")


def tidy(texts: Sequence[str]) -> Columns:
    """The measured labels in the table's order, each with its sequence."""
    activities, fasta = texts
    sequences = {}
    for record in fasta.split(">")[1:]:
        label, *lines = record.split()
        sequences[label] = "".join(lines)
    columns: Columns = {name: [] for name in CRX.columns}
    reader = csv.DictReader(io.StringIO(activities), delimiter="\t")
    header = reader.fieldnames or []
    group = pick(header, "group_name")
    for row in reader:
        expression, label = _number(row["expression"]), row["label"]
        if expression is None or label not in sequences:
            continue
        std, reps, q = (_number(row[name]) for name in ("expression_std", "expression_reps", "expression_qvalue"))
        values = (
            sequences[label], round(math.log2(expression + FLOOR), 6), round(expression, 6),
            None if std is None else round(std, 6), reps, q, "" if row[group] == "NaN" else row[group],
            label.rpartition("_")[2], int(row["library"]), label,
        )  # fmt: skip
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return columns


def _number(text: str) -> float | None:
    return None if text.strip().lower() in ("", "nan") else float(text)


def rule(table: Table) -> str | None:
    """No repeats; equation (1); known constructs; labels that end in them."""
    if len(set(table.sequences)) != len(table):
        return "repeated sequences"
    if np.abs(table.scores - np.log2(table.column("expression") + FLOOR)).max() > 2e-3:
        return "scores that are not those of the expression"
    construct = table.column("construct").tolist()
    if set(construct) != set(CONSTRUCTS):
        return f"constructs {sorted(set(construct))}"
    pairs = zip(construct, table.column("label").tolist(), strict=True)
    return None if all(label.endswith(f"_{name}") for name, label in pairs) else "labels of other constructs"


def tidy_elements(texts: Sequence[str]) -> Columns:
    """Sequences and how each was made, names in lower case."""
    reader = csv.DictReader(io.StringIO(texts[0]))
    header = reader.fieldnames or []
    sequence, group = pick(header, "Sequence"), pick(header, "Group")
    rows = [(row[sequence], row[group].strip().lower().replace(" ", "_")) for row in reader]
    return {"sequence": [design for design, _ in rows], "group": [name for _, name in rows]}


def elements_rule(table: Table) -> str | None:
    """No repeats, 2,000 of each group."""
    if len(set(table.sequences)) != len(table):
        return "repeated sequences"
    names, counts = np.unique(table.column("group"), return_counts=True)
    return None if set(names) == set(GROUPS) and (counts == 2000).all() else "groups of other names or sizes"


CRX = DataSet(
    name="crx-enhancer",
    title="164-bp genomic CRX-bound enhancers and silencers and mutants of them, activity in mouse retinas",
    file="crx_enhancer/friedman2021_rho.csv.gz",
    sha256="cfc2d5fb625dd1927c7161ece30ecab9a164f695482a9c657bf46c506e5eb22c",
    rows=(9_633,),
    columns=(
        "sequence", "score", "expression", "expression_std", "n_reps", "q_value", "group", "construct", "library",
        "label",
    ),
    length=164,
    alphabet="ACGT",
    score_range=(-10.0, 7.0),
    mean_score=(0.612825, 2e-6),
    landmarks={
        "GAGCCACTTGGCTTGGCTTAGGCTTTTGAGATCTCAAAGTCCACCAGTGACATATTTCCTCCAACAAGGTCACACCTCCTAATCCTTCTAATCTTTCTTAAACAG"
        "TTCTGCTCTCCAGTGGCTAACGAGCATATGGGAGGCCTTCTTATTCAAACCACCACGCT": 3.046526
    },
    origins=tuple(
        Origin("barakcohenlab/CRX-Information-Content", "b4e1b41b22971d541a752fd328cffc74f15da1f8", f"Data/{file}")
        for file in ("rhoActivityJoinedAnnotated.txt", "library1And2.fasta")
    ),
    tidy=tidy,
    rule=rule,
    licence="BSD-3-Clause",
    citation="Friedman et al., eLife 10, e67403 (2021), doi 10.7554/eLife.67403",
)  # fmt: skip
K562 = DataSet(
    name="k562-enhancer",
    title="200-bp elements for K562 cells, native, random and designed, without measurements",
    file="k562_enhancer/polygraph_k562.csv.gz",
    sha256="fb83c661249fee607161a057c6bbdbe8bf826311121a8e9f8e8aadd0d05c3c52",
    rows=(10_000,),
    columns=("sequence", "group"),
    length=200,
    alphabet="ACGT",
    score_range=(0.0, 0.0),
    mean_score=(0.0, 0.0),
    scored=None,
    origins=(Origin("Genentech/polygraph", "b888276b47c4f7f1c75c8f3bd017329597bddbfe", "tutorials/human_seqs.txt"),),
    tidy=tidy_elements,
    rule=elements_rule,
    licence="MIT; the origin of the elements is not stated there",
    citation="the Polygraph preprint, bioRxiv 2023.11.27.568764",
)
SETS = (CRX, K562)
