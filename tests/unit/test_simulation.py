"""Simulated campaigns: noise, resuming, what is counted, how strategies are compared."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from campaign_parts import timeless
from difftilt import data
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.history import History
from difftilt.campaigns.proposer import Candidate, Proposal
from difftilt.campaigns.random_picks import RandomPicks
from difftilt.campaigns.simulation import study
from difftilt.campaigns.simulation.landscape import Landscape
from difftilt.campaigns.simulation.measures import Row
from difftilt.campaigns.simulation.runner import Simulated, run
from difftilt.campaigns.simulation.summary import (
    differences,
    final_means,
    markdown,
    mean_of,
    mean_ranks,
    pooled_coverage,
)
from difftilt.errors import ConfigError, StateError
from difftilt.lab.landscapes import BINDING, GROUPS, MAKERS, landscape, names_of, unit_of
from difftilt.lab.simulation import simulate

SMALL = Simulated(rounds=3, batch=6, noise=0.1)


@pytest.fixture
def own() -> Landscape:
    return landscape("ehrlich-8")


class Halting:
    """p_pre, predicting 0.5; raises at a given call."""

    def __init__(self, policy: Any, folder: Path, at: int = 0) -> None:
        self.draw, self.at, self.calls = RandomPicks(policy, folder), at, 0

    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        picks = self.draw(history, n, rng)
        return Proposal([Candidate(pick.design, mean=0.5, std=0.1) for pick in picks.candidates], "halting")


class Oracle:
    """A landscape's oracle that raises at a given call, and counts."""

    def __init__(self, own: Landscape, at: int = 0) -> None:
        self.oracle, self.at, self.calls = own.oracle, at, 0

    def __call__(self, designs: list[str]) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        value = self.oracle(designs)
        self.reasons = self.oracle.reasons
        return value


def asked(own: Landscape, at: int = 0) -> Landscape:
    return Landscape(own.name, own.prior, Oracle(own, at), own.alpha, own.table)


def timed(rows: list[Row]) -> list[dict[str, Any]]:
    return [{**vars(row), "seconds": None} for row in rows]


@pytest.mark.parametrize("where", [(1, 0), (2, 0), (4, 0), (0, 1), (0, 3), (0, 4), (0, 6)])
def test_a_killed_campaign_goes_on_to_the_same_end(own: Landscape, tmp_path: Path, where: tuple[int, int]) -> None:
    """Killed while it proposes the 1st, 2nd or last plate, while it measures, and while it is judged."""
    whole = run(own, "halting", Halting, tmp_path / "whole", SMALL, 5)
    proposal, measurement = where
    broken = asked(own, measurement)
    with pytest.raises(KeyboardInterrupt):
        run(broken, "halting", lambda *parts: Halting(*parts, at=proposal), tmp_path / "killed", SMALL, 5)
    again = run(own, "halting", Halting, tmp_path / "killed", SMALL, 5)
    assert timed(again) == timed(whole)
    histories = [Campaign.open(tmp_path / name).history() for name in ("whole", "killed")]
    assert timeless(histories[0]) == timeless(histories[1])
    assert histories[1].spent == 3 * 6 + 1


def test_a_finished_campaign_is_not_run_again(own: Landscape, tmp_path: Path) -> None:
    counted = asked(own)
    first = run(counted, "random", RandomPicks, tmp_path, SMALL, 0)
    calls = counted.oracle.calls
    assert run(counted, "random", RandomPicks, tmp_path, SMALL, 0) == first
    assert counted.oracle.calls == calls > 0


def test_a_strategy_tunes_at_the_temperature_that_it_is_judged_at(own: Landscape, tmp_path: Path) -> None:
    """Or its regret would be that of another problem; 0.05 is what a campaign has otherwise."""
    hot = Landscape(own.name, own.prior, own.oracle, 0.7, own.table)
    run(hot, "random", RandomPicks, tmp_path, SMALL, 0)
    tuning = Campaign.open(tmp_path).settings.tuning
    assert (tuning.alpha, tuning.beta) == (0.7, 0.7)


