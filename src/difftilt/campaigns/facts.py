"""Rows of the data base: read into a :class:`~difftilt.campaigns.history.History`, and added to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select

from difftilt.campaigns.history import CampaignSettings, Design, History, Imported, Measurement, Round
from difftilt.campaigns.schema import CAMPAIGN, DESIGNS, IMPORTS, MEASUREMENTS, ROUNDS, WITHDRAWALS
from difftilt.campaigns.store import now
from difftilt.config import from_mapping
from difftilt.errors import StateError
from difftilt.tracking.run import plain


def settings_text(settings: CampaignSettings) -> str:
    """As kept in the data base."""
    return json.dumps(dataclasses.asdict(settings))


def read_history(connection: Connection) -> History:
    """All that is known in this transaction."""
    kept = connection.execute(select(CAMPAIGN.c.settings)).scalar()
    if kept is None:
        raise StateError("expected a campaign in the data base; got empty tables; make it with `difftilt campaign new`")
    rounds = tuple(
        Round(row.number, row.model, json.loads(row.facts), row.created)
        for row in connection.execute(select(ROUNDS).order_by(ROUNDS.c.number))
    )
    imports = {
        row.id: Imported(row.name, row.digest, row.created)
        for row in connection.execute(select(IMPORTS).order_by(IMPORTS.c.id))
    }
    measured: dict[int, list[Measurement]] = defaultdict(list)
    for row in connection.execute(select(MEASUREMENTS).order_by(MEASUREMENTS.c.id)).mappings():
        measured[row["design"]].append(
            Measurement(
                id=row["id"],
                replicate=row["replicate"],
                value=row["value"],
                failure=row["failure"],
                unit=row["unit"],
                file=imports[row["import"]].name,
                line=row["line"],
                corrects=row["corrects"],
                created=row["created"],
            )
        )
    withdrawn = {row.design: (row.reason, row.created) for row in connection.execute(select(WITHDRAWALS))}
    models = {entry.number: entry.model for entry in rounds}
    designs = tuple(
        Design(
            number=row.id,
            design=row.design,
            round=row.round,
            model=models[row.round],
            well=row.well,
            mean=row.mean,
            std=row.std,
            reason=row.reason,
            every=tuple(measured[row.id]),
            withdrawn=withdrawn.get(row.id),
        )
        for row in connection.execute(select(DESIGNS).order_by(DESIGNS.c.id))
    )
    return History(from_mapping(CampaignSettings, json.loads(kept)), rounds, designs, tuple(imports.values()))


def add_round(connection: Connection, entry: Round, designs: Iterable[Design]) -> None:
    """Add a round and its designs."""
    facts = json.dumps(plain(entry.facts))
    connection.execute(
        insert(ROUNDS).values(number=entry.number, model=entry.model, facts=facts, created=entry.created)
    )
    rows = [
        {
            "id": design.number,
            "design": design.design,
            "digest": hashlib.sha256(design.design.encode()).hexdigest(),
            "round": entry.number,
            "well": design.well,
            "mean": design.mean,
            "std": design.std,
            "reason": design.reason,
        }
        for design in designs
    ]
    connection.execute(insert(DESIGNS), rows)


def add_import(connection: Connection, name: str, digest: str) -> int:
    """The number of a results file; added if it is new."""
    there = connection.execute(select(IMPORTS.c.id).where(IMPORTS.c.digest == digest)).scalar()
    if there is not None:
        return there
    number = _next(connection, IMPORTS)
    connection.execute(insert(IMPORTS).values(id=number, name=name, digest=digest, created=now()))
    return number


def add_measurements(connection: Connection, source: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add measurements of one file, in order; each row has all columns but ``id``, ``import`` and ``created``."""
    first, time = _next(connection, MEASUREMENTS), now()
    own = [{**row, "id": first + i, "import": source, "created": time} for i, row in enumerate(rows)]
    connection.execute(insert(MEASUREMENTS), own)


def add_withdrawals(connection: Connection, designs: Iterable[Design], reason: str) -> None:
    """Withdraw designs."""
    rows = [{"design": design.number, "reason": reason, "created": now()} for design in designs]
    connection.execute(insert(WITHDRAWALS), rows)


def _next(connection: Connection, table: Table) -> int:
    """The next number; writers exclude one another, so nobody else takes it."""
    return (connection.execute(select(func.max(table.c.id))).scalar() or 0) + 1
