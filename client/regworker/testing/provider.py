"""The conformance suite for a provider of your own; it needs `registration-worker` and pytest."""

import importlib

try:
    # By name: the client does not depend on the worker.
    _suite = importlib.import_module("worker.providers.conformance")
except ImportError as error:
    raise ImportError("regworker.testing.provider needs `registration-worker` installed") from error

ProviderConformance = _suite.ProviderConformance
Reply = _suite.Reply

__all__ = ["ProviderConformance", "Reply"]
