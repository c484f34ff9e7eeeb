"""The masks of the user's own folder, and which scan each belongs to.

The mask of `images/a.png` is `masks/a.*`; `a_mask.*`, `a_mask_1.*`, `a_Mask.*` ... are joined with it, as in BUSI.
Where several images are called `a`, a mask has the image's whole name: `a.png.tif`, or `a.png`. That of one frame is
`a#12.*`. A NIfTI mask belongs to all slices of the NIfTI scan of its name; a DICOM SEG, under any name, to the scans
that it refers to.
"""

import collections
import contextlib
import dataclasses
import filecmp
import functools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mcis.imaging import formats, image_files, other_formats
from mcis.imaging.dicom.header import position_of, read_header
from mcis.imaging.dicom.seg_reader import (
    Segmentation,
    is_misplaced,
    is_segmentation,
    read_segmentation,
    segmentation_mask,
)
from mcis.imaging.masks import Mask
from mcis.imaging.nifti.masks import nifti_mask
from mcis.imaging.scan import ScanError

from . import remarks
from .names import Names, name_of, stem_of
from .record import MakeMask, Rejection, Remark, joined, union_of
from .remarks import LEVELS, is_picture

JOINED = re.compile(r"(.+?)_mask(_\d+)?", re.IGNORECASE)
"""A mask beside others of the same scan."""
MEANT = re.compile(
    r"(.+?)[-_ .]*(seg|segmentation|segmented|masks?|labels?|gt|annotation|lesion|tumou?r|roi|contour|outline)"
    r"([-_ ]?\d+)?",
    re.IGNORECASE,
)
"""A name that other programs give a mask: only the image that it may be meant for."""
PICTURES = image_files.SUFFIXES
ITSELF = "is the picture itself; a mask is black, with the lesion in white. The scan is left out"
VOLUME, SEG, PICTURE = "NIfTI", "DICOM", "image"


@dataclasses.dataclass(frozen=True)
class Masks:
    """The files below masks/.

    Attributes:
      root: the folder.
      by_base: name of a scan, with or without suffix -> the mask files that are named after it.
      folded: the same in one case.
      segmentations: SOPInstanceUID of a scan -> the DICOM SEGs that refer to it.
      problems: files that are no masks, or cannot be read.
    """

    root: pathlib.Path
    by_base: Mapping[str, Sequence[pathlib.Path]]
    folded: Mapping[str, Sequence[pathlib.Path]]
    segmentations: Mapping[str, Sequence[Segmentation]]
    problems: Sequence[Rejection | Remark]

    def named_after(self, name: str, frame: int | None) -> set[pathlib.Path]:
        """All files that may be meant for a scan by their names, whether that is clear or not."""
        keys = [name, stem_of(name)]
        keys += [] if frame is None else [f"{key}#{frame}" for key in keys]
        return {path for key in keys for path in self.by_base.get(key, ())}

    def left_over(self, used: set[pathlib.Path], names: Names, labels: Mapping[str, Any]) -> Iterator[Rejection]:
        """Rejections of the masks that belong to no labelled scan."""
        segs = {pathlib.Path(seg.pixels.path) for each in self.segmentations.values() for seg in each}
        for path in sorted({path for paths in self.by_base.values() for path in paths} | segs):
            if path in used:
                continue
            name = name_of(path, self.root)
            reason = f"a mask without its image; {_advice(stem_of(name), names)}"
            if path in segs:
                reason = "a DICOM SEG of scans that are not under images/, or have no row in labels.csv"
            elif any(image not in labels for image in names.stems.get(_base(stem_of(name), names), ())):
                reason = "a mask of an image that has no row in labels.csv"
            yield Rejection(f"masks/{stem_of(name)}", reason)


@dataclasses.dataclass(frozen=True)
class Found:
    """The masks of a scan.

    Attributes:
      make: None where there is none.
      files: the files.
      whole: whether they outline all that there is to outline in the whole file, so that other frames are free of it.
      joined: whether there are several.
    """

    make: MakeMask | None
    files: tuple[pathlib.Path, ...]
    whole: bool
    joined: bool


def read_masks(folder: pathlib.Path, names: Names) -> Masks:
    """The masks below a folder, for scans of some names."""
    by_base, folded = (collections.defaultdict[str, list[pathlib.Path]](list) for _ in range(2))
    segmentations: dict[str, list[Segmentation]] = collections.defaultdict(list)
    problems: list[Rejection | Remark] = []
    for path in image_files.files_in(folder, lambda path: True):
        name = name_of(path, folder)
        if not path.name.lower().endswith(PICTURES) and formats.format_of(path).name == SEG:
            try:
                if not is_segmentation(path):
                    raise ScanError("a DICOM file that is no segmentation; masks are DICOM SEG, NIfTI or pictures")
                found = read_segmentation(path)
            except (ScanError, OSError) as error:
                problems.append(Rejection(f"masks/{name}", str(error).replace(f"{path}", path.name)))
                continue
            for instance in found.frames:
                segmentations[instance].append(found)
        elif path.name.lower().endswith(PICTURES) or formats.format_of(path).name == VOLUME:
            by_base[_base(stem_of(name), names)].append(path)
            folded[_base(stem_of(name), names).casefold()].append(path)
        else:
            other = other_formats.kind_of(path.name, formats.head_of(path)) is not None
            problems.append(Remark(f"masks/{name}", remarks.OTHER_FORMAT if other else remarks.PASSED_OVER))
    return Masks(folder, dict(by_base), dict(folded), dict(segmentations), problems)


