"""Strategies: campaigns on a problem small enough to know, repeated, crashed, constrained; each does what it says."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from campaign_parts import FINISHED, check_laws, fork, killed_at_write, timeless, wait
from difftilt.campaigns import candidates, online
from difftilt.campaigns.acquisition import acquisition, conditioned, pick
from difftilt.campaigns.adaptive import Adaptive, Plan, load_model
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.constraints import Rules
from difftilt.campaigns.history import CampaignSettings, History
from difftilt.campaigns.keeping import MODELS
from difftilt.campaigns.learning import fit, forecast_of, learn, learner
from difftilt.campaigns.online import Online, draw_paths, learn_from
from difftilt.campaigns.settings import Constraints, Picking, Tuning
from difftilt.campaigns.strategies import READS, STRATEGIES, strategy
from difftilt.campaigns.update import ALGORITHMS, algorithm_for
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.trajectory import rollout
from difftilt.errors import ConfigError, DataError, StateError
from difftilt.problems.landscapes import corrected, random_pairwise
from difftilt.problems.tilted import TiltedProblem
from difftilt.surrogates.ensemble import Ensemble
from difftilt.surrogates.gaussian_process import GaussianProcess
from difftilt.surrogates.linear import Linear
from difftilt.surrogates.measurements import Measurements

QUICK = Tuning(alpha=0.5, beta=0.5, updates=3, paths=16, learning_rate=5e-3)
LEARNED = [name for name in STRATEGIES if name not in ("random", "online-ppo", "genetic", "batch-bo")]
BLIND = ("random", "online-ppo")
BRED = ("genetic", "batch-bo")
OF_A_SURROGATE = ["seiko-ucb", "seiko-thompson", "greedy", "conservative", "non-adaptive", "guidance"]


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """5 letters of ACGT: 1,024 designs, all of whose rewards are known."""
    return random_pairwise(5, 4, alpha=0.5, target_kl=2.0, seed=4)


@pytest.fixture(scope="module")
def pretrained(problem: TiltedProblem) -> Policy:
    return corrected(problem.pretrained, hidden=32)


def begun(place: Path, name: str, **settings: Any) -> Campaign:
    kept = {"tuning": QUICK, "batch": 12, "budget": 48, "picking": Picking(surrogate="linear"), **settings}
    if name == "seiko-bootstrap":
        kept["picking"] = dataclasses.replace(kept["picking"], surrogate="auto")
    return Campaign.create(place, CampaignSettings(name="lab", task="none", strategy=name, **kept))


def play(campaign: Campaign, policy: Policy, reward: Callable[[list[str]], Any], rounds: int) -> Campaign:
    """Rounds of a campaign whose laboratory is ``reward``; the second well of each plate fails."""
    for _ in range(rounds):
        plate = propose(campaign, policy)
        values = torch.as_tensor(reward([design.design for design in plate])).tolist()
        rows = [{"id": d.id, "value": v} for d, v in zip(plate, values, strict=True)]
        rows[1] = {"id": plate[1].id, "status": "failed: no growth"}
        campaign.record(rows)
    return campaign


def propose(campaign: Campaign, policy: Policy) -> list:
    return campaign.propose(proposer=strategy(campaign.settings.strategy)(policy, campaign.folder))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_plays_a_campaign_and_repeats_itself(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy, name: str
) -> None:
    runs = [play(begun(tmp_path / f"{i}", name), pretrained, problem.reward, 3) for i in range(2)]
    for campaign in runs:
        check_laws(campaign)
    first, second = (campaign.history() for campaign in runs)
    assert [(d.design, d.mean, d.std, d.reason, d.model) for d in first.designs] == [
        (d.design, d.mean, d.std, d.reason, d.model) for d in second.designs
    ]
    assert all(entry.model == "p_pre" for entry in first.rounds[1:]) == (name == "random"), "others are not p_pre's law"
    if name in LEARNED:
        last = first.rounds[-1].facts
        assert last["rows"] == (11 if name == "non-adaptive" else 22)
        assert last["held_out"]["rows"] > 0
        assert all(d.mean is not None and d.std is not None and d.std >= 0 for d in first.designs if d.round > 1)
        assert "predicted" in first.designs[-1].reason
        assert "measured" in first.designs[-1].reason
        assert last["oracle_calls"] == 24


def test_a_killed_round_repeats_itself_to_the_same_numbers(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy
) -> None:
    """Killed at each of the first writes of round 2, its model's folder included."""

    def without_seconds(history: History) -> list:
        told = [{k: v for k, v in r.facts.items() if not k.startswith("seconds")} for r in history.rounds]
        return [timeless(history)[1], [r.model for r in history.rounds], told]

    whole = play(begun(tmp_path / "whole", "greedy"), pretrained, problem.reward, 1)
    propose(whole, pretrained)
    expected = without_seconds(whole.history())
    for number in (1, 2, 3, 5):
        place = tmp_path / f"killed-{number}"
        play(begun(place, "greedy"), pretrained, problem.reward, 1)
        assert killed_at_write(lambda place=place: propose(Campaign.open(place), pretrained), number) != FINISHED
        assert wait(fork(lambda place=place: propose(Campaign.open(place), pretrained))) == FINISHED
        assert without_seconds(Campaign.open(place).history()) == expected


