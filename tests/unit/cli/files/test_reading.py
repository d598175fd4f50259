"""The forms that a file of jobs may have, and the report on a line that cannot be read."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regworker.domain.job import Job
from worker.cli.files.csv_columns import Columns
from worker.cli.files.reading import MAX_LINE, InputLine, read_csv, read_json, read_ndjson
from worker.providers.registry import Registry

REGISTRY = Registry(["worker.providers.skypostal:SkyPostal", "worker.providers.open2b:Open2b"])
PASSWORD = "registration.customer_password"


@pytest.fixture
def columns() -> Columns:
    """The columns of both providers' jobs."""
    return Columns(
        Job.model_json_schema(),
        {name: REGISTRY[name].Registration.model_json_schema() for name in ("skypostal", "open2b")},
    )


def ndjson(text: str | bytes) -> list[InputLine]:
    """Read a text as NDJSON."""
    return list(read_ndjson(io.BytesIO(text if isinstance(text, bytes) else text.encode())))


def document(text: str | bytes) -> list[InputLine]:
    """Read a text as JSON."""
    return list(read_json(io.BytesIO(text if isinstance(text, bytes) else text.encode())))


def rows(
    columns: Columns, text: str | bytes, provider: str | None = "skypostal"
) -> list[InputLine]:
    """Read a text as CSV."""
    raw = text if isinstance(text, bytes) else text.encode()
    return list(read_csv(io.BytesIO(raw), columns, provider))


def jobs(lines: list[InputLine]) -> list[tuple[int, dict[str, Any] | None]]:
    """The line numbers and the jobs."""
    return [(line.number, line.job) for line in lines]


def said(line: InputLine) -> str:
    """The problems of a line."""
    return "; ".join(map(str, line.problems))


# NDJSON


def test_ndjson_has_one_job_a_line() -> None:
    """Each line is a job; blank lines are none, but count as lines."""
    assert jobs(ndjson('{"a": 1}\n\n{"a": 2}\n')) == [(1, {"a": 1}), (3, {"a": 2})]


def test_ndjson_needs_no_line_end_at_its_end() -> None:
    """The last line counts with or without a line end."""
    assert jobs(ndjson('{"a": 1}\r\n{"a": 2}')) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b'{"a": 1', "is not JSON: Expecting ',' delimiter, column 8"),
        (b'{"a": 1} {"a": 2}', "Something follows the end"),
        (b"[1, 2]", "is not a JSON object"),
        (b'{"a": ' + b"[" * 200_000, "nested too deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too long"),
        (b'{"a": "\xe9"}', "is not UTF-8 at byte 8"),
        (b'{"a": "\x00"}', "NUL"),
        (b'{"a": "\\ud800"}', "half of a pair"),
        (b'{"a": "' + b"x" * MAX_LINE + b'"}', f"is longer than {MAX_LINE} bytes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_line_of_ndjson_costs_itself_only(bad: bytes, what: str) -> None:
    """The report has the number of the unreadable line, and the lines around it are read."""
    before, line, after = ndjson(b'{"a": 1}\n' + bad + b'\n{"a": 2}\n')
    assert what in said(line)
    assert jobs([before, line, after]) == [(1, {"a": 1}), (2, None), (3, {"a": 2})]


def test_a_pair_of_surrogates_is_a_sign_like_any_other() -> None:
    r"""An emoji written as two \uXXXX is read as one character."""
    assert jobs(ndjson(r'{"a": "\ud83d\ude00"}')) == [(1, {"a": "\U0001f600"})]


def test_a_document_given_as_ndjson_is_met_with_advice() -> None:
    """The first line's error has the caller's advice; no other has it."""
    first, *more = read_ndjson(io.BytesIO(b'[\n{"a": 1}\n]'), " (say --format json)")
    assert said(first).endswith("(say --format json)")
    assert "--format" not in "".join(map(said, more))


def test_the_key_of_a_job_is_known_for_the_report() -> None:
    """The report has a line's idempotency key if it is a text."""
    assert [line.key for line in ndjson('{"idempotency_key": "k"}\n{"idempotency_key": 1}')] == [
        "k",
        None,
    ]


def test_a_mark_of_utf8_at_the_beginning_is_no_content() -> None:
    """The byte order mark that Windows programs write is not part of the first line."""
    assert jobs(ndjson(b'\xef\xbb\xbf{"a": 1}')) == [(1, {"a": 1})]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_told(text: str, columns: Columns) -> None:
    """An empty file is an error in any format."""
    for found in (ndjson(text), document(text), rows(columns, text)):
        assert [said(line) for line in found] == ["the file is empty"]


@given(st.binary(max_size=300))
def test_whatever_bytes_a_file_holds_they_are_read_or_told(raw: bytes) -> None:
    """Whatever a file contains, reading it returns jobs or problems."""
    columns = Columns({"properties": {"a": {"type": "string"}}}, {})
    for line in [*ndjson(raw), *document(raw), *rows(columns, raw), *rows(columns, b"a\n" + raw)]:
        assert (line.job is None) == bool(line.problems)


# JSON


def test_json_may_be_one_job() -> None:
    """A document that is an object is one job, wherever it begins."""
    assert jobs(document('\n{"a":\n1}\n')) == [(2, {"a": 1})]


def test_json_may_be_a_list_of_jobs() -> None:
    """Each job of a list has the number of the line on which it begins."""
    text = '[\n  {"a": 1},\n  {\n    "a": 2\n  },\n  7\n]'
    assert jobs(document(text)) == [(2, {"a": 1}), (3, {"a": 2}), (6, None)]


def test_json_may_be_an_empty_list() -> None:
    """An empty list is valid, and has no jobs."""
    assert document("[ ]") == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"a": 1},\n{"a": 2]', 2),
        ('[{"a": 1},\n]', 2),
        ('[{"a": 1}\n{"a": 2}]', 2),
        ('[{"a": 1}]\n[]', 2),
        ('{"a": 1}\n{"a": 2}', 2),
        ("[", 1),
    ],
)
def test_a_broken_document_gives_no_job_at_all(text: str, line: int) -> None:
    """One mistake means that no job is read; the report has its line."""
    [found] = document(text)
    assert (found.number, found.job) == (line, None)
    assert "is not JSON" in said(found)


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans())))
def test_any_list_of_objects_is_read_as_the_json_module_reads_it(value: list[Any]) -> None:
    """Jobs do not depend on the layout of the document."""
    for indent in (None, 2):
        assert [line.job for line in document(json.dumps(value, indent=indent))] == value


