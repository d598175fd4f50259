"""Providers: one file each. `base` says what a provider is; `http` sends its calls."""
