"""Write a report while the scans come in: JSON lines, masks, overlays and one HTML page. No JAX.

    OUT/findings.jsonl              one Finding per line, in input order, flushed line by line
    OUT/masks/000012_stem.png       0 and 255, one channel, size of the scan; 12 is the index of the line, from 0
    OUT/overlays/000012_stem.jpg    the scan with its lesions outlined, longest side at most overlay.SIDE
    OUT/segmentations/...           masks of volumes, see segmentations.py
    OUT/volumes.jsonl               one Volume per line, in order of their first lines, written at the end of the run
    OUT/run.json                    versions, weights, options, counts, status, times, notice
    OUT/index.html, OUT/page/*.js   the page: opens from disk, reads CHUNK rows at a time

The images of a scan are written before its line, so every path in findings.jsonl exists. A killed run keeps every line
that was added; its page is at most REFRESH_SECONDS behind.
"""

import dataclasses
import datetime
import fcntl
import os
import pathlib
import platform
import re
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

import cv2
import numpy as np

import mcis
from mcis.imaging.image_files import encode_png
from mcis.imaging.overlay import overlay_jpeg
from mcis.report.finding import Finding, ReportError, measured, read_findings
from mcis.report.page import Page
from mcis.report.volume import Volume, summarise

NO_SEGMENTATION = "no segmentation: "
"""Prefix of the note of a volume whose segmentation could not be written."""
REFRESH_SECONDS = 5.0
"""Longest delay of run.json and the page behind findings.jsonl during a run."""


def _stem(index: int, name: str) -> str:
    """File name, without suffix, of images of line `index`: "000012_stem" of ASCII letters, digits, ".", "_", "-"."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", pathlib.PurePath(name).stem)[:60].strip("._-")
    return f"{index:06}_{stem or 'scan'}"


def mask_path(index: int, name: str) -> str:
    """Path, relative to the report's folder, of the mask of scan `name` in line `index`."""
    return f"masks/{_stem(index, name)}.png"


def overlay_path(index: int, name: str) -> str:
    """Path, relative to the report's folder, of the overlay of scan `name` in line `index`."""
    return f"overlays/{_stem(index, name)}.jpg"


def segmentation_path(volume: Volume, suffix: str) -> str:
    """Path, relative to the report's folder, of a volume's segmentation; `suffix` is ".dcm" or ".nii.gz"."""
    return f"segmentations/{_stem(volume.lines[0], volume.scan).removesuffix('.nii')}{suffix}"


def _segmentation_paths(volume: Volume) -> list[str]:
    return [segmentation_path(volume, suffix) for suffix in (".dcm", ".nii.gz")]


