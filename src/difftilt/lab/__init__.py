"""Campaigns whose task and strategy are known by name: what ``dt.Campaign`` is.

::

    campaign = dt.Campaign.create("campaigns/sites", dt.CampaignSettings(name="sites", task="tfbind8"))
    plate = campaign.propose(96)
    campaign.record("results.csv")
"""

from __future__ import annotations

from difftilt.build import load_policy
from difftilt.campaigns import campaign
from difftilt.campaigns.proposer import Proposer
from difftilt.campaigns.strategies import strategy


class Campaign(campaign.Campaign):
    """A campaign that finds its own strategy, and p_pre of its task."""

    def proposer(self) -> Proposer:
        """The strategy named in the settings.

        Raises:
            ConfigError: there is no strategy or task of that name.
        """
        make = strategy(self.settings.strategy)
        return make(load_policy(self.settings.task), self.folder)
