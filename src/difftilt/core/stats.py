r"""Estimators shared by algorithms, samplers and reports; weights always in logs."""

from __future__ import annotations

import math

import torch

from difftilt.types import Float, Tensor


def log_mean_exp(log_weight: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    r""":math:`\log \frac1N \sum_i e^{w_i}`; ``-inf`` entries are weights of exactly 0."""
    return torch.logsumexp(log_weight, dim=0) - math.log(log_weight.shape[0])


def effective_sample_size(log_weight: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    r""":math:`(\sum w)^2 / \sum w^2`, between 1 and ``N``; 0 when every weight is 0."""
    if torch.isneginf(log_weight).all():
        return log_weight.new_zeros(())
    return torch.exp(2 * torch.logsumexp(log_weight, dim=0) - torch.logsumexp(2 * log_weight, dim=0))


def kl_k1(log_ratio: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Per-sample ``k1`` estimate :math:`\log p_\theta - \log p_{ref}` of the KL, nats: unbiased, signed."""
    return log_ratio


def kl_k3(log_ratio: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Per-sample ``k3`` estimate :math:`e^{-l} - 1 + l` of the KL, nats: unbiased on-policy, never negative."""
    return torch.expm1(-log_ratio) + log_ratio


def mean_and_error(values: Float[Tensor, " N"]) -> tuple[float, float]:
    """Mean and its standard error (``nan`` for fewer than two values), in the unit of ``values``, in float64."""
    x = values.double()
    error = (x.std() / math.sqrt(len(x))).item() if len(x) > 1 else math.nan
    return x.mean().item(), error


def ranks(values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Average ranks, 1 to ``N``; ties share theirs."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def spearman(a: Float[Tensor, " N"], b: Float[Tensor, " N"]) -> float:
    """Rank correlation; NaN where one side does not vary."""
    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()
