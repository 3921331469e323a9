r"""A KL budget in place of a temperature: the first alpha, and the controller that moves it."""

from __future__ import annotations

import math


def first_alpha(reward_std: float, budget: float) -> float:
    r""":math:`\mathrm{std}(r) / \sqrt{2 B}`: the temperature whose tilt spends ``B`` nats if rewards are normal.

    Args:
        reward_std: spread of the pretrained policy's rewards, reward units.
        budget: ``B``, nats.
    """
    return reward_std / math.sqrt(2 * budget)


def overspent(kl: float, budget: float, progress: float) -> float:
    r""":math:`e = \mathrm{clip}((KL - B') / B', -1, 1)`, where :math:`B'` grows to the budget over the first half.

    Args:
        kl: nats spent.
        budget: nats.
        progress: share of the updates done, above 0.
    """
    due = budget * min(1.0, 2 * progress)
    return max(-1.0, min(1.0, (kl - due) / due))


def adapt_alpha(alpha: float, error: float, before: float) -> float:
    r"""One step of the KL controller, :math:`\log \alpha \leftarrow \log \alpha + 0.1\, e_k + 0.5\, (e_k - e_{k-1})`.

    Alpha grows while too much is spent, and while spending grows. The policy follows alpha with a delay: without the
    second term alpha would swing, or run away.

    Args:
        alpha: reward units per nat.
        error: :math:`e_k`, see :func:`overspent`.
        before: :math:`e_{k-1}`.
    """
    return alpha * math.exp(0.1 * error + 0.5 * (error - before))
