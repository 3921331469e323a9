"""Motifs of one's own on the command line."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from difftilt import build
from difftilt.cli.job import Job, load_job, looking_for
from difftilt.cli.kinds import plan_from
from difftilt.errors import ConfigError


@pytest.fixture(scope="module")
def job() -> Job:
    return load_job(plan_from(["yeast-promoter", "--motif", "tgaytca", "--motif", "TTACCCG", "--log-z-samples", "0"]))


def test_a_motif_of_ones_own_is_counted_beside_those_of_the_task(job: Job) -> None:
    own = build.task("yeast-promoter").motifs
    assert job.entry.motifs == {**own, "TGAYTCA": ""}  # type: ignore[attr-defined]
    assert job.entry.motifs["TTACCCG"] == "Reb1"  # type: ignore[attr-defined]
    x = torch.zeros(3, 80, dtype=torch.long)
    assert "sites_TGAYTCA" in job.entry.describe(job.policy, None)(x)
    assert "sites_TGAYTCA" not in build.task("yeast-promoter").describe(job.policy, None)(x)


def test_what_the_card_does_not_know_is_counted_in_the_training_designs(job: Job) -> None:
    site = job.policy.codec.encode(["TGACTCA".ljust(80, "G"), "GG".ljust(80, "G")])
    known = dataclasses.replace(job, known=site)
    assert known.facts()["in_training"] == {"sites_TGAYTCA": 0.5}
    assert "in_training" not in dataclasses.replace(job, known=None).facts()


def test_what_is_no_motif_or_no_dna_is_refused() -> None:
    with pytest.raises(ConfigError, match="IUPAC codes"):
        looking_for(build.task("yeast-promoter"), ["TAX"])
    for task in ("gfp", "qm9-graph", "emoji"):
        with pytest.raises(ConfigError, match=f"expected a task of DNA or RNA for --motif; got {task}"):
            looking_for(build.task(task), ["TAAT"])
    assert looking_for(build.task("gfp"), ()) is build.task("gfp")
