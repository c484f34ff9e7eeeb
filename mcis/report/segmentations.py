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
from collections.abc import Iterator, Sequence
from typing import IO

import cv2
import numpy as np

from mcis.files import from_json
from mcis.imaging import dicom_seg, formats, nifti, scan
from mcis.report.finding import Finding, read_findings
from mcis.report.volume import Volume, summarise
from mcis.report.writer import NONE, segmentation_path


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
            finding = from_json(Finding, text)
            if finding.series is not None and finding.error is None:
                lines.setdefault(finding.series, array.array("q")).append(at)
            at += len(text)
        for volume in summarise(read_findings(out / "findings.jsonl")):
            try:
                slices = [_line(file, start) for start in lines.get(volume.series, ())]
                made_of = _encoded(out, volume, slices, named, made)
            except (scan.ScanError, OSError, MemoryError) as error:
                yield volume.series, f"{NONE}{str(error) or type(error).__name__}"
                continue
            if made_of is not None:
                path, data = made_of
                path.parent.mkdir(exist_ok=True)
                aside = path.with_name(f".{path.name}.part")
                aside.write_bytes(data)
                aside.replace(path)
            yield volume.series, None


def _line(file: IO[bytes], start: int) -> Finding:
    file.seek(start)
    return from_json(Finding, file.readline())


def _encoded(
    out: pathlib.Path, volume: Volume, slices: Sequence[Finding], named: bool | None, made: datetime.datetime | None
) -> tuple[pathlib.Path, bytes] | None:
    """A volume's file and what it should hold; None where it has no masks, is there, or is not asked for."""
    outlined = [one.mask is not None and one.organ == volume.organ for one in slices]
    if not any(outlined):
        return None
    nii = formats.format_of(volume.scan).name == "NIfTI"
    path = out / segmentation_path(volume, ".nii.gz" if nii else ".dcm")
    if path.exists() or (named is None and not nii):
        return None
    masks = _masks(out, [one.mask if known else None for one, known in zip(slices, outlined, strict=True)])
    frames = [one.frame or 0 for one in slices]
    if nii:
        return path, nifti.encode(volume.scan, dict(zip(frames, masks, strict=True)))
    series = volume.kind == "series"
    data = dicom_seg.encode(
        [one.scan for one in slices] if series else [volume.scan],
        masks,
        frames=None if series else frames,
        organ=str(volume.organ),
        named=bool(named),
        made=made,
    )
    return path, data


def _masks(out: pathlib.Path, paths: Sequence[str | None]) -> list[np.ndarray]:
    """Masks of slices, empty where there is none, uint8 {0,1} (H, W)."""
    found: list[np.ndarray | None] = []
    held = 0
    for path in paths:
        mask = None if path is None else cv2.imread(str(out / path), cv2.IMREAD_GRAYSCALE)
        if path is not None and mask is None:
            raise scan.ScanError(f"{out / path} cannot be read")
        held += 0 if mask is None else mask.size
        if held > dicom_seg.MAX_PIXELS:
            raise scan.ScanError(f"its masks have more than {dicom_seg.MAX_PIXELS} pixels")
        found.append(None if mask is None else (mask > 0).astype(np.uint8))
    empty = np.zeros_like(next(mask for mask in found if mask is not None))
    return [empty if mask is None else mask for mask in found]
