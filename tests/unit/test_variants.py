"""Networks for variants of a wild type, the limit on mutations, and its reward."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from difftilt.core.codec import TokenCodec, VectorCodec
from difftilt.core.policy import Policy
from difftilt.core.reward import DifferentiableReward
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, DataError, UnsupportedError
from difftilt.networks.near import NearDenoiser, near, varying
from difftilt.networks.variants import StabilityRegressor, VariantDenoiser, VariantRegressor, site_frequencies
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.processes.flow import Flow
from difftilt.processes.masked import Masked
from difftilt.rewards.near import Near
from difftilt.rng import seeded_initialisation
from difftilt.training.pretrain import denoising_bounds

LETTERS, LENGTH = "ACDE", 5
CODEC = TokenCodec(LETTERS, LENGTH)
WILD_TYPE = "ACDEA"
TOKENS = CODEC.encode([WILD_TYPE])[0]


def denoiser(seed: int = 0, **settings) -> VariantDenoiser:
    """With random numbers in every part, so that nothing is silent."""
    with seeded_initialisation(seed):
        made = VariantDenoiser(len(LETTERS), LENGTH, TOKENS.tolist(), width=8, **settings).eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return made


def policy(steps: int = LENGTH, **settings) -> Policy:
    return Policy(denoiser(**settings), Masked(len(LETTERS)), CODEC, (LENGTH,), steps=steps).eval()


def states(n: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randint(len(LETTERS) + 1, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


def test_at_the_start_the_denoiser_is_the_site_independent_law():
    with seeded_initialisation(0):
        fresh = VariantDenoiser(len(LETTERS), LENGTH, TOKENS.tolist())
    law = site_frequencies(CODEC.encode(["ACDEA", "ACDEA", "CCDEA"]), 4, pseudocount=0.5)
    assert torch.allclose(law.sum(1), torch.ones(LENGTH, dtype=torch.float64))
    assert law[0].tolist() == pytest.approx([0.5, 0.3, 0.1, 0.1])
    logits = fresh.eval().start_from(law)(states(), torch.ones(64))
    assert torch.allclose(logits.softmax(-1), law.float().expand(64, -1, -1), atol=1e-6)


def variant_law(rates: torch.Tensor, shares: torch.Tensor) -> tuple[Policy, torch.Tensor]:
    """A silent denoiser with given mutation rates, and its designs' law (1), by enumeration."""
    law = torch.full((LENGTH, 4), 0.0, dtype=torch.float64)
    law += rates[:, None] / 3
    law[torch.arange(LENGTH), TOKENS] = 1 - rates
    with seeded_initialisation(0):
        network = VariantDenoiser(4, LENGTH, TOKENS.tolist(), width=8).eval().start_from(law, shares)
    made = Policy(network, Masked(4), CODEC, (LENGTH,), steps=LENGTH)
    return made, law


def test_the_number_of_mutations_has_the_law_it_is_given():
    rates = torch.tensor([0.004, 0.002, 0.006, 0.001, 0.003], dtype=torch.float64)
    shares = torch.tensor([0.3, 0.6, 0.1], dtype=torch.float64)
    made, frequencies = variant_law(rates, shares)
    probability, distance = law(made), distances(made)
    mutated = torch.stack([probability[distance == n].sum() for n in range(LENGTH + 1)])
    assert mutated.tolist() == pytest.approx([0.3, 0.6, 0.1, 0, 0, 0], abs=0.03)  # five sites are few for Poisson
    number, rate = torch.arange(3, dtype=torch.float64), rates.sum()
    count = torch.zeros(LENGTH + 1, dtype=torch.float64)
    count[:3] = shares / (number * rate.log() - rate - torch.lgamma(number + 1)).exp()
    exact = count[distance] * frequencies.gather(1, EnumeratedChain(made).designs.T).prod(0)
    assert (probability - exact / exact.sum()).abs().sum() < 0.03


def test_without_shares_the_number_is_that_of_independent_sites():
    """The known-bad twin: the same sites without the law of the number."""
    rates = torch.tensor([0.004, 0.002, 0.006, 0.001, 0.003], dtype=torch.float64)
    made, frequencies = variant_law(rates, torch.tensor([0.3, 0.6, 0.1]))
    assert isinstance(made.denoiser, VariantDenoiser)
    made.denoiser.start_from(frequencies)
    probability, distance = law(made), distances(made)
    assert probability[distance == 0].sum().item() == pytest.approx((1 - rates).prod().item(), abs=1e-6)


