"""`amqps://` with the policy of `client/regworker/tls.py`, instead of py-amqp's own."""

from typing import Any

from amqp.transport import SSLTransport

from regworker import tls


class _Socket(SSLTransport):  # type: ignore[misc]
    __slots__ = ()

    def _wrap_socket(
        self, sock: Any, context: Any = None, server_hostname: str = "", **files: Any
    ) -> Any:
        made = tls.context(files.get("ca_certs"), files.get("certfile"), files.get("keyfile"))
        return made.wrap_socket(
            sock, server_hostname=server_hostname, do_handshake_on_connect=False
        )


class Encrypted:
    """A py-amqp connection whose socket is encrypted by the policy."""

    def Transport(  # noqa: N802 -- py-amqp's name
        self,
        host: str,
        connect_timeout: float,
        ssl: Any = None,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
        socket_settings: Any = None,
        **rest: Any,
    ) -> Any:
        """The socket to a server, encrypted by the policy."""
        return _Socket(
            host,
            connect_timeout=connect_timeout,
            ssl=ssl,
            read_timeout=read_timeout,
            write_timeout=write_timeout,
            socket_settings=socket_settings,
            **rest,
        )
