"""Readers of untrusted input, one row of TARGETS each: valid inputs, mutators, handwritten inputs, how to read one.

To add a reader, add a row. `attempt` gets a folder with the input and reads it as a user's command would. It returns
the outcome as a word or raises; `worker` decides whether an error is a failure.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import pathlib
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.lanes.fuzz import (
    crafted,
    crafted_pictures,
    crafted_scans,
    known_folders,
    known_pictures,
    known_volumes,
    seeds,
)
from tests.lanes.fuzz.known import as_mutator, read_known
from tests.lanes.fuzz.mutations import (
    BYTES,
    CHANGES,
    EXTREMES,
    PLACED,
    Mutator,
    Tree,
    csv_cell,
    in_a_file,
    json_value,
    number_at,
    png_chunk,
    tiff_tag,
)
from tests.lanes.fuzz.target import Target


def read_scans(folder: pathlib.Path) -> str:
    """Read as `mcis predict FOLDER` does, and each file by its name."""
    from mcis.imaging import formats, scan, search
    from mcis.imaging.letterbox import INPUT_SIZE, letterbox

    errors = []
    files = sorted({*map(pathlib.Path, search.in_folder(folder).files), *folder.iterdir()})
    for path, frame in itertools.islice(formats.frames(map(str, files)), 6):
        try:
            found = formats.read(path, frame or 0)
            height, width = found.image.shape[:2]
            assert found.image.dtype == np.uint8 and found.image.shape == (height, width, 3) and height * width > 0
            assert found.spacing is None or all(np.isfinite(mm) and mm > 0 for mm in found.spacing)
            square, _ = letterbox(found.image)
            assert square.shape == (INPUT_SIZE, INPUT_SIZE, 3)
        except Exception as error:
            errors.append(error)
    if errors:
        raise max(errors, key=lambda error: not isinstance(error, scan.ScanError))  # an unexpected one, if there is any
    return "read"


def read_report(folder: pathlib.Path) -> str:
    """Read, resume and overwrite a report, or merge its shards."""
    from mcis.cli import merge, predict
    from mcis.report.finding import Finding, ReportError, read_findings
    from mcis.report.writer import ReportWriter

    if any(folder.glob("shard_*")):
        with _captured() as output:
            status = merge.main([str(folder)])
        return "read" if status in (0, 1) else _rejected(output.getvalue())
    list(read_findings(folder / "findings.jsonl"))
    scans = [("a.png", None), ("b/c.png", None), ("d.dcm", None)]
    for name, goes_on in (("resume", True), ("overwrite", False)):
        if goes_on:
            with contextlib.suppress(ReportError):  # it has other scans, but is read first
                predict.finished(folder, scans, {"paths": ["a"]}, {"folder": "w"})
        with ReportWriter(folder, {"paths": ["a"]}, weights={"folder": "w"}, **{name: True}) as report:
            report.add(Finding("z.png", organ="brain"), seeds.picture(), seeds.picture()[..., 0] & 1)
    return "read"


def read_weights(folder: pathlib.Path) -> str:
    """Read weights as `mcis predict --weights FOLDER` and `mcis info` do."""
    from mcis.checkpoints import bundle

    bundle.load_bundle(folder)
    return "read"


def prepare(folder: pathlib.Path) -> str:
    """Read a source as `mcis build SOURCE --from FOLDER` does; if patients are known, run the whole build."""
    from mcis_datasets.mcis_scans.record import Rejection, done, find_base
    from mcis_datasets.mcis_scans.sources import SOURCES

    from mcis.cli.build import build

    names = [path.name for path in folder.iterdir() if path.name in SOURCES]
    if not names:
        return "nothing"
    base = find_base(folder / names[0], SOURCES[names[0]].requires)
    if base is not None and names[0] in ("br35h", "busi", "folder"):  # a build would compare all images: two seconds
        items = [done(job) for job in SOURCES[names[0]].read(base)]
        for item in items:
            assert isinstance(item, Rejection) or item.mask.shape == (*item.image.shape[:2], 1)
        return "read" if not any(isinstance(item, Rejection) for item in items) else "rejected in part"
    with _captured():
        build(names[0], folder / names[0], folder / "out", progress=False)
    return "read"


def unpack(folder: pathlib.Path) -> str:
    """Unpack an archive as `mcis build SOURCE --from ZIP` does."""
    from mcis_datasets.mcis_scans import archive
    from mcis_datasets.mcis_scans.record import find_base
    from mcis_datasets.mcis_scans.sources import SOURCES

    for path in sorted(folder.iterdir()):
        with archive.opened(path) as place:
            if place == path:  # a folder, or a link to one
                continue
            for where, folders, files in os.walk(place):
                links = [name for name in (*folders, *files) if os.path.islink(os.path.join(where, name))]
                assert not links, links
            find_base(place, SOURCES["busi"].requires)
    return "read"


@contextlib.contextmanager
def _captured() -> Any:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield output


def _rejected(output: str) -> str:
    assert "Traceback" not in output and output.startswith("mcis "), output[:999]
    return "rejected: exit status 2"


TAGS = (
    *((0x0028, number) for number in (2, 4, 6, 8, 0x10, 0x11, 0x30, 0x100, 0x101, 0x102, 0x103, 0x301, 0x1050, 0x1051)),
    *((0x0028, number) for number in (0x1052, 0x1053, 0x1101, 0x1102, 0x1201, 0x1202, 0x3010, 0x3002, 0x3006, 0x9110)),
    *((8, 0x60), (8, 0x16), (2, 0x10), (2, 0), (0x18, 0x6011), (0x18, 0x602C), (0x5200, 0x9229), (0x5200, 0x9230)),
    *((0x7FE0, 0x10), (0xFFFE, 0xE000), (0xFFFE, 0xE0DD), (0xFFFE, 0xE00D)),
)
TEXTS = (
    b"",
    b"0",
    b"-1",
    b"1e308",
    b"nan",
    b"inf",
    b"1\\2\\3",
    b"x",
    b"9" * 16,
    b"\xff",
    b"RGB",
    b"YBR_FULL_422",
    b"YBR_RCT",
)
TEXTS += (
    b"PALETTE COLOR",
    b"MONOCHROME1",
    b"1.2.840.10008.1.2.4.90",
    b"1.2.840.10008.1.2.5",
    b"1.2.840.10008.1.2.2",
    b"SEG",
)
TEXTS += (b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.203", b"1.2.840.10008.1.2.4.100")
VRS = (b"UN", b"SQ", b"OB", b"OW", b"DS", b"IS", b"US", b"SS", b"LO", b"UT", b"FD", b"OF", b"AT", b"\0\0", b"zz", b"UI")
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF")


def dicom_element(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change the value, length or type of an element; or remove or repeat it."""
    there = [at for tag in TAGS if (at := data.find(struct.pack("<HH", *tag), 128)) > 0]
    if not there:
        return rng.choice(CHANGES)(rng, data, other)
    at = rng.choice(there)
    start = at + (12 if data[at + 4 : at + 6] in LONG else 8)
    form = "<I" if start == at + 12 or not data[at + 4 : at + 6].isalpha() else "<H"
    where = start - struct.calcsize(form)
    length = min(struct.unpack_from(form, data, where)[0], len(data)) if where + 4 <= len(data) else 0
    way = rng.random()
    if way < 0.4:
        value = (
            rng.choice(TEXTS)
            if length not in (2, 4) or rng.random() < 0.3
            else rng.choice(EXTREMES).to_bytes(8, "little")[:length]
        )
        value += b" " * (len(value) % 2)
        return data[:where] + struct.pack(form, len(value)) + value + data[start + length :]
    if way < 0.6:
        claimed = rng.choice(EXTREMES) & (0xFFFFFFFF if form == "<I" else 0xFFFF)
        return data[:where] + struct.pack(form, claimed) + data[start:]
    if way < 0.75:
        return data[: at + 4] + rng.choice(VRS) + data[at + 6 :]
    return data[:at] + data[at : start + length] * rng.choice((0, 0, 2)) + data[start + length :]


