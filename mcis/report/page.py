"""The page of a report: run.json, index.html, and its rows in scripts of CHUNK, so that it opens from disk. No JAX."""

import html
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import mcis
from mcis import organs
from mcis.report.finding import KEYS, Finding, plain
from mcis.report.volume import KEYS as VOLUME_KEYS
from mcis.report.volume import Volume

CHUNK = 1000
"""Rows in one script file of the page; memory in the writer and in the browser grows with it, not with the run."""

_PAGE_BOXES, _PAGE_ERROR = 20, 1000  # what of a row the page carries; findings.jsonl has it all


class Page:
    """What a report says as a whole: run.json, index.html, and page/*.js with a thousand scans or volumes each."""

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
        self._volumes: list[str] = []  # likewise
        self._several = 0
        self._mm = False
        (out / "page").mkdir(exist_ok=True)

    def add(self, finding: Finding, picture: str | None) -> None:
        """Count one finding, whose overlay is `picture`, a path below the report's folder, and keep its row."""
        row = {key: getattr(finding, key) for key in KEYS}
        row["boxes"] = finding.boxes and finding.boxes[:_PAGE_BOXES]
        row["error"] = finding.error and finding.error[:_PAGE_ERROR]
        row |= {"lesions": None if finding.boxes is None else len(finding.boxes), "overlay": picture}
        if len(self._rows) == CHUNK:
            self._rows = []
        self._rows.append(_script_json(list(row.values())))
        self._mm |= finding.lesion_area_mm2 is not None
        self.counts["scans"] += 1
        self.counts["errors"] += finding.error is not None
        self.counts["lesions"] += row["lesions"] or 0
        self.counts["review"] += bool(finding.review)
        for kind, name in (("organs", finding.organ), ("labels", finding.label)):
            if name is not None:
                self.counts[kind][name] = self.counts[kind].get(name, 0) + 1
        if len(self._rows) == CHUNK:
            self._write_rows()

    def add_volume(self, volume: Volume) -> None:
        """Keep the row of a volume, if it has more than one slice: of others the scan's own row says it all."""
        if volume.slices + volume.errors > 1:
            self._volumes.append(_script_json([getattr(volume, key) for key in VOLUME_KEYS]))
            self._several += 1
            if len(self._volumes) == CHUNK:
                self._write_volumes()
                self._volumes = []

    def write(self, run: Mapping[str, Any]) -> None:
        """Bring all that was added to disk, under the facts of `run`."""
        self._write_rows()
        self._write_volumes()
        run = plain({**run, "counts": self.counts})
        _replace(self._out / "run.json", json.dumps(run, indent=2) + "\n")
        head = {"run": run, "chunk": CHUNK, "keys": [*KEYS, "lesions", "overlay"]}
        head |= {"volumes": self._several, "volumeKeys": VOLUME_KEYS, "mm": self._mm}
        # The notice first: the run's own text could hold any token.
        page = self._template.replace("__NOTICE__", html.escape(mcis.NOTICE))
        _replace(self._out / "index.html", page.replace("__DATA__", _script_json(head)))

    def _write_rows(self) -> None:
        if self._rows:
            number, rows = (self.counts["scans"] - 1) // CHUNK, ",\n".join(self._rows)
            _replace(self._out / "page" / f"rows_{number:04}.js", f"mcisRows({number},[\n{rows}\n])\n")

    def _write_volumes(self) -> None:
        if self._volumes:
            number, rows = (self._several - 1) // CHUNK, ",\n".join(self._volumes)
            _replace(self._out / "page" / f"volumes_{number:04}.js", f"mcisVolumes({number},[\n{rows}\n])\n")


def _script_json(value: Any) -> str:
    # Without "<" no text, a scan called "</script>.png" included, can end the script element that holds it.
    return json.dumps(plain(value), separators=(",", ":")).replace("<", "\\u003c")


def _replace(path: pathlib.Path, text: str) -> None:
    # Written aside and moved: a reader, or a crash, never meets half a file.
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8", newline="\n")
    aside.replace(path)