def test_a_round_starts_from_the_policy_of_the_round_before(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy
) -> None:
    """With steps too small to move, the next policy is that of the round before, and its facts say so."""
    still = Tuning(alpha=0.5, beta=0.5, updates=2, paths=16, learning_rate=1e-7)
    moving = Tuning(alpha=0.5, beta=0.5, updates=10, paths=32, learning_rate=2e-2)
    campaign = play(begun(tmp_path / "a", "greedy", tuning=moving), pretrained, problem.reward, 2)
    history = campaign.history()
    first = load_model(campaign.folder, history.rounds[1].model)
    held = CampaignSettings(**{**vars(history.settings), "tuning": still})
    again = History(held, history.rounds, history.designs, history.imports)
    proposal = Adaptive(pretrained, campaign.folder, Plan("mean"))(again, 6, torch.Generator().manual_seed(0))
    second = load_model(campaign.folder, proposal.model)
    chain = problem.chain
    moved = chain.path_kl(first, problem.pretrained).item()
    assert moved > 1e-3
    assert chain.path_kl(second, first).item() < 1e-6
    assert proposal.facts["kl_to_last"] < 1e-6
    assert proposal.facts["kl_to_pretrained"] == pytest.approx(moved, rel=0.5)


def test_strategies_that_look_at_no_policy_before_start_from_p_pre(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy
) -> None:
    for name in ("conservative", "non-adaptive"):
        facts = play(begun(tmp_path / name, name), pretrained, problem.reward, 2).history().rounds[1].facts
        assert facts["beta"] == 0
        assert facts["kl_to_last"] == pytest.approx(facts["kl_to_pretrained"])


def test_non_adaptive_learns_and_tunes_once(tmp_path: Path, problem: TiltedProblem, pretrained: Policy) -> None:
    history = play(begun(tmp_path / "a", "non-adaptive"), pretrained, problem.reward, 4).history()
    assert len({entry.model for entry in history.rounds[1:]}) == 1
    assert "surrogate_calls" in history.rounds[1].facts
    assert "surrogate_calls" not in history.rounds[2].facts
    assert [entry.facts["rows"] for entry in history.rounds[1:]] == [11, 11, 11]
    greedy = play(begun(tmp_path / "b", "greedy"), pretrained, problem.reward, 4).history()
    assert len({entry.model for entry in greedy.rounds}) == 4, "twin: one that adapts has a model for each round"


