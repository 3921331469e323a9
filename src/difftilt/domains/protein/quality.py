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
TESTED = 1000
"""Held-out designs whose bound is taken, 32 times each."""


def against_sites(
    policy: Policy, train: Int[Tensor, "N L"], test: Int[Tensor, "M L"], wild_type: Int[Tensor, " L"], *, seed: int
) -> dict[str, float]:
    """The bound beside laws in closed form, nats per design: independent sites, and with the law of their number.

    The last is where the network starts; what the network adds to it is told once more, with the same masks for both.
    """
    test = test[:TESTED]
    frequencies = site_frequencies(train, policy.process.vocabulary, pseudocount=PSEUDOCOUNT)
    independent = -frequencies.log().gather(1, test.T).sum(0)
    most = int(proteins.mutations(train, wild_type).max())
    shares = proteins.mutation_shares(train, wild_type, most) * len(train) + 0.5
    rates = 1 - frequencies.gather(1, wild_type[:, None])[:, 0]
    number = torch.arange(most + 1, dtype=torch.float64)
    poisson = number * rates.sum().log() - rates.sum() - torch.lgamma(number + 1)
    log_count = (shares / shares.sum()).log() - poisson
    counted = independent - log_count[proteins.mutations(test, wild_type).clamp(max=most)]
    rng = torch.Generator().manual_seed(seed)
    bounds = denoising_bounds(policy.denoiser, policy.process, test, rng, draws=32).cpu()
    metrics = {"test_bound_nats_per_design": round(bounds.mean().item(), 3)}
    for name, law in (("independent_sites", independent), ("independent_sites_and_number", counted)):
        gain = law - bounds
        metrics[f"{name}_nats_per_design"] = round(law.mean().item(), 3)
        metrics[f"advantage_over_{name}"] = round(gain.mean().item(), 3)
        metrics[f"advantage_over_{name}_error"] = round((gain.std() / len(gain) ** 0.5).item(), 3)
    silent = copy.deepcopy(policy.denoiser)
    for module in silent.modules():
        if isinstance(module, VariantDenoiser):
            module.silence()
    rng = torch.Generator().manual_seed(seed)  # the same masks, so that the difference has little noise
    gain = denoising_bounds(silent, policy.process, test, rng, draws=32).cpu() - bounds
    metrics["advantage_of_the_network"] = round(gain.mean().item(), 4)
    metrics["advantage_of_the_network_error"] = round((gain.std() / len(gain) ** 0.5).item(), 4)
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
