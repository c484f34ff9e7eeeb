"""Findings as files: JSON lines, masks, overlays and one HTML page, written while the scans come in. No JAX.

    OUT/findings.jsonl              one Finding a line, in input order, flushed line by line
    OUT/masks/000012_stem.png       0/255, one channel, size of the scan; 12 = the line's position, from 0
    OUT/overlays/000012_stem.jpg    the scan with its lesions outlined, size of the scan, at most overlay.SIDE
    OUT/segmentations/...           masks of volumes, see segmentations.py
    OUT/volumes.jsonl               one volumes.Volume a line, in order of their first lines, when the run ends
    OUT/run.json                    versions, weights, options, counts, status, times, notice
    OUT/index.html, OUT/page/*.js   the page: opens from disk, reads CHUNK rows at a time

A scan's pictures are written before its line, so whatever `findings.jsonl` names exists, and a killed run has every
line that was added; its page is REFRESH_SECONDS behind at most.
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
from mcis.imaging import image_files
from mcis.imaging.overlay import overlay_jpeg
from mcis.report.finding import Finding, ReportError, measured, read_findings
from mcis.report.page import Page
from mcis.report.volume import Volume, summarise

FOLDER = "segmentations"
"""Where the masks of volumes are that `segmentations.write` writes."""
NONE = "no segmentation: "
"""How a note begins that says why a volume has none."""
REFRESH_SECONDS = 5.0
"""How far run.json and the page may lag behind findings.jsonl during a run."""


def file_name(index: int, name: str) -> str:
    """Name (without suffix) of the pictures of line `index`: "000012_stem", ASCII letters, digits, ".", "_", "-"."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", pathlib.PurePath(name).stem)[:60].strip("._-")
    return f"{index:06}_{stem or 'scan'}"