def _advice(stem: str, names: Names) -> str:
    """How the mask must be called: after the image that is meant, where there is one, else by an example."""
    meant = MEANT.fullmatch(stem)
    image = meant[1] if meant is not None and meant[1] in names.stems else ""
    if not image:
        return "a mask is called like its image: a.png or a_mask.png for images/a.png"
    return f"a mask is called like its image: {image}.png or {image}_mask.png"


def _base(stem: str, names: Names) -> str:
    """The name of the scan to which a mask of this name belongs."""
    found = JOINED.fullmatch(stem)
    return stem if found is None or stem in names.paths or stem in names.stems else found[1]


def find_masks(masks: Masks, name: str, frame: int | None, path: pathlib.Path, names: Names, header: Any) -> Found:
    """The masks of a scan.

    Args:
      masks: the files below masks/.
      name: of the scan.
      frame: of a file of several; None for a file of one.
      path: of the scan.
      names: of all scans.
      header: identifiers of a DICOM scan, else None.

    Raises:
      ScanError: it is not clear which mask belongs to the scan, or a mask cannot be of it.
    """
    own = "" if frame is None else f"#{frame}"
    files = _named(masks, name, own, names)
    whole = _named(masks, name, "", names) if own else []
    by_stem = collections.Counter(stem_of(name_of(file, masks.root)) for file in (*files, *whole))
    references = masks.segmentations.get(str(header.get("SOPInstanceUID")), ()) if header is not None else ()
    if any(count > 1 for count in by_stem.values()) or bool(files) + bool(whole) + bool(references) > 1:
        found = [file.name for file in (*files, *whole)] + [pathlib.Path(s.pixels.path).name for s in references]
        raise ScanError(
            f"several masks: {', '.join(found)}; keep one, or name them {stem_of(path.name)}_mask_1 and so on"
        )
    if references:
        makers = [_of_segmentation(seg, header, frame, path) for seg in references]
        places = tuple(pathlib.Path(seg.pixels.path) for seg in references)
        return Found(joined(makers), places, frame is not None, len(makers) > 1)
    made = [_of_file(file, path, frame, bool(whole)) for file in (*files, *whole)]
    return Found(joined(made) if made else None, (*files, *whole), bool(whole), len(made) > 1)


def _named(masks: Masks, name: str, own: str, names: Names) -> list[pathlib.Path]:
    """The masks that are named after a scan, `own` being "" or its frame."""
    stem = stem_of(name)
    found = list(masks.by_base.get(name + own, ()))
    images = names.stems[stem]
    named_alike = [p for p in masks.by_base.get(stem + own, ()) if p not in found]
    if len(images) == 1:
        found += named_alike
        alike = {one for one in names.folded[stem.casefold()] if stem_of(one).casefold() == stem.casefold()}
        if not found and len(alike) == 1:
            found += masks.folded.get((stem + own).casefold(), ())
    else:
        exact = [file for file in named_alike if name_of(file, masks.root) == name and not own]
        found += exact
        if not found and named_alike:
            mask = named_alike[0].name
            raise ScanError(
                f"the mask {mask} may be that of {' or '.join(images)}; name the masks after the whole names: "
                f"{pathlib.PurePath(name).name}{own}.png"
            )
    return found


def _of_file(mask: pathlib.Path, scan: pathlib.Path, frame: int | None, whole: bool) -> MakeMask:
    """The maker of a mask that is a picture or a volume."""
    if mask.name.lower().endswith(PICTURES):
        if whole:
            raise ScanError(
                f"mask {mask.name} is one picture, its scan a file of several; name it {stem_of(mask.name)}#0"
            )
        return partial(_of_picture, mask, scan, frame or 0)
    if formats.format_of(scan).name != VOLUME:
        raise ScanError(
            f"mask {mask.name} is a NIfTI volume, its scan is none; save the mask as a picture or DICOM SEG"
        )
    if mask.stat().st_size == scan.stat().st_size and filecmp.cmp(mask, scan, shallow=False):
        raise ScanError(f"mask {mask.name} {ITSELF}")
    return partial(_of_nifti, mask, scan, frame or 0)


def _of_picture(mask: pathlib.Path, scan: pathlib.Path, frame: int, size: tuple[int, int]) -> Mask:
    """The lesion in a picture. ScanError where it is the scan itself, whose bright parts would pass for lesions."""
    made = union_of([mask])(size)
    drawn = None
    with contextlib.suppress(ScanError):  # some masks cannot be shown as pictures
        drawn = image_files.read(mask).image
    if drawn is not None and len(np.unique(drawn)) >= LEVELS and is_picture(drawn, formats.read(scan, frame).image):
        raise ScanError(f"mask {mask.name} {ITSELF}")
    return made if isinstance(made, Mask) else Mask(made, ())


def _of_nifti(mask: pathlib.Path, scan: pathlib.Path, frame: int, size: tuple[int, int]) -> Any:
    return nifti_mask(mask, scan, frame)


def _of_segmentation(seg: Segmentation, header: Any, frame: int | None, path: pathlib.Path) -> MakeMask:
    """The maker of a mask from a DICOM SEG. ScanError where it lies elsewhere than its scan."""
    numbers = seg.of(str(header.get("SOPInstanceUID")), frame or 0)
    if numbers and is_misplaced(seg, numbers, position_of(_placed(path), frame or 0)):
        name = pathlib.Path(seg.pixels.path).name
        raise ScanError(f"mask {name} refers to it, but lies at another place or angle; export it again")
    return partial(segmentation_mask, seg.pixels, numbers)


@functools.lru_cache(2)
def _placed(path: pathlib.Path) -> Any:
    """The header of a DICOM scan, once for all of its frames."""
    return read_header(path)
