"""Campaigns against known landscapes, from the first plate to the last, many times: which strategy finds what.

``landscape`` is what is searched, ``runner`` runs one campaign, ``measures`` says how it went, ``summary`` compares
strategies, ``figures`` draws them, ``study`` runs all of it and goes on where it was killed.
"""
