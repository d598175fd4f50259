"""Actions on the whole installation, by a person or a schedule."""
