"""The names of environment variables."""

PREFIX = "REGWORKER_"


def variable(*path: str) -> str:
    """The environment variable of a setting: `variable("accounts", "skypostal")`."""
    return PREFIX + "__".join(part.upper() for part in path)
