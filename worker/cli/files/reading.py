"""Reads jobs from files, with the line number of each.

A line that cannot be read is reported, and reading continues with the next. NDJSON and CSV are read
as needed, in constant memory; a JSON document is read completely, and refused completely if it is
not JSON.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from regworker.domain.errors import Problem
from worker.cli.files.csv_columns import Columns

#: Bytes. A job has at most 64 KiB, which JSON's `\uXXXX` makes longer by up to six times.
MAX_LINE = 1024 * 1024

#: The characters that may separate cells; a spreadsheet uses the usual one of its country.
SEPARATORS = (",", ";", "\t")

#: The first line that names the separator for Excel.
_EXCEL = re.compile(r'"?sep=(.)"?[,;\t]*', re.IGNORECASE)

_SEPARATOR_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab"}

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_EMPTY = Problem("missing", "", "the file is empty")

Text = str | Problem
"""A line as text, or the reason why it is none."""


@dataclass(frozen=True, slots=True)
class InputLine:
    """The content of a line (the first is 1): the job as given, or the problem."""

    number: int
    job: dict[str, Any] | None = field(repr=False)
    problems: tuple[Problem, ...] = ()
    key: str | None = None
    """The job's idempotency key, if it could be read."""


def read_json(stream: BinaryIO) -> Iterator[InputLine]:
    """One job, or a list of jobs, as one JSON document."""
    text = _document(stream.read())
    if isinstance(text, InputLine):
        yield text
        return
    try:
        # Read all of it before the first job: half a document is an error, not half an import.
        found = list(_values(text))
    except json.JSONDecodeError as error:
        yield InputLine(error.lineno, None, (_no_json(error),))
    except (ValueError, RecursionError) as error:
        yield InputLine(1, None, (_no_json(error),))
    else:
        halves = bool(_HALF.search(text))
        for number, value in found:
            yield _given(number, value, halves=halves)


def read_ndjson(stream: BinaryIO, hint: str = "") -> Iterator[InputLine]:
    """One job per line, as JSON; blank lines are skipped. `hint`: what to do if the first line is
    none."""
    empty = True
    for number, text in _lines(stream):
        if isinstance(text, Problem):
            yield InputLine(number, None, (text,))
        elif text.strip():
            yield _read_line(number, text, hint if empty else "")
        else:
            continue
        empty = False
    if empty:
        yield InputLine(1, None, (_EMPTY,))


def read_csv(
    stream: BinaryIO, columns: Columns, provider: str | None = None
) -> Iterator[InputLine]:
    """One job per row, under a header of paths; `provider`: for rows that name none.

    A row is a line. A cell cannot contain a line end, although other programs quote such cells: a
    forgotten closing quote would swallow the rows up to the next quote.
    """
    names: list[str] | None = None
    separator = ""
    for number, text in _lines(stream):
        if number == 1 and isinstance(text, str) and (said := _EXCEL.fullmatch(text)):
            separator = said[1]
            continue
        if names is None and isinstance(text, str):
            separator = separator or next((sign for sign in SEPARATORS if sign in text), ",")
        row = text if isinstance(text, Problem) else _row(text, separator)
        if isinstance(row, Problem):
            yield InputLine(number, None, (row,))
            if names is None:
                return
        elif not any(row):
            continue
        elif names is None:
            names = _without_end([name.strip() for name in row])
            if problems := columns.problems(names):
                yield InputLine(number, None, tuple(problems))
                return
        elif problem := _misfit(row, names, separator):
            yield InputLine(number, None, (problem,))
        else:
            row = row[: len(names)]
            job, found = columns.job(names, row, provider)
            yield InputLine(number, None if found else job, tuple(found), _key(job))
    if names is None:
        yield InputLine(1, None, (_EMPTY,))


def _without_end(row: list[str]) -> list[str]:
    """The row without the empty cells that a spreadsheet adds at its end for columns once used."""
    while row and not row[-1]:
        row.pop()
    return row