def test_surrogate_calls_and_oracle_calls_are_counted_apart(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy
) -> None:
    paid: list[str] = []

    def laboratory(designs: list[str]) -> Any:
        paid.extend(designs)
        return problem.reward(designs)

    history = play(begun(tmp_path / "a", "seiko-ucb"), pretrained, laboratory, 3).history()
    assert [entry.facts.get("oracle_calls") for entry in history.rounds] == [None, 12, 24]
    assert len(paid) == history.spent == 36
    assert 16 < history.rounds[1].facts["surrogate_calls"] <= 3 * 16


def test_constraints_hold_in_every_plate_of_every_strategy(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy
) -> None:
    avoid = tmp_path / "avoid.csv"
    avoid.write_text("sequence\n" + "\n".join(f"{a}ACGT" for a in "ACGT") + "\n")
    limits = Constraints(fix=("1:G",), forbid=("AA", "CG"), gc_max=0.8, avoid=str(avoid))
    for name in STRATEGIES:
        campaign = play(begun(tmp_path / name, name, constraints=limits), pretrained, problem.reward, 2)
        for design in campaign.history().designs:
            assert design.design[0] == "G"
            assert "AA" not in design.design
            assert "CG" not in design.design
            assert sum(letter in "GC" for letter in design.design) <= 4
            assert design.design != "GACGT"
        dropped = campaign.status().facts["dropped_constraints"]
        assert (dropped == 0) == (name not in BRED), "one letter a step: nothing is filtered but what is bred"


def test_a_tuned_plate_is_better_than_a_random_one(tmp_path: Path, problem: TiltedProblem, pretrained: Policy) -> None:
    """24 designs chosen after 48 measurements, against the law that they were drawn from at first."""
    tuning = Tuning(alpha=0.5, beta=0.5, updates=20, paths=64, learning_rate=5e-3)
    settings = {"batch": 24, "budget": 96, "tuning": tuning}
    chosen = play(begun(tmp_path / "a", "greedy", **settings), pretrained, problem.reward, 3).history()
    picked = torch.as_tensor(problem.reward([d.design for d in chosen.designs if d.round == 3]))
    spread = (problem.pretrained_law @ problem.table.square() - (problem.pretrained_law @ problem.table) ** 2).sqrt()
    assert picked.mean() - problem.pretrained_law @ problem.table > 0.7 * spread


def history_of(problem: TiltedProblem, pretrained: Policy, place: Path, rounds: int = 2) -> History:
    return play(begun(place, "seiko-ucb"), pretrained, problem.reward, rounds).history()


def test_the_forecast_of_a_round_is_what_the_surrogate_said(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy
) -> None:
    history = history_of(problem, pretrained, tmp_path / "a", 3)
    assert forecast_of(history, 1) is None
    said, facts = forecast_of(history, 2), history.rounds[1].facts
    designs = [design for design in history.designs if design.round == 2]
    assert said is not None
    assert said.mean.tolist() == [design.mean for design in designs]
    assert said.measured.isnan().tolist() == [design.value is None for design in designs]
    interval = (facts["factor"] * said.model).square() + said.noise.square()
    wanted = [design.std**2 + facts["misfit"] ** 2 + facts["noise"] ** 2 for design in designs]
    assert interval.tolist() == pytest.approx(wanted)
    assert history.rounds[2].facts["last_round"]["rows"] == 11
    assert history.rounds[1].facts["last_round"] is None


def test_the_bonus_given_picks_is_the_posterior_after_measuring_them() -> None:
    """Equation (2) one by one, against conditioning on both picks at once; no value enters."""
    rng = torch.Generator().manual_seed(0)
    covariance = torch.randn(6, 6, generator=rng, dtype=torch.float64)
    covariance = covariance @ covariance.T
    noise, now = 0.3, covariance
    for j in (4, 1):
        now = conditioned(now, j, noise)
    seen = [4, 1]
    gain = torch.linalg.inv(covariance[seen][:, seen] + noise * torch.eye(2, dtype=torch.float64))
    assert torch.allclose(now, covariance - covariance[:, seen] @ gain @ covariance[seen])