@pytest.mark.parametrize("limited", [False, True])
def test_one_hot_relaxed_tokens_give_the_logits_of_their_tokens(limited):
    network = NearDenoiser(denoiser(), TOKENS.tolist(), 2) if limited else denoiser()
    x = states()
    relaxed = F.one_hot(x, len(LETTERS) + 1).float()
    assert torch.allclose(network(x, torch.ones(64)), network(relaxed, torch.ones(64)), atol=1e-5)


@pytest.mark.parametrize("kind", [VariantRegressor, StabilityRegressor])
def test_regressors_read_relaxed_designs_with_a_gradient(kind):
    with seeded_initialisation(0):
        regressor = kind(len(LETTERS), LENGTH, TOKENS.tolist()).eval()
        for parameter in regressor.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    x = states() % len(LETTERS)
    relaxed = F.one_hot(x, len(LETTERS)).float().requires_grad_()
    assert torch.allclose(regressor(x), regressor(relaxed), atol=1e-5)
    regressor(relaxed).sum().backward()
    assert relaxed.grad is not None
    assert relaxed.grad.abs().sum() > 0


def test_stability_adds_single_effects_and_products_of_pairs():
    regressor = StabilityRegressor(len(LETTERS), LENGTH, TOKENS.tolist(), rank=1)
    with torch.no_grad():
        regressor.table.zero_()
        regressor.table[0, 1] = torch.tensor([-1.0, 0.5, 2.0])  # A1C
        regressor.table[4, 3] = torch.tensor([-0.5, 0.25, 0.5])  # A5E
        regressor.start.copy_(torch.tensor([1.0, 2.0, -1.0]))
    value = regressor(CODEC.encode([WILD_TYPE, "CCDEA", "CCDEE"]))
    share = torch.tensor([1.0, 0.0, 1.0 - 1.5 + 2.0 * 0.5]).sigmoid()
    assert torch.allclose(value, -1 + torch.tensor([2.0, 2.5, 2.75]) * share, atol=1e-6)


def test_the_sum_reads_nothing_of_the_wild_type_and_adds_up_over_sites():
    read = denoiser().read
    single = [CODEC.encode([design]) for design in ("CCDEA", "ACDEC", "CCDEC", WILD_TYPE)]
    table = read.table - read.table[torch.arange(LENGTH), TOKENS][:, None]
    first, second, both, none = (table[torch.arange(LENGTH), x[0]].sum(0) for x in single)
    assert torch.allclose(first + second, both, atol=1e-6)
    assert (none == 0).all()


def test_a_wild_type_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="wild type of 5 letters; got 2"):
        VariantDenoiser(4, 5, [0, 1])


def test_a_policy_with_a_limit_comes_back_from_its_folder(tmp_path):
    limited = near(policy(), WILD_TYPE, 2)
    limited.save_pretrained(tmp_path)
    loaded = Policy.from_pretrained(str(tmp_path))
    x, t = states(), torch.ones(64)
    assert torch.equal(limited.denoiser(x, t), loaded.denoiser(x, t))
    assert loaded.sample(32, seed=1) == limited.sample(32, seed=1)


# --- the limit -------------------------------------------------------------------------------------------------------


def law(chain_of: Policy) -> torch.Tensor:
    return EnumeratedChain(chain_of).marginal(chain_of)


def distances(chain_of: Policy) -> torch.Tensor:
    return (EnumeratedChain(chain_of).designs != TOKENS).sum(1)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_one_letter_a_step_keeps_the_limit_and_gives_every_design_within_it_a_chance(most):
    limited = near(policy(), WILD_TYPE, most)
    probability, distance = law(limited), distances(limited)
    assert probability.sum().item() == pytest.approx(1)
    assert (probability[distance > most] == 0).all()
    assert (probability[distance <= most] > 0).all()


def test_a_limit_that_excludes_nothing_changes_nothing():
    assert torch.allclose(law(near(policy(), WILD_TYPE, LENGTH)), law(policy()), atol=1e-12)


def test_several_letters_a_step_can_pass_the_limit_and_those_designs_have_no_reward():
    """The known-bad twin of the test above: in two steps the limit is not exact, and the reward says so."""
    limited = near(policy(steps=2), WILD_TYPE, 1)
    probability, distance = law(limited), distances(limited)
    assert probability[distance > 1].sum() > 0.01
    reward = Near(lambda designs: [1.0] * len(designs), WILD_TYPE, 1)
    value = reward(CODEC.decode(EnumeratedChain(limited).designs))
    assert torch.equal(value.isnan(), distance > 1)


def test_kl_between_limited_chains_is_finite_and_that_of_the_enumerated_law():
    mine, theirs = near(policy(seed=1), WILD_TYPE, 2), near(policy(), WILD_TYPE, 2)
    chain = EnumeratedChain(mine)
    kl = chain.path_kl(mine, theirs).item()
    p, q = law(mine), law(theirs)
    marginal = (p * (p / q).log()).nansum().item()
    assert math.isfinite(kl)
    assert kl >= marginal - 1e-9 > 0


