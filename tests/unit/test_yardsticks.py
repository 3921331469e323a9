"""The yardsticks: AdaLead's operators, and plates by qUCB against BoTorch's own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from difftilt.campaigns.batch_bo import BatchBO, PooledBO, draw_joint, greedy_ucb
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.candidates import Sieve
from difftilt.campaigns.constraints import Rules
from difftilt.campaigns.genetic import AdaLead, Genetic, mutate, recombine, search
from difftilt.campaigns.history import CampaignSettings, Design, History, Measurement
from difftilt.campaigns.settings import Constraints
from difftilt.core.codec import SimplexCodec, TokenCodec
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.markov import markov_prior
from difftilt.surrogates.linear import Linear
from difftilt.surrogates.measurements import Measurements
from difftilt.surrogates.surrogate import Prediction

CODEC = TokenCodec("ACGT", 6)
EVERY = torch.cartesian_prod(*[torch.arange(4)] * 6)
POLICY = markov_prior(CODEC, EVERY[::5])
SETTINGS = CampaignSettings(name="lab", task="none")
MAKERS = {
    "genetic": lambda: Genetic(POLICY, Path(), AdaLead(learner=Linear())),
    "batch-bo": lambda: PooledBO(POLICY, Path(), BatchBO(drawn=60, mutants=60, draws=32, learner=Linear())),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known(n: int, failed: int = 0) -> History:
    """``n`` measured designs, worth the share of G in them, and ``failed`` that failed."""
    tokens = EVERY[torch.randperm(len(EVERY), generator=generator(3))[: n + failed]]
    designs = []
    for number, design in enumerate(CODEC.decode(tokens), start=1):
        value = design.count("G") / 6 if number <= n else None
        result = Measurement(number, "1", value, None if number <= n else "no", None, "f", number, None, "")
        designs.append(Design(number, design, 1, "m", "A1", None, None, "", (result,)))
    return History(SETTINGS, designs=tuple(designs))


@pytest.mark.parametrize("name", MAKERS)
def test_a_plate_is_new_distinct_repeatable_and_better_than_what_it_learned_from(name: str) -> None:
    history = known(60, failed=5)
    plate = MAKERS[name]()(history, 12, generator())
    designs = [pick.design for pick in plate.candidates]
    assert len(set(designs)) == 12
    assert not set(designs) & history.known
    assert plate == MAKERS[name]()(history, 12, generator())
    assert designs != [pick.design for pick in MAKERS[name]()(history, 12, generator(1)).candidates]
    value = [design.count("G") / 6 for design in designs]
    assert sum(value) / 12 > 0.4, "p_pre draws 0.25"
    assert all(abs(pick.mean - v) < 0.25 and pick.std >= 0 for pick, v in zip(plate.candidates, value, strict=True))
    assert plate.model == name


@pytest.mark.parametrize("name", MAKERS)
def test_without_two_values_a_plate_is_drawn_from_p_pre(name: str) -> None:
    for history in (known(0), known(1), known(0, failed=9)):
        plate = MAKERS[name]()(history, 5, generator())
        assert len(plate.candidates) == 5
        assert plate.model == name
        assert {pick.reason for pick in plate.candidates} == {"drawn from p_pre"}


@pytest.mark.parametrize("name", MAKERS)
def test_a_whole_campaign_ends_when_all_designs_are_known(name: str, tmp_path: Path) -> None:
    """64 designs in all: the last plate is short, and none is proposed twice."""
    codec = TokenCodec("ACGT", 3)
    policy = markov_prior(codec, torch.cartesian_prod(*[torch.arange(4)] * 3))
    settings = AdaLead(learner=Linear()) if name == "genetic" else BatchBO(drawn=40, mutants=40, learner=Linear())
    make = Genetic if name == "genetic" else PooledBO
    campaign = Campaign.create(tmp_path, CampaignSettings(name="lab", task="none", batch=20, budget=60))
    for _ in range(3):
        plate = campaign.propose(proposer=make(policy, tmp_path, settings))
        campaign.record([{"id": d.id, "value": d.design.count("G") + 0.1 * d.design.count("C")} for d in plate])
    designs = [design.design for design in campaign.history().designs]
    assert len(designs) == len(set(designs)) == 60
    assert "GGG" in designs


def test_designs_that_are_no_letters_are_refused() -> None:
    policy = markov_prior(CODEC, EVERY[:50])
    policy.codec = SimplexCodec("ACGT", 6)
    with pytest.raises(UnsupportedError, match="expected a model of letters"):
        Genetic(policy, Path())


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [(AdaLead, {"threshold": -0.1}), (AdaLead, {"recombination": 1.5}), (AdaLead, {"mutations": 0.0}),
     (AdaLead, {"queries": 0}), (BatchBO, {"beta": -1.0}), (BatchBO, {"draws": 1}), (BatchBO, {"parents": 0})],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: type, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="correct them"):
        settings(**wrong)


def test_a_mutant_differs_in_as_many_letters_as_expected_each_uniform_among_the_others() -> None:
    """H0: letters change with chance 1/2 (L = 6, expected 3); Hoeffding at 1e-7; twin: with chance 1/3 (expected 2)."""
    tokens = EVERY[torch.randint(len(EVERY), (20_000,), generator=generator())]
    bar = math.sqrt(math.log(2e7) / (2 * tokens.numel())) + 0.5**6 / 6  # those left alone change one letter

    def far(expected: float) -> bool:
        changed = mutate(tokens, 4, expected, generator(1)) != tokens
        return abs(changed.double().mean().item() - 0.5) > bar

    assert not far(3.0)
    assert far(2.0)
    mutants = mutate(tokens, 4, 0.01, generator(2))
    distance = (mutants != tokens).sum(1)
    assert distance.min() == 1, "a mutant is never its parent"
    assert distance.double().mean() < 1.05
    shift = ((mutants - tokens) % 4)[mutants != tokens]
    share = torch.bincount(shift, minlength=4)[1:] / len(shift)
    assert (share - 1 / 3).abs().max() < math.sqrt(math.log(2e7) / (2 * len(shift)))


def test_a_child_has_each_letter_from_a_parent_and_crosses_as_often_as_said() -> None:
    """H0: 0.2 crossings before each letter but the first; Hoeffding at 1e-7; twin: 0.3."""
    first, second = torch.zeros(20_000, 6, dtype=torch.long), torch.ones(20_000, 6, dtype=torch.long)

    def crossings(rate: float) -> torch.Tensor:
        child = recombine(first, second, rate, generator())
        assert (child[:, 0] == 0).all()
        return (child[:, 1:] != child[:, :-1]).double().mean()

    bar = math.sqrt(math.log(2e7) / (2 * 100_000))
    assert abs(crossings(0.2) - 0.2) < bar < abs(crossings(0.3) - 0.2)
    assert torch.equal(recombine(first, second, 0.0, generator()), first)


class Counting:
    """A surrogate that says the share of G, and counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.rounds: list[list[str]] = []

    def predict(self, designs: list[str]) -> Prediction:
        self.asked += len(designs)
        self.rounds.append(designs)
        mean = torch.tensor([design.count("G") / 6 for design in designs], dtype=torch.float64)
        return Prediction(mean, torch.zeros_like(mean))