@pytest.mark.parametrize("rule", ["greedy", "as_drawn"])
def test_picks_follow_their_rule(tmp_path: Path, problem: TiltedProblem, pretrained: Policy, rule: str) -> None:
    history = history_of(problem, pretrained, tmp_path / "a")
    pool = problem.pretrained.codec.decode(problem.chain.designs[::7])
    settings = Picking(rule=rule, surrogate="linear", c=2.0, apart=2)
    learned = learn(history, pretrained.codec, settings, torch.Generator())
    assert learned is not None
    found = pick("ucb", pool, learned, 8, settings, torch.Generator(), temperature=1.0)
    chosen = [pool[i] for i in found.index.tolist()]
    mean, std = learned.surrogate.predict(pool)
    assert torch.allclose(found.mean, mean[found.index])
    assert torch.allclose(found.std, std[found.index])
    if rule == "as_drawn":
        assert chosen[0] == pool[0]
        assert found.index.tolist() == sorted(found.index.tolist())
    else:
        assert learned.feasibility is not None
        value = acquisition("ucb", learned, torch.Generator(), c=2.0, temperature=1.0)(pool)
        assert int(value.argmax()) == found.index[0]
        assert (found.given[1:] < found.std[1:]).all()
    apart = [sum(a != b for a, b in zip(x, y, strict=True)) for x, y in itertools.combinations(chosen, 2)]
    assert min(apart) >= 2


def test_thompson_picks_differ_and_the_mean_picks_do_not(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy
) -> None:
    history = history_of(problem, pretrained, tmp_path / "a")
    pool, settings = problem.pretrained.codec.decode(problem.chain.designs[::5]), Picking(surrogate="linear")
    learned = learn(history, pretrained.codec, settings, torch.Generator())
    assert learned is not None

    def picks(name: str, seed: int) -> list[int]:
        rng = torch.Generator().manual_seed(seed)
        return pick(name, pool, learned, 5, settings, rng, temperature=1.0).index.tolist()

    assert picks("mean", 0) == picks("mean", 1)
    assert picks("thompson", 0) == picks("thompson", 0) != picks("thompson", 1)


def test_lower_bounds_prefer_what_is_known(tmp_path: Path, problem: TiltedProblem, pretrained: Policy) -> None:
    history = history_of(problem, pretrained, tmp_path / "a")
    pool, settings = problem.pretrained.codec.decode(problem.chain.designs), Picking(surrogate="linear", c=3.0)
    learned = learn(history, pretrained.codec, settings, torch.Generator())
    assert learned is not None
    std = {name: pick(name, pool, learned, 20, settings, torch.Generator(), temperature=1.0).std.mean() for name in
           ("lcb", "mean", "ucb")}  # fmt: skip
    assert std["lcb"] < std["mean"] < std["ucb"]


def test_ppo_learns_from_the_kept_paths_of_the_measured_plate(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy
) -> None:
    """The update raises the exact J; with the sign of the values flipped it does not."""
    tuning = Tuning(alpha=0.5, learning_rate=2e-3)
    rng = torch.Generator().manual_seed(0)
    rules = Rules(Constraints(), pretrained)
    sieve, states = draw_paths(pretrained, 300, rules, frozenset(), rng)
    names = list(sieve.designs)
    assert problem.pretrained.codec.decode(states[-1]) == names
    start = problem.objective(pretrained)

    def after(sign: float) -> torch.Tensor:
        values = sign * torch.as_tensor(problem.reward(names))
        history = measured(names, values.tolist(), tmp_path / str(sign), tuning)
        tuned, rows = learn_from(states, pretrained, pretrained, history, torch.Generator().manual_seed(1))
        assert rows == 300
        return problem.objective(tuned)

    assert after(1.0) > start + 0.02
    assert after(-1.0) < start


