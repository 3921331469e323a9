"""Ways to score designs."""
