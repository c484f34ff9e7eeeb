"""Handwritten bad archives, sources, reports and weights. Each is a function, so that only the one in use is made."""

import functools
import io
import json
import stat
import zipfile
from collections.abc import Callable

from tests.lanes.fuzz import seeds
from tests.lanes.fuzz.crafted_pictures import Crafted
from tests.lanes.fuzz.mutations import Odd, Tree


def zip_of(
    *entries: tuple[str, bytes], mode: int = 0, claim: int | None = None, method: int = zipfile.ZIP_DEFLATED
) -> Tree:
    """A zip archive; all entries have the same mode and claimed size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, method
            made.writestr(info, content)
            if claim is not None:
                info.file_size = claim
    return {"busi.zip": file.getvalue()}


HOSTILE = (
    "../stray",
    "../../stray",
    "a/../../stray",
    "/tmp/mcis-fuzz-stray",
    "C:\\stray",
    "..\\stray",
    "a\\..\\..\\stray",
)
HOSTILE += (
    "//tmp/mcis-fuzz-stray",
    "benign/" * 5000 + "a.png",
    "a" * 60_000,
    "a\nb",
    "\x1b[2J",
    "a/./b",
    "",
    "/",
    ".",
    "..",
)
HOSTILE += (
    "benign/\udce9.png".encode("utf-8", "surrogateescape").decode("latin-1"),
    "CON",
    "a ",
    "~/stray",
    "$HOME/stray",
)


def hostile_zip(name: str) -> Tree:
    return zip_of((name, b"stray"), ("benign/a_mask.png", b"x"))


ZIPS: Crafted = (
    lambda: {"busi.zip": b""},
    lambda: {"busi.zip": Odd("pipe")},
    lambda: {"busi.zip": Odd("link", "/dev/zero")},
    lambda: {"busi.zip": b"PK\5\6" + bytes(18)},
    lambda: {"busi.zip": b"PK\5\6" + b"\xff" * 18},
    *(functools.partial(hostile_zip, name) for name in HOSTILE),
    lambda: zip_of(("stray", b"/tmp/mcis-fuzz-stray"), mode=stat.S_IFLNK | 0o777),
    lambda: zip_of(("pipe", b""), mode=stat.S_IFIFO | 0o777),
    lambda: zip_of(("a", b"x"), mode=stat.S_IFREG | 0o6777),
    lambda: zip_of(("benign", b"x"), ("benign/a.png", b"x")),
    lambda: zip_of(("a.png", b"x"), ("A.png", b"x"), ("a.png/", b"")),
    lambda: zip_of(("a", bytes(200 << 20))),
    lambda: zip_of(("a", bytes(15 << 20)), ("b", bytes(15 << 20)), ("c", bytes(15 << 20))),
    lambda: zip_of(("a", b"x"), claim=1 << 40),
    lambda: zip_of(("a", bytes(200 << 20)), claim=10),
    lambda: zip_of(("a", bytes(15 << 20)), method=zipfile.ZIP_BZIP2),
    lambda: zip_of(("a", bytes(15 << 20)), method=zipfile.ZIP_LZMA),
    lambda: zip_of(*[(f"{k}", b"") for k in range(2_000)]),
    lambda: zip_of(("busi.zip", zip_of(("../stray", b"x"))["busi.zip"])),  # type: ignore[arg-type]
)


def with_file(source: int, name: str, content: bytes | Odd) -> Tree:
    """The folder of a source with one file replaced."""
    return {**seeds.prepared()[source], name: content}


BR35H, FOLDER = 0, 3
VIA = "br35h/Br35H/Br35H-Mask-RCNN/TRAIN/annotations_train.json"


def outline(**shape: object) -> Tree:
    """Br35H with one outline."""
    entry = {"filename": "y0.jpg", "regions": [{"shape_attributes": shape}]}
    return with_file(BR35H, VIA, json.dumps({"a": entry}).encode())


PREPARED: Crafted = (
    lambda: with_file(BR35H, VIA, b"[" * 100_000),
    lambda: with_file(BR35H, VIA, b'{"a":' * 100_000),
    lambda: with_file(BR35H, VIA, Odd("pipe")),
    lambda: with_file(BR35H, VIA, Odd("folder")),
    lambda: with_file(BR35H, VIA, Odd("long", str(3 << 30), b"{")),
    lambda: with_file(BR35H, VIA, b"\xff\xfe"),
    lambda: outline(name="polygon", all_points_x=[1e308, -1e308, 0], all_points_y=[1e308, 0, -1e308]),
    lambda: outline(name="polygon", all_points_x=list(range(60_000)), all_points_y=[0, 20] * 30_000),
    lambda: outline(name="polygon", all_points_x=["1", "2", "3"], all_points_y=[1, 2, 3]),
    lambda: outline(name="polygon", all_points_x=[10**400, 1, 2], all_points_y=[1, 2, 3]),
    lambda: outline(name="polygon", all_points_x=5, all_points_y=None),
    lambda: outline(name="ellipse", cx=10**400, cy=1, rx=1, ry=1),
    lambda: outline(name="ellipse", cx=1, cy=1, rx=1e-320, ry=1e-320),
    lambda: outline(name="circle", cx="1", cy=1, r=[]),
    lambda: outline(name="rect", x="a", y=1, width="b", height=2),
    lambda: outline(name=["rect"]),
    lambda: with_file(FOLDER, "folder/labels.csv", b"scan,label,patient\n" + b"x," * 100_000),
    lambda: with_file(FOLDER, "folder/labels.csv", b'scan,label,patient\n"' + b"x" * 300_000),
    lambda: with_file(
        FOLDER, "folder/labels.csv", b"scan,label,patient\n../../stray,tumor,p\n/etc/passwd,tumor,p\n..,,\n.,,\n"
    ),
    lambda: with_file(FOLDER, "folder/labels.csv", b"scan,label,patient\na.png/.,tumor,p\n\0,tumor,p\n"),
    lambda: with_file(FOLDER, "folder/labels.csv", b"scan,scan,label,label,patient\na,b,c,d,e,f,g\n"),
    lambda: with_file(FOLDER, "folder/labels.csv", Odd("pipe")),
    lambda: with_file(FOLDER, "folder/labels.csv", Odd("link", "labels.csv")),
    lambda: with_file(FOLDER, "folder/images/loop", Odd("link", "..")),
)


def report(line: bytes, **run: object) -> Tree:
    """A report of one line."""
    facts = {"options": {"paths": ["a"]}, "weights": {"folder": "w"}, "counts": {"scans": 1}, "status": "complete"}
    return {"findings.jsonl": line + b"\n", "run.json": json.dumps(facts | run).encode()}


REPORTS: Crafted = (
    lambda: report(b"[" * 100_000),
    lambda: report(b'{"scan":' * 100_000),
    lambda: report(b'{"scan": 5}'),
    lambda: report(b'{"scan": null}'),
    lambda: report(b'{"scan": "a", "organ": ["brain"]}'),
    lambda: report(b'{"scan": "a", "label": {}}'),
    lambda: report(b'{"scan": "a", "boxes": 5}'),
    lambda: report(b'{"scan": "a", "error": 5}'),
    lambda: report(b'{"scan": "a", "frame": "x", "spacing_mm": ["a"]}'),
    lambda: report(b'{"scan": "../../../../../tmp/mcis-fuzz-stray", "mask": "/tmp/mcis-fuzz-stray"}'),
    lambda: report(b'{"scan": "' + b"a" * (1 << 20) + b'"}'),
    lambda: report(b'{"scan": "\\ud800"}'),
    lambda: report(b'{"scan": "a", "lesion_area_px": 1' + b"0" * 5000 + b"}"),
    lambda: report(b'{"scan": "a", "organ_prob": 1e999, "confidence": NaN}'),
    lambda: report(b"\xff\xfe\0"),
    lambda: report(b"\0" * 1000),
    lambda: report(b'{"scan": "a"}', options=[["a"]]),
    lambda: report(b'{"scan": "a"}', options=5, weights=None),
    lambda: {**report(b'{"scan": "a"}'), "run.json": b"[" * 100_000},
    lambda: {**report(b'{"scan": "a"}'), "run.json": b"[]"},
    lambda: {**report(b'{"scan": "a"}'), "run.json": Odd("pipe")},
    lambda: {**report(b'{"scan": "a"}'), "findings.jsonl": Odd("pipe")},
    lambda: {**report(b'{"scan": "a"}'), "findings.jsonl": Odd("folder")},
    lambda: {**report(b'{"scan": "a"}'), "findings.jsonl": Odd("link", "/dev/zero")},
    lambda: {**report(b'{"scan": "a"}'), "findings.jsonl": Odd("long", str(3 << 30), b'{"scan": "')},
    lambda: {**report(b'{"scan": "a"}'), "run.json": Odd("long", str(3 << 30), b"{")},
    lambda: {**report(b'{"scan": "a"}'), "overlays": Odd("link", "/nowhere"), "page": b"a file"},
)


def with_manifest(change: Callable[[dict], object], which: int = 0) -> Tree:
    """Weights with another manifest."""
    tree = seeds.weights()[which]
    name = next(name for name in tree if name.endswith("manifest.json"))
    manifest = json.loads(tree[name])  # type: ignore[arg-type]
    made = change(manifest)
    return {**tree, name: json.dumps(manifest if made is None else made).encode()}


def weights_file(content: bytes | Odd, name: str = "manifest.json", which: int = 0) -> Tree:
    """Weights in which the file with that name is replaced, or a file of that name is added next to the manifest."""
    tree = seeds.weights()[which]
    top = next(name for name in tree if name.endswith("manifest.json")).rsplit("/", 1)[0]
    return {**tree, next((path for path in tree if path.endswith(name)), f"{top}/{name}"): content}


WEIGHTS: Crafted = (
    lambda: weights_file(b"[" * 100_000),
    lambda: weights_file(b"[]"),
    lambda: weights_file(b"5"),
    lambda: weights_file(b"\xff\xfe"),
    lambda: weights_file(Odd("pipe")),
    lambda: weights_file(Odd("long", str(3 << 30), b"{")),
    lambda: weights_file(Odd("long", str(3 << 30)), "variables/extra"),
    lambda: weights_file(Odd("pipe"), "variables/extra"),
    lambda: weights_file(Odd("link", "/dev/zero"), "variables/extra"),
    lambda: weights_file(Odd("link", "."), "variables/extra"),
    lambda: with_manifest(lambda m: m["task"].update(features=1 << 40)),
    lambda: with_manifest(lambda m: m["task"].update(features=100_000)),
    lambda: with_manifest(lambda m: m["task"].update(features=-4)),
    lambda: with_manifest(lambda m: m["task"].update(size=1 << 40)),
    lambda: with_manifest(lambda m: m["task"].update(size=0)),
    lambda: with_manifest(lambda m: m["task"].update(model="../stray")),
    lambda: with_manifest(lambda m: m["task"].update(name="../stray")),
    lambda: with_manifest(lambda m: m["task"].update(sources=["../stray"])),
    lambda: with_manifest(lambda m: m.update(task=[["name", "route"]])),
    lambda: with_manifest(lambda m: m.update(files={"../../stray": "0"})),
    lambda: with_manifest(lambda m: m.update(files=[["a", "b"]])),
    lambda: with_manifest(lambda m: m.update(arrays=None)),
    lambda: with_manifest(lambda m: m.update(versions=[])),
    lambda: with_manifest(lambda m: m.update(validation=[1])),
    lambda: with_manifest(lambda m: m.update(fingerprints={"train": 5, "validation": None})),
    lambda: with_manifest(lambda m: m.update(names=[["train"]])),
    lambda: with_manifest(lambda m: m.update(classes={"a": 1})),
    lambda: with_manifest(lambda m: m.update(format=[1])),
)
