"""A model of one job's life, small enough to be explored whole: `python -m tests.model`."""
