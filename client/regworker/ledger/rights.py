"""A script checks its caller's rights before it starts, so that it never stops halfway.

A script runs with its caller's rights, and keeps what it has written when a command is refused. So
each script that writes first checks all the commands that it may run.
"""

import re
from collections.abc import Iterable, Mapping

from redis.exceptions import NoPermissionError, ResponseError

#: Literal commands, also of the functions that only tolerate keys of a wrong type (`named`, and
#: those of `snapshot.lua`); `peek` and `redis.pcall` tolerate a refusal.
_CALL = re.compile(
    r"(?:redis\.call|\bnamed|\bsize|\ball)\((?:unreadable, )?([^,)]*)(?:, '([A-Z]+)')?"
)
_NAME = re.compile(r"'([A-Z]+)'")

#: Commands whose first argument is a subcommand.
_CONTAINERS = frozenset({"XINFO", "XGROUP"})

#: Commands that write nothing: a script of only these cannot stop halfway.
_READING = frozenset(
    {
        *("EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HLEN", "HMGET", "HVALS", "LLEN"),
        *("SCARD", "SISMEMBER", "SMEMBERS", "SMISMEMBER", "TIME", "TYPE", "XINFO GROUPS", "XLEN"),
        *("XINFO CONSUMERS", "XPENDING", "XRANGE", "XREVRANGE", "ZCARD", "ZCOUNT", "ZRANGE"),
        *("ZRANGEBYSCORE", "ZREVRANGE", "ZREVRANGEBYSCORE", "ZSCORE"),
    }
)

#: Test arguments of commands, if a key alone is not valid. KEY: a key.
_KEY = "KEY"
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "TIME": (),
    "PUBLISH": ("{reg}:done:", ""),
    "XREADGROUP": ("GROUP", "g", "c", "streams", _KEY, ">"),
}

#: Every server that a ledger can use has `redis.acl_check_cmd`.
_GUARD = """local MAY, ANY = redis.acl_check_cmd, KEYS[1] or '{{reg}}:'
if not ({all}) then
  local lacking = {{}}
{each}
  return redis.error_reply('NOPERM this user may not run ' .. table.concat(lacking, ', ')
    .. ' here: nothing was written')
end
"""


def denied(error: ResponseError) -> bool:
    """Whether a command, or one in a script, is not allowed to this user."""
    return isinstance(error, NoPermissionError) or "ACL failure in script" in str(error)


def commands(script: str) -> list[str]:
    """The commands that a script may run; with their subcommands."""
    found = set[str]()
    for call in _CALL.finditer(script):
        for name in _NAME.findall(call[1]):
            found.add(f"{name} {call[2]}" if name in _CONTAINERS else name)
    return sorted(found)


def reads_only(script: str) -> bool:
    """Whether a script writes nothing."""
    return _READING.issuperset(commands(script))


def guarded(script: str) -> str:
    """The script with a check of its caller's rights before it, if it writes."""
    if reads_only(script):
        return script
    used = commands(script)
    looks = {one: f"MAY({', '.join(_quoted(one))})" for one in used}
    each = [
        f"  if not {look} then lacking[#lacking + 1] = '{one}' end" for one, look in looks.items()
    ]
    return _GUARD.format(all=" and ".join(looks.values()), each="\n".join(each)) + script


def probe(all_commands: Iterable[str], key: str) -> list[str]:
    """Commands with arguments, in the form of the script `rights`."""
    return [
        " ".join([one, *(key if part == _KEY else part for part in _arguments(one))]).strip()
        for one in sorted(set(all_commands))
    ]


def _quoted(command: str) -> list[str]:
    parts = [f"'{part}'" for part in command.split()]
    return parts + ["ANY" if one == _KEY else f"'{one}'" for one in _arguments(command)]


def _arguments(command: str) -> tuple[str, ...]:
    return _ARGUMENTS.get(command, (_KEY,))
