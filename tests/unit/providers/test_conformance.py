"""Every provider passes the public suite for providers."""

import copy
import json
from typing import Any, ClassVar

from regworker.testing.provider import ProviderConformance, Reply
from sandbox.documented import OPEN2B_SIGN_UP, SKYPOSTAL_REGISTRATION
from tests.integration.acme import Acme
from worker.providers.open2b import Open2b
from worker.providers.skypostal import SkyPostal

_MADE = [{"_verify": True, "customer_box_id": 811111, "customer_key": "QUJD", "error": {}}]


class TestSkyPostal(ProviderConformance):
    """With the documented example."""

    provider = SkyPostal
    account: ClassVar[dict[str, Any]] = {"user_code": 396, "app_key": "the-app-key", "copa_id": 616}
    registration: ClassVar[dict[str, Any]] = copy.deepcopy(SKYPOSTAL_REGISTRATION)
    registers = Reply(200, json.dumps(_MADE).encode())
    secrets = ("the-app-key", SKYPOSTAL_REGISTRATION["customer_password"])


class TestOpen2b(ProviderConformance):
    """With the documented example, and both keys."""

    provider = Open2b
    account: ClassVar[dict[str, Any]] = {
        "public_key": "the-public-key",
        "secret_key": "the-secret-key",
    }
    registration: ClassVar[dict[str, Any]] = copy.deepcopy(OPEN2B_SIGN_UP)
    registers = Reply(200, b'{"status": "ok"}', {"x-customer-key": "K-1"})
    secrets = (
        "the-public-key",
        "the-secret-key",
        OPEN2B_SIGN_UP["customer"]["password"],
    )


class TestAcme(ProviderConformance):
    """A provider of a plugin."""

    provider = Acme
    registration: ClassVar[dict[str, Any]] = {
        "email": "ada@example.com",
        "password": "secret-password",
    }
    registers = Reply(200, b'{"id": 7}')
    secrets = ("secret-password",)
