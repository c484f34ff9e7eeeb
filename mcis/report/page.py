"""The HTML page of a report: run.json, index.html and script files of CHUNK rows, which open from disk. No JAX."""

import functools
import html
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import mcis
from mcis import organs
from mcis.files import write_text
from mcis.report.finding import KEYS, Finding, kind_of, plain
from mcis.report.volume import KEYS as VOLUME_KEYS
from mcis.report.volume import Volume

CHUNK = 1000
"""Rows per script file of the page: bounds memory in the writer and in the browser, whatever the number of scans."""
MAX_REASONS = 1000
"""Kinds of reasons that are counted one by one: headers may state anything."""
MAX_BOXES, MAX_ERROR = 20, 1000
"""Boxes and characters of an error that a row of the page keeps; findings.jsonl has all of them."""


@functools.cache
def read_part(name: str) -> str:
    """The text of a part of the page; shared.css and shared.js are parts of the page of `mcis serve` too."""
    return pathlib.Path(__file__).with_name(name).read_text(encoding="utf-8")


class Page:
    """Counts findings, and writes run.json, index.html, page/rows_*.js and page/volumes_*.js."""

    def __init__(self, out: pathlib.Path):
        self.counts: dict[str, Any] = {
            "scans": 0,
            "errors": 0,
            "lesions": 0,
            "review": 0,
            "organs": dict.fromkeys((*organs.ORGAN_NAMES, organs.UNSUPPORTED), 0),
            "labels": {label: 0 for organ in organs.ORGANS for label in organ.classes},
            "reasons": {},
        }
        self._out = out
        template = read_part("page.html").replace("__NOTICE__", html.escape(mcis.NOTICE))
        for token, suffix in (("__STYLE__", "css"), ("__SCRIPT__", "js")):
            template = template.replace(token, read_part(f"shared.{suffix}") + read_part(f"page.{suffix}"))
        self._template = template
        self._rows = _Chunks(out / "page", "rows", "mcisRows")
        self._volumes = _Chunks(out / "page", "volumes", "mcisVolumes")
        self._has_mm = False
        (out / "page").mkdir(exist_ok=True)

    def add(self, finding: Finding, overlay: str | None) -> None:
        """Count a finding and keep its row; `overlay` is the path of its overlay, relative to the report's folder."""
        row = dict(vars(finding))
        row["boxes"] = finding.boxes and finding.boxes[:MAX_BOXES]
        row["error"] = finding.error and finding.error[:MAX_ERROR]
        row |= {"lesions": None if finding.boxes is None else len(finding.boxes), "overlay": overlay}
        self._rows.add(list(row.values()))
        self._has_mm |= finding.lesion_area_mm2 is not None
        self.counts["scans"] += 1
        self.counts["errors"] += finding.error is not None
        self.counts["lesions"] += row["lesions"] or 0
        self.counts["review"] += bool(finding.review)
        for kind, name in (("organs", finding.organ), ("labels", finding.label)):
            if name is not None:
                self.counts[kind][name] = self.counts[kind].get(name, 0) + 1
        reasons = self.counts["reasons"]
        if (reason := kind_of(finding)) is not None:
            reason = reason if reason in reasons or len(reasons) < MAX_REASONS else "for another reason"
            reasons[reason] = reasons.get(reason, 0) + 1

    def add_volume(self, volume: Volume) -> None:
        """Keep the row of a volume of several slices; a single slice is shown by its scan's own row."""
        if volume.slices + volume.errors > 1:
            self._volumes.add(list(vars(volume).values()))

    def write(self, run: Mapping[str, Any]) -> None:
        """Write the page of what was added so far; `run` goes into run.json."""
        self._rows.write()
        self._volumes.write()
        run = plain({**run, "counts": self.counts})
        write_text(self._out / "run.json", json.dumps(run, indent=2) + "\n")
        head = {"run": run, "chunk": CHUNK, "keys": [*KEYS, "lesions", "overlay"]}
        head |= {"volumes": self._volumes.total, "volumeKeys": VOLUME_KEYS, "mm": self._has_mm}
        # __DATA__ is the last token to be replaced: the run's own text could contain any token
        write_text(self._out / "index.html", self._template.replace("__DATA__", _script_json(head)))


class _Chunks:
    """Rows in numbered script files, each a call of a JavaScript function; only the last chunk is in memory."""

    def __init__(self, folder: pathlib.Path, name: str, function: str):
        self.total = 0
        self._folder, self._name, self._function = folder, name, function
        self._rows: list[str] = []

    def add(self, values: list[Any]) -> None:
        if len(self._rows) == CHUNK:
            self._rows = []
        self._rows.append(_script_json(values))
        self.total += 1
        if len(self._rows) == CHUNK:
            self.write()

    def write(self) -> None:
        if self._rows:
            number, rows = (self.total - 1) // CHUNK, ",\n".join(self._rows)
            text = f"{self._function}({number},[\n{rows}\n])\n"
            write_text(self._folder / f"{self._name}_{number:04}.js", text)


def _script_json(value: Any) -> str:
    # Without "<" no text, such as a scan called "</script>.png", can end the script element that contains it.
    return json.dumps(plain(value), separators=(",", ":")).replace("<", "\\u003c")
