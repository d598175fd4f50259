"""Builds what is published of a version, and checks it: `make release`."""
