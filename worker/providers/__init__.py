"""Providers: one file each. `base` says what a provider is; `transport` carries its calls."""