def measured(names: list[str], values: list[float], place: Path, tuning: Tuning) -> History:
    """A campaign in which these designs were proposed and measured."""
    from difftilt.campaigns.proposer import Candidate, Proposal

    campaign = begun(place, "online-ppo", budget=len(names), batch=len(names), tuning=tuning)
    plate = campaign.propose(proposer=lambda *_: Proposal([Candidate(name) for name in names], "some"))
    campaign.record([{"id": d.id, "value": v} for d, v in zip(plate, values, strict=True)])
    return campaign.history()


def test_designs_measured_before_the_campaign_are_learned_from_and_cost_nothing(
    tmp_path: Path, problem: TiltedProblem, pretrained: Policy
) -> None:
    names = problem.pretrained.codec.decode(problem.chain.designs[::20])
    lines = [f"{name},{value:.6f}" for name, value in zip(names, torch.as_tensor(problem.reward(names)), strict=True)]
    file = tmp_path / "before.csv"
    file.write_text("\n".join(["sequence,score", *lines]))
    campaign = begun(tmp_path / "a", "conservative", picking=Picking(surrogate="linear", start=str(file)))
    plate = propose(campaign, pretrained)
    assert campaign.history().rounds[0].facts["rows"] == len(names)
    assert campaign.history().rounds[0].model != "p_pre"
    assert campaign.status().spent == len(plate) == 12


REPEATED = [
    [{"id": "d00001", "value": 0.5}, {"id": "d00001", "value": 0.6, "replicate": 2}],
    [{"id": "d00001", "value": 0.5}, {"id": "d00001", "value": 0.7, "replicate": 2}, {"id": "d00002", "value": 0.6}],
    [{"id": "d00001", "value": 0.5}],
    [],
]
"""Results in which no two designs have different means: one in replicates, two with one mean, one, none."""


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in BLIND])
@pytest.mark.parametrize("results", REPEATED, ids=["replicates", "equal means", "one value", "none"])
def test_while_no_two_designs_have_different_means_a_plate_of_p_pre_follows(
    tmp_path: Path, pretrained: Policy, name: str, results: list[dict[str, Any]]
) -> None:
    """Whatever their replicates are; the twin below learns from one value more."""
    campaign = begun(tmp_path / "a", name)
    there = {row["id"] for row in results}
    lost = [{"id": d.id, "status": "failed: lost"} for d in propose(campaign, pretrained) if d.id not in there]
    campaign.record([*results, *lost])
    assert {design.reason for design in propose(campaign, pretrained)} == {"drawn from p_pre"}
    assert campaign.status().facts["drawn"] >= 12


def test_two_designs_of_different_means_are_learned_from(tmp_path: Path, pretrained: Policy) -> None:
    for name in ("greedy", *BRED):
        campaign = begun(tmp_path / name, name)
        propose(campaign, pretrained)
        campaign.record([*REPEATED[0], {"id": "d00002", "value": 0.6}])
        assert {design.reason for design in propose(campaign, pretrained)} != {"drawn from p_pre"}


def earlier(place: Path, policy: Policy, problem: TiltedProblem, every: int = 4) -> tuple[Path, list[str]]:
    """A file of designs measured before the campaign, written as RNA in lower case."""
    names = policy.codec.decode(problem.chain.designs[::every])
    scores = torch.as_tensor(problem.reward(names)).tolist()
    file = place / "before.csv"
    lines = [f"{name.lower().replace('t', 'u')},{score:.6f}" for name, score in zip(names, scores, strict=True)]
    file.write_text("\n".join(["sequence,score", *lines]))
    return file, names


@pytest.fixture
def reading(pretrained: Policy) -> Policy:
    """The same policy, whose codec reads U as T."""
    policy = pretrained.frozen_copy()
    policy.codec = TokenCodec("ACGT", 5, {"U": "T"})
    return policy