def _misfit(row: list[str], names: list[str], separator: str) -> Problem | None:
    if len(row) < len(names) or any(row[len(names) :]):
        what = (
            f"has {len(row)} cells, and the header {len(names)}: put a cell that holds "
            f"{_SEPARATOR_NAMES.get(separator, repr(separator))} into double quotes, "
            "and give each column a name"
        )
        return Problem("invalid", "", what)
    return None


def _row(text: str, separator: str) -> list[str] | Problem:
    if not text.strip():
        return []
    try:
        return next(csv.reader([text], strict=True, delimiter=separator))
    except csv.Error:
        return Problem("invalid", "", f"is not CSV: {_no_csv(text)}")


def _no_csv(text: str) -> str:
    # The csv module's own messages are about Python and how it opens files.
    if "\r" in text:
        return "it holds a carriage return; save the file with line ends of Windows or Unix"
    if text.count('"') % 2:
        return (
            'a double quote is not closed on this line; close it, or write "" for a quote '
            "inside a cell; a cell cannot hold a line end"
        )
    if len(text) > csv.field_size_limit():
        return f"a cell is longer than {csv.field_size_limit()} characters"
    return 'something follows a cell\'s closing double quote; write "" for a quote inside a cell'


def _lines(stream: BinaryIO) -> Iterator[tuple[int, Text]]:
    number = 0
    while raw := stream.readline(MAX_LINE + 1):
        number += 1
        if number == 1 and raw.startswith(_UTF16):
            # All lines have the same error.
            yield number, Problem("invalid", "", _IS_UTF16)
            return
        if len(raw) > MAX_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE)
            yield number, Problem("invalid", "", f"is longer than {MAX_LINE} bytes")
        else:
            text = _decode(raw.removeprefix(_BOM) if number == 1 else raw)
            yield number, text.rstrip("\r\n") if isinstance(text, str) else text


#: What to do with a file in another encoding.
_SAVE = 'save the file as UTF-8 (in Excel: "CSV UTF-8")'

_IS_UTF16 = f"the file is UTF-16; {_SAVE}"


def _decode(raw: bytes) -> Text:
    if b"\0" in raw:
        what = f"holds a NUL character; remove it, or, if the file is UTF-16, {_SAVE}"
        return Problem("invalid", "", what)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 at byte {error.start + 1}, and may be Latin-1; {_SAVE}"
        return Problem("invalid", "", what)


def _document(raw: bytes) -> str | InputLine:
    if raw.startswith(_UTF16):
        return InputLine(1, None, (Problem("invalid", "", _IS_UTF16),))
    raw = raw.removeprefix(_BOM)
    for number, line in enumerate(raw.split(b"\n"), 1):
        if isinstance(problem := _decode(line), Problem):
            return InputLine(number, None, (problem,))
    text = raw.decode()
    return text if text.strip() else InputLine(1, None, (_EMPTY,))


# NaN is allowed here: the job's check names the field.
_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"

# A text with one of these may hold half of a surrogate pair; only then a slower check is needed.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _values(text: str) -> Iterator[tuple[int, Any]]:
    """The values of a list, or the only value, each with the line on which it begins."""
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


def _read_line(number: int, text: str, hint: str) -> InputLine:
    try:
        value, end = _DECODER.raw_decode(text, _skip(text, 0))
        if _skip(text, end) < len(text):
            raise json.JSONDecodeError("Something follows the end of the object", text, end)
    except (ValueError, RecursionError) as error:
        return InputLine(number, None, (_no_json(error, hint),))
    return _given(number, value, halves=bool(_HALF.search(text)))


def _given(number: int, value: Any, *, halves: bool) -> InputLine:
    if not isinstance(value, dict):
        return InputLine(number, None, (Problem("invalid", "", "is not a JSON object"),))
    if halves and not _is_text(value):
        what = r"holds half of a pair of \uXXXX characters, which is no text"
        return InputLine(number, None, (Problem("invalid", "", what),))
    return InputLine(number, value, (), _key(value))


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
            what = "holds a number that is too long"
    return Problem("invalid", "", f"is not JSON: {what}{hint}")