# CSV


def test_columns_are_paths_into_the_job(columns: Columns) -> None:
    """A dot goes one level down, and a number is a place in a list."""
    text = (
        "idempotency_key,reply_to.0,reply_to.1,metadata.order,"
        "registration.customer_phone.0.phone_number,registration.customer_phone.1.phone_number\n"
        "k-1,results,crm,A-17,123,456\n"
    )
    assert jobs(rows(columns, text)) == [
        (
            2,
            {
                "idempotency_key": "k-1",
                "reply_to": ["results", "crm"],
                "metadata": {"order": "A-17"},
                "registration": {
                    "customer_phone": [{"phone_number": "123"}, {"phone_number": "456"}]
                },
            },
        )
    ]


@pytest.mark.parametrize(
    "password", ["0123", "true", "null", "1e5", " a b ", "-1", "[1]", "'", "''x''", "päss"]
)
def test_a_text_stays_the_text_it_is(columns: Columns, password: str) -> None:
    """A cell like `1`, `true` or `[]` stays a text if the field takes texts."""
    [line] = rows(columns, f"idempotency_key,{PASSWORD}\nk,{password}\n")
    assert line.job == {"idempotency_key": "k", "registration": {"customer_password": password}}


@pytest.mark.parametrize(
    ("column", "cell", "value"),
    [
        ("customer_tax_number", "11111", 11111),
        ("customer_tax_number", " -5 ", -5),
        ("customer_email_agreement", "false", False),
        ("customer_email_agreement", "TRUE", True),
        ("customer_referred_by", "null", None),
        ("customer_referred_by", "811111", 811111),
        ("customer_address.0.city_code", "95411", [{"city_code": 95411}]),
        ("customer_phone.0.phone_type", "2", [{"phone_type": 2}]),
    ],
)
def test_a_cell_becomes_what_the_field_takes(
    columns: Columns, column: str, cell: str, value: Any
) -> None:
    """If the field is a number, true or false, or null, the cell is read as one."""
    [line] = rows(columns, f"registration.{column}\n{cell}\n")
    assert line.job == {"registration": {column.partition(".")[0]: value}}


