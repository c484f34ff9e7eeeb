"""Findings as files: JSON lines, masks, overlays and one HTML page, written while the scans come in. No JAX.

    OUT/findings.jsonl              one Finding a line, in input order, flushed line by line
    OUT/masks/000012_stem.png       0/255, one channel, size of the scan; 12 = the line's position, from 0
    OUT/overlays/000012_stem.jpg    the scan with its lesions outlined, size of the scan, at most OVERLAY_SIDE
    OUT/run.json                    versions, weights, options, counts, status, times, notice
    OUT/index.html, OUT/page/*.js   the page: opens from disk, reads CHUNK rows at a time

A scan's pictures are written before its line, so whatever `findings.jsonl` names exists, and a killed run has every
line that was added; its page is REFRESH_SECONDS behind at most.
"""

import dataclasses
import datetime
import fcntl
import html
import json
import math
import os
import pathlib
import platform
import re
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

import cv2
import numpy as np

import mcis
from mcis import organs, scan

CHUNK = 1000
"""Rows in one script file of the page; memory in the writer and in the browser grows with it, not with the run."""

OVERLAY_SIDE = 1280
"""Longest side of an overlay, pixels: a page of fifty must fit a browser. Masks always keep the scan's size."""

REFRESH_SECONDS = 5.0
"""How far run.json and the page may lag behind findings.jsonl during a run."""

_OUTLINE = np.array([255, 214, 10], np.float32)  # RGB; bright between two dark lines, so it shows on any ground
_PAGE_BOXES, _PAGE_ERROR = 20, 1000  # what of a row the page carries; findings.jsonl has it all


class ReportError(ValueError):
    """A folder that cannot take a report, or a file that is none."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found on one scan. None = unknown or not asked; beside an `error` all else is None.

    Attributes:
      scan: the scan as it was given, usually a path.
      frame: which page of a multi-page file, from 0.
      organ: a name of `organs.ORGANS`, or "unsupported".
      organ_prob: the router's probability of its first choice, [0, 1]: of `organ`, or of what an "unsupported" scan
        is most like; None where the router was not asked.
      label: a class of that organ.
      label_probs: probability by class, in the organ's order.
      mask: path of the mask picture below the report's folder; only where segmentation was asked.
      boxes: [x, y, width, height] in pixels of the scan, one a lesion, largest first (see `boxes_of`).
      lesion_area_px: mask pixels of the scan.
      error: why there is no finding.
      reason: why the scan is "unsupported", in words.
      notes: what was changed in reading the scan, in words ("alpha laid over black"), or is odd about its findings.
      confidence: the label's probability times the Dice that the mask expects of itself, [0, 1]; see `cascade`.
      review: whether the confidence is below its organ's limit, so that somebody should look; None for an
        "unsupported" scan, and where the weights have no limit.
    """

    scan: str
    frame: int | None = None
    organ: str | None = None
    organ_prob: float | None = None
    label: str | None = None
    label_probs: dict[str, float] | None = None
    mask: str | None = None
    boxes: list[list[int]] | None = None
    lesion_area_px: int | None = None
    error: str | None = None
    reason: str | None = None
    notes: list[str] | None = None
    confidence: float | None = None
    review: bool | None = None

    def __post_init__(self):
        if self.error is not None and any(getattr(self, k) is not None for k in KEYS if k not in ("scan", "error")):
            raise ValueError(f"{self.scan!r}: a finding with an error has nothing else; got {self}")

    def to_json(self) -> str:
        """One line of ASCII JSON: every field, in order, probabilities to 6 digits, NaN as null.

        ASCII, because a file name need not be UTF-8: its stray bytes stay surrogate escapes and come back on loading.
        """
        return json.dumps(plain({key: getattr(self, key) for key in KEYS}))


