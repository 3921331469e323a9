"""The masked process against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from difftilt.problems.landscapes import TabularDenoiser
from difftilt.processes.masked import Masked, MaskedStep

LAWS = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.7, 0.3]], dtype=torch.float64)
OTHER = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.1, 0.9]], dtype=torch.float64)
MASK = 2


def step(laws: torch.Tensor, x_t: list[int], keep: float, reveal: str) -> MaskedStep:
    """One state; the logits carry an arbitrary constant per position, which must not matter."""
    logits = laws.log() + torch.tensor([[3.0], [-1.0], [0.5]], dtype=torch.float64)
    return MaskedStep(logits[None], torch.tensor([x_t]), torch.tensor(keep, dtype=torch.float64), reveal)


def log_prob(law: MaskedStep, x_s: list[int]) -> float:
    return law.log_prob(torch.tensor([x_s])).item()


def test_count_log_prob_by_hand():
    law = step(LAWS, [MASK, MASK, MASK], 1 / 3, "count")  # shows 2 of 3
    assert log_prob(law, [1, MASK, 0]) == pytest.approx(math.log(0.8 * 0.7 / 3))
    assert log_prob(law, [1, MASK, MASK]) == -math.inf
    assert log_prob(law, [1, 0, 0]) == -math.inf
    law = step(LAWS, [MASK, 1, MASK], 0.5, "count")  # shows 1 of 2
    assert log_prob(law, [0, 1, MASK]) == pytest.approx(math.log(0.2 / 2))
    assert log_prob(law, [0, 0, MASK]) == -math.inf
    assert log_prob(law, [0, MASK, MASK]) == -math.inf


def test_independent_log_prob_by_hand():
    law = step(LAWS, [MASK, MASK, MASK], 0.4, "independent")
    assert log_prob(law, [1, MASK, 0]) == pytest.approx(math.log(0.4 * 0.6**2 * 0.8 * 0.7))
    assert log_prob(law, [MASK, MASK, MASK]) == pytest.approx(math.log(0.4**3))
    last = step(LAWS, [MASK, 0, MASK], 0.0, "independent")
    assert log_prob(last, [1, 0, 1]) == pytest.approx(math.log(0.8 * 0.3))
    assert log_prob(last, [1, 0, MASK]) == -math.inf


def test_a_step_from_a_finished_state_is_certain():
    for reveal in ("count", "independent"):
        law = step(LAWS, [0, 1, 1], 0.5, reveal)
        assert log_prob(law, [0, 1, 1]) == 0
        assert law.sample(torch.Generator()).tolist() == [[0, 1, 1]]
        assert law.kl(step(OTHER, [0, 1, 1], 0.5, reveal)).item() == 0


def test_kl_by_hand_and_not_zero_on_hard_steps():
    first = 0.2 * math.log(0.2 / 0.6) + 0.8 * math.log(0.8 / 0.4)
    third = 0.7 * math.log(0.7 / 0.1) + 0.3 * math.log(0.3 / 0.9)
    for reveal, keep, x_t, expected in (
        ("independent", 0.4, [MASK, MASK, MASK], 0.6 * (first + third)),
        ("independent", 0.4, [MASK, 0, 1], 0.6 * first),
        ("count", 1 / 3, [MASK, MASK, MASK], 2 / 3 * (first + third)),
        ("count", 0.5, [1, MASK, MASK], 0.5 * third),
        ("count", 0.9, [MASK, MASK, MASK], 0.0),  # 2.7 stay: 3, nothing is shown
    ):
        kl = step(LAWS, x_t, keep, reveal).kl(step(OTHER, x_t, keep, reveal)).item()
        assert kl == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_corrupt_masks_each_token_with_probability_t(t, rng):
    """H0: a binomial share; |z| < 4.9 fails once in 10^6, and a process at t + 0.01 would fail."""
    x_0 = torch.randint(0, 4, (20_000, 10), generator=rng)
    x_t = Masked(4).corrupt(x_0, torch.full((20_000,), t, dtype=torch.float64), rng)
    masked = x_t == 4
    assert torch.equal(x_t[~masked], x_0[~masked])
    deviation, error = (masked.double().mean() - t).item(), (t * (1 - t) / masked.numel()) ** 0.5
    assert abs(deviation) <= 4.9 * error
    assert abs(deviation + 0.01) > 4.9 * error


def test_corrupt_takes_a_time_for_each_row(rng):
    x_t = Masked(4).corrupt(torch.zeros(2, 50, dtype=torch.long), torch.tensor([0.0, 1.0]), rng)
    assert x_t[0].eq(0).all()
    assert x_t[1].eq(4).all()


def test_the_denoising_loss_is_the_likelihood_in_mean_for_consistent_laws():
    r"""Its mean over ``t ~ U(0, 1)`` is the random-order likelihood: :math:`-\log p(x_0)` when orders agree.

    A set of ``m`` of ``L`` tokens is masked with probability :math:`t^m (1 - t)^{L - m}`, integrated here exactly.
    """
    length, process = 3, Masked(2)
    joint = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint /= joint.sum()
    denoiser = TabularDenoiser.from_joint(joint)
    x_0 = torch.tensor([[1, 0, 1]])
    mean = 0.0
    for pattern in itertools.product([False, True], repeat=length):
        masked, m = torch.tensor([pattern]), sum(pattern)
        if m:
            t = torch.tensor([0.37], dtype=torch.float64)
            loss = process.denoising_loss(denoiser(x_0.where(~masked, 2), t), x_0, x_0.where(~masked, 2), t)
            mean += loss.item() * 0.37 * math.gamma(m) * math.gamma(length - m + 1) / math.gamma(length + 1)
    assert mean == pytest.approx(-math.log(joint[1, 0, 1]), abs=1e-12)


def test_clamp_shows_the_fixed_tokens(rng):
    process = Masked(4)
    x_1 = process.clamp(process.prior((2, 3), rng), torch.tensor([-1, 0, 3]))
    assert x_1.tolist() == [[4, 0, 3]] * 2
    assert process.prior((2, 3), rng).tolist() == [[4, 4, 4]] * 2


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_the_relaxed_gradient_is_that_of_the_tempered_softmax(tau):
    """The same stream gives the same Gumbel noise; backward is d softmax((logits + G) / tau), forward its argmax."""
    logits = LAWS.log()[None].requires_grad_(True)
    law = MaskedStep(logits, torch.full((1, 3), MASK), torch.zeros((), dtype=torch.float64), "independent")
    direction = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 1.0]], dtype=torch.float64)
    relaxed = law.relax(torch.Generator().manual_seed(5), tau=tau)
    (gradient,) = torch.autograd.grad((relaxed[0, :, :2] * direction).sum(), logits)
    stream = torch.Generator().manual_seed(5)
    torch.rand(1, 3, generator=stream, dtype=torch.float64)  # the positions
    gumbel = -torch.log(-torch.log(torch.rand(3, 2, generator=stream, dtype=torch.float64)))
    soft = ((logits[0] + gumbel) / tau).softmax(-1)
    assert torch.equal(relaxed[0].argmax(-1), soft.argmax(-1))
    (expected,) = torch.autograd.grad((soft * direction).sum(), logits)
    torch.testing.assert_close(gradient, expected)
