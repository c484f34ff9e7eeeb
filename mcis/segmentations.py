"""The masks of a report as the formats of its scans: DICOM SEG and NIfTI, one file a volume. No JAX.

    OUT/segmentations/000012_stem.dcm      of a DICOM series or file, where it is asked for
    OUT/segmentations/000012_stem.nii.gz   of a NIfTI volume, always: nothing in it could name anybody

12 = the volume's first line, from 0. They are written when all scans are in, from findings.jsonl and masks/, a volume
at a time, each aside and moved: what is there is whole, and is left as it is.
"""

import array
import datetime
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import IO

import cv2
import numpy as np

from mcis import dicom_seg, nifti, reading, scan
from mcis.finding import Finding, from_json, read_findings
from mcis.report import NONE, segmentation_path
from mcis.volumes import Volume, summarise


def write(
    out: str | os.PathLike, named: bool | None, made: datetime.datetime | None = None
) -> Iterator[tuple[str, str | None]]:
    """Write what is missing of a report's segmentations.

    Args:
      out: the report's folder, its scans still where its lines say.
      named: as for `dicom_seg.encode`; None = no DICOM SEG.
      made: likewise.

    Yields:
      for each volume its `series`, and in words why it has no file, where it should have one.
    """
    out = pathlib.Path(out)
    lines: dict[str, array.array] = {}  # where in findings.jsonl a volume's lines begin
    with open(out / "findings.jsonl", "rb") as file:
        at = 0
        for text in file:
            finding = from_json(text)
            if finding.series is not None and finding.error is None:
                lines.setdefault(finding.series, array.array("q")).append(at)
            at += len(text)
        for volume in summarise(read_findings(out / "findings.jsonl")):
            try:
                slices = (_line(file, start) for start in lines.get(volume.series, ()))
                _write(out, volume, slices, named, made)
                reason = None
            except (scan.ScanError, OSError, MemoryError) as error:
                reason = f"{NONE}{str(error) or type(error).__name__}"
            yield volume.series, reason


def _line(file: IO[bytes], start: int) -> Finding:
    file.seek(start)
    return from_json(file.readline())


def _write(
    out: pathlib.Path, volume: Volume, slices: Iterable[Finding], named: bool | None, made: datetime.datetime | None
) -> None:
    """Write a volume's file, where it has masks and none is there."""
    found = list(slices)
    ours = [one for one in found if one.mask is not None and one.organ == volume.organ]
    if not ours:
        return
    nii = reading.format_of(volume.scan).name == "NIfTI"
    path = out / segmentation_path(volume, ".nii.gz" if nii else ".dcm")
    if path.exists() or (named is None and not nii):
        return
    masks = {id(one): _mask(out / str(one.mask)) for one in ours}
    if nii:
        data = nifti.encode(volume.scan, {one.frame or 0: masks[id(one)] for one in ours})
    else:
        empty = np.zeros_like(masks[id(ours[0])])
        frames = None if volume.kind == "series" else [one.frame or 0 for one in found]
        laid = [masks.get(id(one), empty) for one in found]
        sources = [one.scan for one in found] if frames is None else [volume.scan]
        organ = str(volume.organ)
        data = dicom_seg.encode(sources, laid, frames=frames, organ=organ, named=bool(named), made=made)
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(data)
    aside.replace(path)


def _mask(path: pathlib.Path) -> np.ndarray:
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise scan.ScanError(f"{path} cannot be read")
    return (mask > 0).astype(np.uint8)
