"""A model of one job's life, small enough to be explored completely: `python -m tests.model`."""
