"""Domains: alphabets, tasks and what their practitioners look at. Domains do not import one another."""
