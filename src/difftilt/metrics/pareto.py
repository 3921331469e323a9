r"""Pareto fronts: designs that no other design beats in every objective, and the volume that they dominate.

With objectives to be *maximised* and a reference point :math:`\rho`,

.. math:: HV(A) = \mathrm{vol} \bigcup_{a \in A} \prod_i [\rho_i, a_i]                                 \qquad (1)

in the product of the objectives' units: it grows when any design gets better in any objective.
"""

from __future__ import annotations

import torch

from difftilt.types import Bool, Float, Tensor


def non_dominated(points: Float[Tensor, "N M"]) -> Bool[Tensor, " N"]:
    """Which points no other point is at least as good as in all objectives and better in one; equal ones all stay."""
    better = (points[:, None] >= points[None]).all(-1) & (points[:, None] > points[None]).any(-1)
    return ~better.any(0)


def hypervolume(points: Float[Tensor, "N M"], reference: Float[Tensor, " M"]) -> float:
    """Equation (1), exactly, by slicing along the last objective; points that do not beat the reference count nothing.

    Args:
        points: objectives, to be maximised, of each design.
        reference: the point from which volumes are measured.
    """
    above = points[(points > reference).all(1)].double()
    return _volume(above[non_dominated(above)] if len(above) else above, reference.double())


def _volume(points: Float[Tensor, "N M"], reference: Float[Tensor, " M"]) -> float:
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return (points.max() - reference[0]).item()
    order = points[:, -1].argsort(descending=True)
    points = points[order]
    heights = torch.cat([points[:, -1], reference[-1:]])
    volume = 0.0
    for i in range(len(points)):
        depth = (heights[i] - heights[i + 1]).item()
        if depth > 0:
            slab = points[: i + 1, :-1]
            volume += depth * _volume(slab[non_dominated(slab)], reference[:-1])
    return volume
