"""What a DICOM header, or the values of a volume, state about the organ that a scan shows. No JAX.

Nothing that a header says is quoted: a statement names the element and the term of a table below, so that free text,
which could name a patient, never reaches a finding. Values in no table are ignored.
"""

from collections.abc import Sequence
from typing import Any

from mcis.imaging.body_parts import BODY_PARTS, body_part_of_code, body_parts_in
from mcis.imaging.dicom.header import value_of
from mcis.imaging.scan import Statement
from mcis.organs import ORGAN_NAMES, ORGANS

MODALITIES: dict[str, str] = {
    **dict.fromkeys(("MR", "MRI", "MA", "MS", "FMRI"), "MR"),  # MA, MS: magnetic resonance angiography, spectroscopy
    **dict.fromkeys(("US", "CD", "DD", "ULTRASOUND"), "US"),  # CD, DD: colour and duplex Doppler
    **{
        code: code
        for code in (
            *("AS", "BDUS", "BI", "BMD", "CF", "CFM", "CP", "CR", "CS", "CT", "DF", "DG", "DM", "DMS", "DOC", "DS"),
            *("DX", "EC", "ECG", "EEG", "EMG", "EOG", "EPS", "ES", "FA", "FS", "GM", "HD", "IO", "IVOCT", "IVUS"),
            *("KER", "LEN", "LP", "LS", "MG", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS"),
            *("PET", "PT", "PX", "RF", "RG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTSTRUCT", "SEG", "SM", "SRF", "ST"),
            *("TG", "VA", "VF", "XA", "XC"),
        )
    },
}
"""Modality (0008,0060), upper case -> the modality in `organs.ORGANS`, or itself: PS3.3 C.7.3.1.1.1, its retired terms,
and a few that are often written."""
UNSPECIFIC = ("OT", "SC", "HC", "DI", "WSD")
"""Modalities that name no kind of scan: other, a secondary capture, a hard copy."""

MAX_VALUES = 8
"""Values of an element that are looked at."""

STORAGE = "1.2.840.10008.5.1.4.1.1."
SECONDARY_CAPTURE = f"{STORAGE}7"
"""UID of this SOP class, and beginning of those of its multi-frame kinds."""
SOP_CLASSES: dict[str, str] = {
    **dict.fromkeys(("4", "4.1", "4.2", "4.3", "4.4"), "MR"),
    **dict.fromkeys(("3", "3.1", "6", "6.1", "6.2"), "US"),
    **dict.fromkeys(("2", "2.1", "2.2"), "CT"),
    **dict.fromkeys(("1.2", "1.2.1", "13.1.3", "13.1.4", "13.1.5"), "MG"),
    **dict.fromkeys(("1.1", "1.1.1"), "DX"),
    **dict.fromkeys(("1.3", "1.3.1"), "IO"),
    **dict.fromkeys(("12.1", "12.1.1", "12.3", "13.1.1", "13.1.2"), "XA"),
    **dict.fromkeys(("12.2", "12.2.1"), "RF"),
    **dict.fromkeys(("128", "128.1", "130"), "PT"),
    **dict.fromkeys(("14.1", "14.2"), "IVOCT"),
    **dict.fromkeys(("77.1.1", "77.1.1.1"), "ES"),
    **dict.fromkeys(("77.1.2", "77.1.2.1"), "GM"),
    **dict.fromkeys(("77.1.3", "77.1.6"), "SM"),
    **dict.fromkeys(("77.1.4", "77.1.4.1"), "XC"),
    **dict.fromkeys(("77.1.5.1", "77.1.5.2", "77.1.5.5", "77.1.5.6"), "OP"),
    "1": "CR",
    "20": "NM",
    "77.1.5.4": "OPT",
    "481.1": "RTIMAGE",
}
"""End of a SOP class UID (0008,0016), after STORAGE -> its modality, which counts where the header names none."""

ANALYSED = frozenset(modality for organ in ORGANS for modality in organ.modalities)
"""Modalities of the organs that are analysed."""

CONVERSIONS = {"SD": "scanned document", "DRW": "drawing"}
"""Conversion types (0008,0064) of pictures that are no scans. Films, video and workstations may show any scan."""

CT_BY_VALUES = "CT by its values"
"""In place of an element of a header, for files without a modality whose values are Hounsfield units."""


def stated_content(header: Any, frame: int = 0) -> tuple[tuple[Statement, ...], list[str]]:
    """What a DICOM header states about the organ of a frame, and notes.

    Args:
      header: a pydicom Dataset, or anything with `get`.
      frame: of a file with several.
    """
    made = _texts(header, "Modality")
    modalities = [MODALITIES[text] for text in made if text in MODALITIES]
    sop_class = next(iter(_texts(header, "SOPClassUID")), "")
    by_class = SOP_CLASSES.get(sop_class.removeprefix(STORAGE)) if sop_class.startswith(STORAGE) else None
    statements, notes = [], []
    if modalities and len(modalities) == len(made):
        named = " and ".join(made)
        statements.append(Statement(f"Modality {named}", _organs_of("modalities", modalities)))
        if by_class is not None and by_class not in modalities and not {by_class, *modalities}.isdisjoint(ANALYSED):
            notes.append(f"its header contradicts itself: Modality {named}, but the SOP class of modality {by_class}")
            if by_class not in ANALYSED:
                statements.append(Statement(f"SOP class of modality {by_class}", ()))
    else:
        unspecific = [text for text in made if text in UNSPECIFIC]
        said = f"says Modality {unspecific[0]}, which is no kind of scan" if unspecific else "names no known modality"
        by = "the picture" if by_class is None else f"its SOP class, which is of modality {by_class}"
        notes.append(f"its header {said}: it is judged by {by}")
        if by_class is not None:
            statements.append(Statement(f"SOP class of modality {by_class}", _organs_of("modalities", [by_class])))
    conversions = _texts(header, "ConversionType")
    if sop_class.startswith(SECONDARY_CAPTURE) and sop_class[len(SECONDARY_CAPTURE) :][:1] in ("", "."):
        notes.append("a secondary capture: it may show a screen or a film instead of the scan itself")
    statements += [Statement(f"ConversionType {text}", ()) for text in conversions if text in CONVERSIONS]
    return (*statements, *_body_parts(header, frame)), notes


def of_hounsfield_units() -> Statement:
    """What values in Hounsfield units state."""
    return Statement(CT_BY_VALUES, _organs_of("modalities", ["CT"]))


def sentence(header: str) -> str:
    """What `contradiction` returns, as a part of a sentence.

    >>> sentence("Modality CT"), sentence(CT_BY_VALUES)
    ('its header says Modality CT', 'its values are Hounsfield units, so it is a CT')
    """
    if header == CT_BY_VALUES:
        return "its values are Hounsfield units, so it is a CT"
    return f"its header says {header}"


def contradiction(stated: Sequence[Statement], organ: str | None) -> str | None:
    """The elements of a header that contradict an organ, as text; None where none does.

    Args:
      stated: what the header states.
      organ: name of the organ that was found; None for none, which only contradicts a header that allows no organ.

    >>> stated = Statement("Modality MR", ("brain",)), Statement("BodyPartExamined HEAD", ("brain",))
    >>> contradiction(stated, "brain"), contradiction(stated, "breast"), contradiction(stated, None)
    (None, 'Modality MR and BodyPartExamined HEAD', None)
    >>> contradiction([Statement("Modality MR", ("brain",)), Statement("BodyPartExamined BREAST", ("breast",))], None)
    'Modality MR and BodyPartExamined BREAST'
    >>> contradiction([Statement("Modality CT", ()), Statement("BodyPartExamined HEAD", ("brain",))], "brain")
    'Modality CT'
    """
    if not any(all(name in one.organs for one in stated) for name in ORGAN_NAMES):
        against = [one for one in stated if not one.organs] or [one for one in stated if one.organs != ORGAN_NAMES]
    elif organ is None:
        against = []
    else:
        against = [one for one in stated if organ not in one.organs]
    return " and ".join(one.header for one in against) or None


def _organs_of(field: str, values: Sequence[str]) -> tuple[str, ...]:
    """Names of the organs of which a field of `Organ` has one of some values; an empty field has all values."""
    return tuple(
        organ.name for organ in ORGANS if not getattr(organ, field) or not set(getattr(organ, field)).isdisjoint(values)
    )


def _body_parts(header: Any, frame: int) -> list[Statement]:
    """What BodyPartExamined and AnatomicRegionSequence state. A code counts more than the text that explains it."""
    terms, every_word_known = body_parts_in(" ".join(_texts(header, "BodyPartExamined")))
    named = [("BodyPartExamined", terms, every_word_known)]
    try:
        regions = list(value_of(header, frame, "FrameAnatomySequence", "AnatomicRegionSequence") or [])[:MAX_VALUES]
        terms, every_word_known = _coded(regions)
        named.append(("AnatomicRegionSequence", terms, every_word_known))
    except Exception:  # damaged
        pass
    found = []
    for name, terms, every_word_known in named:
        organs = _organs_of("parts", [BODY_PARTS[term] for term in terms])
        if terms and (organs or every_word_known):
            found.append(Statement(f"{name} {' '.join(terms)}", organs))
    return found


def _coded(regions: Sequence[Any]) -> tuple[list[str], bool]:
    """The body parts of the items of a code sequence, each once, and whether nothing else is in them."""
    terms: list[str] = []
    known = True
    for item in regions:
        scheme = next(iter(_texts(item, "CodingSchemeDesignator")), "")
        codes = (body_part_of_code(code, scheme) for code in _texts(item, "CodeValue"))
        if term := next(filter(None, codes), None):
            terms.append(term)
            continue
        words, every_word_known = body_parts_in(" ".join(_texts(item, "CodeMeaning")))
        terms += words
        known = known and every_word_known
    return list(dict.fromkeys(terms)), known


def _texts(header: Any, name: str) -> list[str]:
    """The first values of an element as upper-case text; empty where it is missing, blank or damaged."""
    try:
        value = header.get(name)
    except Exception:  # damaged: pydicom converts values when they are first used
        return []
    if value is None:
        return []
    values = [value] if isinstance(value, str | bytes) or not hasattr(value, "__iter__") else list(value)[:MAX_VALUES]
    texts = (one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in values)
    return [stripped for text in texts if (stripped := text.strip(" \0").upper())]
