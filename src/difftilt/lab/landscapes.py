"""Landscapes by name: what campaigns are simulated on.

============================ ====================================================== ======== =========================
name                         oracle                                                 designs  p_pre
============================ ====================================================== ======== =========================
``tfbind8``, ``tfbind8/...`` measured binding of every 8-mer, twelve factors        65,536   (1) of the worse half
``gb1``                      measured fitness, four sites; 10,639 not measured      160,000  (1) of 0.01 < fitness <= 1
``splicing``                 measured log10 PSI of 9-nt sites; 88 % not measured    262,144  (1) of the worse half
``ehrlich-8``                Ehrlich function, 4 letters, 2 motifs of 3             65,536   (1) of 100 allowed designs
``ehrlich-32``               32 letters, 4 motifs of 4                              32^32    the worse half of 200
``ehrlich-64``               32 letters, 2 motifs of 4, q = 2                       32^64    the worse half of 200
``utr-mrl``                  the task's reward model                                4^50     the task's
``yeast-promoter``           the task's reward model                                4^80     the task's
``gfp``                      the task's reward model; more than 8 mutations: none   20^237   the task's
``zinc-qed``                 QED                                                    words    the task's
============================ ====================================================== ======== =========================

(1) is the Markov law of :mod:`~difftilt.problems.markov`; designs that were not measured are infeasible. ``alpha`` is
reward units per nat, so that the tilted law is some nats from p_pre on each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from difftilt import build
from difftilt.campaigns.simulation.landscape import Landscape
from difftilt.core.codec import TokenCodec
from difftilt.data import dataset, load
from difftilt.data.registry import ALIASES, SETS
from difftilt.errors import nearest
from difftilt.problems.ehrlich import Ehrlich, EhrlichSettings
from difftilt.problems.markov import markov_prior
from difftilt.rewards.table import TableReward
from difftilt.types import Bool, Float, Tensor

EHRLICH = {
    "ehrlich-8": EhrlichSettings(letters=4, length=8, motifs=2, motif_length=3, quantisation=3),
    "ehrlich-32": EhrlichSettings(),
    "ehrlich-64": EhrlichSettings(length=64, motifs=2, quantisation=2),
}
OF_TASKS = {"utr-mrl": 0.1, "yeast-promoter": 0.5, "gfp": 0.03, "zinc-qed": 0.02}
"""Reward units per nat, of tasks whose own reward is the oracle."""
SEEN = 200
"""Allowed designs of an Ehrlich function, of which p_pre learns the worse half."""
BINDING = tuple(name for name in SETS if name.startswith("tfbind8/"))
GROUPS = {"tfbind8/all": BINDING, "ehrlich/all": tuple(EHRLICH)}
"""Names of several."""


def measured(
    name: str, seen: Callable[[Float[Tensor, " N"]], Bool[Tensor, " N"]], *, alpha: float, both_strands: bool = False
) -> Landscape:
    """A measured table over all designs of its letters and length.

    Args:
        name: of the data set.
        seen: which of the measured values p_pre learns from.
        alpha: KL temperature, reward units per nat.
        both_strands: of DNA whose value has no strand.
    """
    record, table = dataset(name), load(name)
    codec = TokenCodec(record.alphabet, record.length)
    score = torch.from_numpy(table.scores).double()
    rows = codec.encode(table.sequences)
    place = codec.vocabulary ** torch.arange(codec.length - 1, -1, -1)
    every = torch.full((codec.vocabulary**codec.length,), torch.nan, dtype=torch.float64)
    every[rows @ place] = score
    prior = markov_prior(codec, rows[seen(score)], both_strands=both_strands)
    oracle = TableReward(dict(zip(table.sequences, score.tolist(), strict=True)), f"{name} table")
    return Landscape(name, prior, oracle, alpha, every)


def worse_half(score: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Values at most the median."""
    return score <= score.nanmedian()


def ehrlich(name: str, settings: EhrlichSettings, *, alpha: float = 0.05) -> Landscape:
    """An Ehrlich function; p_pre knows banned transitions as far as it has not seen them."""
    oracle = Ehrlich(settings)
    rows = oracle.sample(SEEN, torch.Generator().manual_seed(settings.seed))
    value = oracle(oracle.codec.decode(rows))
    rows = rows[value.argsort(stable=True)[: SEEN // 2]]
    prior = markov_prior(oracle.codec, rows)
    table = None
    if settings.letters**settings.length <= 1 << 18:
        every = torch.cartesian_prod(*[torch.arange(settings.letters)] * settings.length)
        table = oracle(oracle.codec.decode(every))
    return Landscape(name, prior, oracle, alpha, table)


def of_task(name: str, *, alpha: float) -> Landscape:
    """A task with a shipped p_pre; the oracle is its own reward, without noise."""
    entry = build.task(name)
    policy = build.load_task_policy(entry)
    oracle = entry.limited(build.load_reward(entry, None), policy)
    return Landscape(name, policy, oracle, alpha, learning_rate=build.tuning_rate(name))


MAKERS: dict[str, Callable[[], Landscape]] = {
    **{name: functools.partial(measured, name, worse_half, alpha=0.05, both_strands=True) for name in BINDING},
    "gb1": functools.partial(measured, "gb1", lambda score: (score > 0.01) & (score <= 1), alpha=0.5),
    "splicing": functools.partial(measured, "splicing", worse_half, alpha=0.2),
    **{name: functools.partial(ehrlich, name, settings) for name, settings in EHRLICH.items()},
    **{name: functools.partial(of_task, name, alpha=alpha) for name, alpha in OF_TASKS.items()},
}


def names_of(name: str) -> tuple[str, ...]:
    """The landscapes that a name means, one or several.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    wanted = GROUPS.get(name, (ALIASES.get(name, name),))
    if any(one not in MAKERS for one in wanted):
        raise nearest(name, [*ALIASES, *GROUPS, *MAKERS], what="landscape")
    return wanted


def unit_of(name: str) -> str:
    """What the reward of a landscape is, for axes."""
    if name in EHRLICH:
        return "Ehrlich function"
    return {"gb1": "fitness (wild type = 1)", "splicing": "log10 % spliced in"}.get(name) or build.task(name).score_name


@functools.lru_cache(maxsize=2)
def landscape(name: str) -> Landscape:
    """The landscape called ``name``, one of :data:`MAKERS`."""
    return MAKERS[name]()