def test_gradients_of_a_limited_policy_are_finite():
    limited = near(policy(), WILD_TYPE, 1)
    x = sample_states(limited, 64, torch.Generator().manual_seed(0))
    x_t = x.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5, len(LETTERS))
    step = limited.step(x_t, torch.tensor(0.6), torch.tensor(0.4))
    x_s = step.sample(torch.Generator().manual_seed(2))
    (
        step.log_prob(x_s).sum()
        + step.kl(near(policy(seed=1), WILD_TYPE, 1).step(x_t, torch.tensor(0.6), torch.tensor(0.4))).sum()
    ).backward()
    grads = [parameter.grad for parameter in limited.parameters() if parameter.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def test_the_bound_of_a_design_at_the_limit_is_finite():
    limited = near(policy(), WILD_TYPE, 2)
    x_0 = CODEC.encode(["CADEA", "CCDEE", "DADEA"])
    bounds = denoising_bounds(limited.denoiser, limited.process, x_0, torch.Generator().manual_seed(0), draws=64)
    assert bounds.isfinite().all()
    exact = -law(limited)[(x_0[:, None] == EnumeratedChain(limited).designs).all(-1).long().argmax(1)].log()
    assert (bounds > exact - 1.5).all()  # a bound from above, but for the noise of 64 draws


def test_a_limit_is_replaced_and_taken_away():
    limited = near(near(policy(), WILD_TYPE, 1), WILD_TYPE, 3)
    assert isinstance(limited.denoiser, NearDenoiser)
    assert isinstance(limited.denoiser.base, VariantDenoiser)
    assert isinstance(near(limited, WILD_TYPE, None).denoiser, VariantDenoiser)


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="at least one mutation; got 0"):
        near(policy(), WILD_TYPE, 0)
    with pytest.raises(DataError, match="5 letters; got 3"):
        near(policy(), "ACD", 2)
    held = policy().holding(CODEC.encode(["CAAAA"])[0].where(torch.tensor([True, True, True, False, False]), -1))
    with pytest.raises(ConfigError, match="got 3 among the letters held fixed"):
        near(held, WILD_TYPE, 2)
    vectors = Policy(torch.nn.Identity(), Flow(sigma_min=0.1), VectorCodec(), (2,))
    with pytest.raises(UnsupportedError, match="Flow"):
        near(vectors, WILD_TYPE, 2)


def test_only_the_named_sites_vary():
    some = varying(policy(), WILD_TYPE, [2, 5])
    drawn = CODEC.encode(some.sample(200))
    changed = (drawn != TOKENS).any(0)
    assert changed.tolist() == [False, True, False, False, True]
    for sites, came in (([], "none"), ([0], "site 0"), ([2, 6], "site 6")):
        with pytest.raises(ConfigError, match=f"sites from 1 to 5; got {came}"):
            varying(policy(), WILD_TYPE, sites)


# --- its reward ------------------------------------------------------------------------------------------------------


def test_beyond_the_limit_there_is_no_reward_and_the_function_is_not_asked():
    asked: list[str] = []

    def scorer(designs: list[str]) -> list[float | None]:
        asked.extend(designs)
        return [None if design.endswith("E") else 2.0 for design in designs]

    reward = Near(scorer, WILD_TYPE, 2)
    value = reward([WILD_TYPE, "CCDEE", "CACAA", "CDDEA"])
    assert value[[0, 3]].tolist() == [2.0, 2.0]
    assert value[[1, 2]].isnan().all()
    assert reward.reasons == [None, "returned None", "4 mutations from the wild type, more than 2", None]
    assert asked == [WILD_TYPE, "CCDEE", "CDDEA"]


def test_a_reward_without_gradients_stays_without_and_one_with_keeps_them():
    plain = Near(lambda designs: [0.0] * len(designs), WILD_TYPE, 2)
    assert not isinstance(plain, DifferentiableReward)

    class Smooth:
        def __call__(self, designs):
            return torch.zeros(len(designs))

        def on_probabilities(self, p):
            return p.sum((1, 2))

    smooth = Near(Smooth(), WILD_TYPE, 2)
    assert isinstance(smooth, DifferentiableReward)
    assert smooth.on_probabilities(torch.ones(2, LENGTH, 4)).tolist() == [20.0, 20.0]


def test_designs_of_another_length_are_refused_with_both_lengths():
    with pytest.raises(DataError, match="5 letters, as the wild type has; got 4"):
        Near(lambda designs: designs, WILD_TYPE, 2)(["ACDE"])
