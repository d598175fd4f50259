"""Marked secrets, and a search for them in every encoding in which they may appear."""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from urllib.parse import quote, quote_plus

_numbers = count(1)


def mark(name: str, longest: int = 24, *, odd: bool = False) -> str:
    """A unique value that contains its own name: `cnry7password`.

    `odd`: with characters that JSON, HTML and URLs escape differently, as far as there is room.
    """
    core = f"cnry{next(_numbers)}{name}"[:longest]
    assert len(core) >= 8
    return core + "'+/\" é"[: longest - len(core)] if odd else core


def forms(value: str) -> set[bytes]:
    """Ways to write a value: as it is, in JSON, HTML, a URL, hexadecimal and base64."""
    core = re.match(r"[\w=+/.-]{8,}", value)
    spelt = {value, html.escape(value), quote(value, safe=""), quote_plus(value), repr(value)[1:-1]}
    spelt |= {json.dumps(value)[1:-1], json.dumps(json.dumps(value))[3:-3]}
    spelt |= {re.split(r"[^A-Za-z0-9]", value)[0]} if len(_first(value)) >= 8 else set()
    found = {one.encode() for one in spelt}
    raw = value.encode()
    found |= {raw.hex().encode(), raw.hex().upper().encode()}
    for whole in (raw, *([core[0].encode()] if core else [])):
        found |= set(_in_base64(whole))
    return {one for one in found if len(one) >= 8}


def _first(value: str) -> str:
    return re.split(r"[^A-Za-z0-9]", value)[0]


def _in_base64(raw: bytes) -> Iterator[bytes]:
    # The value may begin at any offset in the encoded bytes: keep only the characters that depend
    # on nothing else.
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw)
        inner = encoded[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6]
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))


@dataclass(frozen=True)
class Finding:
    """A secret in a place where it must not be."""

    place: str
    secret: str

    def __str__(self) -> str:
        return f"{self.secret} in {self.place}"


def search(places: Mapping[str, bytes], secrets: Mapping[str, str]) -> list[Finding]:
    """Where any of the secrets occurs, in any form; each is reported by its name."""
    return [
        Finding(place, name)
        for place, content in places.items()
        for name in found_in(content, secrets)
    ]


def found_in(content: bytes, secrets: Mapping[str, str]) -> Iterable[str]:
    """The names of the secrets that the content contains."""
    return [
        name for name, value in secrets.items() if any(form in content for form in forms(value))
    ]
