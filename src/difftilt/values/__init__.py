"""Estimates of the soft value, from cheap and rough to dear and exact."""
