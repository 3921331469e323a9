"""Molecules: as SELFIES, and as graphs."""

from difftilt.domains.molecule.graphs import GRAPH_TASKS
from difftilt.domains.molecule.zinc import ZINC

TASKS = (ZINC, *GRAPH_TASKS)
