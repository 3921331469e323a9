"""The truth table can say yes, no and nothing, and says why."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import multiprocessing
import threading
import time

import pytest
import torch

from difftilt import build
from difftilt.algorithms.reinforce import Reinforce
from difftilt.core.algorithm import Anchor, Weighted
from difftilt.errors import ConfigError, StateError
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.library import entry
from difftilt.problems.problem import Problem
from difftilt.problems.tilted import TiltedProblem, kl_divergence
from difftilt.verification import claims, rows, steering, table
from difftilt.verification.claims import DEFAULT, LABELS, PROBLEMS, Claim, Pair, pairs
from difftilt.verification.exact import (
    CLASS,
    FIXED,
    NONE,
    TARGETS,
    TILTED,
    approach,
    kl_to,
    mean_reward_of,
    moment_errors,
)
from difftilt.verification.rows import train, verify

FIELDS = [
    *("algorithm", "process", "problem", "target", "kl_nats", "kl_removed", "mean_reward", "mean_reward_exact"),
    *("seconds", "network_evaluations", "reward_calls", "passed", "reason"),
]
QUICK = Reinforce(batch=256, learning_rate=0.1)
UPDATES = 50
BAR = Claim(FIXED, nats=0.01)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tiny() -> TiltedProblem:
    return random_pairwise(3, 3)


@pytest.fixture(scope="module", params=["linear-gaussian-8", "mixture", "pairwise", "initial-law"])
def problem(request) -> Problem:
    return entry(request.param).make()


# --- verdicts of trained methods ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flipped(Reinforce):
    """Descends where it should climb."""

    def targets(self, state, data):
        return -super().targets(state, data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwiceAlpha(Reinforce):
    """The right method for another temperature."""

    def init(self, policy, anchors):
        return super().init(policy, [Anchor(a.policy, 2 * a.weight) for a in anchors])


def test_a_sound_method_passes_and_broken_ones_fail_their_row(tiny):
    """The table can say no: a sign flipped, a temperature doubled, training left out."""
    sound = train(QUICK, tiny, BAR, UPDATES, generator())
    assert sound["passed"] is True
    assert sound["kl_nats"] <= 0.01
    assert sound["kl_removed"] == pytest.approx(1 - sound["kl_nats"] / tiny.kl(tiny.pretrained))
    assert sound["mean_reward"] == pytest.approx(sound["mean_reward_exact"], abs=0.1)
    assert sound["reward_calls"] == UPDATES * 256
    assert sound["network_evaluations"] == UPDATES * 256 * 3 * 3  # rollout, reference, update
    assert sound["seconds"] > 0
    for broken in (Flipped, TwiceAlpha):
        found = train(broken(**dataclasses.asdict(QUICK)), tiny, BAR, UPDATES, generator())
        assert found["passed"] is False, broken
        assert found["kl_nats"] > 0.02
    assert train(QUICK, tiny, BAR, 0, generator())["passed"] is False


def test_whole_rows_of_another_temperature_fail(monkeypatch):
    """Twins of rows that pass: alpha doubled, in a method that is trained and in a sampler."""
    trained, steered = Pair("adjoint_matching", "linear-gaussian-8"), Pair("smc:bootstrap", "initial-law")
    monkeypatch.setitem(claims.RECIPES, "affine", (120, {"batch": 256, "learning_rate": 0.03}))
    assert verify(trained, 0).passed is True
    assert verify(steered, 0).passed is True
    monkeypatch.setattr(rows, "Anchor", lambda policy, alpha: Anchor(policy, 2 * alpha))
    monkeypatch.setitem(claims.STEERED, steered.label, {**claims.STEERED[steered.label], "alpha": 1.0})
    for broken in (trained, steered):
        row = verify(broken, 0)
        assert row.passed is False, broken
        assert row.kl_nats is not None
        assert row.kl_nats > 0.02


def test_bars_of_share_removed_and_of_moments_are_judged(tiny):
    share = Claim(FIXED, removed=0.99)
    assert train(QUICK, tiny, share, UPDATES, generator())["passed"] is True
    assert train(QUICK, tiny, share, 2, generator())["passed"] is False
    gaussian = entry("linear-gaussian-8").make()
    best = gaussian.model.policy(gaussian.class_optimum)
    claim = Claim(CLASS, nats=0.003, moments=0.01)
    assert rows.judge(gaussian, claim, best)[0] is True
    shift = gaussian.class_optimum.shift.clone()
    shift[-1, 0] += 0.03  # the mean is off by 2 %, while the KL is within its bar
    moved = gaussian.model.policy(dataclasses.replace(gaussian.class_optimum, shift=shift))
    assert kl_to(CLASS, gaussian, moved) < 0.003
    assert rows.judge(gaussian, claim, moved)[0] is False


def test_no_claim_no_verdict(tiny):
    found = train(QUICK, tiny, Claim(NONE, why="for this reason"), 2, generator())
    assert found["passed"] is None
    assert "for this reason" in found["reason"]
    assert found["kl_nats"] > 0


def test_a_policy_that_left_the_numbers_fails():
    problem = entry("mixture").make()
    lost = problem.tunable()
    with torch.no_grad():
        for parameter in lost.parameters():
            parameter += 3.0
    passed, _, numbers = rows.judge(problem, Claim(FIXED, nats=math.inf), lost)
    assert passed is False
    assert numbers["kl_nats"] == math.inf


# --- whole rows -----------------------------------------------------------------------------------------------------


def test_a_row_has_the_promised_fields_and_is_plain_json():
    record = verify(Pair("smc", "initial-law"), 0).record()
    assert list(record) == FIELDS
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["target"] == TILTED
    assert record["passed"] is True
    again = verify(Pair("smc", "initial-law"), 0).record()
    assert {**again, "seconds": 0} == {**record, "seconds": 0}
    assert verify(Pair("smc", "initial-law"), 1).record()["kl_nats"] != record["kl_nats"]


@pytest.mark.parametrize(
    ("label", "name", "reason"),
    [
        ("adjoint_matching", "pairwise", "Gaussian steps"),
        ("reward_backprop", "infeasible", "on_probabilities"),
        ("mcmc", "pairwise", "process with a score"),
        ("renoised_mle", "linear-gaussian", "times of the grid"),
        ("mcmc:mala", "pairwise", "density"),
    ],
)
def test_undefined_pairs_say_why(label, name, reason):
    row = verify(Pair(label, name), 0)
    assert row.passed is None
    assert row.reason.startswith("not defined: ")
    assert reason in row.reason
    assert row.kl_nats is row.seconds is None


def test_missing_data_are_no_failure(monkeypatch):
    monkeypatch.setattr(rows, "find", lambda name: None)
    row = verify(Pair("ppo", PROBLEMS[-1]), 0)
    assert row.passed is None
    assert f"difftilt data prepare {PROBLEMS[-1]}" in row.reason


def test_a_method_that_diverges_fails_its_claim(monkeypatch):
    def diverge(*args, **settings):
        raise StateError("expected a finite gradient; got nan; lower the learning rate")

    monkeypatch.setattr(rows, "train", diverge)
    row = verify(Pair("ppo", "pairwise"), 0)
    assert row.passed is False
    assert "finite gradient" in row.reason
    assert verify(Pair("raft", "pairwise"), 0).passed is None


# --- verdicts of samplers -------------------------------------------------------------------------------------------


def even(problem: TiltedProblem, law: torch.Tensor, n: int, runs: int = steering.GROUPS) -> list[Weighted]:
    rng = generator(5)
    drawn = [problem.chain.designs[torch.multinomial(law, n, replacement=True, generator=rng)] for _ in range(runs)]
    return [Weighted(x_0, torch.zeros(n, dtype=torch.float64), None) for x_0 in drawn]


def test_the_divergence_is_unbiased_where_cells_are_sparse():
    """H0: 20 runs of 100 draws of 4,000 cells, 100 times: |z| of the mean < 5. Twin: KL of the histogram itself."""
    rng, cells, n = generator(), 4000, 100
    exact = torch.rand(cells, generator=rng, dtype=torch.float64).square() + 1e-3
    exact = exact / exact.sum()
    other = exact * torch.where(torch.arange(cells) % 2 == 0, 1.2, 0.8)
    other = other / other.sum()

    def observe(law: torch.Tensor) -> torch.Tensor:
        drawn = [torch.multinomial(law, n, replacement=True, generator=rng) for _ in range(steering.GROUPS)]
        return torch.stack([torch.bincount(cell, minlength=cells) / n for cell in drawn]).double()

    for law in (exact, other):
        expected = 0.5 * ((law - exact).square() / exact).sum().item()
        found = torch.tensor([steering.divergence(observe(law), exact) for _ in range(100)], dtype=torch.float64)
        z = (found[:, 0].mean() - expected) / (found[:, 0].std() / 10)
        assert abs(z) < 5
        assert found[:, 1].mean() / found[:, 0].std() == pytest.approx(1.0, abs=0.3)  # the error it tells of itself
    assert expected == pytest.approx(kl_divergence(other, exact), rel=0.1)
    assert kl_divergence(observe(exact).mean(0), exact) > 0.3


def test_draws_of_the_law_pass_and_others_fail(tiny):
    """Twins: p_pre itself, and weighted draws whose weights were dropped."""
    claim, n = Claim(TILTED, nats=0.01), 1000
    passed, reason, numbers = steering.judge_draws(tiny, claim, even(tiny, tiny.tilted, n), generator())
    assert passed is True, reason
    assert numbers["mean_reward"] == pytest.approx(numbers["mean_reward_exact"], abs=0.05)
    plain = even(tiny, tiny.pretrained_law, n)
    weighted = [
        Weighted(run.x_0, torch.as_tensor(tiny.reward(tiny.pretrained.codec.decode(run.x_0))) / tiny.alpha, None)
        for run in plain
    ]
    assert steering.judge_draws(tiny, claim, plain, generator())[0] is False
    few = Claim(TILTED, nats=0.05)
    assert steering.judge_draws(tiny, few, weighted, generator())[0] is True
    assert steering.judge_draws(tiny, few, plain, generator())[0] is False


def test_draws_are_judged_by_total_variation_with_its_sampling_error(tiny):
    """Twins: p_pre itself, and too few draws."""
    claim = Claim(TILTED, variation=0.03)
    passed, reason, _ = steering.judge_draws(tiny, claim, even(tiny, tiny.tilted, 1000), generator())
    assert passed is True, reason
    assert reason.startswith("TV 0.0")
    assert steering.judge_draws(tiny, claim, even(tiny, tiny.pretrained_law, 1000), generator())[0] is False
    assert steering.judge_draws(tiny, claim, even(tiny, tiny.tilted, 20), generator())[0] is False


def test_too_few_draws_do_not_pass(tiny):
    claim = Claim(TILTED, nats=0.001)
    assert steering.judge_draws(tiny, claim, even(tiny, tiny.tilted, 20), generator())[0] is False


def test_an_exact_law_is_judged_and_the_draws_against_it(tiny):
    near = tiny.tilted * (1 + 0.4 * torch.cos(torch.arange(27.0)).double())
    near = near / near.sum()
    kl, claim = kl_divergence(near, tiny.tilted), Claim(FIXED, nats=0.1)
    assert kl > 0.02
    passed, _, numbers = steering.judge_draws(tiny, claim, even(tiny, near, 1000), generator(), exact=(kl, near))
    assert passed is True
    assert numbers["kl_nats"] == kl
    wrong = even(tiny, tiny.pretrained_law, 1000)  # code that does not have the law it should
    assert steering.judge_draws(tiny, claim, wrong, generator(), exact=(kl, near))[0] is False
    tight = Claim(FIXED, nats=kl / 2)
    assert steering.judge_draws(tiny, tight, even(tiny, near, 1000), generator(), exact=(kl, near))[0] is False


@pytest.mark.parametrize("label", ["value_weighted", "classifier_guidance"])
def test_exact_laws_are_those_of_the_samplers_themselves(label):
    """With infeasible designs. H0: 500 draws, |z| of the divergence < 5; the pretrained law (twin) is not theirs."""
    problem = entry("infeasible").make()
    sampler, value, _ = steering.prepare(label, problem)
    kl, law = steering.exact_law(label, problem, Claim(FIXED, nats=0.01), value)
    torch.testing.assert_close(law.sum().item(), 1.0)
    assert -1e-9 < kl < 0.01
    assert kl == pytest.approx(kl_divergence(law, problem.tilted), abs=1e-12)
    rng = generator()
    runs = [sampler(problem.pretrained, problem.reward, 100, rng, value=value) for _ in range(5)]
    observed = torch.stack([problem.law_of(run.x_0, run.log_weight).observed for run in runs])
    found, error = steering.divergence(observed, law)
    assert abs(found) < 5 * error
    assert steering.divergence(observed, problem.pretrained_law)[0] > 1 > 5 * error


def test_draws_of_methods_without_a_claim_are_told_in_excess_of_exact_ones(tiny):
    claim, n = Claim(NONE, why="so"), 50
    for law in (tiny.tilted, tiny.pretrained_law):
        passed, _, numbers = steering.judge_draws(tiny, claim, even(tiny, law, n), generator())
        assert passed is None
        assert numbers["kl_nats"] == pytest.approx(kl_divergence(law, tiny.tilted), rel=0.1, abs=0.006)
    histogram = torch.stack([tiny.law_of(run.x_0, run.log_weight).observed for run in even(tiny, tiny.tilted, n)])
    assert kl_divergence(histogram.mean(0), tiny.tilted) > 0.008  # twin: not in excess


def test_the_log_density_given_to_mala_is_that_of_the_pretrained_law():
    line = entry("mixture").make()
    some = line.x[60:-60:10]
    expected = (line.pretrained_law / line.width).log()[60:-60:10]
    assert expected.max() - expected.min() > 3
    torch.testing.assert_close(steering.log_density(line)(some[:, None]), expected, rtol=0, atol=1e-6)
    affine = entry("initial-law").make()
    mean, covariance = affine.law(affine.pretrained)
    x = torch.tensor([[0.3, -1.0], [1.0, 2.0]], dtype=torch.float64)
    away = x - mean
    expected = -0.5 * (away @ torch.linalg.inv(covariance) * away).sum(1) - 0.5 * torch.logdet(covariance)
    expected = expected - math.log(2 * math.pi)
    torch.testing.assert_close(steering.log_density(affine)(x), expected)


# --- exact numbers --------------------------------------------------------------------------------------------------


def test_the_claimed_laws_are_told_apart(problem):
    """KL of the pretrained policy to each law; by second routes where there are any."""
    distance = {target: kl_to(target, problem, problem.pretrained) for target in TARGETS}
    assert distance[FIXED] == distance[NONE] == problem.kl(problem.pretrained)
    memoryless = problem.pretrained.process.memoryless
    assert (abs(distance[TILTED] - distance[FIXED]) < 1e-3) is memoryless
    expected = problem.log_z - problem.mean_reward(problem.pretrained) / problem.alpha  # Gibbs
    assert distance[TILTED] == pytest.approx(expected, abs=1e-4)
    assert (abs(distance[CLASS] - distance[FIXED]) > 1e-4) is (problem.class_kl > 0)


def test_mean_rewards_are_those_of_the_claimed_laws(problem):
    """That of the tilted law is the slope of log Z in 1 / alpha."""
    step, inverse = 1e-3, 1 / problem.alpha
    kind = type(problem)
    first = problem.model if hasattr(problem, "model") else problem.pretrained
    log_z = [kind(first, problem.reward, alpha=1 / (inverse + d)).log_z for d in (-step, step)]
    slope = (log_z[1] - log_z[0]) / (2 * step)
    assert mean_reward_of(TILTED, problem) == pytest.approx(slope, abs=1e-5)
    assert mean_reward_of(FIXED, problem) == problem.target_mean_reward
    assert (abs(mean_reward_of(FIXED, problem) - slope) < 1e-4) is problem.pretrained.process.memoryless
    assert mean_reward_of(CLASS, problem) == pytest.approx(problem.target_mean_reward, abs=0.1)


def test_the_class_optimum_has_no_distance_to_itself():
    gaussian = entry("linear-gaussian-8").make()
    best = gaussian.model.policy(gaussian.class_optimum)
    assert kl_to(CLASS, gaussian, best) == pytest.approx(0, abs=1e-12)
    assert max(moment_errors(gaussian, best)) < 1e-9
    assert kl_to(FIXED, gaussian, best) == pytest.approx(gaussian.class_kl)
    assert mean_reward_of(CLASS, gaussian) == pytest.approx(gaussian.mean_reward(best))
    mean, covariance = gaussian.law(best)
    error = moment_errors(gaussian, gaussian.pretrained)
    own = gaussian.law(gaussian.pretrained)
    assert error[0] == pytest.approx(((own[0] - mean).norm() / mean.norm()).item())
    assert error[1] == pytest.approx(((own[1] - covariance).norm() / covariance.norm()).item())
    assert min(error) > 0.1


def test_the_class_optimum_of_linear_gaussian_approaches_the_tilted_law_as_one_over_steps():
    """Gap of paths and error of the covariance halve as K doubles, KL quarters; tuned to another alpha (twin), not."""
    found = approach()
    assert [steps for steps, *_ in found] == [8, 16, 32, 64]
    for _, gap, error, kl in found:
        assert 0 < kl < gap  # KL of designs is at most that of paths
        assert error > 0
    slopes = [
        [math.log2(before / after) for before, after in zip(one[1:], other[1:], strict=True)]
        for one, other in itertools.pairwise(found)
    ]
    assert all(0.6 < gap < 1.1 and 0.85 < error < 1.15 and 1.6 < kl < 2.1 for gap, error, kl in slopes)
    assert slopes == sorted(slopes)  # towards 1, 1 and 2
    problem = entry("linear-gaussian-64").make()
    other = problem.chain.optimum(problem.reward, 2 * problem.alpha, soft=False)
    assert problem.log_z - other.objective(problem.reward, problem.alpha, problem.chain).item() / problem.alpha > 0.1


# --- pairs and claims -----------------------------------------------------------------------------------------------


def test_every_method_is_in_the_table_and_every_claim_can_be_judged():
    names = {label.partition(":")[0] for label in LABELS}
    assert names == {*build.ALGORITHMS, *build.SAMPLERS}
    every = pairs(full=True)
    assert {pair.label for pair in every} == set(LABELS)
    assert {pair.problem for pair in every} == set(PROBLEMS)
    for pair in every:
        claim = pair.claim
        assert claim.target in TARGETS
        assert (claim.target == NONE) == bool(claim.why)
        assert (claim.target == NONE) == (claim.nats is claim.removed is claim.variation is None)
        if not pair.steered:
            algorithm, updates = pair.recipe()
            assert isinstance(algorithm, build.algorithm(pair.label.partition(":")[0]))
            assert updates > 0
    assert {(pair.label, pair.problem) for pair in pairs()} <= DEFAULT


def test_filters_choose_pairs():
    assert {pair.label for pair in pairs("smc", full=True)} == {"smc", "smc:default", "smc:bootstrap"}
    assert {pair.label for pair in pairs("smc:bootstrap")} == {"smc:bootstrap"}
    assert {pair.process for pair in pairs(process="gaussian")} == {"gaussian"}
    assert {pair.problem for pair in pairs(problem="tfbind8", full=True)} == {
        name for name in PROBLEMS if name.startswith("tfbind8/")
    }
    assert pairs("ppo", problem="mixture") == [Pair("ppo", "mixture")]  # not of the default set
    assert len(pairs()) < len(pairs(full=True)) / 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"algorithm": "pp"}, "known algorithm or sampler; got 'pp'; did you mean 'ppo'"),
        ({"process": "mask"}, "known process; got 'mask'; did you mean 'masked'"),
        ({"problem": "pairwyse"}, "known problem; got 'pairwyse'; did you mean 'pairwise'"),
        ({"process": "gaussian", "problem": "pairwise"}, "that go together; got 'gaussian' and 'pairwise'"),
        ({"algorithm": "reward_backprop:tau-0.5", "problem": "mixture"}, "got 'reward_backprop:tau-0.5' and 'mixture'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(asked, message):
    with pytest.raises(ConfigError, match=message):
        pairs(**asked)


# --- the file and the page ------------------------------------------------------------------------------------------


NAMES = {"algorithm": "ppo", "process": "masked", "problem": "pairwise", "target": FIXED}


def record(label: str, name: str, **numbers: object) -> dict[str, object]:
    known = {"algorithm": label, "process": "masked", "problem": name, "target": FIXED}
    return {**dict.fromkeys(FIELDS), "reason": "", **known, **numbers}


def test_rows_are_kept_as_they_finish_and_only_missing_pairs_are_run(tmp_path):
    path, todo = tmp_path / "rows.json", [Pair("ppo", "pairwise"), Pair("smc", "pairwise"), Pair("smc", "mixture")]
    file = table.RowFile(path, 3)
    assert file.missing(todo) == todo
    for pair in todo[:2]:
        file.add(record(pair.label, pair.problem))
        assert len(json.loads(path.read_text())["rows"]) == len(file.rows)
    again = table.RowFile(path, 3)
    assert again.rows == file.rows
    assert again.missing(todo) == todo[2:]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.json"]


def test_rows_of_another_seed_or_version_are_not_mixed(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    table.RowFile(path, 3).add(record("ppo", "pairwise"))
    with pytest.raises(StateError, match=r"expected rows of seed 4 .*got 3"):
        table.RowFile(path, 4)
    monkeypatch.setattr(table, "provenance", lambda: {"commit": "another"})
    with pytest.raises(StateError, match=r"expected rows of commit another"):
        table.RowFile(path, 3)


FOREIGN = ['{"rows": 3}', '{"rows": [3]}', '{"rows": [{"a": 1}]}', '{"seed": 0, "rows": [{"algorithm": "ppo"}]}']


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows"', "3", "\0\x80", *FOREIGN])
def test_a_damaged_or_foreign_file_is_refused(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="latin-1")
    for read in (lambda: table.RowFile(path, 0), lambda: table.page(path)):
        with pytest.raises(StateError, match="damaged or foreign"):
            read()
    assert path.read_text(encoding="latin-1") == text


def test_rows_without_data_are_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "find", lambda name: None)
    path, pair = tmp_path / "rows.json", Pair("ppo", PROBLEMS[-1])
    file = table.RowFile(path, 0)
    file.add(verify(pair, 0).record())
    file.add(record("smc", "pairwise"))
    assert file.missing([pair]) == []
    again = table.RowFile(path, 0)
    assert again.missing([pair]) == [pair]
    assert [row["algorithm"] for row in again.rows] == ["smc"]


def test_one_job_is_one_thread_and_leaves_the_setting_as_it_was(monkeypatch):
    threads, seen = torch.get_num_threads(), []
    monkeypatch.setattr(table, "verify", lambda pair, seed: seen.append(torch.get_num_threads()) or rows.Row(**NAMES))
    torch.set_num_threads(2)
    try:
        assert list(table.run([Pair("ppo", "pairwise")], 0, jobs=1)) == [rows.Row(**NAMES).record()]
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(threads)


def test_a_killed_process_is_told():
    """As the system does where memory is short."""
    todo = [Pair("reinforce", "mixture"), Pair("ppo", "mixture")]
    before = multiprocessing.active_children()

    def kill() -> None:
        while not (children := set(multiprocessing.active_children()) - set(before)):
            time.sleep(0.01)
        children.pop().kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(StateError, match="one that was killed"):
        list(table.run(todo, 0, jobs=2))
    killer.join()
    assert set(multiprocessing.active_children()) <= set(before)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(StateError, match="choose another --json"):
        table.RowFile(tmp_path / "nowhere" / "rows.json", 0)
    with pytest.raises(StateError, match="name a file that --json made"):
        table.read(tmp_path / "rows.json")
    with pytest.raises(StateError, match="got 'Is a directory'"):
        table.RowFile(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_page_shows_every_row_with_its_verdict(tmp_path):
    numbers = {"kl_nats": 0.00123, "kl_removed": 0.9991, "mean_reward": 1.0, "mean_reward_exact": 1.25, "seconds": 7.4}
    file = table.RowFile(tmp_path / "rows.json", 7)
    for row in (
        record("ppo", "mixture", reason="no data"),
        record("smc", "pairwise", passed=False, reason="off"),
        record("mcmc", "pairwise", reason="not defined: no score"),
        record("ppo", "pairwise", **numbers, reward_calls=12_000, passed=True, reason="KL(p||q) is small"),
    ):
        file.add(row)
    page = table.page(tmp_path / "rows.json")
    good = r"| ppo | p\* (fixed prior) | 0.0012 | 99.9% | 1.000 (1.250) | 7 | 12,000 | yes | KL(p\|\|q) is small |"
    parts = ["# The truth table", "seed 7", "## `pairwise` (masked)", good, "| NO | off |", "- `mcmc`: no score"]
    parts += [
        "## `mixture` (gaussian)",
        "Two modes on the line, 16 DDPM steps; alpha 0.5.",
        "| no data |",
        "tilted law\n",
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "| 16 | 0.0114 | 0.183 | 5.31% | 0.850 | 0.00093 | 0.238 |" in page[places[-1] :]