KEYS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Finding))
"""The keys of a line of findings.jsonl, in order. Keys are only ever added."""


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NumPy numbers to Python's, floats to 6 digits, what is not finite to None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def boxes_of(mask: np.ndarray) -> list[list[int]]:
    """Bounding boxes of the lesions of a mask, uint8 {0,1} (H, W).

    Returns:
      [x, y, width, height] in pixels for each 8-connected region, largest area first; equal areas from top to bottom,
      then from left to right.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x, y, width, height, area = stats[1:].T  # row 0 is the background
    order = np.lexsort((x, y, -area))
    return np.stack([x, y, width, height], axis=1)[order].tolist()


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Outline the lesions of uint8 RGB (H, W, 3) by mask uint8 {0,1} (H, W); returns uint8 (H, W, 3).

    A bright line between two dark ones, laid just outside the mask so that the lesion's own edge stays in sight, and a
    faint fill. The width grows with the picture (1 pixel up to 256, 2 at 512). An empty mask changes nothing.
    """
    inside = np.ascontiguousarray(mask, np.uint8)
    if not inside.any():
        return image.copy()
    width = max(1.0, max(image.shape[:2]) / 256)
    # Signed distance to the edge, pixels, positive outside: gives smooth lines of any width in one expression.
    outside, within = (cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in (1 - inside, inside))
    away = outside - within
    from_line = np.abs(away - (width + 1) / 2)  # edge pixels outside are at +1, so the line begins there
    fill = 0.10 * (away < 0)
    dark = 0.60 * np.clip(1.5 * width + 0.5 - from_line, 0, 1)
    bright = np.clip(width / 2 + 0.5 - from_line, 0, 1)
    out = image.astype(np.float32)
    out += fill[..., None] * (_OUTLINE - out)
    out *= 1 - dark[..., None]
    out += bright[..., None] * (_OUTLINE - out)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def file_name(index: int, name: str) -> str:
    """Name (without suffix) of the pictures of line `index`: "000012_stem", ASCII letters, digits, ".", "_", "-"."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", pathlib.PurePath(name).stem)[:60].strip("._-")
    return f"{index:06}_{stem or 'scan'}"


def read_findings(path: str | os.PathLike) -> Iterator[Finding]:
    """Stream a findings.jsonl. A last line cut short (a full disk, a crash) is left out; keys not known are ignored.

    Raises:
      ReportError: another line is no finding; the message gives its number.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                values = json.loads(line)
                finding = Finding(values["scan"], **{key: values.get(key) for key in KEYS[1:]})
            except (ValueError, TypeError, KeyError):
                raise ReportError(f"{path}: line {number} is no finding; is this a report?") from None
            yield finding


def summary(counts: Mapping[str, Any]) -> str:
    """What was found, of `ReportWriter.counts`, in a line."""
    found = ", ".join(f"{number} {organ}" for organ, number in counts["organs"].items()) or "nothing"
    labels = ", ".join(f"{number} {label}" for label, number in counts["labels"].items()) or "no label"
    return f"{counts['scans']} scans: {found}; {labels}. {mcis.NOTICE}"


class _Page:
    """What a report says as a whole: run.json, index.html, and page/rows_NNNN.js with a thousand rows each."""

    def __init__(self, out: pathlib.Path):
        by_organ = dict.fromkeys((*organs.ORGAN_NAMES, organs.UNSUPPORTED), 0)
        by_label = {label: 0 for organ in organs.ORGANS for label in organ.classes}
        self.counts: dict[str, Any] = {
            "scans": 0,
            "errors": 0,
            "lesions": 0,
            "review": 0,
            "organs": by_organ,
            "labels": by_label,
        }
        self._out = out
        self._template = pathlib.Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        self._rows: list[str] = []  # of the last file, which may not be full yet
        (out / "page").mkdir(exist_ok=True)

    def add(self, finding: Finding, picture: str | None) -> None:
        row = {key: getattr(finding, key) for key in KEYS}
        row["boxes"] = finding.boxes and finding.boxes[:_PAGE_BOXES]
        row["error"] = finding.error and finding.error[:_PAGE_ERROR]
        row |= {"lesions": None if finding.boxes is None else len(finding.boxes), "overlay": picture}
        if len(self._rows) == CHUNK:
            self._rows = []
        self._rows.append(_script_json(list(row.values())))
        self.counts["scans"] += 1
        self.counts["errors"] += finding.error is not None
        self.counts["lesions"] += row["lesions"] or 0
        self.counts["review"] += bool(finding.review)
        for kind, name in (("organs", finding.organ), ("labels", finding.label)):
            if name is not None:
                self.counts[kind][name] = self.counts[kind].get(name, 0) + 1
        if len(self._rows) == CHUNK:
            self._write_rows()

    def write(self, run: Mapping[str, Any]) -> None:
        """Bring all that was added to disk, under the facts of `run`."""
        self._write_rows()
        run = plain({**run, "counts": self.counts})
        _replace(self._out / "run.json", json.dumps(run, indent=2) + "\n")
        head = {"run": run, "chunk": CHUNK, "keys": [*KEYS, "lesions", "overlay"]}
        # The notice first: the run's own text could hold any token.
        page = self._template.replace("__NOTICE__", html.escape(mcis.NOTICE))
        _replace(self._out / "index.html", page.replace("__DATA__", _script_json(head)))

    def _write_rows(self) -> None:
        if self._rows:
            number, rows = (self.counts["scans"] - 1) // CHUNK, ",\n".join(self._rows)
            _replace(self._out / "page" / f"rows_{number:04}.js", f"mcisRows({number},[\n{rows}\n])\n")


