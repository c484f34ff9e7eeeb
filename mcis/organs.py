"""The table of organs: classes, lesion classes, names in DICOM. Standard library only."""

import dataclasses

UNSUPPORTED = "unsupported"
"""What the cascade reports for a scan of none of the organs below."""

UNKNOWN = -1
"""Label of a scan whose class is unknown, or contradicts that of its near-duplicates."""


@dataclasses.dataclass(frozen=True)
class Organ:
    """One organ of the cascade.

    Attributes:
      name: in findings and task names, e.g. "brain".
      scan: a scan of it, in print, e.g. "brain MRI".
      classes: class names; the integer label of a scan is an index into them.
      lesions: classes whose scans show a lesion to outline.
      region: the organ in DICOM: its SNOMED CT code (PS3.16 CID 4031) and the code's meaning.
      outlined: what is outlined, likewise (CID 7159): "Lesion" if it may be a cyst, not a neoplasm.
      modalities: the DICOM modalities of its scans; a header that states another contradicts this organ. Empty: any.
      parts: the body regions that a header may state, of `imaging.body_parts.BODY_PARTS`. Empty: any.
    """

    name: str
    scan: str
    classes: tuple[str, ...]
    lesions: tuple[str, ...]
    region: tuple[str, str]
    outlined: tuple[str, str] = ("52988006", "Lesion")
    modalities: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def lesion_classes(self) -> tuple[bool, ...]:
        """Whether each class is one with a lesion."""
        return tuple(name in self.lesions for name in self.classes)

    def is_lesion(self, label: int) -> bool:
        """Whether an integer label (or UNKNOWN) is a class with a lesion."""
        return label != UNKNOWN and self.classes[label] in self.lesions


ORGANS: tuple[Organ, ...] = (
    Organ(
        "brain",
        "brain MRI",
        classes=("no_tumor", "tumor"),
        lesions=("tumor",),
        region=("12738006", "Brain"),
        outlined=("108369006", "Neoplasm"),
        modalities=("MR",),
        parts=("head",),
    ),
    Organ(
        "breast",
        "breast ultrasound",
        classes=("normal", "benign", "malignant"),
        lesions=("benign", "malignant"),
        region=("76752008", "Breast"),
        modalities=("US",),
        parts=("breast",),
    ),
)

ORGAN_NAMES: tuple[str, ...] = tuple(organ.name for organ in ORGANS)


def organ_index(name: str) -> int:
    """Index of an organ in ORGANS by its name; len(ORGANS) for UNSUPPORTED."""
    return len(ORGANS) if name == UNSUPPORTED else ORGANS.index(organ_named(name))


def organ_named(name: str) -> Organ:
    """The Organ of that name. ValueError lists the names."""
    for organ in ORGANS:
        if organ.name == name:
            return organ
    raise ValueError(f"There is no organ {name!r}. The organs are {', '.join(ORGAN_NAMES)}")
