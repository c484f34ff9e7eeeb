"""Attributes of scans as they are stored and read."""

import json

import pytest

from mcis.data import attributes
from mcis.data.attributes import from_record, to_text
from mcis.inference.rows import Rows, scan_facts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Site", "A"),
        ("a b", "A"),
        ("_a", "A"),
        ("", "A"),
        ("a" * 41, "A"),
        ("site", ""),
        ("site", " A"),
        ("site", "A\n"),
        ("site", "a\x00b"),
        ("site", "x" * 41),
        ("site", 3),
    ],
)
def test_what_is_no_attribute_is_an_error_when_stored_and_left_out_when_read(name, value):
    with pytest.raises(ValueError, match="names in snake case and printable values, each of 1 to 40 characters"):
        to_text({name: value})
    stored = json.dumps({name: value, "plane": "axial"}).encode()
    assert from_record({"attributes": stored}) == {"plane": "axial"}


def test_attributes_are_read_as_they_were_stored():
    known = {"birads": "4a", "site": "Universitätsklinikum Köln", "größe": "groß"}
    assert from_record({"attributes": to_text(known).encode()}) == known
    with pytest.raises(ValueError, match="attributes 33: at most 32 are allowed"):
        to_text({f"a{k}": "1" for k in range(33)})


@pytest.mark.parametrize("stored", [None, b"", b"\xff", b"[]", b"[" * 100_000, b'{"a": "1"' + b" " * 40_000 + b"}"])
def test_text_that_cannot_be_read_states_nothing(stored):
    assert from_record({"attributes": stored}) == {}


def test_the_vocabulary_has_valid_names():
    assert all(attributes.is_valid(name, "x") for name in attributes.VOCABULARY)


def test_a_record_without_the_feature_has_no_attributes_and_rows_carry_those_of_others():
    record = {"source": b"busi", "scan_id": b"1", "fingerprint": b"f", "has_mask": 1, "group": b"g"}
    facts = [scan_facts(record), scan_facts(record | {"attributes": b'{"birads": "2"}'})]
    assert [one["attributes"] for one in facts] == [{}, {"birads": "2"}]
    rows = Rows.of_scans([one | {"label": 1} for one in facts])
    again = Rows.from_json(json.loads(json.dumps(rows.to_json())))
    assert again.attributes.tolist() == [{}, {"birads": "2"}]
    assert again.take([1]).attributes.tolist() == [{"birads": "2"}]
    assert Rows.concatenate([again, rows]).attributes.tolist() == [{}, {"birads": "2"}] * 2
