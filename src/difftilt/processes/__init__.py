"""Diffusion processes: fixed mathematics, one file each, none of which imports another."""

from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked

__all__ = ["Gaussian", "Masked"]
