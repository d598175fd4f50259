"""The control of a sandbox from another process."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx


class SandboxClient:
    """Uses `/sandbox/...`; a refusal raises `ValueError` with its message."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def health(self) -> dict[str, Any]:
        """Count accounts, duplicates and requests."""
        health: dict[str, Any] = self._ask("GET", "/sandbox/health")
        return health

    def accounts(
        self, provider: str | None = None, email: str | None = None
    ) -> list[dict[str, Any]]:
        """List the created accounts, oldest first."""
        accounts: list[dict[str, Any]] = self._ask(
            "GET", "/sandbox/accounts", params=_given(provider=provider, email=email)
        )
        return accounts

    def requests(
        self, provider: str | None = None, call: str | None = None, email: str | None = None
    ) -> list[dict[str, Any]]:
        """List the requests that the providers received, oldest first."""
        requests: list[dict[str, Any]] = self._ask(
            "GET", "/sandbox/requests", params=_given(provider=provider, call=call, email=email)
        )
        return requests

    def faults(
        self,
        script: Sequence[Mapping[str, Any]] | None = None,
        rates: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Replace the faults, or without arguments return the remaining ones."""
        given = _given(script=script, rates=rates, seed=seed)
        faults: dict[str, Any] = (
            self._ask("PUT", "/sandbox/faults", json=given)
            if given
            else self._ask("GET", "/sandbox/faults")
        )
        return faults

    def settings(
        self,
        skypostal: Mapping[str, Any] | None = None,
        open2b: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Change the named switches, and return all."""
        given = _given(skypostal=skypostal, open2b=open2b)
        settings: dict[str, Any] = (
            self._ask("PUT", "/sandbox/settings", json=given)
            if given
            else self._ask("GET", "/sandbox/settings")
        )
        return settings

    def reset(self) -> None:
        """Delete accounts, requests and faults; reset the switches."""
        self._ask("DELETE", "/sandbox/accounts")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        answer = self._http.request(method, path, **content)
        if answer.status_code == 400:
            raise ValueError(answer.json()["error"])
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