@pytest.mark.parametrize(
    ("column", "cell", "what"),
    [
        ("customer_tax_number", "0123", "the cell is not a whole number"),
        ("customer_tax_number", "1.5", "the cell is not a whole number"),
        ("customer_tax_number", "''", "the cell is not a whole number"),
        ("customer_email_agreement", "yes", "the cell is not true or false"),
        ("customer_referred_by", "nobody", "the cell is not a whole number or null"),
    ],
)
def test_a_cell_that_is_not_what_the_field_takes_is_told(
    columns: Columns, column: str, cell: str, what: str
) -> None:
    """The report names the column, and doesn't repeat the cell."""
    [line] = rows(columns, f"registration.{column}\n{cell}\n")
    assert said(line) == f"registration.{column}: {what}"


def test_an_empty_cell_leaves_its_field_out_and_two_quotes_are_an_empty_text(
    columns: Columns,
) -> None:
    """A cell can leave its field out, or set it to an empty text."""
    text = "idempotency_key,registration.customer_campaign\nk-1,\nk-2,''\n"
    assert [line.job for line in rows(columns, text)] == [
        {"idempotency_key": "k-1"},
        {"idempotency_key": "k-2", "registration": {"customer_campaign": ""}},
    ]


def test_the_provider_of_a_row_says_what_its_fields_are(columns: Columns) -> None:
    """One file may have rows of both providers."""
    text = (
        "provider,registration.customer.privacyConsents.0,registration.customer_tax_number\n"
        "open2b,12,\n"
        "skypostal,,7\n"
        "open2b,,7\n"
    )
    first, second, third = rows(columns, text, None)
    assert first.job == {
        "provider": "open2b",
        "registration": {"customer": {"privacyConsents": [12]}},
    }
    assert second.job == {"provider": "skypostal", "registration": {"customer_tax_number": 7}}
    assert said(third) == "registration.customer_tax_number: is not a field of open2b's jobs"


def test_a_hole_in_a_list_is_told(columns: Columns) -> None:
    """A second phone without a first is not moved to the first place."""
    column = "registration.customer_phone.{}.phone_number"
    text = f"{column.format(0)},{column.format(1)}\n,456\n"
    [line] = rows(columns, text)
    assert said(line) == (
        "registration.customer_phone.0: is left out, while registration.customer_phone.1 is given"
    )


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("shoe_size", "shoe_size: is no column of a job"),
        ("customer_password", f"customer_password: is no column of a job; is it {PASSWORD}?"),
        ("registration.customer_phone.x", "is no column of a job"),
        ("registration.customer_phone", "takes a column for each of its parts"),
        ("registration", "takes a column for each of its parts"),
        ("metadata", "takes a column for each of its parts"),
        ("lane.x", "is no column of a job"),
        ("lane,lane", "lane: there are two columns of this name"),
        ("metadata.a,metadata.a.b", "metadata.a.b: this column is a part of another, metadata.a"),
        (",lane", "column 1 has no name; give it one, or delete it"),
        ("registration.", "is no column of a job"),
    ],
)
def test_a_wrong_header_stops_before_the_first_row(
    columns: Columns, header: str, what: str
) -> None:
    """The report has the name of the unknown column, and the header's line."""
    [line] = rows(columns, f"{header}\nlive,live\n")
    assert line.number == 1
    assert what in said(line)


def test_every_mistake_of_a_header_is_told_at_once(columns: Columns) -> None:
    """The user can fix a header in one go."""
    [line] = rows(columns, "idempotency_key,a,b\nk,1,2\n")
    assert [problem.field for problem in line.problems] == ["a", "b"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_cells_are_separated_as_the_header_is(columns: Columns, separator: str) -> None:
    """A spreadsheet separates cells with commas, semicolons or tabs; a cell may contain the
    other two."""
    text = f'idempotency_key{separator}{PASSWORD}\nk{separator}"a,b;c\td"\n'
    [line] = rows(columns, text)
    assert line.job == {
        "idempotency_key": "k",
        "registration": {"customer_password": "a,b;c\td"},
    }


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("k-2", "has 1 cells, and the header 2"),
        ("k-2,x,y", "has 3 cells, and the header 2"),
        ("k-2,x,,y", "give each column a name"),
        ('k-2,"x"y', "something follows a cell's closing double quote"),
        ('k-2,"x', "a double quote is not closed on this line"),
        ("k-2,x\ry", "save the file with line ends of Windows or Unix"),
        ("k-2," + "x" * 140_000, "a cell is longer than 131072 characters"),
    ],
)
def test_a_bad_row_costs_itself_only(columns: Columns, bad: str, what: str) -> None:
    """The report has the row's line, and all rows after it are read."""
    text = "idempotency_key,metadata.a\nk-1,a\n" + bad + "\nk-3,a\nk-4,a\n"
    first, line, *others = rows(columns, text)
    assert (line.number, line.job) == (3, None)
    assert what in said(line)
    assert [(one.number, one.key) for one in (first, *others)] == [
        (2, "k-1"),
        (4, "k-3"),
        (5, "k-4"),
    ]


