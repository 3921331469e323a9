"""Samplers that reach a tilted law, or a yardstick of it, without training."""

from difftilt.samplers.best_of_n import BestOfN

__all__ = ["BestOfN"]
