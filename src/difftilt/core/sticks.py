r"""Stick-breaking: points of the simplex as independent numbers in [0, 1].

.. math:: x_c = u_c \prod_{i<c} (1 - u_i), \qquad x_{V-1} = \prod_i (1 - u_i)                        \qquad (1)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from difftilt.types import Float, Int, Tensor


def break_sticks(u: Float[Tensor, "*B V1"]) -> Float[Tensor, "*B V"]:
    """Equation (1). Gradient flows."""
    rest = F.pad((1 - u).cumprod(-1), (1, 0), value=1.0)
    return rest * F.pad(u, (0, 1), value=1.0)


def sticks_of(letters: Int[Tensor, "*B"], vocabulary: int) -> Float[Tensor, "*B V1"]:
    """Sticks of corners: 0 before the letter and 1 at it; behind, where nothing is left to break, 0.5."""
    stick, letter = torch.arange(vocabulary - 1, device=letters.device), letters[..., None]
    return torch.where(stick < letter, 0.0, torch.where(stick == letter, 1.0, 0.5))
