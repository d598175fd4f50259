"""Sealing: secrets at rest and in streams are JWE."""
