"""Diffusion processes: fixed mathematics, one file each, none of which imports another."""

from difftilt.processes.flow import Flow
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked
from difftilt.processes.simplex import Simplex
from difftilt.processes.uniform import Uniform

__all__ = ["Flow", "Gaussian", "Masked", "Simplex", "Uniform"]
