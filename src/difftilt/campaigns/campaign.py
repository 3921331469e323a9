r"""A campaign: proposes plates within its budget, records what was measured, and forgets nothing.

.. math:: \text{spent} = \#\text{measured} + \#\text{failed} + \#\text{pending} \le \text{budget}        \qquad (1)

A proposal is computed without any lock, for minutes if need be, and written in one transaction that checks again:
that its round is still the next one, that (1) holds, that no design is known. Of two processes that propose at once
one is refused and neither pays twice; results can be recorded meanwhile. A process that is killed leaves the round
unwritten, and the next one repeats it with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

from difftilt.campaigns import facts
from difftilt.campaigns.history import (
    FAILED,
    MEASURED,
    PENDING,
    CampaignSettings,
    Design,
    History,
    Round,
)
from difftilt.campaigns.matching import match
from difftilt.campaigns.plate import wells
from difftilt.campaigns.proposer import Proposal, Proposer, check_proposal
from difftilt.campaigns.results import ResultsError, parse, read_rows
from difftilt.campaigns.store import Store, now
from difftilt.campaigns.summary import Recorded, Status
from difftilt.campaigns.table import columns
from difftilt.data import write_designs
from difftilt.errors import ConfigError, DataError, StateError
from difftilt.rng import Streams

Self = TypeVar("Self", bound="Campaign")


class Campaign:
    """A campaign in a data base; :meth:`create` or :meth:`open` one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.settings = self.history().settings

    @classmethod
    def create(cls: type[Self], place: str | Path, settings: CampaignSettings) -> Self:
        """Begin a campaign.

        Args:
            place: a folder, in which ``campaign.db`` is made, or an SQLAlchemy URL. One data base, or one schema of a
                PostgreSQL data base, holds one campaign.
            settings: what it is.

        Raises:
            ConfigError: not a URL, or its driver is not installed.
            StateError: a campaign is there already, or the place cannot be written.
        """
        return cls(Store.create(place, facts.settings_text(settings)))

    @classmethod
    def open(cls: type[Self], place: str | Path) -> Self:
        """A campaign that was begun before; see :meth:`create`.

        Raises:
            ConfigError: not a URL, or its driver is not installed.
            StateError: there is none, or a newer difftilt made it.
        """
        return cls(Store.open(place))

    @property
    def folder(self) -> Path:
        """Where files are kept: beside a SQLite file, else ``campaigns/NAME`` of the working directory."""
        return self._store.folder or Path("campaigns") / self.settings.name

    def history(self) -> History:
        """All that is known now."""
        with self._store.reading() as connection:
            return facts.read_history(connection)

    def status(self) -> Status:
        """Where it stands."""
        known = self.history()
        return Status(
            self.settings,
            len(known.rounds),
            **known.counts,
            spent=known.spent,
            remaining=known.remaining,
            best=known.best,
            facts=known.rounds[-1].facts if known.rounds else {},
        )

    def proposer(self) -> Proposer:
        """The campaign's own strategy; a class that can load models gives it."""
        raise ConfigError("expected a proposer; got none; pass one, or open the campaign by difftilt.Campaign")

    def propose(self, n: int | None = None, *, proposer: Proposer | None = None) -> list[Design]:
        """Propose the next plate, within the budget by Equation (1); it is paid for when this returns.

        Args:
            n: how many designs, 1 or more; a batch, or what is left of the budget, when not given.
            proposer: in place of the campaign's strategy.

        Returns:
            The designs; fewer than ``n`` where the strategy found no others.

        Raises:
            ConfigError: no number, or more than the budget has left.
            StateError: the budget is spent; another process proposed meanwhile; the strategy broke its contract.
        """
        history = self.history()
        count = _affordable(history, n)
        rng = Streams(self.settings.seed)(f"round-{history.next_round}")
        proposal = (self.proposer() if proposer is None else proposer)(history, count, rng)
        check_proposal(proposal, history, count)
        with self._store.writing() as connection:
            latest = facts.read_history(connection)
            if latest.next_round != history.next_round:
                raise StateError(
                    f"expected to write round {history.next_round}; got it proposed by another process meanwhile; this "
                    "proposal was dropped: see `difftilt campaign status`, and propose again if another plate is wanted"
                )
            _affordable(latest, len(proposal.candidates))
            entry, designs = _round(latest, proposal)
            facts.add_round(connection, entry, designs)
        return designs

    def record(self, source: str | Path | Sequence[Mapping[str, Any]], *, correct: bool = False) -> Recorded:
        """Record results, all of them or none; the same file again changes nothing.

        Args:
            source: a file (CSV, ``.xlsx``), or rows such as ``{"id": "d00001", "value": 0.5}`` or ``{"id": "d00002",
                "status": "failed: no expression"}``.
            correct: whether results on record may be corrected.

        Raises:
            ResultsError: faulty lines, every one of them.
            DataError: it cannot be read at all.
        """
        sheet = read_rows(source)
        results, faults = parse(sheet)
        with self._store.writing() as connection:
            history = facts.read_history(connection)
            matched, unmatched = match(results, history, correct=correct)
            repeated = not correct and sheet.digest in {entry.digest for entry in history.imports}
            if repeated:
                return Recorded(sheet.name, 0, 0, 0, known=len(results) - matched.pending, pending=matched.pending)
            if faults or unmatched:
                raise ResultsError(sheet.name, [*faults, *unmatched])
            if matched.rows:
                facts.add_measurements(connection, facts.add_import(connection, sheet.name, sheet.digest), matched.rows)
        return Recorded(
            sheet.name,
            matched.number(MEASURED),
            matched.number(FAILED),
            matched.corrected,
            matched.known,
            matched.pending,
        )

    def withdraw(self, ids: Iterable[str], reason: str) -> list[Design]:
        """Take pending designs back: they will not be measured, and the budget has them again.

        Args:
            ids: of designs; one of them may stand alone.
            reason: why.

        Raises:
            DataError: no reason; an unknown id, or a design that is not pending (all of them are named).
        """
        if not isinstance(reason, str) or not reason.strip():
            raise DataError(f"expected a reason for the withdrawal; got {reason!r}; say why")
        several = [ids] if isinstance(ids, str) or not isinstance(ids, Iterable) else ids
        wanted = list(dict.fromkeys(str(name).strip().casefold() for name in several))
        with self._store.writing() as connection:
            known = {design.id: design for design in facts.read_history(connection).designs}
            wrong = [f"{name} ({known[name].state if name in known else 'unknown'})" for name in wanted
                     if name not in known or known[name].state != PENDING]  # fmt: skip
            if wrong or not wanted:
                raise DataError(
                    f"expected ids of pending designs; got {', '.join(wrong) or 'none'}; nothing was withdrawn: "
                    "leave them out"
                )
            facts.add_withdrawals(connection, [known[name] for name in wanted], " ".join(reason.split()))
        return [known[name] for name in wanted]

    def export(self, path: str | Path) -> int:
        """Write all that is known, a row for each measurement ever made, and for each design that has none.

        Args:
            path: ends in ``.csv`` or ``.parquet``; replaced once the new one is whole.

        Returns:
            The number of rows.
        """
        table = columns(self.history())
        write_designs(path, table)
        return len(table["id"])


def _affordable(history: History, n: int | None) -> int:
    """How many designs to propose; within (1)."""
    left = history.remaining
    if left < 1:
        raise StateError(
            f"expected a budget with designs left; got all {history.settings.budget} spent "
            f"({', '.join(f'{count} {state}' for state, count in history.counts.items())}); withdraw pending designs "
            "that will not be measured, or begin another campaign"
        )
    count = min(history.settings.batch, left) if n is None else n
    whole = isinstance(count, Integral) and not isinstance(count, bool)
    if not whole or not 1 <= count <= left:
        raise ConfigError(f"expected 1 to {left} designs, what is left of the budget; got {count!r}; ask for that many")
    return int(count)


def _round(history: History, proposal: Proposal) -> tuple[Round, list[Design]]:
    """A proposal as rows."""
    entry = Round(history.next_round, proposal.model, proposal.facts, now())
    first = len(history.designs) + 1
    places = wells(len(proposal.candidates))
    designs = [
        Design(first + i, pick.design, entry.number, entry.model, places[i], pick.mean, pick.std, pick.reason)
        for i, pick in enumerate(proposal.candidates)
    ]
    return entry, designs
