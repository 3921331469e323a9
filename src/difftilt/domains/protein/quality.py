"""What the cards of protein models say of their quality, on designs and scores that the models have not seen."""

from __future__ import annotations

import copy

import torch

from difftilt.core.policy import Policy
from difftilt.domains.task import TaskData
from difftilt.metrics import proteins
from difftilt.networks.variants import VariantDenoiser, site_frequencies
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.problems.markov import markov_law
from difftilt.training.pretrain import denoising_bounds
from difftilt.training.regress import measure_fit
from difftilt.types import Bool, Float, Int, Tensor

PSEUDOCOUNT = 0.05
"""Added to each residue's count at each site; chosen on validation designs of ``gfp``, where 0.03 to 0.1 are alike."""


def against_sites(
    policy: Policy, train: Int[Tensor, "N L"], test: Int[Tensor, "M L"], wild_type: Int[Tensor, " L"], *, seed: int
) -> dict[str, float]:
    r"""The bound of a law of near copies beside laws in closed form, nats per design.

    These are independent sites, and independent sites with the law of the number of mutations, where the network starts
    (:mod:`~difftilt.networks.variants`, (1)). The bound of a single design is noisy, as nearly all of it comes from a
    few mutations that are seldom among the last masked. Network and start get the same masks, and the start's own
    likelihood is known, so that their difference corrects it:

    .. math:: -\log p \le -\log p_b + \left( \mathrm{bound} - \mathrm{bound}_b \right)
    """
    frequencies = site_frequencies(train, policy.process.vocabulary, pseudocount=PSEUDOCOUNT)
    independent = -frequencies.log().gather(1, test.T).sum(0)
    most = int(proteins.mutations(train, wild_type).max())
    shares = proteins.mutation_shares(train, wild_type, most) * len(train) + 0.5
    rates = 1 - frequencies.gather(1, wild_type[:, None])[:, 0]
    number = torch.arange(most + 1, dtype=torch.float64)
    poisson = number * rates.sum().log() - rates.sum() - torch.lgamma(number + 1)
    log_count = (shares / shares.sum()).log() - poisson
    start = independent - log_count[proteins.mutations(test, wild_type).clamp(max=most)]
    silent = copy.deepcopy(policy.denoiser)
    for module in silent.modules():
        if isinstance(module, VariantDenoiser):
            module.silence()
    bounds = [
        denoising_bounds(net, policy.process, test, torch.Generator().manual_seed(seed), draws=16).cpu()
        for net in (policy.denoiser, silent)
    ]
    bound = start + bounds[0] - bounds[1]
    metrics = {
        "independent_sites_nats_per_design": round(independent.mean().item(), 3),
        "independent_sites_and_number_nats_per_design": round(start.mean().item(), 3),
        "test_bound_nats_per_design": round(bound.mean().item(), 3),
    }
    gains = {"independent_sites": independent - bound, "independent_sites_and_number": start - bound}
    for name, gain in gains.items():
        metrics[f"advantage_over_{name}"] = round(gain.mean().item(), 4)
        metrics[f"advantage_over_{name}_error"] = round((gain.std() / len(gain) ** 0.5).item(), 4)
    return metrics


def exact_fit(policy: Policy, data: TaskData) -> dict[str, float]:
    """Exact numbers of the law of ``policy`` over all designs: likelihoods, KL of the data to it, who has a reward."""
    chain = EnumeratedChain(policy)
    law = chain.marginal(policy)
    letters, length = policy.process.vocabulary, policy.event_shape[0]
    place = letters ** torch.arange(length - 1, -1, -1)
    train, validation, test = (data.states[rows] for rows in (data.prior_train, data.prior_validation, data.prior_test))
    seen = torch.cat([train, validation, test]) @ place
    measured = ~data.scores.isnan()
    score = torch.full((letters**length,), torch.nan, dtype=torch.float64)
    score[data.states[measured] @ place] = data.scores[measured].double()
    there = ~score.isnan()
    every = chain.designs.cpu()
    markov = markov_law(train, every, vocabulary=letters)
    metrics = {}
    for name, other in (("exact_test", law), ("markov_1_test", markov)):
        metrics[f"{name}_nats_per_design"] = round(-other[test @ place].log().mean().item(), 4)
        metrics[f"{name.removesuffix('_test')}_kl_of_data"] = round(
            (-other[seen].log().mean() - torch.tensor(len(seen)).log()).item(), 4
        )
    return metrics | {
        "share_measured": round(law[there].sum().item(), 4),
        "share_of_data_law": round(law[seen].sum().item(), 4),
        "mean_score": round(((law * score.nan_to_num(0)).sum() / law[there].sum()).item(), 4),
    }


def two_modes(
    predicted: Float[Tensor, " N"], measured: Float[Tensor, " N"], count: Int[Tensor, " N"], bright: float
) -> dict[str, float]:
    """Area under the curve of upper against lower mode, and fits by number of mutations and within the upper mode."""
    works = measured > bright
    inside = measure_fit(predicted[works], measured[works])
    metrics = {
        "test_auc_upper_mode": round(area_under_curve(predicted, works), 4),
        "upper_mode_spearman": round(inside.spearman, 4),
    }
    for low, high in ((1, 1), (2, 2), (3, 3), (4, 5), (6, 99)):
        rows = (count >= low) & (count <= high)
        name = f"{low}" if low == high else f"{low}_or_more" if high > 50 else f"{low}_to_{high}"
        if rows.sum() > 20:
            metrics[f"test_spearman_{name}_mutations"] = round(measure_fit(predicted[rows], measured[rows]).spearman, 4)
    return metrics


def area_under_curve(score: Float[Tensor, " N"], positive: Bool[Tensor, " N"]) -> float:
    """Chance that a positive has the higher score than a negative, ties counted half."""
    _, inverse, counts = score.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    rank = (ends - (counts.double() - 1) / 2)[inverse]
    ones, zeros = positive.sum(), (~positive).sum()
    return ((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)).item()
