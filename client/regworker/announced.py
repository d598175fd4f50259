"""What workers have announced, and the error if something needed is missing.

Names are `account:<provider>:<account>`, `endpoint:<name>`, and `key:<kid>:<check>`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from regworker.domain.errors import InvalidJob, Problem, RegistrationWorkerError, SettingsError
from regworker.settings import variable

#: The most names in one message.
MOST = 20


def refusal(names: Sequence[str], known: Sequence[str]) -> RegistrationWorkerError:
    """The error for a job that needs `names`, which no worker has announced.

    `SettingsError` if the installation does not fit the caller, whatever the job is.
    """
    if not known:
        return SettingsError([(variable("redis_url"), NOBODY)])
    keys = [name.removeprefix("key:") for name in names if name.startswith("key:")]
    if keys:
        return _wrong_key(keys[0], known)
    return InvalidJob(_unserved(name, known) for name in names)


def check_key(mark: str, known: Sequence[str]) -> None:
    """Raise `SettingsError` if no worker can open what is sealed under a key.

    `mark`: of the key, as in `Keyring.marks`. Nothing is raised before a worker has announced keys.
    """
    keys = [name for name in known if name.startswith("key:")]
    if keys and f"key:{mark}" not in keys:
        raise _wrong_key(mark, known)


def accounts_of(known: Iterable[str]) -> list[tuple[str, str]]:
    """Provider and account of each announced account."""
    found = []
    for name in known:
        kind, _, rest = name.partition(":")
        provider, _, account = rest.partition(":")
        if kind == "account" and account:
            found.append((provider, account))
    return sorted(found)


NOBODY = (
    "no worker has announced itself in this ledger: start one, or set the ledger that your "
    "workers use. If the ledger has just lost its data, try again: workers announce themselves "
    "every few seconds"
)


def _wrong_key(mark: str, known: Sequence[str]) -> SettingsError:
    kid = mark.partition(":")[0]
    theirs = {name.split(":")[1] for name in known if name.startswith("key:")}
    if kid in theirs:
        what = f"the key {kid!r} differs from the workers' key of this name"
    else:
        what = f"no worker has the first key, {kid!r}; they have {_listed(theirs)}"
    advice = (
        "use the keys of your workers; otherwise no worker could open the job. When you rotate "
        "keys, give the new key to the workers first"
    )
    return SettingsError([(variable("sealing_keys"), f"{what}: {advice}")])


def _unserved(name: str, known: Sequence[str]) -> Problem:
    kind, _, rest = name.partition(":")
    if kind == "account":
        provider, _, account = rest.partition(":")
        prefix = f"account:{provider}:"
        field, setting = "account", variable("accounts", provider, account, "...")
        what = f"{account!r} of {provider} is not an account of any worker"
    else:
        prefix = "endpoint:"
        field, setting = "reply_to", variable("endpoints", rest, "...")
        what = f"{rest!r} is not an endpoint of any worker"
    others = _listed(one.removeprefix(prefix) for one in known if one.startswith(prefix))
    advice = f"{others}); use one of these, or set {setting} at a worker"
    return Problem("invalid", field, f"{what}{_OTHERS}{advice}")


#: No name contains it.
_OTHERS = " (workers have: "


def without_names(problem: Problem) -> Problem:
    """The problem without the names of accounts and endpoints that its reader may not use."""
    return replace(problem, message=problem.message.partition(_OTHERS)[0])


def _listed(names: Iterable[str]) -> str:
    found = sorted(set(names))
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return ", ".join(found[:MOST]) + more if found else "none"