def test_noise_has_a_stream_of_its_own(own: Landscape, tmp_path: Path) -> None:
    """Another strategy sees the same noise; another seed or round another; none without."""

    def noise_of(name: str, make: Callable[..., Any], seed: int, noise: float) -> torch.Tensor:
        run(own, name, make, tmp_path / f"{name}-{seed}-{noise}", Simulated(rounds=2, batch=40, noise=noise), seed)
        history = Campaign.open(tmp_path / f"{name}-{seed}-{noise}").history()
        designs = history.designs[:-1]
        value = torch.tensor([math.nan if d.value is None else d.value for d in designs], dtype=torch.float64)
        return value - own.oracle([design.design for design in designs])

    one = noise_of("random", RandomPicks, 0, 0.1)

    class Later(Halting):
        def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
            torch.rand(7, generator=rng)
            return super().__call__(history, n, rng)

    two, other, none = noise_of("later", Later, 0, 0.1), noise_of("random", RandomPicks, 1, 0.1), one
    both = ~one.isnan() & ~two.isnan()
    assert both.sum() > 40
    assert (one - two)[both].abs().max() < 1e-9
    both = ~one.isnan() & ~other.isnan()
    assert (one - other)[both].abs().max() > 0.1
    assert (one[:40] - one[40:]).nan_to_num(0).abs().max() > 0.1
    none = noise_of("random", RandomPicks, 0, 0.0)
    assert none.nan_to_num(0).abs().max() == 0
    assert 0.05 < one[~one.isnan()].std() < 0.15


def test_rows_say_what_was_proposed(own: Landscape, tmp_path: Path) -> None:
    rows = run(own, "halting", Halting, tmp_path, Simulated(rounds=3, batch=20, noise=0.3), 2)
    history = Campaign.open(tmp_path).history()
    best = -1.0
    assert own.table is not None
    for row in rows:
        designs = [design for design in history.designs if design.round == row.round]
        value = own.oracle([design.design for design in designs])
        assert row.infeasible == pytest.approx(value.isnan().double().mean().item())
        assert [design.state == "failed" for design in designs] == value.isnan().tolist()
        assert row.batch_mean == pytest.approx(value.nanmean().item())
        best = max(best, value.nan_to_num(-1).max().item())
        assert row.best == best
        better = [v for v in own.table.tolist() if v > best]
        assert row.top_share == len(better) / (~own.table.isnan()).sum().item()
        pairs = [sum(a != b for a, b in zip(x.design, y.design, strict=True)) / 8
                 for x in designs for y in designs if x is not y]  # fmt: skip
        assert row.diversity == pytest.approx(statistics.fmean(pairs))
        assert row.seconds > 0
        assert (row.reward, row.regret) == (None, None), "no such model was kept"
    assert any(row.infeasible for row in rows)
    assert {d.failure for d in history.in_state("failed")} == {"a banned transition"}


def row(task: str, strategy: str, seed: int, best: float, regret: float | None = None, number: int = 1) -> Row:
    rest = dict.fromkeys(("top_share", "batch_mean", "seconds", "reward", "feasible", "kl", "objective", "spearman",
                          "coverage_50", "coverage_90"))  # fmt: skip
    return Row(task=task, strategy=strategy, seed=seed, round=number, best=best, regret=regret, infeasible=0.0,
               diversity=0.5, **rest)  # fmt: skip


def test_intervals_are_students() -> None:
    three = mean_of([1.0, 2.0, 6.0])
    assert three is not None
    assert three.half is not None
    assert three.mean == 3.0
    assert three.half == pytest.approx(4.303 * math.sqrt(7) / math.sqrt(3), abs=1e-9)
    assert mean_of([2.0]) == type(three)(2.0, None, 1)
    assert mean_of([1.0, None]) is None
    assert mean_of([]) is None