def test_rollouts_go_on_while_the_mean_does_not_fall_and_end_with_the_queries() -> None:
    surrogate, settings, rules = Counting(), AdaLead(queries=10), Rules(Constraints(), POLICY)
    parents = CODEC.encode(["GGAAAA", "AAGGAA"])
    found = search(parents, surrogate.predict, CODEC, 20, settings, generator(), Sieve(rules, frozenset()))
    assert 200 <= surrogate.asked < 200 + 20
    assert found.keys() == set(itertools.chain(*surrogate.rounds))
    children, *steps = surrogate.rounds[:3]
    assert len(children) == 20
    assert len(steps[0]) == 20
    fell = [a.count("G") > b.count("G") for a, b in zip(children, steps[0], strict=True)]
    assert len(steps[1]) == 20 - sum(fell) < 20
    again = search(parents, Counting().predict, CODEC, 20, settings, generator(), Sieve(rules, frozenset(found)))
    assert not again.keys() & found.keys()


def test_parents_are_those_near_the_best_also_below_zero() -> None:
    seen: list[int] = []

    class Spy(Linear):
        def fit(self, codec: TokenCodec, measurements: Measurements, rng: torch.Generator) -> object:
            seen.append(len(measurements.designs))
            return super().fit(codec, measurements, rng)

    for values, parents in (([1.0, 0.96, 0.94, 0.0], 2), ([-1.0, -1.04, -1.06, -9.0], 2), ([0.0, -0.1, -0.2, -1.0], 1)):
        designs = tuple(
            Design(i, design, 1, "m", "A1", None, None, "", (Measurement(i, "1", v, None, None, "f", i, None, ""),))
            for i, (design, v) in enumerate(zip(("AAAAAA", "CCCCCC", "GGGGGG", "TTTTTT"), values, strict=True), start=1)
        )
        plate = Genetic(POLICY, Path(), AdaLead(learner=Spy()))(History(SETTINGS, designs=designs), 4, generator())
        assert plate.facts["parents"] == parents
    assert seen == [4, 4, 4]


