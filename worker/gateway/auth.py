"""The sender of a request and its rights: one type for services with a token and for people."""

from dataclasses import dataclass
from typing import Literal

from regworker.settings import Role

Scope = Literal["enqueue", "read", "read:all", "support", "operate"]
"""`read`: own jobs only. `read:all`: all jobs. `operate`: everything that an operator may do.
`support`: what that role may do on the pages, and nothing over HTTP."""

__all__ = ["Principal", "Role", "Scope"]
"""`Role`: what a person may do on the pages: read; settle reviews and cancel; everything."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The sender of a request. Immutable; made by the code that checked the token or the
    session."""

    name: str
    """The token's or the person's name. It is no secret: it is logged, and stored with a job."""
    kind: Literal["token", "person"]
    origin: str
    """The address that the request came from."""
    scopes: frozenset[Scope] = frozenset()
    accounts: frozenset[str] | None = None
    """The `provider/account` pairs to which it is limited; None: all."""
    role: Role | None = None
    """A person's role; None for a token."""
    token: str = ""
    """The token's id, which is no secret; '' for a person."""

    def may(self, scope: Scope) -> bool:
        """Whether it has a scope. `read:all` includes `read`."""
        return scope in self.scopes or (scope == "read" and "read:all" in self.scopes)

    def may_use(self, provider: str, account: str) -> bool:
        """Whether it may use the account: it is not limited to others."""
        return self.accounts is None or f"{provider}/{account}" in self.accounts
