"""Loops that turn data into models and models into tilted models."""
