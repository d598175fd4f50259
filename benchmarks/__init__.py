"""Measurements. Each module is a command (`python -m benchmarks.NAME`); `support/` has none."""