def dicom_pixels(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change the beginning of the pixel data: offset tables, headers of codestreams."""
    at = data.rfind(b"\xe0\x7f\x10\0")
    if at < 0:
        return rng.choice(CHANGES)(rng, data, other)
    end = rng.choice((at + 40, at + 120, at + 600, len(data)))
    return data[:at] + rng.choice(CHANGES)(rng, data[at:end], other[-2000:]) + data[end:]


def rehashed(mutate: Mutator) -> Mutator:
    """A mutator of weights that also corrects the hashes in the manifest, as an attacker could."""

    def and_hash(rng: random.Random, tree: Tree, others: Sequence[Tree]) -> Tree:
        tree = dict(mutate(rng, tree, others))
        for name in [name for name in tree if name.endswith("manifest.json") and isinstance(tree[name], bytes)]:
            top = name.removesuffix("manifest.json")
            own = {
                path: c for path, c in tree.items() if path.startswith(top) and path != name and isinstance(c, bytes)
            }
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                manifest = json.loads(tree[name])  # type: ignore[arg-type]
                manifest["files"] = {path[len(top) :]: hashlib.sha256(c).hexdigest() for path, c in own.items()}  # type: ignore[arg-type]
                tree[name] = json.dumps(manifest).encode("utf-8", "surrogatepass")
        return tree

    return and_hash


NIFTI_FIELDS = (
    *((0, "<i"), (70, "<h"), (72, "<h"), (108, "<f"), (112, "<f"), (116, "<f"), (252, "<h"), (254, "<h"), (348, "<i")),
    *((352, "<i"), (356, "<i"), *((40 + 2 * k, "<h") for k in range(8)), *((76 + 4 * k, "<f") for k in range(8))),
    *((256 + 4 * k, "<f") for k in range(18)),
)
NIFTI2_FIELDS = (
    *((12, "<h"), (14, "<h"), (168, "<q")),
    *((16 + 8 * k, "<q") for k in range(8)),
    *((104 + 8 * k, "<d") for k in range(8)),
)


def in_gzip(change: Any) -> Any:
    """A change to the content of a gzip file."""
    import gzip
    import zlib

    def inside(rng: random.Random, data: bytes, other: bytes) -> bytes:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            return gzip.compress(change(rng, gzip.decompress(data) or b"\0", other), 1, mtime=0)
        return data

    return inside


JSON = in_a_file(json_value, ".json")
LINES = in_a_file(json_value, ".jsonl")
ORBAX = tuple(rehashed(mutate) for mutate in (*BYTES, in_a_file(json_value, "_METADATA"), *PLACED))

KNOWN = (*known_pictures.PICTURES, *known_volumes.VOLUMES, *known_folders.FOLDERS)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "pictures",
            2000,
            seeds.pictures,
            (*BYTES, *BYTES, *PLACED, *[in_a_file(png_chunk, ".png")] * 8, *[in_a_file(tiff_tag, ".tif")] * 8),
            read_scans,
            crafted_pictures.PICTURES,
        ),
        Target(
            "dicom",
            2500,
            seeds.dicom,
            (*BYTES, *PLACED, *[in_a_file(dicom_element)] * 12, *[in_a_file(dicom_pixels)] * 16),
            read_scans,
            crafted_scans.DICOM,
        ),
        Target(
            "nifti",
            800,
            seeds.nifti,
            (
                *(*BYTES, *PLACED, *[in_a_file(number_at(NIFTI_FIELDS), ".nii")] * 8),
                *[in_a_file(number_at(NIFTI2_FIELDS), "two.nii")] * 4,
                *[in_a_file(in_gzip(change), ".gz") for change in (*CHANGES, *[number_at(NIFTI_FIELDS)] * 6)],
            ),
            read_scans,
            crafted_scans.NIFTI,
        ),
        Target(
            "known",
            1500,
            lambda: [make(random.Random(0)) for make in KNOWN],
            tuple(as_mutator(make) for make in KNOWN),
            read_known,
        ),
        Target("zips", 600, seeds.zips, (*BYTES, *PLACED), unpack, crafted.ZIPS),
        Target(
            "sources",
            600,
            seeds.prepared,
            (*BYTES, *PLACED, *PLACED, *[JSON] * 6, *[in_a_file(csv_cell, ".csv")] * 6),
            prepare,
            crafted.PREPARED,
            writes=True,
        ),
        Target(
            "reports",
            800,
            seeds.reports,
            (*BYTES, *PLACED, *[JSON] * 8, *[LINES] * 12),
            read_report,
            crafted.REPORTS,
            writes=True,
        ),
        Target(
            "weights",
            500,
            seeds.weights,
            (*BYTES, *PLACED, *[JSON] * 10, *ORBAX, *ORBAX),
            read_weights,
            crafted.WEIGHTS,
        ),
    )
}
