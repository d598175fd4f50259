"""Every global name in a script is its own, a shared function's, or the server's.

The server itself would report an unknown name only when it reaches it.
"""

import struct
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from regworker.ledger.calls import scripts

#: A script's bytecode, after the names that the server gives to all scripts.
COMPILED = """
local names = {string.dump(loadstring(ARGV[1]))}
for name in pairs(_G) do names[#names + 1] = name end
return names
"""

#: The Lua 5.1 instructions that read and write a global, by its number in the constants.
GETGLOBAL, SETGLOBAL = 5, 7


class Bytecode:
    """Reads the output of `string.dump` for a function, from front to end."""

    def __init__(self, code: bytes) -> None:
        header = struct.pack("<4s8B", b"\x1bLua", 0x51, 0, 1, 4, 8, 4, 8, 0)
        assert code.startswith(header), "not Lua 5.1's, of a machine of 64 bits"
        self._code, self._at = code, len(header)

    def globals(self) -> Iterator[str]:
        """The global names that the function and its inner functions use."""
        self._text()
        self._take("<2i4B")
        instructions = [self._take("<I") for _ in range(self._take("<i"))]
        constants = [self._constant() for _ in range(self._take("<i"))]
        for one in instructions:
            if one & 0x3F in {GETGLOBAL, SETGLOBAL}:
                yield str(constants[one >> 14])
        for _ in range(self._take("<i")):
            yield from self.globals()
        self._take(f"<{self._take('<i')}i")
        for _ in range(self._take("<i")):
            self._text()
            self._take("<2i")
        for _ in range(self._take("<i")):
            self._text()

    def _constant(self) -> object:
        match self._take("<B"):
            case 0:
                return None
            case 1:
                return self._take("<?")
            case 3:
                return self._take("<d")
            case kind:
                assert kind == 4
                return self._text()

    def _text(self) -> str:
        size = self._take("<Q")
        return bytes(self._take(f"{size}s")).rstrip(b"\0").decode() if size else ""

    def _take(self, form: str) -> Any:
        found = struct.unpack_from(form, self._code, self._at)
        self._at += struct.calcsize(form)
        return found[0] if len(found) == 1 else found


def foreign(client: redis.Redis, source: str) -> set[str]:
    """The names in a script that nothing defines."""
    code, *given = client.eval(COMPILED, 0, source)
    return {*Bytecode(code).globals()} - {"KEYS", "ARGV"} - {name.decode() for name in given}


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client."""
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


@pytest.mark.parametrize("name", sorted(scripts()))
def test_a_script_uses_no_name_that_nobody_makes(name: str, client: redis.Redis) -> None:
    """The functions that it uses from `_lib.lua` are put before it, also for rare branches."""
    assert foreign(client, scripts()[name]) == set()


def test_a_name_that_nobody_makes_is_found(client: redis.Redis) -> None:
    """Wherever it occurs in the script."""
    source = """
    local function own(x) return x + tonumber(ARGV[1]) + 1.5 end
    if redis.call('GET', KEYS[1]) == nil then return own(2), false end
    return function() return function() return alarm('now()', below) end end
    """
    assert foreign(client, f"{source} -- local function now() end") == {"alarm", "below"}


@pytest.mark.parametrize("name", ["claim", "settle", "accept"])
def test_a_script_without_what_it_shares_is_found_out(name: str, client: redis.Redis) -> None:
    """If the shared functions were missing before a script, this file would fail."""
    own = scripts()[name].partition(f"-- {name}: ")[2]
    assert {"now", "alarm", "set"} <= foreign(client, f"-- {own}")