def test_ranks_are_of_the_last_round_with_ties_shared_over_what_all_finished() -> None:
    rows = [
        row("x", "a", 0, 9.0, number=1), row("x", "a", 0, 1.0, number=2), row("x", "b", 0, 2.0), row("x", "c", 0, 2.0),
        row("x", "a", 1, 3.0), row("x", "b", 1, 2.0), row("x", "c", 1, 1.0),
        row("y", "a", 0, 3.0), row("y", "b", 0, 2.0), row("y", "c", 0, 1.0),
        row("y", "a", 1, 9.0), row("y", "b", 1, 0.0),
    ]  # fmt: skip
    found = mean_ranks(rows, "best")
    assert {name: mean.mean for name, mean in found.items()} == {"a": 1.5, "b": 1.875, "c": 2.625}
    assert found["a"].n == 2, "tasks, not seeds"
    assert mean_ranks(rows, "regret") == {}


def test_the_smallest_regret_is_first_and_strategies_without_one_are_left_out() -> None:
    rows = [row("x", "a", 0, 1.0, 0.5), row("x", "b", 0, 1.0, 0.1), row("x", "c", 0, 5.0)]
    assert {name: mean.mean for name, mean in mean_ranks(rows, "regret").items()} == {"a": 2.0, "b": 1.0}
    text = markdown(rows)
    assert "| a | 2.50 | 2.00 |" in text
    assert "| c | 1.00 |  |" in text
    means = final_means(rows, "x", "a")
    assert means["regret"] is not None
    assert means["regret"].mean == 0.5
    assert means["coverage_90"] is None


def test_differences_are_paired_by_task_or_by_seed_where_there_is_one_task() -> None:
    """By hand; unpaired, the interval would be that of values which differ by 8 between tasks."""
    rows = [
        row("x", "a", 0, 1.0, number=1), row("x", "a", 0, 2.0, number=2), row("x", "a", 1, 4.0), row("y", "a", 0, 11.0),
        row("x", "b", 0, 1.0), row("x", "b", 1, 3.0), row("y", "b", 0, 8.0), row("x", "c", 0, 0.0),
    ]  # fmt: skip
    found = differences(rows, "best")
    assert found["a"].keys() == {"b"}, "c has not finished the same"
    assert found["a"]["b"] == mean_of([3.0 - 2.0, 11.0 - 8.0])
    assert found["b"]["a"].mean == -2.0
    one = differences([r for r in rows if r.task == "x" and r.strategy != "c"], "best")
    assert one["a"]["b"] == mean_of([1.0, 1.0])
    assert differences(rows, "regret") == {}
    assert "| a |  | 2.000 ± 12.706 |" in markdown([r for r in rows if r.strategy != "c"])


def test_coverage_is_pooled_from_the_third_round_on() -> None:
    rows = [
        replace(row("x", "a", 0, 1.0, number=n), coverage_90=share) for n, share in enumerate((0.1, 0.2, 0.8, 1.0), 1)
    ]
    assert pooled_coverage([*rows, row("x", "b", 0, 1.0, number=3)]) == {"a": pytest.approx(0.9)}
    assert "| a | 90.0 % |" in markdown(rows)


def test_a_study_keeps_what_is_finished_and_goes_on_without_what_failed(tmp_path: Path) -> None:
    jobs = study.jobs_of(["x/y", "z"], ["a", "b"], 2, SMALL, tmp_path)
    order = [("x/y", 0, "a"), ("x/y", 0, "b"), ("x/y", 1, "a")]
    assert [(job.task, job.seed, job.strategy) for job in jobs[:3]] == order
    assert jobs[0].folder == tmp_path / "x-y" / "a" / "seed-0"
    done, said = [], []

    def work(job: study.Job) -> list[Row]:
        if job.strategy == "b" and job.task == "z":
            raise StateError("no luck")
        done.append(job)
        job.folder.mkdir(parents=True)
        rows = [row(job.task, job.strategy, job.seed, 1.0)]
        (job.folder / "result.json").write_text(json.dumps([vars(one) for one in rows]))
        return rows

    for expected in (6, 0):
        done.clear()
        with pytest.raises(StateError, match=r"2 that failed: z b seed 0, z b seed 1"):
            study.run_all(jobs, work, 1, said.append)
        assert len(done) == expected
    assert "6 of 8 campaigns are finished already" in said
    assert len(study.finished(tmp_path)) == 6


