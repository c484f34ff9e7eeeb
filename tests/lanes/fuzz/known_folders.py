"""Folders of one's own scans, and pictures without content, whose right value is known; see `known`."""

import io
import random

import cv2
import numpy as np

from mcis.imaging import phantom
from tests.fixtures.tiff_files import tiff
from tests.lanes.fuzz import known_pictures
from tests.lanes.fuzz.known import VALUES, Make, known
from tests.lanes.fuzz.mutations import Tree

LABELS = {"normal": 0, "benign": 1, "malignant": 2}
ENCODINGS = "utf-8", "utf-8-sig", "utf-16", "cp1252"


def stored(picture: np.ndarray, rng: random.Random) -> tuple[str, bytes]:
    """A picture, uint8 (H, W) or (H, W, 3), in a lossless file; its suffix and its bytes."""
    form = rng.choice(("png", "bmp", "tif"))
    if form == "tif":
        return form, tiff(picture, photometric=2 if picture.ndim == 3 else 1, **known_pictures.storage(rng))
    turned = picture if picture.ndim == 2 else picture[..., ::-1]
    return form, cv2.imencode(f".{form}", turned)[1].tobytes()


def table(rng: random.Random, rows: list[tuple[str, str, str]]) -> bytes:
    """labels.csv as programs write it."""
    mark, end = rng.choice(",;\t"), rng.choice(("\n", "\r\n"))
    names = rng.choice((("scan", "label", "patient"), ("Scan", "Label", "Patient"), ("SCAN", "LABEL", "PATIENT")))
    order = rng.sample(range(3), 3)
    lines = [mark.join(row[k] for k in order) for row in (names, *rows)]
    for _ in range(rng.choice((0, 0, 1, 3))):
        lines.insert(rng.randint(1, len(lines)), rng.choice(("", mark * 2)))
    return (end.join(lines) + rng.choice(("", end))).encode(rng.choice(ENCODINGS))


def own_folder(rng: random.Random) -> Tree:
    """J: the builder's mask of a scan is right, in any form of mask and of table, and so are label and patient."""
    made = known_pictures.mask(rng)
    (mask,) = (content for name, content in made.items() if name.startswith("mask."))
    lesion = np.load(io.BytesIO(made[VALUES]), allow_pickle=False)  # type: ignore[arg-type]
    source = np.random.default_rng(rng.randrange(1 << 30))
    scans = {name: source.integers(1, 256, lesion.shape, np.uint8) for name in ("a", "b")}
    stem = rng.choice(("s01", "müller", "a b", "1.2.3", "deep/c"))
    files, rows, want = {}, [], {}
    for name, label in (("a", rng.choice(("benign", "malignant"))), ("b", "normal")):
        suffix, content = stored(scans[name], rng)
        scan_id, patient = f"{stem}-{name}", rng.choice(("P1", "Ä 7", "0012"))
        files[f"own/images/{scan_id}.{suffix}"] = content
        written = f"{scan_id}.{suffix}" if rng.random() < 0.5 else scan_id
        rows.append((written, rng.choice((label, label.upper(), label.title())), patient))
        want[scan_id] = {"label": LABELS[label], "patient": patient, "mask": name == "a"}
    files[f"own/masks/{stem}-a{rng.choice(('', '_mask'))}.png"] = mask  # type: ignore[assignment]
    files["own/labels.csv"] = table(rng, rows)
    return known(lesion, files, folder=want, atol=1200 if mask[:2] == b"\xff\xd8" else 0)  # type: ignore[index]


def without_content(rng: random.Random) -> Tree:
    """J: a picture without content, or not all of it, is unsupported, with that reason; one with a margin is a scan."""
    source = np.random.default_rng(rng.randrange(1 << 30))
    size = rng.randint(256, 400), rng.randint(256, 400)
    kind = rng.choice(
        ("blank", "nearly constant", "black and white only", "only", "stripes", "noise", *["cut", ""] * 4)
    )
    if kind == "blank":
        picture = np.full(size, rng.randrange(256), np.uint8)
    elif kind == "nearly constant":
        picture = source.integers(3, 8, size, np.uint8) + np.uint8(rng.randrange(248))
    elif kind in ("black and white only", "only"):
        picture = np.zeros(size, np.uint8)
        centre, axes = (size[1] // 2, size[0] // 2), (rng.randint(60, 100), rng.randint(60, 100))
        cv2.ellipse(picture, centre, axes, rng.randrange(180), 0, 360, 255 if kind != "only" else 150, -1)
    elif kind == "stripes":
        line = source.integers(0, 256, 16).astype(np.float32)[None]
        picture = cv2.resize(line, size[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        picture = picture if rng.random() < 0.5 else np.ascontiguousarray(picture.T)
    elif kind == "noise":
        picture = source.integers(0, 256, size, np.uint8)
    else:
        organ, labels = rng.choice((("brain", 2), ("breast", 3)))
        whole = phantom.make_phantom(organ, rng.randrange(labels), rng.randrange(1 << 20), size=size).image
        picture = filled(rng, whole) if kind == "cut" else with_margin(rng, whole)
    suffix, content = stored(picture, rng)
    if kind in ("cut", "") and rng.random() < 0.3:
        suffix, content = "jpg", cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()
    return known(None, {f"a.{suffix}": content}, unsupported=kind)


def filled(rng: random.Random, whole: np.ndarray) -> np.ndarray:
    """A picture whose lower part is as a decoder fills what is missing of a JPEG file, also within a row of blocks."""
    picture, start = whole.copy(), round(rng.uniform(0.3, 0.85) * len(whole))
    picture[start:] = 128
    block, until = rng.choice((0, 8, 16)), rng.randrange(whole.shape[1])
    picture[start : start + block, :until] = whole[start : start + block, :until]
    return picture


def with_margin(rng: random.Random, whole: np.ndarray) -> np.ndarray:
    """A picture with a margin at one or two sides, of any level, or of which a part was blacked out, as of a face."""
    level = rng.choice((0, 255, rng.randrange(120)))
    if rng.random() < 0.3:
        picture = whole.copy()
        picture[: round(rng.uniform(0.1, 0.3) * len(whole))] = 0
        return picture
    pads = [0, 0, 0, 0]
    for side in rng.sample(range(4), rng.choice((1, 1, 2))):
        pads[side] = round(rng.uniform(0.03, 0.25) * len(whole))
    return cv2.copyMakeBorder(whole, *pads, cv2.BORDER_CONSTANT, value=[level] * 3)


FOLDERS: tuple[Make, ...] = (own_folder, own_folder, without_content, without_content)