@pytest.mark.parametrize("said_first", ["sep=;", '"sep=;"', "SEP=;", "sep=;;;"])
def test_excel_may_say_first_what_separates_the_cells(columns: Columns, said_first: str) -> None:
    """A first line `sep=;` is no header, and then a comma separates nothing."""
    text = f"{said_first}\r\nidempotency_key;metadata.a,b\r\n"
    [line] = rows(columns, text + "k;x\r\n") or [None]
    assert line is not None
    assert line.number == 3
    assert line.job == {"idempotency_key": "k", "metadata": {"a,b": "x"}}


def test_empty_columns_at_the_end_are_none(columns: Columns) -> None:
    """A spreadsheet writes empty columns where cells were deleted."""
    text = "idempotency_key;metadata.a;;\nk-1;x;;\nk-2;x\nk-3;x;;y\n"
    first, second, third = rows(columns, text)
    assert (first.job, second.key) == ({"idempotency_key": "k-1", "metadata": {"a": "x"}}, "k-2")
    assert "has 4 cells, and the header 2" in said(third)


PYTHON = ("python", "universal-newline", "tuple", "dict", "codec", "traceback", "instance", "none")


SPOILED = (
    *(b"\xe9", b"\xff\xfea\0", b"\xfe\xff\0a", b"a\0", b'"', b'"a"b', b"a\rb", b"a,,b", b"sep=;"),
    *(b"{", b"[1", b"NaN", b"[" * 9999, b'"\\ud800"'),
)


@pytest.mark.parametrize("raw", SPOILED)
def test_what_is_wrong_with_a_file_is_said_in_its_users_words(columns: Columns, raw: bytes) -> None:
    """Messages contain no terms of Python, because readers fill in tables."""
    for line in [
        *ndjson(raw),
        *document(raw),
        *rows(columns, raw),
        *rows(columns, b"lane\n" + raw),
    ]:
        for problem in line.problems:
            assert not any(word in problem.message.lower() for word in PYTHON), problem


def test_a_forgotten_quote_swallows_no_rows(columns: Columns) -> None:
    """Of two rows with a forgotten quote each, both are bad, and the rows between them are read."""
    text = 'idempotency_key,metadata.a\nk-1,"a\nk-2,a\nk-3,a"\nk-4,"a\nb"\n'
    found = rows(columns, text)
    assert [(line.number, line.job is None) for line in found] == [
        (2, True),
        (3, False),
        (4, False),
        (5, True),
        (6, True),
    ]
    assert "a cell cannot hold a line end" in said(found[0])


def test_rows_without_content_are_skipped(columns: Columns) -> None:
    """Blank lines, and a spreadsheet's empty rows, are no jobs."""
    text = "idempotency_key,metadata.a\n\n,\nk-1,a\n   \n,,,\n"
    assert [line.key for line in rows(columns, text)] == ["k-1"]


def test_a_row_in_another_encoding_is_told(columns: Columns) -> None:
    """The report has the line of a Latin-1 cell; its encoding is not guessed."""
    text = "idempotency_key,metadata.a\nk-1,é\n".encode("latin-1") + b"k-2,a\n"
    first, second = rows(columns, text)
    assert first.number == 2
    assert said(first).startswith("is not UTF-8 at byte 5, and may be Latin-1; save the file as")
    assert second.key == "k-2"


def test_a_file_in_utf16_is_told_as_such(columns: Columns) -> None:
    """The report names UTF-16, which some spreadsheets call Unicode, and says what to do."""
    [line] = rows(columns, "idempotency_key\nk-1\n".encode("utf-16"))
    assert "save the file as UTF-8" in said(line)
