"""What spreadsheet programs write in place of a patient or fact: signs for "unknown", errors of Excel, formulas."""

import re

UNKNOWN_PATIENTS = frozenset(
    ("-", "--", "\u2013", "\u2014", ".", "?", "??", "/", "n/a", "n.a.", "na", "nan", "nil", "none", "null", "unknown")
)
"""In lower case. They are no names: scans of several people must not become those of one."""
EXCEL_ERROR = re.compile(r"#(n/a|[a-z0-9/]+[!?])", re.IGNORECASE)
"""#N/A, #NAME?, #REF! ... where a formula failed. "#12" is a name."""
TEXT = re.compile(r'="([^"]*)"')
"""A formula that is a text: so Excel keeps the zeros of ="001"."""


def patient_of(written: str) -> tuple[str, bool]:
    """The patient that a cell names, "" for none; and whether it says that there is none, without being empty.

    Raises:
      ValueError: a formula, whose result is not in the file.

    >>> patient_of("P1"), patient_of(""), patient_of("n/a"), patient_of('="001"')
    (('P1', False), ('', False), ('', True), ('001', False))
    """
    name = text_of(written)
    if name.startswith("="):
        raise ValueError(f"patient {written!r} is a formula; write its result (copy the column, paste its values)")
    return ("", bool(name)) if is_missing(name) else (name, False)


def text_of(written: str) -> str:
    """What a cell says: its text, also where that is a formula that is a text."""
    text = TEXT.fullmatch(written)
    return written if text is None else text[1].strip()


def is_missing(text: str) -> bool:
    """Whether a cell says nothing: it is empty, or has a sign for "unknown" or an error of Excel.

    >>> is_missing(""), is_missing("N/A"), is_missing("#REF!"), is_missing("4")
    (True, True, True, False)
    """
    return not text or text.lower() in UNKNOWN_PATIENTS or EXCEL_ERROR.fullmatch(text) is not None