def ucb_by_hand(draws: torch.Tensor, plate: list[int], beta: float) -> float:
    mean = draws.mean(0)
    upper = mean + math.sqrt(beta * math.pi / 2) * (draws - mean).abs()
    return upper[:, plate].max(1).values.mean().item()


def some_draws() -> torch.Tensor:
    factor = torch.randn(8, 8, generator=generator(), dtype=torch.float64)
    mean = torch.randn(8, generator=generator(1), dtype=torch.float64)
    return draw_joint(mean, factor @ factor.T / 8, 64, generator(2))


def test_the_value_of_a_plate_is_botorchs() -> None:
    pytest.importorskip("botorch")
    from botorch.acquisition import qUpperConfidenceBound
    from botorch.models import SingleTaskGP

    x = torch.rand(5, 1, dtype=torch.float64, generator=generator())
    model = SingleTaskGP(x, x.sin())
    draws = some_draws()
    for plate in ([3], [0, 5], [1, 2, 7]):
        theirs = qUpperConfidenceBound(model, beta=2.0)
        value = theirs._sample_forward(draws[:, None, plate]).max(-1).values.mean().item()  # samples x batch x q
        assert value == pytest.approx(ucb_by_hand(draws, plate, 2.0))


def test_plates_are_greedy_and_within_the_bound_of_the_best() -> None:
    draws = some_draws()
    chosen = greedy_ucb(draws, 3, beta=2.0).tolist()
    for size in range(3):
        left = [i for i in range(8) if i not in chosen[:size]]
        gains = {i: ucb_by_hand(draws, [*chosen[:size], i], 2.0) for i in left}
        assert chosen[size] == max(gains, key=gains.__getitem__)
    base = draws.min().item()  # the bound is of what is gained over nothing
    best = max(ucb_by_hand(draws, list(plate), 2.0) for plate in itertools.combinations(range(8), 3))
    assert ucb_by_hand(draws, chosen, 2.0) - base >= (1 - 1 / math.e) * (best - base)
    assert sorted(greedy_ucb(draws, 20, beta=2.0).tolist()) == list(range(8))


def test_a_twin_is_not_picked_and_beta_0_is_the_mean() -> None:
    """Of two designs that are one to the posterior, the second adds nothing."""
    draws = some_draws()
    doubled = torch.cat([draws, draws[:, :1] + 5, draws[:, :1] + 5], dim=1)
    assert greedy_ucb(doubled, 2, beta=0.5)[0] == 8
    assert ucb_by_hand(doubled, [8, 9], 0.5) == ucb_by_hand(doubled, [8], 0.5)
    assert greedy_ucb(draws, 1, beta=0.0).item() == draws.mean(0).argmax().item()


def test_joint_draws_have_the_mean_and_covariance_also_where_it_is_singular() -> None:
    """H0: mean and covariance as asked; 40,000 draws, 7 standard errors (1e-10 an entry); twin: covariance doubled."""
    factor = torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    mean, covariance = torch.arange(4.0, dtype=torch.float64), factor @ factor.T

    def far(asked: torch.Tensor) -> bool:
        draws = draw_joint(mean, asked, 40_000, generator(1))
        scale = covariance.diagonal()
        shift = (draws.mean(0) - mean).abs() / (scale / 40_000).sqrt()
        spread = (draws.T.cov() - covariance).abs() / ((scale[:, None] * scale + covariance**2) / 40_000).sqrt()
        return bool(shift.max() > 7 or spread.max() > 7)

    assert not far(covariance)
    assert far(2 * covariance)
