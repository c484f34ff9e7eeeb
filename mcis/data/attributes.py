"""Attributes of a scan: what its source states of it beyond class and group, such as BI-RADS, plane or scanner. No JAX.

A prepared record holds them as JSON text, an object of short strings. They are side fields: text that cannot be read
counts as none, and so does a record of a version without them.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_LENGTH = 40
"""Most characters of a name and of a value."""
MAX_NAMES = 32
"""Most attributes of a scan."""
MAX_TEXT = 1 << 15
"""Most characters of the JSON text."""
NAME = re.compile(r"[^\W_]+(?:_[^\W_]+)*")
"""Snake case, of any script."""

VOCABULARY = {
    "age": "age of the patient in decades",
    "birads": "BI-RADS category, 0 to 6, also 4a, 4b and 4c",
    "combined": "whether the picture shows two frames side by side",
    "doppler": "whether the frame has colour Doppler",
    "frame": "shape of an ultrasound frame: linear or sector",
    "grade": "WHO grade of the tumor",
    "histology": "kind of tissue or tumor, by histology",
    "marks": "whether callipers or other marks are burnt in",
    "plane": "plane of the slice: axial, coronal or sagittal",
    "scanner": "maker and model of the scanner",
    "sequence": "MRI sequence: T1, T1c (after contrast agent), T2, FLAIR; composite: several, one a channel",
    "site": "hospital",
}
"""Name -> meaning of the attributes that published sources state. Own folders may have others."""


def to_text(attributes: Mapping[str, str]) -> str:
    """The JSON text of attributes, sorted by name.

    Raises:
      ValueError: a name is not in snake case, a value is empty, padded or not printable, or there is too much.

    >>> to_text({"plane": "axial", "birads": "4a"})
    '{"birads": "4a", "plane": "axial"}'
    """
    wrong = [name for name, value in attributes.items() if not is_valid(name, value)]
    if wrong or len(attributes) > MAX_NAMES:
        raise ValueError(
            f"attributes {wrong or len(attributes)}: at most {MAX_NAMES} are allowed, with names in snake case and "
            f"printable values, each of 1 to {MAX_LENGTH} characters"
        )
    return json.dumps(dict(sorted(attributes.items())), ensure_ascii=False)


def is_valid(name: Any, value: Any) -> bool:
    """Whether this is an attribute."""
    if not isinstance(name, str) or not isinstance(value, str) or NAME.fullmatch(name) is None:
        return False
    lengths = len(name) <= MAX_LENGTH and 0 < len(value) <= MAX_LENGTH
    return lengths and name == name.lower() and value == value.strip() and value.isprintable()


def from_record(record: Mapping[str, Any]) -> dict[str, str]:
    """The attributes of a stored scan (`dataset.records`), without those that are not valid; {} where none are known.

    >>> from_record({"attributes": b'{"birads": "4a", "x": 3}'}), from_record({}), from_record({"attributes": b"?"})
    ({'birads': '4a'}, {}, {})
    """
    stored = record.get("attributes", "")
    try:
        text = stored.decode() if isinstance(stored, bytes) else str(stored)
        found = json.loads(text) if len(text) <= MAX_TEXT else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    valid = [(name, value) for name, value in found.items() if is_valid(name, value)]
    return dict(sorted(valid)[:MAX_NAMES])
