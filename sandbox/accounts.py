"""The record of the accounts that the providers created."""

import hashlib
import hmac
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

#: SkyPostal's documented example box; ours count up from it.
FIRST_BOX_ID = 811111


class EmailTaken(Exception):  # noqa: N818 - the provider's news, not a fault of ours
    """Raised by `Accounts.create` if the provider already has this e-mail and requires it to be
    unique."""


@dataclass(frozen=True, slots=True)
class Account:
    """One customer at a provider."""

    seq: int
    provider: str
    #: SkyPostal: the partner's `copa_id`; Open2b: the host name in the request.
    store: str
    email: str
    #: Seconds since the epoch.
    created_at: float
    customer_key: str
    #: SkyPostal's only; 0 at Open2b.
    box_id: int
    #: `salt$sha256`, hex. Fast on purpose: these passwords are made up.
    password_hash: str
    first_name: str
    last_name: str
    is_business: bool

    def opens_with(self, password: str) -> bool:
        """Whether this is the account's password, character for character."""
        salt, _ = self.password_hash.split("$")
        return hmac.compare_digest(self.password_hash, _hash(password, salt))

    def public(self) -> dict[str, Any]:
        """The account without its secrets; the key only as a fingerprint."""
        return {
            "seq": self.seq,
            "provider": self.provider,
            "store": self.store,
            "email": self.email,
            "created_at": self.created_at,
            "box_id": self.box_id or None,
            "customer_key_sha256": hashlib.sha256(self.customer_key.encode()).hexdigest(),
        }


@dataclass(frozen=True, slots=True)
class NewAccount:
    """What a provider knows about a customer before the account exists."""

    provider: str
    store: str
    email: str
    password: str
    customer_key: str
    first_name: str = ""
    last_name: str = ""
    is_business: bool = False


class Accounts:
    """Accounts by e-mail (case does not count), thread-safe, with lookups in O(1).

    With `file`, every account is appended there as a line of JSON and read again at the start, so
    that a restarted provider still knows its customers.
    """

    def __init__(self, file: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._accounts: list[Account] = []
        self._by_email: dict[tuple[str, str], list[Account]] = {}
        self._counts: Counter[str] = Counter()
        self._emails: Counter[str] = Counter()
        self._boxes = 0
        self._log: IO[bytes] | None = None
        if file is not None:
            self._log = _open_log(file)
            for line in self._log:
                self._add(Account(**json.loads(line)))

    def create(self, new: NewAccount, *, unique: bool = True) -> Account:
        """Create an account; `EmailTaken` if `unique` and the e-mail is known. Atomic."""
        with self._lock:
            if unique and self._by_email.get((new.provider, new.email.casefold())):
                raise EmailTaken(new.provider)
            account = Account(
                seq=len(self._accounts) + 1,
                provider=new.provider,
                store=new.store,
                email=new.email,
                created_at=self._now(),
                customer_key=new.customer_key,
                box_id=FIRST_BOX_ID + self._boxes if new.provider == "skypostal" else 0,
                password_hash=_hash(new.password, os.urandom(8).hex()),
                first_name=new.first_name,
                last_name=new.last_name,
                is_business=new.is_business,
            )
            if self._log is not None:
                self._log.write(json.dumps(asdict(account)).encode() + b"\n")
                self._log.flush()
            self._add(account)
            return account

    def find(self, provider: str | None = None, email: str | None = None) -> list[Account]:
        """List accounts, oldest first; with both arguments in O(1)."""
        with self._lock:
            if provider is not None and email is not None:
                return list(self._by_email.get((provider, email.casefold()), ()))
            accounts = list(self._accounts)
        wanted = email.casefold() if email is not None else None
        return [
            account
            for account in accounts
            if (provider is None or account.provider == provider)
            and (wanted is None or account.email.casefold() == wanted)
        ]

    def log_in(self, provider: str, email: str, password: str) -> Account | None:
        """Find the (oldest) account that this e-mail and password open."""
        accounts = self.find(provider, email)
        return next((account for account in accounts if account.opens_with(password)), None)

    def count(self, provider: str) -> int:
        """Count a provider's accounts."""
        with self._lock:
            return self._counts[provider]

    def duplicates(self, provider: str) -> int:
        """Count a provider's accounts beyond one for each e-mail."""
        with self._lock:
            return self._counts[provider] - self._emails[provider]

    def clear(self) -> None:
        """Delete every account, in the file too. Box ids start again."""
        with self._lock:
            self._accounts.clear()
            self._by_email.clear()
            self._counts.clear()
            self._emails.clear()
            self._boxes = 0
            if self._log is not None:
                self._log.truncate(0)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._log is not None:
            self._log.close()

    def __len__(self) -> int:
        return len(self._accounts)

    def _add(self, account: Account) -> None:
        of_email = self._by_email.setdefault((account.provider, account.email.casefold()), [])
        self._counts[account.provider] += 1
        if not of_email:
            self._emails[account.provider] += 1
        of_email.append(account)
        self._accounts.append(account)
        if account.box_id:
            self._boxes += 1


def _hash(password: str, salt: str) -> str:
    # surrogatepass: JSON can contain lone surrogates, and a password may contain any character
    secret = salt.encode() + password.encode("utf-8", "surrogatepass")
    return f"{salt}${hashlib.sha256(secret).hexdigest()}"


def _open_log(file: Path) -> IO[bytes]:
    """Open for reading from the start and appending, without an incomplete line that a kill can
    leave."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    log = os.fdopen(descriptor, "r+b")
    whole = log.read()
    log.truncate(whole.rfind(b"\n") + 1)
    log.seek(0)
    return log
