"""Numbers of the masked process that once were wrong, here or in public code; one test per bug."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.problems.landscapes import TabularDenoiser
from difftilt.processes.masked import Masked, MaskedStep

HALF = torch.tensor(0.5, dtype=torch.float64)
INF = math.inf


def step(logits: list, x_t: list[int], keep: torch.Tensor = HALF, reveal: str = "independent") -> MaskedStep:
    return MaskedStep(torch.tensor([logits], dtype=torch.float64), torch.tensor([x_t]), keep, reveal)


# --- pitfall 31: float32 noise cuts the tails of the Gumbel race --------------------------------------------------


def wins(race, monkeypatch, *, dtype: torch.dtype) -> list[bool]:
    """Whether a letter 20 nats below the other wins when its uniform number is ``1 - 2^-j``, for ``j = 20..50``.

    The other letter's is 0.5. ``race`` draws both with ``torch.rand``, in whatever precision it asks for.
    """
    j = torch.arange(20, 51, dtype=torch.float64)
    uniform = torch.stack([torch.full_like(j, 0.5), 1 - 2.0**-j], -1)

    def rand(shape, *, generator=None, device=None, dtype=torch.float32):
        return (torch.full(shape, 0.5, dtype=dtype) if shape[-1] == 1 else uniform.to(dtype)).reshape(shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", rand)
        return race(torch.tensor([[0.0, -20.0]], dtype=dtype).expand(len(j), -1)[:, None])


def exact_wins() -> list[bool]:
    """It wins iff -log(-log u) - 20 > -log(-log 0.5), i.e. 1 - u < e^-20 log 2 up to the square of that."""
    return [2.0**-j < math.exp(-20) * math.log(2) for j in range(20, 51)]


def test_the_gumbel_race_is_exact_far_in_the_tail(monkeypatch):
    def sample(logits):
        x_t = torch.full(logits.shape[:2], 2)
        return (
            MaskedStep(logits, x_t, torch.zeros((), dtype=torch.float64), "independent")
            .sample(torch.Generator())[:, 0]
            .bool()
        )

    assert wins(sample, monkeypatch, dtype=torch.float64).tolist() == exact_wins()
    assert wins(sample, monkeypatch, dtype=torch.float32).tolist() == exact_wins()  # float32 logits, as networks give


def test_the_relaxed_race_is_exact_far_in_the_tail(monkeypatch):
    def relax(logits):
        x_t = torch.full(logits.shape[:2], 2)
        law = MaskedStep(logits, x_t, torch.zeros((), dtype=torch.float64), "independent")
        return law.relax(torch.Generator(), tau=0.5)[:, 0, 1].bool()

    assert wins(relax, monkeypatch, dtype=torch.float32).tolist() == exact_wins()


def test_twin_a_float32_race_is_wrong_in_the_tail(monkeypatch):
    def race(logits):
        noise = torch.rand(logits.shape, dtype=torch.float32)
        return (logits.float() - torch.log(-torch.log(noise))).argmax(-1)[:, 0].bool()

    assert wins(race, monkeypatch, dtype=torch.float32).tolist() != exact_wins()


# --- theory.md section 6, defect 5 (pitfall 29): token KL on the positions where both policies agree --------------


def test_token_kl_is_taken_where_tokens_are_masked():
    """Two confident denoisers that disagree on masked tokens; the twin is what public code did.

    It lets both copy shown tokens and then weights by the copy flag, comparing what is equal by construction: 0.023
    nats reported, 6.22 true.
    """
    joint = torch.tensor([[0.98, 0.01], [0.005, 0.005]])
    policies = [
        Policy(
            TabularDenoiser.from_joint(j), Masked(2, "independent"), TokenCodec("AC", 2), (2,), steps=4
        ).frozen_copy()
        for j in (joint, joint.flip(0, 1))
    ]
    chain = EnumeratedChain(policies[0])
    laws = [chain.laws(policy) for policy in policies]
    occupancy = chain.occupancy(laws[0])

    def path_kl(kl_of_step) -> float:
        times = itertools.pairwise(policies[0].grid)
        steps = [[policy.step(chain.states, t, s) for policy in policies] for t, s in times]
        return sum((occupancy[k] * kl_of_step(*pair)).sum().item() for k, pair in enumerate(steps))

    def on_copied(mine: MaskedStep, theirs: MaskedStep) -> torch.Tensor:
        copied = torch.nn.functional.one_hot(mine.x_t, 3)[..., :2].double()
        p, q = (law.logits.softmax(-1).where(law.masked[..., None], copied) for law in (mine, theirs))
        return ((torch.xlogy(p, p) - torch.xlogy(p, q)) * ~mine.masked[..., None]).sum((1, 2))

    truth = 0.0
    for k in range(policies[0].steps):
        for block in chain.blocks(k):
            mine, theirs = block.log_prob(laws[0][k]), block.log_prob(laws[1][k])
            truth += (occupancy[k][block.index] * (mine.exp() * (mine - theirs)).sum(-1)).sum().item()
    assert truth > 5
    assert path_kl(lambda mine, theirs: mine.kl(theirs)) == pytest.approx(truth, abs=1e-12)
    assert path_kl(on_copied) < 0.01 * truth


# --- found in review ----------------------------------------------------------------------------------------------


def test_a_forbidden_first_letter_does_not_make_log_prob_nan():
    """-inf * 0 = NaN: letter 0 was read where nothing is shown."""
    law = step([[-INF, 0.0], [-INF, 0.0]], [2, 2])
    assert law.log_prob(torch.tensor([[2, 1]])).item() == pytest.approx(2 * math.log(0.5))
    assert law.log_prob(torch.tensor([[0, 1]])).item() == -INF


def test_kl_is_infinite_where_the_reference_forbids_a_letter():
    """It was 1.8e308, and NaN once such a position was shown."""
    free, bound = step([[0.0, 0.0], [0.0, 0.0]], [2, 2]), step([[-INF, 0.0], [0.0, 0.0]], [2, 2])
    assert free.kl(bound).item() == INF
    assert bound.kl(free).item() == pytest.approx(0.5 * math.log(2))
    assert bound.kl(bound).item() == 0
    shown = [step(logits, [0, 2]) for logits in ([[0.0, 0.0], [0.0, 0.0]], [[-INF, 0.0], [0.0, 0.0]])]
    assert shown[0].kl(shown[1]).item() == 0


def test_kl_gradient_is_finite_where_both_forbid_a_letter():
    logits = torch.tensor([[[-INF, 0.3, 0.1]]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[[-INF, -0.4, 0.2]]], dtype=torch.float64)
    x_t = torch.tensor([[3]])
    MaskedStep(logits, x_t, HALF, "count").kl(MaskedStep(other, x_t, HALF, "count")).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 1:].abs().min() > 0


def test_kl_of_a_diverged_network_is_not_zero():
    """NaN logits were read as 0 log 0, so that a broken policy looked free."""
    broken, sound = step([[math.nan, 0.0]], [2]), step([[0.0, 0.0]], [2])
    assert math.isnan(broken.kl(sound).item())
    assert math.isnan(sound.kl(broken).item())


def test_kl_of_count_reveals_is_float64():
    """Its reveal fraction was a quotient of integers, hence float32: 3e-8 off."""
    keep = torch.tensor(2 / 3, dtype=torch.float64)
    mine, theirs = (step([logits] * 3, [2] * 3, keep, "count") for logits in ([0.0, 0.0], [0.0, 1.0]))
    token = -math.log(2) - 0.5 * (-math.log1p(math.e) + 1 - math.log1p(math.e))
    assert mine.kl(theirs).item() == pytest.approx(token, rel=1e-14)


def test_relaxed_tokens_are_one_hot_to_the_last_bit():
    """The sum ``hard + soft - soft`` rounds; ``hard + (soft - soft)`` does not."""
    logits = torch.randn(500, 4, 5, generator=torch.Generator().manual_seed(0))
    law = MaskedStep(logits, torch.full((500, 4), 5), torch.zeros((), dtype=torch.float64), "count")
    assert set(law.relax(torch.Generator().manual_seed(0), tau=1.0).unique().tolist()) == {0.0, 1.0}


def test_casting_a_policy_leaves_its_times_alone():
    """to(bfloat16) rounded the grid, hence every reveal probability."""
    policy = Policy(TabularDenoiser(2, 3), Masked(2, "independent"), TokenCodec("AC", 3), (3,), steps=7)
    grid = policy.grid.clone()
    for cast in (policy.bfloat16, policy.half, policy.float):
        assert cast().grid.dtype == torch.float64
        assert torch.equal(policy.grid, grid)
    assert policy.denoiser.logits.dtype == torch.float32
