"""What is trusted, how connections leave the network, and the keys that seal jobs."""

from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr

from regworker import way_out
from regworker.settings.base import SettingsPart, blank
from regworker.way_out import Authorities, File, Proxy


class SecuritySettings(SettingsPart):
    """Certificates, the proxy, and the sealing keys."""

    ca_file: Authorities | None = Field(
        None,
        description="Certificates (PEM) of authorities to trust besides the system's, for "
        "connections to the ledger, the broker, providers and webhooks.",
    )
    proxy: Annotated[Proxy | None, BeforeValidator(blank)] = Field(
        None, description=f"{way_out.PROXY} For all providers and webhooks."
    )
    client_cert_file: File | None = Field(
        None, description=f"{way_out.CLIENT_CERT_FILE} For all providers and webhooks."
    )
    client_key_file: File | None = Field(None, description=way_out.CLIENT_KEY_FILE)
    sealing_keys: SecretStr = Field(
        description="`kid:base64url,...`: 32-byte keys; the first encrypts, all decrypt.",
    )

    @property
    def way_out(self) -> way_out.WayOut:
        """The route to providers and webhooks, unless they have their own."""
        proxy = way_out.ProxyServer.of(self.proxy)
        return way_out.WayOut(proxy, self.ca_file, self.client_cert_file, self.client_key_file)
