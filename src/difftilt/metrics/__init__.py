"""Numbers about designs, policies and runs."""
