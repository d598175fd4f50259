"""Reading jobs from files, with the number of the line each stands on.

A line that cannot be read is told of, and the next one read. NDJSON and CSV are read as they are
needed, in constant memory; a JSON document is read whole, and refused whole if it is none.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from worker.cli.cells import Columns
from worker.errors import Problem

#: Bytes. A job has at most 64 KiB, which JSON's `\uXXXX` makes longer by up to six times.
MAX_LINE = 1024 * 1024

#: What may stand between the cells; a spreadsheet takes what is usual in its country.
SEPARATORS = (",", ";", "\t")

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_EMPTY = Problem("missing", "", "the file is empty")

Text = str | Problem
"""A line as text, or why it is none."""


@dataclass(frozen=True, slots=True)
class Line:
    """What stands on a line (the first is 1): a job as it was given, or why it is none."""

    number: int
    job: dict[str, Any] | None = field(repr=False)
    problems: tuple[Problem, ...] = ()
    key: str | None = None
    """The job's idempotency key, where it could be read."""


def read_json(stream: BinaryIO) -> Iterator[Line]:
    """One job, or a list of jobs, as one JSON document."""
    text = _document(stream.read())
    if isinstance(text, Line):
        yield text
        return
    try:
        # All of it before the first job: half a document is a mistake, and not half an import.
        found = list(_values(text))
    except json.JSONDecodeError as error:
        yield Line(error.lineno, None, (_no_json(error),))
    except (ValueError, RecursionError) as error:
        yield Line(1, None, (_no_json(error),))
    else:
        halves = bool(_HALF.search(text))
        for number, value in found:
            yield _given(number, value, halves=halves)


def read_ndjson(stream: BinaryIO) -> Iterator[Line]:
    """One job a line, as JSON; blank lines are skipped."""
    empty = True
    for number, text in _lines(stream):
        if isinstance(text, Problem):
            yield Line(number, None, (text,))
        elif text.strip():
            yield _read_line(number, text, first=empty)
        else:
            continue
        empty = False
    if empty:
        yield Line(1, None, (_EMPTY,))


def read_csv(stream: BinaryIO, columns: Columns, provider: str | None = None) -> Iterator[Line]:
    """One job a row, under a header of paths; `provider`: of rows that name none.

    A row is a line. A cell cannot hold a line end, though other programs quote such cells: a quote
    that somebody forgot to close would take the rows up to the next one for a text.
    """
    names: list[str] | None = None
    separator = ","
    for number, text in _lines(stream):
        if names is None and isinstance(text, str):
            separator = next((sign for sign in SEPARATORS if sign in text), ",")
        row = text if isinstance(text, Problem) else _row(text, separator)
        if isinstance(row, Problem):
            yield Line(number, None, (row,))
            if names is None:
                return
        elif not any(row):
            continue
        elif names is None:
            names = [name.strip() for name in row]
            if problems := columns.problems(names):
                yield Line(number, None, tuple(problems))
                return
        elif len(row) != len(names):
            what = f"has {len(row)} cells, and the header {len(names)}"
            yield Line(number, None, (Problem("invalid", "", what),))
        else:
            job, found = columns.job(names, row, provider)
            yield Line(number, None if found else job, tuple(found), _key(job))
    if names is None:
        yield Line(1, None, (_EMPTY,))


def _row(text: str, separator: str) -> list[str] | Problem:
    if not text.strip():
        return []
    try:
        return next(csv.reader([text], strict=True, delimiter=separator))
    except csv.Error as error:
        hint = "; a cell cannot hold a line end" if text.count('"') % 2 else ""
        return Problem("invalid", "", f"is not CSV: {error}{hint}")


def _lines(stream: BinaryIO) -> Iterator[tuple[int, Text]]:
    number = 0
    while raw := stream.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE)
            yield number, Problem("invalid", "", f"is longer than {MAX_LINE} bytes")
        else:
            text = _decode(raw.removeprefix(_BOM) if number == 1 else raw)
            yield number, text.rstrip("\r\n") if isinstance(text, str) else text


def _decode(raw: bytes) -> Text:
    if b"\0" in raw or raw.startswith(_UTF16):
        return Problem("invalid", "", "holds a NUL byte, as UTF-16 does; save the file as UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 at byte {error.start + 1}; save the file as UTF-8"
        return Problem("invalid", "", what)


def _document(raw: bytes) -> str | Line:
    raw = raw.removeprefix(_BOM)
    for number, line in enumerate(raw.split(b"\n"), 1):
        if isinstance(problem := _decode(line), Problem):
            return Line(number, None, (problem,))
    text = raw.decode()
    return text if text.strip() else Line(1, None, (_EMPTY,))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_BLANK = " \t\r\n"

# A text with one of these may hold half of a surrogate pair; to look closer takes time.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _values(text: str) -> Iterator[tuple[int, Any]]:
    """The values of a list, or the one value, each with the line it begins on."""
    at, number = _skip(text, 0), 1
    whole = text[at] != "["
    if not whole:
        at = _skip(text, at + 1)
    counted = 0
    while whole or not text.startswith("]", at):
        number += text.count("\n", counted, at)
        counted = at
        value, at = _DECODER.raw_decode(text, at)
        yield number, value
        at = _skip(text, at)
        if whole:
            break
        if text.startswith(",", at):
            at = _skip(text, at + 1)
            if text.startswith("]", at):
                raise json.JSONDecodeError("Expecting value", text, at)
        elif not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if not whole:
        at = _skip(text, at + 1)
    if at < len(text):
        what = "Something follows the end (for one job a line say --format ndjson)"
        raise json.JSONDecodeError(what, text, at)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _read_line(number: int, text: str, *, first: bool) -> Line:
    try:
        value, end = _DECODER.raw_decode(text, _skip(text, 0))
        if _skip(text, end) < len(text):
            raise json.JSONDecodeError("Something follows the end of the object", text, end)
    except (ValueError, RecursionError) as error:
        hint = " (for one document, or a list, say --format json)" if first else ""
        return Line(number, None, (_no_json(error, hint),))
    return _given(number, value, halves=bool(_HALF.search(text)))


def _given(number: int, value: Any, *, halves: bool) -> Line:
    if not isinstance(value, dict):
        return Line(number, None, (Problem("invalid", "", "is not a JSON object"),))
    if halves and not _is_text(value):
        what = r"holds half of a pair of \uXXXX signs, which is no text"
        return Line(number, None, (Problem("invalid", "", what),))
    return Line(number, value, (), _key(value))


def _is_text(value: dict[str, Any]) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _key(job: dict[str, Any]) -> str | None:
    key = job.get("idempotency_key")
    return key[:255] if isinstance(key, str) else None


def _no_json(error: Exception, hint: str = "") -> Problem:
    match error:
        case json.JSONDecodeError():
            what = f"{error.msg}, column {error.colno}"
        case RecursionError():
            what = "nested too deep"
        case _:
            what = "holds a number that JSON has not, or that is too long"
    return Problem("invalid", "", f"is not JSON: {what}{hint}")
