"""Scans of published sources that are left out of the prepared sets, and why. The audit lists them as rejected.

They are not what their source says. Nor do they become out-of-distribution images: a breast and an axilla of one
examination differ by little more than the letters on them, and a kind of images must not be held out under one name
and learned under another.
"""

AXILLA = "the letters on it say axilla, which is no breast"
AXILLA_LISTED = "listed by others as having the letters AXILLA on it, which is no breast"
CT = "a CT, which is no MRI"
RING = "shows a ring in an oedema, and may contain a tumour"


def _busi(reason: str, label: str, *numbers: int) -> dict[str, str]:
    return {f"{label}/{label} ({number})": reason for number in numbers}


LEFT_OUT: dict[str, dict[str, str]] = {
    # Of 566 of its 780 scans, each looked at. "AX TAIL", the axillary tail, is breast: malignant (182) and (201) stay.
    "busi": _busi(AXILLA, "benign", 199, 210, 223, 228, 235, 243, 248, 257, 294, 298, 306)
    | _busi(AXILLA, "malignant", 11, 12, 13, 61, 109, 110, 113, 148, 180)
    # Of the other 214, the list of github.com/im-garriz/rhaiunet (DELETED_FROM_BUSI.md), with which the above agrees.
    | _busi(AXILLA_LISTED, "benign", 205, 207, 225, 236, 247, 256, 262, 292, 293),
    "notumor": {"n0000": CT, "n0040": CT, "n0118": CT, "n0007": RING, "n0135": RING},
}
"""Source -> scan_id -> reason."""
