"""The one table of organs: their classes, which of them are lesions, and the task names. Standard library only."""

import dataclasses

UNSUPPORTED = "unsupported"
"""What the cascade answers for a scan that is none of the organs below."""

UNKNOWN = -1
"""The label of a scan whose class is not known (or contradicts that of its near-duplicates)."""


@dataclasses.dataclass(frozen=True)
class Organ:
    """One organ that the cascade knows.

    Attributes:
      name: as it stands in findings and task names, e.g. "brain".
      scan: what a scan of it is called in print, e.g. "brain MRI".
      classes: label names; a scan's integer label is the index into them.
      lesions: those classes whose scans show a lesion to outline.
      region: what DICOM calls the organ: its code of SNOMED CT (PS3.16 CID 4031) and the code's meaning.
      outlined: likewise of what is outlined in it (CID 7159): a lesion may be no neoplasm, but a cyst.
    """

    name: str
    scan: str
    classes: tuple[str, ...]
    lesions: tuple[str, ...]
    region: tuple[str, str]
    outlined: tuple[str, str] = ("52988006", "Lesion")

    def is_lesion(self, label: int) -> bool:
        """Whether integer label `label` (UNKNOWN included) names a class with a lesion."""
        return label != UNKNOWN and self.classes[label] in self.lesions


ORGANS: tuple[Organ, ...] = (
    Organ(
        "brain",
        "brain MRI",
        classes=("no_tumor", "tumor"),
        lesions=("tumor",),
        region=("12738006", "Brain"),
        outlined=("108369006", "Neoplasm"),
    ),
    Organ(
        "breast",
        "breast ultrasound",
        classes=("normal", "benign", "malignant"),
        lesions=("benign", "malignant"),
        region=("76752008", "Breast"),
    ),
)

ORGAN_NAMES: tuple[str, ...] = tuple(organ.name for organ in ORGANS)


def organ_index(name: str) -> int:
    """The position in ORGANS of the organ called `name`; len(ORGANS) for UNSUPPORTED."""
    return len(ORGANS) if name == UNSUPPORTED else ORGANS.index(organ_named(name))


def organ_named(name: str) -> Organ:
    """The row of ORGANS called `name`; ValueError lists the names there are.

    >>> breast = organ_named("breast")
    >>> breast.classes, breast.lesions
    (('normal', 'benign', 'malignant'), ('benign', 'malignant'))
    >>> [breast.is_lesion(label) for label in (0, 1, 2, UNKNOWN)]
    [False, True, True, False]
    """
    for organ in ORGANS:
        if organ.name == name:
            return organ
    raise ValueError(f"no organ {name!r}; there are: {', '.join(ORGAN_NAMES)}")