class ReportWriter:
    """Writes a report while the scans come in: `with ReportWriter(out, options) as report: report.add(...)`.

    Memory is bounded whatever the number of scans. The page can be opened during the run and reloaded. Leaving the
    block by an exception still writes run.json and the page, and says so in them.

    Args:
      out: folder of the report, made if missing. One that has a findings.jsonl is refused unless `overwrite`.
      options: what was asked, for run.json; values that JSON has no form for are written as text.
      versions: further versions for run.json, by name (those of mcis, Python, NumPy and OpenCV are there).
      weights: what to say of the weights in run.json.
      overwrite: remove the files of the report that is there, and no others.
      resume: go on with the report that is there, after its last whole line.

    Attributes:
      counts: {"scans", "errors", "lesions", "organs": {name: n}, "labels": {name: n}} so far; also in run.json. Each
        outlined part counts as a lesion.
      volumes: whether any scan so far is a slice of a volume.

    Raises:
      ReportError: the folder has a report already, or one that another process is writing, or cannot be one.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        options: Mapping[str, Any],
        *,
        versions: Mapping[str, str] | None = None,
        weights: Any = None,
        overwrite: bool = False,
        resume: bool = False,
    ):
        self.out = pathlib.Path(out)
        findings = self.out / "findings.jsonl"
        if self.out.exists() and not self.out.is_dir():
            raise ReportError(f"{self.out}: a file; a report needs a folder")
        try:
            if overwrite and findings.exists():
                with open(findings, "r+b") as there:
                    _lock(there)  # not one that is being written
                    _remove_report(self.out)
            self.out.mkdir(parents=True, exist_ok=True)
            # "x": two runs never share a folder. close() closes it.
            self._lines = open(findings, "r+b" if resume and findings.exists() else "x+b")  # noqa: SIM115
            _lock(self._lines)
        except FileExistsError:
            raise ReportError(
                f"{self.out}: has a report already; name another folder, or say --resume to go on with it, or "
                "--overwrite"
            ) from None
        except BlockingIOError:
            raise ReportError(f"{self.out}: another process is writing this report") from None
        except OSError as error:
            raise ReportError(f"{self.out}: cannot be written ({error}); name another folder") from None
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
        }
        self._page = Page(self.out)
        self.counts = self._page.counts
        self.volumes = False
        self._carried: dict[str, tuple[list[str], list[str]]] = {}
        (self.out / "volumes.jsonl").unlink(missing_ok=True)  # what is there ends before this run does
        self._replay()
        self._refresh()

    def _replay(self) -> None:
        """Take up what the file has already; a last line that was cut short goes."""
        for index, finding in enumerate(read_findings(self.out / "findings.jsonl")):
            picture = f"overlays/{file_name(index, finding.scan)}.jpg"
            self._page.add(finding, picture if (self.out / picture).is_file() else None)
            self.volumes |= finding.series is not None
        self._lines.seek(0)
        end = sum(len(line) for line in self._lines if line.endswith(b"\n"))
        self._lines.seek(end)
        self._lines.truncate()

    def __enter__(self) -> "ReportWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close(error)

    def add(self, finding: Finding, image: np.ndarray | None = None, mask: np.ndarray | None = None) -> Finding:
        """Write one finding with its pictures, and return it as written.

        Args:
          finding: `mask` is filled in, and what is measured on it where that was not done yet.
          image: the scan, uint8 RGB (H, W, 3); without one there is no overlay.
          mask: uint8 {0,1} (H, W) of the scan's size, where segmentation was asked; all zero if nothing was found.
        """
        if image is not None and mask is not None and image.shape[:2] != mask.shape[:2]:
            raise ValueError(f"{finding.scan!r}: mask is {mask.shape[:2]}, its scan {image.shape[:2]} (height, width)")
        name, picture = file_name(self.counts["scans"], finding.scan), None
        if mask is not None:
            mask = np.ascontiguousarray(mask.reshape(mask.shape[:2]) > 0).astype(np.uint8)
            path = f"masks/{name}.png"
            finding = finding if finding.boxes is not None else measured(finding, mask)
            finding = dataclasses.replace(finding, mask=path)
            self._write(path, image_files.encode_png(mask * np.uint8(255)))
        if image is not None:
            picture = f"overlays/{name}.jpg"
            self._write(picture, overlay_jpeg(image, mask))
        self.append(finding, picture)
        return finding

    def _write(self, path: str, content: bytes) -> None:
        (self.out / path).parent.mkdir(exist_ok=True)
        (self.out / path).write_bytes(content)

    def append(self, finding: Finding, picture: str | None) -> None:
        """Write one finding whose mask, and overlay `picture`, are there already: paths below the report's folder."""
        self._lines.write(finding.to_json().encode("ascii") + b"\n")
        self._lines.flush()
        self._page.add(finding, picture)
        self.volumes |= finding.series is not None
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._refresh()

    def carry(self, series: str, paths: Sequence[str] = (), notes: Sequence[str] = ()) -> None:
        """Name segmentations of a volume that lie elsewhere below the report's folder, or say why it has none."""
        there = self._carried.setdefault(series, ([], []))
        there[0].extend(paths)
        there[1].extend(notes)

    def close(self, error: BaseException | None = None) -> None:
        """Finish run.json and the page; `error` is what ended the run early. A second call does nothing."""
        if self._lines.closed:
            return
        self._lines.close()
        ended = {"status": "complete"} if error is None else {"status": "stopped", "error": repr(error)}
        self._run |= {**ended, "finished": _now()}
        if self.volumes:
            self._write_volumes()
        self._refresh()

    def _write_volumes(self) -> None:
        aside = self.out / ".volumes.jsonl.part"
        with open(aside, "w", encoding="ascii", newline="\n") as lines:
            for volume in summarise(read_findings(self.out / "findings.jsonl")):
                paths, notes = self._carried.get(volume.series, ([], []))
                paths = [path for path in _segmentations(volume) if (self.out / path).is_file()] + paths
                volume = dataclasses.replace(volume, segmentations=paths, notes=[*volume.notes, *notes])
                lines.write(volume.to_json() + "\n")
                self._page.add_volume(volume)
        aside.replace(self.out / "volumes.jsonl")

    def _refresh(self) -> None:
        self._page.write(self._run)
        self._refreshed = time.monotonic()


def segmentation_path(volume: Volume, suffix: str) -> str:
    """Where a volume's masks are in one file of that suffix, ".dcm" or ".nii.gz", below the report's folder."""
    return f"{FOLDER}/{file_name(volume.lines[0], volume.scan).removesuffix('.nii')}{suffix}"


def _segmentations(volume: Volume) -> list[str]:
    return [segmentation_path(volume, suffix) for suffix in (".dcm", ".nii.gz")]


def _lock(file: IO[bytes]) -> None:
    """Hold a file alone, where its disk can tell; BlockingIOError where another process does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # Lustre without flock, object stores: nothing guards there
        return


def _remove_report(out: pathlib.Path) -> None:
    """Remove the report in `out`, file by file as findings.jsonl tells; whatever else lies there stays."""
    findings = out / "findings.jsonl"
    for _ in read_findings(findings):
        pass  # raises, before anything is gone, if this is no report
    for index, finding in enumerate(read_findings(findings)):
        name = file_name(index, finding.scan)
        (out / "masks" / f"{name}.png").unlink(missing_ok=True)
        (out / "overlays" / f"{name}.jpg").unlink(missing_ok=True)
    for volume in summarise(read_findings(findings)):
        for name in _segmentations(volume):
            (out / name).unlink(missing_ok=True)
    page = (path for name in ("rows", "volumes") for path in (out / "page").glob(f"{name}_*.js"))
    for path in (*page, out / "volumes.jsonl", out / "index.html", out / "run.json", findings):
        path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