def _script_json(value: Any) -> str:
    # Without "<" no text, a scan called "</script>.png" included, can end the script element that holds it.
    return json.dumps(plain(value), separators=(",", ":")).replace("<", "\\u003c")


def _replace(path: pathlib.Path, text: str) -> None:
    # Written aside and moved: a reader, or a crash, never meets half a file.
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8", newline="\n")
    aside.replace(path)


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
            for folder in ("masks", "overlays"):
                (self.out / folder).mkdir(parents=True, exist_ok=True)
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
        self._page = _Page(self.out)
        self.counts = self._page.counts
        self._replay()
        self._refresh()

    def _replay(self) -> None:
        """Take up what the file has already; a last line that was cut short goes."""
        for index, finding in enumerate(read_findings(self.out / "findings.jsonl")):
            picture = f"overlays/{file_name(index, finding.scan)}.jpg"
            self._page.add(finding, picture if (self.out / picture).is_file() else None)
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
          finding: `mask`, `boxes` and `lesion_area_px` are filled in from the mask.
          image: the scan, uint8 RGB (H, W, 3); without one there is no overlay.
          mask: uint8 {0,1} (H, W) of the scan's size, where segmentation was asked; all zero if nothing was found.
        """
        if image is not None and mask is not None and image.shape[:2] != mask.shape[:2]:
            raise ValueError(f"{finding.scan!r}: mask is {mask.shape[:2]}, its scan {image.shape[:2]} (height, width)")
        name, picture = file_name(self.counts["scans"], finding.scan), None
        if mask is not None:
            mask = np.ascontiguousarray(mask.reshape(mask.shape[:2]) > 0).astype(np.uint8)
            path, area = f"masks/{name}.png", int(np.count_nonzero(mask))
            finding = dataclasses.replace(finding, mask=path, boxes=boxes_of(mask), lesion_area_px=area)
            (self.out / path).write_bytes(scan.encode_png(mask * np.uint8(255)))
        if image is not None:
            picture = f"overlays/{name}.jpg"
            (self.out / picture).write_bytes(_overlay_jpeg(image, mask))
        self.append(finding, picture)
        return finding

    def append(self, finding: Finding, picture: str | None) -> None:
        """Write one finding whose mask, and overlay `picture`, are there already: paths below the report's folder."""
        self._lines.write(finding.to_json().encode("ascii") + b"\n")
        self._lines.flush()
        self._page.add(finding, picture)
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._refresh()

    def close(self, error: BaseException | None = None) -> None:
        """Finish run.json and the page; `error` is what ended the run early. A second call does nothing."""
        if self._lines.closed:
            return
        self._lines.close()
        ended = {"status": "complete"} if error is None else {"status": "stopped", "error": repr(error)}
        self._run |= {**ended, "finished": _now()}
        self._refresh()

    def _refresh(self) -> None:
        self._page.write(self._run)
        self._refreshed = time.monotonic()


def _lock(file: IO[bytes]) -> None:
    """Hold a file alone, where its disk can tell; BlockingIOError where another process does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # Lustre without flock, object stores: nothing guards there
        return


def _overlay_jpeg(image: np.ndarray, mask: np.ndarray | None) -> bytes:
    height, width = image.shape[:2]
    scale = OVERLAY_SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if mask is not None:  # any share of a pixel counts: the smallest lesion is still outlined
            mask = (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    picture = image if mask is None else overlay(image, mask)
    # Full-resolution colour: with halved chroma the outline smears.
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90, *sampling])
    if not done:
        raise ValueError(f"cannot write an array of shape {picture.shape} and type {picture.dtype} as JPEG")
    return data.tobytes()


def _remove_report(out: pathlib.Path) -> None:
    """Remove the report in `out`, file by file as findings.jsonl tells; whatever else lies there stays."""
    findings = out / "findings.jsonl"
    for _ in read_findings(findings):
        pass  # raises, before anything is gone, if this is no report
    for index, finding in enumerate(read_findings(findings)):
        name = file_name(index, finding.scan)
        (out / "masks" / f"{name}.png").unlink(missing_ok=True)
        (out / "overlays" / f"{name}.jpg").unlink(missing_ok=True)
    for path in (*(out / "page").glob("rows_*.js"), out / "index.html", out / "run.json", findings):
        path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