def test_a_folder_holds_campaigns_of_one_kind(tmp_path: Path) -> None:
    study.begin(tmp_path, SMALL)
    study.begin(tmp_path, SMALL)
    with pytest.raises(StateError, match=r"noise 0\.1; ask for the same"):
        study.begin(tmp_path, Simulated(rounds=3, batch=6, noise=0.2))
    for wrong in ({"rounds": 0}, {"batch": 0}, {"noise": -1.0}, {"noise": math.inf}):
        with pytest.raises(ConfigError, match="expected rounds and batch"):
            Simulated(**wrong)


def test_a_study_by_name_writes_tables_and_figures_and_costs_nothing_twice(tmp_path: Path) -> None:
    told: list[str] = []
    some = {"strategies": ["random"], "seeds": 2, "settings": SMALL, "output": tmp_path, "told": told.append}
    written = simulate(["ehrlich-8"], **some)
    assert [path.name for path in written] == ["summary.md", "ehrlich-8.png", "ehrlich-8.svg"]
    assert all(path.stat().st_size > 100 for path in written)
    assert len((tmp_path / "rounds.csv").read_text().splitlines()) == 1 + 2 * 3
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".md", ".csv", ".svg")}
    simulate(["ehrlich-8"], **some)
    assert {path: path.read_bytes() for path in before} == before
    assert told[-1] == "2 of 2 campaigns are finished already"
    facts = json.loads((tmp_path / "summary.json").read_text())
    assert facts["settings"] == {"rounds": 3, "batch": 6, "noise": 0.1}


def test_names_are_checked_before_anything_runs(tmp_path: Path) -> None:
    for tasks, strategies, match in (
        (["ehrlich-9"], ["random"], "did you mean 'ehrlich-"),
        (["ehrlich-8"], ["randon"], "did you mean 'random'"),
        ([], ["random"], "expected a task"),
        (["ehrlich-8"], [], "expected a task, a strategy"),
    ):
        with pytest.raises(ConfigError, match=match):
            simulate(tasks, strategies=strategies, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_name_may_mean_several_and_every_landscape_has_a_unit() -> None:
    assert names_of("tfbind8/all") == BINDING == GROUPS["tfbind8/all"]
    assert len(BINDING) == 12
    assert names_of("tfbind8") == ("tfbind8/SIX6_REF_R1",)
    assert all(unit_of(name) for name in MAKERS)


MEASURED = {"tfbind8/SIX6_REF_R1": (65_536, 0), "gb1": (149_361, 10_639), "splicing": (30_483, 231_661)}


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_landscape_is_its_table_and_p_pre_has_seen_the_worse_part(name: str) -> None:
    if data.find(name) is None:
        pytest.skip(f"{name} is not on this machine")
    own, table = landscape(name), data.load(name)
    assert own.table is not None
    measured, missing = MEASURED[name]
    assert ((~own.table.isnan()).sum(), own.table.isnan().sum()) == (measured, missing)
    law = own.log_pre.exp()
    assert law.sum() == pytest.approx(1, abs=1e-9)
    assert law.min() > 0, "no design is ruled out"
    codec = own.prior.codec
    every = codec.decode(torch.cartesian_prod(*[torch.arange(codec.vocabulary)] * codec.length)[::997])
    assert torch.equal(own.oracle(every).nan_to_num(-9), own.table[::997].nan_to_num(-9))
    scores = torch.from_numpy(table.scores)
    top = scores.nan_to_num(-9).topk(100).indices.tolist()
    known = scores[~scores.isnan()]
    uniform = 1 / measured
    best = law[codec.encode([table.sequences[i] for i in top]) @ codec.vocabulary ** torch.arange(codec.length).flip(0)]
    assert best.median() < 20 * uniform
    assert known.max() == own.table.nan_to_num(-9).max()


def test_p_pre_of_an_ehrlich_function_has_learned_what_is_allowed_but_not_all(own: Landscape) -> None:
    judged = own.judge(own.prior, torch.Generator())
    assert own.table is not None
    assert (~own.table.isnan()).double().mean() < 0.2 < 0.8 < judged.feasible < 0.99
