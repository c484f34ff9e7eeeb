import codecs
import unicodedata

import pytest
from mcis_datasets.mcis_scans import table

COLUMNS = ("scan", "label", "patient")


@pytest.fixture
def read(tmp_path):
    def make(content, encoding="utf-8"):
        data = content if isinstance(content, bytes) else content.encode(encoding)
        (tmp_path / "labels.csv").write_bytes(data)
        return table.read(tmp_path / "labels.csv", COLUMNS)

    return make


def values(found):
    return [tuple(row.values[name] for name in COLUMNS) for row in found.rows]


PLAIN = "scan,label,patient\na.png,benign,P1\nmüller,normal,\n"
ROWS = [("a.png", "benign", "P1"), ("müller", "normal", "")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_every_delimiter_line_end_and_encoding_gives_the_same_rows(read, delimiter, end, encoding):
    found = read(PLAIN.replace(",", delimiter).replace("\n", end), encoding)
    assert values(found) == ROWS
    assert [row.line for row in found.rows] == [2, 3]
    assert (found.encoding == table.WINDOWS) == (encoding == "cp1252")


@pytest.mark.parametrize(
    "content",
    [
        "Scan, LABEL ,Patient\na.png,benign,P1\nmüller,normal,\n",
        "\n,,\nscan,label,patient\n\n a.png , benign,P1\n,,\nmüller,normal\n   \n",
        "scan,label,patient,,\na.png,benign,P1,,\nmüller,normal,,,\n,,,,\n",
        '"scan";"label";"patient"\n"a.png";"benign";"P1"\n"müller";"normal";""\n',
        "sep=;\nscan;label;patient\na.png;benign;P1\nmüller;normal;\n",
        "scan;label;patient\na.png;benign;P1\nmüller;normal;",
        "label,patient,scan\nbenign,P1,a.png\nnormal,,müller\n",
        unicodedata.normalize("NFD", PLAIN),
    ],
    ids=["case", "empty rows", "empty columns", "quotes", "sep", "no last line end", "order", "NFD"],
)
def test_tables_as_spreadsheets_write_them(read, content):
    assert values(read(content)) == ROWS


def test_values_may_have_delimiters_quotes_and_other_columns_line_breaks(read):
    found = read('scan,label,patient,Note\n"a,b;c.png",benign,"P ""1""","two\nlines"\nb.png,normal,,\n')
    assert values(found) == [("a,b;c.png", "benign", 'P "1"'), ("b.png", "normal", "")]
    assert [row.line for row in found.rows] == [2, 4] and found.rows[0].values["note"] == "two\nlines"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name,label\na,benign\n", "has no column scan, patient; it has: name, label"),
        ("name,patient,label\na,,\n", "has no column scan; it has"),
        ("", "has no column .*, patient; it has: none. .* by comma, semicolon, tab or [|]"),
        ("scan,label,patient,Label\na,benign,,x\n", "line 1: has the column label twice"),
        ("scan,label,patient\na,b.png,benign,P1\nc,normal,\nd,e,benign,P2\n", "line 2 has more .*; line 4 has more"),
        ('scan,label,patient\n"a,benign,P1\nb,benign,P2\n', "line 2: cannot be read as a row"),
        ('scan,label,patient\n"a\nb",benign,P1\n', "line 2 has a line break in the column scan"),
        (b"PK\x03\x04 and so on", "a workbook, not a CSV file"),
        (b"scan,label,patient\na,benign,\nm\x81,normal,\n", "line 3: neither text in UTF-8"),
        (b"scan,label,patient\na\0b,benign,\n", "NUL characters"),
        (codecs.BOM_UTF16_LE + b"s\0c", "line 1: neither text in UTF-8 nor in utf-16"),
    ],
)
def test_what_cannot_be_told_apart_is_an_error_with_its_line(read, content, words):
    with pytest.raises(ValueError, match=rf"labels\.csv: .*{words}"):
        read(content)


def test_columns_are_named_as_asked_and_others_in_lower_case(tmp_path):
    (tmp_path / "a.csv").write_text("id,CASE,Extra\n1,2,3\n")
    (row,) = table.read(tmp_path / "a.csv", ("ID", "Case")).rows
    assert row.values == {"ID": "1", "Case": "2", "extra": "3"}


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as a CSV file"):
        table.read(tmp_path / "none.csv", COLUMNS)


def test_a_column_that_may_be_empty_is_asked_for_with_these_words(tmp_path):
    (tmp_path / "a.csv").write_text("scan,label\na,\n")
    with pytest.raises(ValueError, match=r"no column patient; add it \(it may be empty\); it has: scan, label"):
        table.read(tmp_path / "a.csv", COLUMNS, ("patient",))