@pytest.mark.parametrize("name", STRATEGIES)
def test_designs_measured_before_the_campaign_are_never_proposed(
    tmp_path: Path, problem: TiltedProblem, reading: Policy, name: str
) -> None:
    """Half of all designs within reach are known; the twin without the file proposes some of them."""
    file, names = earlier(tmp_path, reading, problem, 2)
    near = Constraints(parent=names[0], mutations=2)
    kept = {"constraints": near, "batch": 8, "budget": 16}
    told = Picking(surrogate="linear", start=str(file))
    campaign = play(begun(tmp_path / "a", name, picking=told, **kept), reading, problem.reward, 1)
    plate = propose(campaign, reading)
    known = {design.design for design in campaign.history().designs}
    assert len(plate) > 4
    assert not known & set(names)
    assert campaign.history().rounds[-1].facts["dropped_known"] > 0
    twin = play(begun(tmp_path / "b", name, **kept), reading, problem.reward, 1)
    assert {design.design for design in twin.history().designs} & set(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_reads_the_settings_that_it_says_it_reads_and_no_other(
    tmp_path: Path, problem: TiltedProblem, reading: Policy, name: str
) -> None:
    """Round 2 once more, with one setting changed: another plate, policy or fact where it is read, else the same."""
    file, _ = earlier(tmp_path, reading, problem)
    other = {"alpha": 0.1, "beta": 0.1, "kl_budget": 0.5, "algorithm": "ppo", "updates": 4, "paths": 24,
             "learning_rate": 1e-2, "surrogate": "ensemble", "c": 4.0, "rule": "as_drawn", "pool": 3, "apart": 3,
             "start": str(file)}  # fmt: skip
    campaign = play(begun(tmp_path / "a", name, batch=48), reading, problem.reward, 1)
    history, own = campaign.history(), campaign.settings

    def proposed(**change: Any) -> tuple[list, str, dict]:
        parts = {
            part: {k: v for k, v in change.items() if hasattr(getattr(own, part), k)} for part in ("tuning", "picking")
        }
        changed = {part: dataclasses.replace(getattr(own, part), **values) for part, values in parts.items()}
        settings = dataclasses.replace(own, **changed)
        proposer = strategy(name)(reading, campaign.folder)
        proposal = proposer(dataclasses.replace(history, settings=settings), 12, torch.Generator().manual_seed(0))
        facts = {fact: value for fact, value in proposal.facts.items() if not fact.startswith("seconds")}
        return [(pick.design, pick.mean, pick.std) for pick in proposal.candidates], proposal.model, facts

    same = proposed()
    read = {field for field, value in other.items() if proposed(**{field: value}) != same}
    if name in BLIND:  # its designs are known, which is no reading that anybody would want
        read -= {"start"}
    assert read == set(READS[name])


@pytest.mark.parametrize("name", BRED)
def test_what_is_bred_is_bred_from_designs_measured_before_too(
    tmp_path: Path, problem: TiltedProblem, reading: Policy, name: str
) -> None:
    file, names = earlier(tmp_path, reading, problem)
    campaign = begun(tmp_path / "a", name, picking=Picking(surrogate="linear", start=str(file)))
    plate = propose(campaign, reading)
    assert {design.reason for design in plate} != {"drawn from p_pre"}
    values = torch.as_tensor(problem.reward([design.design for design in plate]))
    assert values.mean() > torch.as_tensor(problem.reward(names)).mean()
    assert campaign.history().rounds[0].facts["drawn"] > 12


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e40, 1e100])
def test_values_out_of_all_proportion_are_refused_with_what_to_do(
    tmp_path: Path, pretrained: Policy, scale: float
) -> None:
    for name in ("greedy", *BRED):
        campaign = begun(tmp_path / name, name, picking=Picking())
        plate = propose(campaign, pretrained)
        campaign.record([{"id": d.id, "value": scale * (i % 3 - 1)} for i, d in enumerate(plate)])
        with pytest.raises(DataError, match="expected values with a standard deviation"):
            propose(campaign, pretrained)


