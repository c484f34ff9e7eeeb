"""Tables of labels as spreadsheet programs write them: any usual delimiter, encoding and case of the column names."""

import csv
import dataclasses
import io
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

MAX_BYTES = 1 << 28
DELIMITERS = (",", ";", "\t", "|")
MARKS = {b"\xff\xfe\0\0": "utf-32", b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte order marks and what they mean; the longest first."""
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""First bytes of .xlsx, .ods and .xls files."""
WINDOWS = "cp1252"
"""What is not UTF-8 is taken for this: Excel's "CSV" in western Europe and America."""
ADVICE = 'in Excel, "Save as", "CSV UTF-8"'
LISTED = 5


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      line: line of the file in which it begins, from 1.
      values: column -> value without surrounding blanks. Columns are named as the caller asked, others in lower case.
    """

    line: int
    values: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a table that are not empty, and the encoding of its file."""

    rows: tuple[Row, ...]
    encoding: str


def read(path: pathlib.Path, columns: Iterable[str], may_be_empty: Sequence[str] = ()) -> Table:
    """Read a CSV file with the delimiter by which it has all of `columns`; those of `may_be_empty` may lack values.

    Column names are compared without case and surrounding blanks. Empty rows and columns without name and value are
    ignored. All text is in Unicode's form NFC.

    Raises:
      ValueError: no file, no text, a column is missing or there twice, or a row has values without a column; the
        message names the lines.
    """
    text, encoding = _decode(path)
    columns = tuple(columns)
    separator = re.match(r'\s*"?sep=(.)"?\s*$', text.split("\n", 1)[0], re.IGNORECASE)
    delimiter = separator[1] if separator else _delimiter(text, columns)
    (at, names), *rows = _records(path, text, delimiter, bool(separator)) or [(1, [])]
    shown = [name.strip() for name in names if name.strip()]
    missing = [name for name in columns if _folded(name) not in map(_folded, names)]
    if missing:
        add = "; add it (it may be empty)" if len(missing) == 1 and missing[0] in may_be_empty else ""
        raise ValueError(
            f"{path}: has no column {', '.join(missing)}{add}; it has: {', '.join(shown) or 'none'}. The first line "
            "names the columns, separated by comma, semicolon, tab or |"
        )
    twice = [name for name in dict.fromkeys(map(_folded, shown)) if list(map(_folded, shown)).count(name) > 1]
    if twice:
        raise ValueError(f"{path}: line {at}: has the column {', '.join(twice)} twice; keep one of each")
    asked = {_folded(name): name for name in columns}
    keys = [asked.get(_folded(name), _folded(name)) for name in names]
    return Table(
        tuple(_row(line, keys, fields) for line, fields in _checked(path, rows, keys, asked.values())), encoding
    )


def _delimiter(text: str, columns: Sequence[str]) -> str:
    """The delimiter that gives the most of `columns` in the first row, else the most values."""

    def found(delimiter: str) -> tuple[int, int]:
        names = [_folded(name) for _, fields in _records(None, text, delimiter, False, 1) for name in fields]
        return sum(_folded(name) in names for name in columns), len(names)

    return max(DELIMITERS, key=found)


def _checked(
    path: pathlib.Path, rows: Sequence[tuple[int, list[str]]], keys: Sequence[str], asked: Iterable[str]
) -> Sequence[tuple[int, list[str]]]:
    """The rows; ValueError that names the lines of those whose values cannot be told apart."""
    wrong, needed = [], set(asked)
    for line, fields in rows:
        extra = [value.strip() for key, value in zip([*keys, *[""] * len(fields)], fields, strict=False) if not key]
        broken = [key for key, value in zip(keys, fields, strict=False) if key in needed and "\n" in value.strip()]
        if any(extra):
            wrong.append(f"line {line} has more values than there are columns; put a value with a delimiter in quotes")
        elif broken:
            wrong.append(f"line {line} has a line break in the column {broken[0]}; is a quote not closed?")
    if wrong:
        more = f"; and {len(wrong) - LISTED} more lines" if len(wrong) > LISTED else ""
        raise ValueError(f"{path}: {'; '.join(wrong[:LISTED])}{more}")
    return rows


def _row(line: int, keys: Sequence[str], fields: Sequence[str]) -> Row:
    values = dict.fromkeys((key for key in keys if key), "")
    return Row(line, values | {key: value.strip() for key, value in zip(keys, fields, strict=False) if key})


def _folded(name: str) -> str:
    return name.strip().lower()


def _records(
    path: pathlib.Path | None, text: str, delimiter: str, skip: bool, count: int | None = None
) -> list[tuple[int, list[str]]]:
    """(line, fields) of the first `count` records that are not empty, without a first line that names the delimiter."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: list[tuple[int, list[str]]] = []
    begins = 1
    try:
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            if any(field.strip() for field in fields) and not (skip and line == 1):
                found.append((line, fields))
            if len(found) == count:
                break
    except csv.Error as error:
        if count is not None:  # another delimiter may fit
            return found
        raise ValueError(f"{path}: line {begins}: cannot be read as a row of a CSV file ({error})") from None
    return found


def _decode(path: pathlib.Path) -> tuple[str, str]:
    """The text of a file in form NFC, and its encoding. ValueError where it is no text."""
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise ValueError(f"{path}: not a regular file; a CSV file is needed")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a CSV file ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES >> 20} MiB; a table of labels is needed")
    if data.startswith(WORKBOOKS):
        raise ValueError(f"{path}: a workbook, not a CSV file; {ADVICE}")
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:2]:
        encoding = "utf-16-be" if data.startswith(b"\0") else "utf-16-le"
    for name in (encoding,) if encoding else ("utf-8", WINDOWS):
        try:
            text = data.decode(name)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            problem = f"line {line}: neither text in UTF-8 nor in {encoding or 'Windows-1252'}; {ADVICE}"
            continue
        if "\0" in text:
            raise ValueError(f"{path}: has NUL characters, so it is no text; {ADVICE}")
        return unicodedata.normalize("NFC", text.lstrip("\ufeff")), name
    raise ValueError(f"{path}: {problem}")
