"""Pretrained laws fitted in closed form: their denoisers are their exact conditionals."""

from __future__ import annotations

import itertools

import pytest
import torch

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states
from difftilt.problems import markov
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.problems.joint import JointDenoiser
from difftilt.problems.markov import MarkovDenoiser, markov_law, markov_prior

LETTERS, LENGTH = 3, 5
CODEC = TokenCodec("ACG", LENGTH)
EVERY = torch.cartesian_prod(*[torch.arange(LETTERS)] * LENGTH)


def seen(n: int = 40) -> torch.Tensor:
    tokens = torch.randint(LETTERS, (n, LENGTH), generator=torch.Generator().manual_seed(3))
    tokens[:, 1] = tokens[:, 0]
    return tokens[tokens[:, 2] != 1]


def homogeneous(tokens: torch.Tensor) -> torch.Tensor:
    """Equation (1) with one step matrix, design by design."""
    first, step = torch.full((LETTERS,), 0.5), torch.full((LETTERS, LETTERS), 0.5)
    for row in tokens.tolist():
        first[row[0]] += 1
        for a, b in itertools.pairwise(row):
            step[a, b] += 1
    first, step = first.double() / first.sum(), step.double() / step.double().sum(1, keepdim=True)
    law = first[EVERY[:, 0]]
    for i in range(LENGTH - 1):
        law = law * step[EVERY[:, i], EVERY[:, i + 1]]
    return law


def test_a_small_space_gets_the_law_itself() -> None:
    policy = markov_prior(CODEC, seen())
    assert isinstance(policy.denoiser, JointDenoiser)
    law = EnumeratedChain(policy).marginal(policy)
    assert (law - markov_law(seen(), EVERY, vocabulary=LETTERS)).abs().max() < 1e-12
    assert (policy.denoiser.law().flatten() - law).abs().max() < 1e-12
    assert law.min() > 0


def test_a_large_space_gets_exact_conditionals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markov, "MOST_STATES", 0)
    policy = markov_prior(CODEC, seen())
    assert isinstance(policy.denoiser, MarkovDenoiser)
    assert (EnumeratedChain(policy).marginal(policy) - homogeneous(seen())).abs().max() < 1e-7


def test_its_conditionals_are_those_of_the_law_in_every_partial_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markov, "MOST_STATES", 0)
    chain = EnumeratedChain(markov_prior(CODEC, seen()))
    ours = markov_prior(CODEC, seen()).denoiser(chain.states, torch.ones(len(chain.states))).log_softmax(-1)
    theirs = JointDenoiser.of(homogeneous(seen()).view([LETTERS] * LENGTH))
    exact = theirs(chain.states, torch.ones(len(chain.states))).log_softmax(-1)
    masked = chain.states == LETTERS
    assert (ours - exact)[masked].abs().max() < 1e-5


def test_a_long_design_keeps_its_numbers(tmp_path) -> None:
    """Messages of 200 positions do not underflow, and a saved model is the same."""
    tokens = torch.randint(20, (30, 200), generator=torch.Generator().manual_seed(0))
    policy = markov_prior(TokenCodec("ACDEFGHIKLMNPQRSTVWY", 200), tokens)
    x_t = torch.full((2, 200), 20)
    x_t[1, 0], x_t[1, 199] = 3, 7
    logits = policy.denoiser(x_t, torch.ones(2))
    assert logits.isfinite().all()
    policy.save_pretrained(tmp_path)
    assert torch.equal(Policy.from_pretrained(str(tmp_path)).denoiser(x_t, torch.ones(2)), logits)
    assert sample_states(policy, 2, torch.Generator().manual_seed(0)).max() < 20
