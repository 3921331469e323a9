"""Defects of public reference code (theory, section 6) that touch us and are not tested beside the part they concern.

Elsewhere: 1, 2, 4 in ``exact/test_algorithm_laws.py``; 5 in ``test_masked_numerics.py``; 6 in ``unit/test_rewards.py``;
8 in ``unit/test_pretrain.py`` and ``unit/test_regress.py``; 10 in ``unit/test_reward_backprop.py``; 12 in
``exact/test_gap.py``; 13 as a law in ``statistical/test_masked_sampling.py``; 15 in ``unit/test_tasks.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from difftilt import build
from difftilt.core.algorithm import Anchor
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.trajectory import rollout, sample_states
from difftilt.errors import ShapeError
from difftilt.processes.masked import Masked
from difftilt.samplers.best_of_n import BestOfN
from difftilt.training.evaluate import draw

LENGTH, LETTERS = 6, "ACGTEF"


class Counter(nn.Module):
    """Says, with certainty, the letter whose number is the number of positions already shown.

    A sampled design then holds every letter once; the argmax of the last call is one letter six times.
    """

    time_free = True

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(200.0))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        hard = x_t if x_t.ndim == 2 else x_t.argmax(-1)
        shown = (hard != len(LETTERS)).sum(-1)
        return self.scale * nn.functional.one_hot(shown, LENGTH + 1)[:, None, :LENGTH].float().expand(-1, LENGTH, -1)


class Flat:
    """A reward that prefers nothing."""

    def __call__(self, designs: list[str]) -> torch.Tensor:
        return torch.zeros(len(designs))

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return p.sum((1, 2))


def counter() -> Policy:
    return Policy(Counter(), Masked(len(LETTERS)), TokenCodec(LETTERS, LENGTH), (LENGTH,), steps=LENGTH)


def holds_every_letter_once(designs: list[str]) -> bool:
    return all(sorted(design) == sorted(LETTERS) for design in designs)


def test_what_is_returned_is_the_sampled_state_everywhere(rng: torch.Generator) -> None:
    """Defect 13: a sampler that returns the argmax of the last network call (the twin gives one letter six times)."""
    policy = counter()
    decode = policy.codec.decode
    states = sample_states(policy, 20, rng)
    last = policy.denoiser(rollout(policy, 20, rng).states[-2], torch.ones(20)).argmax(-1)
    assert not holds_every_letter_once(decode(last))
    assert holds_every_letter_once(decode(states))
    assert len(set(decode(states))) > 10, "in random order"
    assert holds_every_letter_once(policy.sample(20))
    assert holds_every_letter_once(decode(BestOfN(candidates=3)(policy, Flat(), 5, rng).x_0))
    assert holds_every_letter_once(draw(policy, policy, Flat(), None, 20, rng).designs)
    path = rollout(policy, 20, rng)
    assert torch.equal(path.x_0, path.states[-1])
    for before, after in zip(path.states[:-1], path.states[1:], strict=True):
        shown = before != len(LETTERS)
        assert torch.equal(before[shown], after[shown]), "a shown token changed"


@pytest.mark.parametrize("name", [name for name in build.ALGORITHMS if name != "adjoint_matching"])  # no tokens
def test_the_designs_an_algorithm_reports_are_the_sampled_ones(name: str, rng: torch.Generator) -> None:
    """Defect 13 once more: also the straight-through draw is the sampled token, not the network's favourite."""
    policy = counter()
    algorithm = build.algorithm(name)(batch=10, learning_rate=1e-6)
    state = algorithm.init(policy, [Anchor(policy.frozen_copy(), 0.1)])
    algorithm.step(state, Flat(), rng)
    assert holds_every_letter_once(policy.codec.decode(state.x_0))


@pytest.mark.parametrize("reveal", ["count", "independent"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 7, 13, 100])
def test_a_finished_design_has_a_letter_in_every_position(reveal: str, steps: int, rng: torch.Generator) -> None:
    """Defect 14: a threshold that leaves positions empty. Whatever K, and however sure the network is of nothing."""

    class Unsure(Counter):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
            return 0 * super().forward(x_t, t, cond)

    policy = Policy(
        Unsure(), Masked(len(LETTERS), reveal), TokenCodec(LETTERS, LENGTH), (LENGTH,), steps=steps
    )  # fmt: skip
    x_0 = sample_states(policy, 200, rng)
    assert x_0.min() >= 0
    assert x_0.max() < len(LETTERS)
    assert all(len(design) == LENGTH and set(design) <= set(LETTERS) for design in policy.codec.decode(x_0))
    tau = 0.7
    x = policy.prior(50, rng)
    for k in range(steps):
        x = policy.step(x, policy.grid[k], policy.grid[k + 1]).relax(rng, tau=tau)
    assert torch.equal(x[..., :-1].sum(-1), torch.ones(50, LENGTH)), "a relaxed design has an empty position"


def test_an_unfinished_state_is_no_design() -> None:
    """Defect 14: it is refused, and not decoded to a shorter string or to a default letter."""
    with pytest.raises(ShapeError, match="decode only states at t = 0"):
        counter().codec.decode(torch.tensor([[0, 1, 2, 3, 4, len(LETTERS)]]))
