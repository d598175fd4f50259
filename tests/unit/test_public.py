"""The names that other services import."""

import pytest

import regworker
import worker


def test_every_public_name_is_there() -> None:
    """The table of public names has no mistake."""
    for name in regworker.__all__:
        assert getattr(regworker, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        regworker.Nobody  # noqa: B018


def test_both_distributions_have_one_version() -> None:
    """The worker depends on the client of the same version."""
    assert worker.__version__ == regworker.__version__
