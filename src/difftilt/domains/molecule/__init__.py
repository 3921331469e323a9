"""Molecules: SELFIES words or graphs, rewards by RDKit, and what chemists look at."""

from difftilt.domains.molecule.zinc import ZINC

TASKS = (ZINC,)
