"""The columns of one's own `labels.csv` beyond those it is read by: attributes of scans, and the column `split`.

A column that may tell who somebody is becomes no attribute, nor does one with too many or too long values. Its name and
the reason are remarked, never its values.
"""

import re
from collections.abc import Mapping, Sequence

from mcis.data.attributes import MAX_LENGTH, MAX_NAMES, VOCABULARY

from . import attributes, remarks, table
from .cells import text_of
from .record import Remark
from .splits import SPLITS, TEST, TRAIN, VALIDATION

READ = ("scan", "label", "patient", "organ", "frame", "split")
"""Columns with a meaning of their own."""
MAX_VALUES = 20
"""Most different values of a column: with more, results by value mean nothing."""
FEWEST = 5
"""Number of rows from which on a column with another value in each of them is taken for a name of the scan."""

OTHER_NAMES = {
    "bi_rads": "birads",
    "bi_rads_category": "birads",
    "birads_category": "birads",
    "center": "site",
    "centre": "site",
    "device": "scanner",
    "frame_shape": "frame",
    "hospital": "site",
    "patient_age": "age",
    "scan_plane": "plane",
    "scanner_model": "scanner",
}
"""Column in snake case -> attribute of the vocabulary."""
# fmt: off
IDENTITY_WORDS = frozenset((
    "accession", "address", "adresse", "akte", "birth", "birthdate", "birthday", "case", "date", "datum",
    "dob", "doctor", "email", "fallnummer", "filename", "firstname", "forename", "geburtsdatum", "geburtstag",
    "group", "id", "identifier", "ids", "initials", "insurance", "lastname", "mrn", "nachname", "name",
    "names", "nhs", "number", "nummer", "operator", "patient", "patientid", "patientname", "patients",
    "person", "phone", "physician", "pid", "postcode", "radiologist", "reader", "ssn", "street", "subject",
    "surname", "telephone", "time", "uid", "versichertennummer", "vorname", "zip",
))
# fmt: on
"""Words of a column's name by which it may tell who somebody is, or when they were examined."""
# fmt: off
IDENTITY_PARTS = (
    "accession", "birth", "caseid", "caseno", "casenr", "casenum", "doctor", "examid", "fallnr", "fullname", "geburt",
    "initialen", "instanceuid", "insurance", "operator", "patid", "patient", "patno", "patnr", "physician",
    "radiologist", "recordid", "referrer", "studydate", "studyid", "studyno", "subject", "surname", "versicher",
)
# fmt: on
"""Parts of such words."""
LIKE_AN_IDENTIFIER = re.compile(r".*\d{5}.*")
"""Five digits in a row: a number of a patient or examination, whatever the column is called."""
LIKE_A_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}.*|(19|20)\d{6}")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "val", "valid"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""What a cell of the column `split` may say, in lower case -> split."""
_SHOWN = 5


def attributes_of(rows: Sequence[table.Row]) -> tuple[dict[int, dict[str, str]], list[Remark]]:
    """Line of each row -> the attributes that its columns give; and a remark for each column that is not kept."""
    found: dict[int, dict[str, str]] = {row.line: {} for row in rows}
    problems: list[Remark] = []
    taken: dict[str, str] = {}
    for column in rows[0].values if rows else ():
        if column in READ:
            continue
        name = snake_case(column)
        written = {row.line: " ".join(text_of(row.values[column]).split()) for row in rows}
        stated = {line: text for line, text in written.items() if not attributes.states_nothing(text)}
        values, reason = _values(name, stated, len(rows))
        if reason is None and name in taken:
            reason = f"the column {taken[name]} gives the same attribute"
        if reason is None and len(taken) == MAX_NAMES:
            reason = f"more than {MAX_NAMES} columns"
        if reason is not None:
            problems.append(Remark(f"not kept: column {column[:MAX_LENGTH]} ({reason})", remarks.COLUMN))
            continue
        taken[name] = column
        for line, value in values.items():
            found[line][name] = value
    return found, problems


def snake_case(column: str) -> str:
    """The attribute that a column gives.

    >>> snake_case("BI-RADS"), snake_case("Field strength (T)"), snake_case("Hospital")
    ('birads', 'field_strength_t', 'site')
    """
    name = re.sub(r"[\W_]+", "_", column.lower()).strip("_")
    return "age" if name.startswith("age_") or name == "alter" else OTHER_NAMES.get(name, name)


