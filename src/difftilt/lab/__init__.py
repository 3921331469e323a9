"""Campaigns whose task and strategy are known by name: what ``dt.Campaign`` is.

::

    campaign = dt.Campaign.create("campaigns/sites", dt.CampaignSettings(name="sites", task="tfbind8"))
    plate = campaign.propose(96)
    campaign.record("results.csv")
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from difftilt.build import load_policy, tuning_rate
from difftilt.campaigns import campaign
from difftilt.campaigns.checks import check_reads, check_settings
from difftilt.campaigns.history import CampaignSettings
from difftilt.campaigns.proposer import Proposer
from difftilt.campaigns.strategies import READS, strategy

Self = TypeVar("Self", bound="Campaign")


class Campaign(campaign.Campaign):
    """A campaign that finds its own strategy, and p_pre of its task."""

    @classmethod
    def create(cls: type[Self], place: str | Path, settings: CampaignSettings) -> Self:
        """Begin a campaign whose strategy can go on to its last plate, as far as that can be known before the first.

        Args:
            place: a folder, or an SQLAlchemy URL; see :meth:`difftilt.campaigns.campaign.Campaign.create`.
            settings: what it is.

        Raises:
            ConfigError: there is no strategy or task of that name, or a setting makes no sense of it or has no effect.
            DataError: a file of designs cannot be read, or nothing can be learned from designs measured before.
            StateError: a campaign is there already, or the place cannot be written.
        """
        check_reads(settings)
        if settings.tuning.learning_rate is None and "learning_rate" in READS[settings.strategy]:
            tuning = replace(settings.tuning, learning_rate=tuning_rate(settings.task))
            settings = replace(settings, tuning=tuning)
        check_settings(settings, load_policy(settings.task))
        return super().create(place, settings)

    def proposer(self) -> Proposer:
        """The strategy named in the settings.

        Raises:
            ConfigError: there is no strategy or task of that name.
        """
        make = strategy(self.settings.strategy)
        return make(load_policy(self.settings.task), self.folder)
