r"""TFBind8: every DNA 8-mer with a measured binding score, and a pretrained law that has seen the worse half.

Data law: a first-order Markov chain fitted to the designs whose score is at most the median, with half a count added
to each,

.. math:: p_{pre}(x) = \hat p(x^1) \prod_{i=1}^{L-1} \hat p_i(x^{i+1} \mid x^i)                             \qquad (1)

run one token per step, so that the chain's own law is (1) exactly (:mod:`~difftilt.problems.markov`). The scores are
as rough as measurements are: at alpha 0.1 a correction network of 256 hidden units that was *told* the optimum removed
86 % of :math:`KL(p_{pre} \| p^*)` (SIX6, 2,000 updates of 512 states), while free parameters for each design learn
nothing of designs not yet drawn (90 % after 500 updates of 1,024 with REINFORCE). The tables over windows share what
they learn and contain the tilted law, so that what a method misses is its own.

Nothing here reads a file: the scores are an argument.

References:
    Barrera et al. 2016 (the measurements), https://doi.org/10.1126/science.aad2257.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from difftilt.core.codec import TokenCodec
from difftilt.errors import DataError
from difftilt.problems.landscapes import TableReward
from difftilt.problems.markov import markov_prior
from difftilt.problems.tilted import TiltedProblem

LETTERS = "ACGT"


def tfbind(scores: Mapping[str, float], *, alpha: float = 0.1) -> TiltedProblem:
    """The problem of one factor: where both strands have one score throughout, so has the tilt.

    Args:
        scores: of every sequence of one length, in any order; the reward, higher binds better.
        alpha: KL temperature, reward units per nat.

    Raises:
        DataError: a sequence is missing.
    """
    length = len(next(iter(scores), ""))
    codec = TokenCodec(LETTERS, length)
    every = torch.cartesian_prod(*[torch.arange(len(LETTERS))] * length).view(-1, length)
    table = TableReward(scores)
    value = torch.tensor(table(codec.decode(every)), dtype=torch.float64)
    if value.isnan().any():
        raise DataError(
            f"expected a score for all {len(every):,} sequences of length {length}; got {(~value.isnan()).sum():,}; "
            "pass the complete table"
        )
    other_strand = len(every) - 1 - (every @ len(LETTERS) ** torch.arange(length))  # of the reverse complement
    same = torch.equal(value, value[other_strand])
    return TiltedProblem(markov_prior(codec, every[value <= value.median()], both_strands=same), table, alpha=alpha)
