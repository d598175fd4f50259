"""A whole installation on this machine: `up`, `demo`, the sandbox."""