def test_a_fit_that_fails_is_said_in_one_line(pretrained: Policy, problem: TiltedProblem) -> None:
    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def fit(self, codec: Any, data: Any, rng: Any) -> Any:
            raise self.error

    data = Measurements(["ACGTA", "CCGTA"], torch.tensor([0.1, 0.2]).double())
    with pytest.raises(DataError, match=r"expected values that Broken can fit; got 2 from 0.1 to 0.2 \(KeyError\)"):
        fit(Broken(KeyError("All attempts have failed.")), pretrained.codec, data, torch.Generator())
    with pytest.raises(ConfigError, match="our own"):
        fit(Broken(ConfigError("our own")), pretrained.codec, data, torch.Generator())


def test_a_lost_folder_of_models_is_said_so(tmp_path: Path, problem: TiltedProblem, pretrained: Policy) -> None:
    for name in ("greedy", "online-ppo"):
        campaign = play(begun(tmp_path / name, name), pretrained, problem.reward, 2)
        shutil.rmtree(campaign.folder / MODELS)
        with pytest.raises(StateError, match=r"policy of an earlier round .* bring the folder 'models'"):
            propose(campaign, pretrained)


def test_the_surrogate_is_chosen_by_name_or_by_number() -> None:
    assert isinstance(learner(Picking(), 500), GaussianProcess)
    assert isinstance(learner(Picking(), 3000), Ensemble)
    assert learner(Picking(), 500, "bootstrap") == Ensemble(prior_std=0.0), "SEIKO's: resamples alone"
    assert learner(Picking(), 500, "lcb") == Ensemble(members=16), "BRAID's"
    assert learner(Picking(surrogate="linear"), 500, "lcb") == Linear()
    assert learner(Picking(surrogate="gp_both_strands"), 9) == GaussianProcess(both_strands=True)
    for wrong in ({"surrogate": "gpp"}, {"rule": "best"}, {"c": -1.0}, {"pool": 0}):
        with pytest.raises(ConfigError, match="expected"):
            Picking(**wrong)
    for wrong in ({"alpha": 0.0}, {"beta": -1.0}, {"kl_budget": 0.0}, {"updates": 1}):
        with pytest.raises(ConfigError, match="expected"):
            Tuning(**wrong)


def test_the_algorithm_follows_the_process_or_its_name(pretrained: Policy) -> None:
    from difftilt.problems.library import entry

    assert type(algorithm_for(pretrained, QUICK)).__name__ == "TrajectoryBalance"
    gaussian = entry("linear-gaussian").make().pretrained
    assert type(algorithm_for(gaussian, QUICK)).__name__ == "RewardBackprop"
    for name, kind in ALGORITHMS.items():
        assert type(algorithm_for(pretrained, Tuning(algorithm=name))) is kind
    with pytest.raises(ConfigError, match="algorithm of campaigns"):
        algorithm_for(pretrained, Tuning(algorithm="trajectory"))


def test_a_policy_that_makes_nothing_new_is_said_so(
    tmp_path: Path, pretrained: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (candidates, online):
        monkeypatch.setattr(module, "TRIES", 3)
    limits = Constraints(parent="ACGTA", mutations=0)
    for name in ("random", "online-ppo"):
        campaign = begun(tmp_path / name, name, constraints=limits)
        assert [design.design for design in propose(campaign, pretrained)] == ["ACGTA"]
        with pytest.raises(StateError, match="expected new designs"):
            propose(campaign, pretrained)


def test_kept_paths_are_those_of_the_plate(tmp_path: Path, problem: TiltedProblem, pretrained: Policy) -> None:
    campaign = begun(tmp_path / "a", "online-ppo")
    plate = campaign.propose(proposer=Online(pretrained, campaign.folder))
    from safetensors.torch import load_file

    states = load_file(campaign.folder / MODELS / plate[0].model / "paths.safetensors")["states"]
    assert states.shape[0] == pretrained.steps + 1
    assert pretrained.codec.decode(states[-1]) == [design.design for design in plate]
    assert (rollout(pretrained, 3, torch.Generator()).states[0] == states[0, :3]).all()
