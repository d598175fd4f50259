"""What is trusted, how connections leave the network, and the keys that seal jobs."""

from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr

from regworker.settings.base import SettingsPart, blank
from regworker.way_out import (
    CLIENT_CERT_FILE,
    CLIENT_KEY_FILE,
    PROXY,
    Authorities,
    File,
    Proxy,
    ProxyServer,
    WayOut,
)


class SecuritySettings(SettingsPart):
    """Certificates, the proxy, and the sealing keys."""

    ca_file: Authorities | None = Field(
        None,
        description="Certificates (PEM) of authorities to trust besides the system's, for "
        "connections to the ledger, the broker, providers and webhooks.",
    )
    proxy: Annotated[Proxy | None, BeforeValidator(blank)] = Field(
        None, description=f"{PROXY} For all providers and webhooks."
    )
    client_cert_file: File | None = Field(
        None, description=f"{CLIENT_CERT_FILE} For all providers and webhooks."
    )
    client_key_file: File | None = Field(None, description=CLIENT_KEY_FILE)
    sealing_keys: SecretStr = Field(
        description="`kid:base64url,...`: 32-byte keys; the first encrypts, all decrypt.",
    )

    @property
    def way_out(self) -> WayOut:
        """The route to providers and webhooks, unless they have their own."""
        proxy = ProxyServer.of(self.proxy)
        return WayOut(proxy, self.ca_file, self.client_cert_file, self.client_key_file)
