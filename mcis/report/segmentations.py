"""The masks of a report in the formats of its scans: DICOM SEG and NIfTI, one file per volume. No JAX.

    OUT/segmentations/000012_stem.dcm      of a DICOM series or file, on request
    OUT/segmentations/000012_stem.nii.gz   of a NIfTI volume, always: it contains nothing that identifies a patient

12 is the volume's first line, from 0. They are written after the last scan, from findings.jsonl and masks/, one volume
at a time and each file atomically, so that a file that exists is complete and is not written again.
"""

import array
import datetime
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np

from mcis.files import from_json, write_bytes
from mcis.imaging import formats
from mcis.imaging.dicom import seg
from mcis.imaging.nifti import reader as nifti_reader
from mcis.imaging.scan import ScanError
from mcis.report.finding import Finding, read_findings
from mcis.report.volume import Volume, summarise
from mcis.report.writer import NO_SEGMENTATION, segmentation_path


def write(
    out: str | os.PathLike,
    named: bool | None,
    made: datetime.datetime | None = None,
    paths: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str | None]]:
    """Write the segmentations that a report lacks.

    Args:
      out: the report's folder; the scans are still at the paths in findings.jsonl, or those in `paths`.
      named: as for `dicom.seg.encode`; None writes no DICOM SEG.
      made: as for `dicom.seg.encode`.
      paths: where a scan is, by its name in findings.jsonl, if it is elsewhere.

    Yields:
      `series` of each volume, and a note if its file could not be written.
    """
    out = pathlib.Path(out)
    for path in (out / "segmentations").glob(".[0-9]*.tmp"):
        path.unlink()  # an incomplete file of a killed run
    offsets: dict[str, array.array] = {}  # byte offset of each line of a volume
    with open(out / "findings.jsonl", "rb") as file:
        offset = 0
        for line in file:
            finding = from_json(Finding, line)
            if finding.series is not None and finding.error is None:
                offsets.setdefault(finding.series, array.array("q")).append(offset)
            offset += len(line)
        for volume in summarise(read_findings(out / "findings.jsonl")):
            try:
                slices = []
                for offset in offsets.get(volume.series, ()):
                    file.seek(offset)
                    slices.append(from_json(Finding, file.readline()))
                encoded = _encode(out, volume, slices, named, made, paths or {})
            except (ScanError, OSError, MemoryError) as error:
                yield volume.series, f"{NO_SEGMENTATION}{str(error) or type(error).__name__}"
                continue
            if encoded is not None:
                path, data = encoded
                path.parent.mkdir(exist_ok=True)
                write_bytes(path, data)
            yield volume.series, None


def _encode(
    out: pathlib.Path,
    volume: Volume,
    slices: Sequence[Finding],
    named: bool | None,
    made: datetime.datetime | None,
    paths: Mapping[str, str],
) -> tuple[pathlib.Path, bytes] | None:
    """Path and content of a volume's file; None if it has no masks, exists already, or was not requested."""
    scan = paths.get(volume.scan, volume.scan)
    is_nifti = formats.format_of(scan).name == "NIfTI"
    path = out / segmentation_path(volume, ".nii.gz" if is_nifti else ".dcm")
    masks = [one.mask if one.organ == volume.organ else None for one in slices]
    if not any(masks) or path.exists() or (named is None and not is_nifti):
        return None
    arrays, frames = _read_masks(out, masks), [one.frame or 0 for one in slices]
    if is_nifti:
        return path, nifti_reader.encode(scan, dict(zip(frames, arrays, strict=True)))
    series = volume.kind == "series"
    data = seg.encode(
        [paths.get(one.scan, one.scan) for one in slices] if series else [scan],
        arrays,
        frames=None if series else frames,
        organ=str(volume.organ),
        named=bool(named),
        made=made,
    )
    return path, data


def _read_masks(out: pathlib.Path, paths: Sequence[str | None]) -> list[np.ndarray]:
    """The masks of slices, uint8 {0,1} (H, W); zeros where the path is None."""
    masks: list[np.ndarray | None] = []
    pixels = 0
    for path in paths:
        mask = None if path is None else cv2.imread(str(out / path), cv2.IMREAD_GRAYSCALE)
        if path is not None and mask is None:
            raise ScanError(f"{out / path} cannot be read")
        pixels += 0 if mask is None else mask.size
        if pixels > seg.MAX_PIXELS:
            raise ScanError(f"the volume's masks have more than {seg.MAX_PIXELS} pixels")
        masks.append(None if mask is None else (mask > 0).astype(np.uint8))
    empty = np.zeros_like(next(mask for mask in masks if mask is not None))
    return [empty if mask is None else mask for mask in masks]