class ReportWriter:
    """Writes a report while the scans come in: `with ReportWriter(out, options) as report: report.add(...)`.

    Memory is bounded whatever the number of scans. The page can be opened and reloaded during the run. If an exception
    leaves the block, run.json and the page are still written and name the error.

    Args:
      out: folder of the report, created if missing. A folder with a findings.jsonl is an error, unless `overwrite` or
        `resume`.
      options: the run's options, for run.json; values without a JSON form are written as text.
      versions: further versions for run.json, by name (mcis, Python, NumPy and OpenCV are included).
      weights: description of the weights for run.json.
      passed_over: {"files": number, "kinds": {kind: number}} of files that hold no scan, for run.json.
      operating_point: at which labels were decided, for run.json and the page; None for the most probable class.
      overwrite: remove the files of the existing report, and no others.
      resume: append to the existing report, after its last complete line.

    Attributes:
      counts: {"scans", "errors", "lesions", "review", "organs": {name: n}, "labels": {name: n}, "reasons":
        {kind (`finding.kind_of`): n}} so far; also in run.json. Every outlined component counts as a lesion.
      volumes: whether any scan so far is a slice of a volume.

    Raises:
      ReportError: the folder has a report, is being written by another process, or cannot be written.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        options: Mapping[str, Any],
        *,
        versions: Mapping[str, str] | None = None,
        weights: Any = None,
        passed_over: Mapping[str, Any] | None = None,
        operating_point: str | None = None,
        overwrite: bool = False,
        resume: bool = False,
    ):
        self.out = pathlib.Path(out)
        self._path = self.out / "findings.jsonl"
        if self.out.exists() and not self.out.is_dir():
            raise ReportError(f"{self.out} is a file; a report needs a folder")
        try:
            if overwrite and self._path.exists():
                with open(self._path, "r+b") as existing:
                    _lock(existing)  # fails if another process is writing the report
                    _remove_report(self.out)
            self.out.mkdir(parents=True, exist_ok=True)
            # "x" fails if the file exists, so two runs never share a folder; close() closes it
            self._lines = open(self._path, "r+b" if resume and self._path.exists() else "x+b")  # noqa: SIM115
            _lock(self._lines)
        except FileExistsError:
            raise ReportError(
                f"{self.out}: contains a report already; use another folder, --resume to continue it, or --overwrite"
            ) from None
        except BlockingIOError:
            raise ReportError(f"{self.out}: another process is writing this report") from None
        except OSError as error:
            raise ReportError(f"{self.out}: cannot be written ({error}); use another folder") from None
        own = {"mcis": mcis.__version__, "python": platform.python_version(), "numpy": np.__version__}
        self._run = {
            "notice": mcis.NOTICE,
            "status": "running",
            "error": None,
            "started": _now(),
            "finished": None,
            "versions": {**own, "opencv": cv2.__version__, **(versions or {})},
            "weights": weights,
            "options": dict(options),
            "operating_point": operating_point,
            "passed_over": dict(passed_over or {"files": 0, "kinds": {}}),
        }
        self._page = Page(self.out)
        self.counts = self._page.counts
        self.volumes = False
        self._segmentations: dict[str, tuple[list[str], list[str]]] = {}
        (self.out / "volumes.jsonl").unlink(missing_ok=True)  # it would be out of date until the run ends
        self._load_existing()
        self._refresh()

    def _load_existing(self) -> None:
        """Count the lines of a resumed report, and remove an incomplete last line."""
        for index, finding in enumerate(read_findings(self._path)):
            overlay = overlay_path(index, finding.scan)
            self._page.add(finding, overlay if (self.out / overlay).is_file() else None)
            self.volumes |= finding.series is not None
        self._lines.seek(0)
        end = sum(len(line) for line in self._lines if line.endswith(b"\n"))
        self._lines.seek(end)
        self._lines.truncate()

    def __enter__(self) -> "ReportWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close(error)

    def add(
        self,
        finding: Finding,
        image: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        outer: np.ndarray | None = None,
    ) -> Finding:
        """Write a finding with its images, and return it as written.

        Args:
          finding: its `mask` is set, and its mask is measured unless it has `boxes`.
          image: the scan, uint8 RGB (H, W, 3); None writes no overlay.
          mask: uint8 {0,1} (H, W) of the scan's size; None without segmentation.
          outer: what is within the outer outline, likewise; drawn on the overlay.
        """
        if image is not None and mask is not None and image.shape[:2] != mask.shape[:2]:
            raise ValueError(f"{finding.scan!r}: mask is {mask.shape[:2]}, its scan {image.shape[:2]} (height, width)")
        index, overlay = self.counts["scans"], None
        if mask is not None:
            mask = np.ascontiguousarray(mask.reshape(mask.shape[:2]) > 0).astype(np.uint8)
            finding = finding if finding.boxes is not None else measured(finding, mask)
            finding = dataclasses.replace(finding, mask=self._write(mask_path(index, finding.scan), _png(mask)))
        if image is not None:
            overlay = self._write(overlay_path(index, finding.scan), overlay_jpeg(image, mask, outer))
        self.append(finding, overlay)
        return finding

    def _write(self, path: str, content: bytes) -> str:
        (self.out / path).parent.mkdir(exist_ok=True)
        (self.out / path).write_bytes(content)
        return path

    def append(self, finding: Finding, overlay: str | None) -> None:
        """Write a finding whose mask and `overlay` exist already: paths relative to the report's folder."""
        self._lines.write(finding.to_json().encode("ascii") + b"\n")
        self._lines.flush()
        self._page.add(finding, overlay)
        self.volumes |= finding.series is not None
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._refresh()

    def add_segmentations(self, series: str, paths: Sequence[str] = (), notes: Sequence[str] = ()) -> None:
        """Add paths, relative to the report's folder, to a volume's segmentations, and notes about missing ones."""
        known_paths, known_notes = self._segmentations.setdefault(series, ([], []))
        known_paths.extend(paths)
        known_notes.extend(notes)

    def close(self, error: BaseException | None = None) -> None:
        """Write volumes.jsonl, run.json and the page; `error` is what ended the run early. Later calls do nothing."""
        if self._lines.closed:
            return
        self._lines.close()
        status = {"status": "complete"} if error is None else {"status": "stopped", "error": repr(error)}
        self._run |= {**status, "finished": _now()}
        if self.volumes:
            self._write_volumes()
        self._refresh()

    def _write_volumes(self) -> None:
        temporary = self.out / ".volumes.jsonl.tmp"
        with open(temporary, "w", encoding="ascii", newline="\n") as lines:
            for volume in summarise(read_findings(self._path)):
                paths, notes = self._segmentations.get(volume.series, ([], []))
                paths = [path for path in _segmentation_paths(volume) if (self.out / path).is_file()] + paths
                volume = dataclasses.replace(volume, segmentations=paths, notes=[*volume.notes, *notes])
                lines.write(volume.to_json() + "\n")
                self._page.add_volume(volume)
        temporary.replace(self.out / "volumes.jsonl")

    def _refresh(self) -> None:
        self._page.write(self._run)
        self._refreshed = time.monotonic()


def _png(mask: np.ndarray) -> bytes:
    return encode_png(mask * np.uint8(255))


def _lock(file: IO[bytes]) -> None:
    """Lock a file exclusively; BlockingIOError if another process has the lock. No lock where the disk has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # Lustre without flock, object stores
        return


def _remove_report(out: pathlib.Path) -> None:
    """Remove the report in `out`: the files that findings.jsonl names or implies, and no others."""
    findings = out / "findings.jsonl"
    for _ in read_findings(findings):
        pass  # raises before anything is removed if the file is not a report
    for index, finding in enumerate(read_findings(findings)):
        (out / mask_path(index, finding.scan)).unlink(missing_ok=True)
        (out / overlay_path(index, finding.scan)).unlink(missing_ok=True)
    for volume in summarise(read_findings(findings)):
        for name in _segmentation_paths(volume):
            (out / name).unlink(missing_ok=True)
    page = (path for name in ("rows", "volumes") for path in (out / "page").glob(f"{name}_*.js"))
    for path in (*page, out / "volumes.jsonl", out / "index.html", out / "run.json", findings):
        path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