def tells_identity(name: str) -> bool:
    """Whether a column in snake case may tell who somebody is.

    >>> [tells_identity(name) for name in ("mrn", "studyinstanceuid", "date_of_birth", "site", "age")]
    [True, True, True, False, False]
    """
    return bool(IDENTITY_WORDS & set(name.split("_"))) or any(part in name.replace("_", "") for part in IDENTITY_PARTS)


def _values(name: str, stated: Mapping[int, str], rows: int) -> tuple[dict[int, str], str | None]:
    """Line -> value of an attribute, and why it is not kept; None where it is."""
    if not name or len(name) > MAX_LENGTH:
        return {}, f"its name must have letters or digits, at most {MAX_LENGTH}"
    if tells_identity(name):
        return {}, "may tell who somebody is; patients belong into the column patient"
    if not stated:
        return {}, "has no values"
    if any(text.startswith("=") for text in stated.values()):
        return {}, "has formulas; write their results"
    if any(LIKE_A_DATE.fullmatch(text) for text in stated.values()):
        return {}, "its values look like dates"
    if name not in VOCABULARY and any(LIKE_AN_IDENTIFIER.fullmatch(text) for text in stated.values()):
        return {}, "its values look like numbers of patients or examinations"
    values = {line: attributes.value_of(name, text) or ("" if name == "age" else text) for line, text in stated.items()}
    if not all(values.values()):
        return {}, "an age is a number of years, or a decade such as 50-59"
    first: dict[str, str] = {}  # values that differ only in case count as one
    values = {line: first.setdefault(value.casefold(), value) for line, value in values.items()}
    if any(len(value) > MAX_LENGTH for value in values.values()):
        return {}, f"a value is longer than {MAX_LENGTH} characters"
    if not all(value.isprintable() for value in values.values()):
        return {}, "a value has characters that cannot be shown"
    if len(first) > MAX_VALUES:
        return {}, f"has {len(first)} different values, more than {MAX_VALUES}"
    if len(first) == rows >= FEWEST and name not in VOCABULARY:
        return {}, "has another value in each row, as a name would"
    return values, None


def splits_of(rows: Sequence[table.Row]) -> dict[int, str]:
    """Line of each row -> the split that the column `split` asks for; {} without such a column, or where it is empty.

    Raises:
      ValueError: a row has none, or one that is no split.
    """
    named = [row for row in rows if row.values["scan"]]
    written = {row.line: text_of(row.values.get("split", "")).lower() for row in named}
    if not any(written.values()):
        return {}
    allowed = f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
    if lines := [line for line, text in written.items() if not text]:
        raise ValueError(
            f"the column split is empty in {len(lines)} of {len(named)} rows ({_lines(lines)}); write {allowed} into "
            "every row, or remove the column: the builder then makes the splits"
        )
    if lines := [line for line, text in written.items() if text not in SPLIT_NAMES]:
        raise ValueError(f"the column split has {written[lines[0]]!r} ({_lines(lines)}); write {allowed} into each row")
    return {line: SPLIT_NAMES[text] for line, text in written.items()}


def check_patients(splits: Sequence[tuple[str | None, str | None]]) -> None:
    """ValueError where scans of a patient are to be in several splits: (patient, split) of each scan.

    Patients and groups are checked again when all scans are read, as near-duplicates may join them.
    """
    found: dict[str, set[str]] = {}
    for patient, split in splits:
        if patient is not None and split is not None:
            found.setdefault(patient, set()).add(split)
    divided = {patient: own for patient, own in found.items() if len(own) > 1}
    if divided:
        listed = (f"{patient} in {' and '.join(s for s in SPLITS if s in own)}" for patient, own in divided.items())
        more = f"; and {len(divided) - _SHOWN} more" if len(divided) > _SHOWN else ""
        raise ValueError(
            f"the column split divides {len(divided)} of {len(found)} patients, whose scans must all be in one split: "
            f"{'; '.join(list(listed)[:_SHOWN])}{more}. Give each patient one split, or remove the column"
        )


def _lines(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:_SHOWN]))
    return f"line{'' if len(lines) == 1 else 's'} {shown}{' ...' if len(lines) > _SHOWN else ''}"
