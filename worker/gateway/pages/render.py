"""Renders pages: templates with autoescape, formats for times and numbers, the headers."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from regworker.domain import event
from regworker.domain.portable import plain
from worker.operations import words

_HERE = Path(__file__).parent

#: Only this service's two files may load; no site may frame a page, and forms stay on this site.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

HEADERS = {"content-security-policy": POLICY, "cross-origin-opener-policy": "same-origin"}

FILES = {"pages.css": "text/css", "pages.js": "text/javascript", "icon.svg": "image/svg+xml"}

#: The names and paths of the navigation.
SECTIONS = (
    ("Overview", "/"),
    ("Jobs", "/jobs"),
    ("Reviews", "/reviews"),
    ("Deliveries", "/deliveries"),
    ("Accounts", "/accounts"),
    ("Quarantine", "/quarantine"),
    ("Workers", "/workers"),
    ("Audit", "/audit"),
)

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@cache
def static(name: str) -> tuple[bytes, str]:
    """One of the static files, and a hash of its content: changed content gets a new address."""
    content = (_HERE / "static" / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:12]


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page. `request.state.visitor` is the signed-in person, if any."""
    visitor = getattr(request.state, "visitor", None)
    sessions = request.app.state.sessions
    said = request.cookies.get("regworker_said", "")
    shown = sessions.read_said(said) if said and visitor else ""
    text = (
        _environment()
        .get_template(template)
        .render(
            request=request,
            path=request.url.path,
            visitor=visitor,
            form_token=sessions.form_token(visitor) if visitor else "",
            said=shown,
            now=datetime.now(UTC).timestamp() * 1000,
            sections=SECTIONS,
            **values,
        )
    )
    response = Response(text, status, HEADERS, "text/html")
    if said:
        response.delete_cookie("regworker_said")
    return response


def length(seconds: float) -> str:
    """A length of time in its two largest units: `3 d 4 h`, `12 s`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def when(at: float, now: float) -> Markup:
    """A time (ms) relative to now; the exact time is in the title."""
    if not at:
        return Markup("<span class='none'>–</span>")
    away = (at - now) / 1000
    ago = f"in {length(away)}" if away > 0 else f"{length(-away)} ago"
    text = "now" if abs(away) < 1 else ago
    return Markup("<time datetime='{}' title='{}'>{}</time>").format(_iso(at), moment(at), text)


def sentence(text: str) -> str:
    """The text with a capital letter."""
    return text[:1].upper() + text[1:]


def after(milliseconds: float) -> str:
    """The time since acceptance: in hundredths of a second at first."""
    seconds = milliseconds / 1000
    return f"+{seconds:.2f} s" if seconds < 60 else f"+{length(seconds)}"


def moment(at: float) -> str:
    """A time (ms) in full, UTC."""
    return f"{event.moment(at):%Y-%m-%d %H:%M:%S} UTC" if at else "–"


def number(value: float) -> str:
    """A number with narrow spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def _iso(at: float) -> str:
    return event.moment(at).isoformat()


def _asset(name: str) -> Markup:
    return Markup("/static/{}?v={}").format(escape(name), static(name)[1])


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Text from a job, a provider or a person is always shown as plain text.
        finalize=lambda value: value if isinstance(value, Markup) else plain(str(value)),
    )
    made.filters |= {
        "lasting": length,
        "number": number,
        "moment": moment,
        "sentence": sentence,
        "after": after,
        "when": when,
    }
    made.globals |= {"asset": _asset, "words": words}
    return made


def query(values: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a search for a link: only those that are set."""
    return {name: str(value) for name, value in values.items() if value}
