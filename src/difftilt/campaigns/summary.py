"""What a campaign says of itself: where it stands, and what a results file added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from difftilt.campaigns.history import CampaignSettings, Design


@dataclass(frozen=True)
class Recorded:
    """What a results file added."""

    name: str
    """Of the file."""
    measured: int
    """New values."""
    failed: int
    """New failures."""
    corrected: int
    """Results that took the place of others."""
    known: int
    """Results on record already."""
    pending: int
    """Lines without a result yet."""


@dataclass(frozen=True)
class Status:
    """Where a campaign stands."""

    settings: CampaignSettings
    rounds: int
    """Plates proposed."""
    pending: int
    measured: int
    failed: int
    withdrawn: int
    spent: int
    """Measured + failed + pending."""
    remaining: int
    """Designs that can still be proposed."""
    best: Design | None
    """The measured design with the highest mean value."""
    facts: Mapping[str, Any]
    """What the strategy said of the last round."""
