"""Array types used in signatures. Shapes are jaxtyping annotations, checked under test.

Shape letters everywhere: B batch, M candidates, N particles, K steps, L length, V vocabulary (without the mask,
whose index is V), C channels, E ensemble, A anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Condition: TypeAlias = Mapping[str, Tensor]
"""Conditions of a conditional model: named tensors that share the batch axis."""

__all__ = ["Bool", "Condition", "Float", "Int", "Shaped", "Tensor"]
