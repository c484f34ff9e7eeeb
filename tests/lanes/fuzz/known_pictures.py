"""Pictures and masks whose right value is known; see `known`."""

import io
import random
import struct
import unicodedata
from typing import Any

import cv2
import numpy as np
import PIL.Image

from tests.fixtures.tiff_files import DEFLATE, LZW, NONE, PACKBITS, TURNS, tiff
from tests.lanes.fuzz.known import Make, known
from tests.lanes.fuzz.mutations import Tree, png

LOSSLESS = (NONE, LZW, DEFLATE, PACKBITS)
PALETTES = [0, 0, 0, 128, 0, 0], [255, 255, 255, 0, 0, 255], [255, 255, 255, 0, 0, 0], [7, 7, 7, 200, 200, 200]
UNSUPPORTED = {
    33003: "JPEG 2000",
    34712: "JPEG 2000",
    50002: "JPEG XL",
    50000: "Zstandard",
    34887: "LERC",
    34933: "PNG",
}


def draw(rng: random.Random, colour: bool | None = None) -> np.ndarray:
    """A small picture, uint8 (H, W) or (H, W, 3): noise, a ramp or few levels. It has 0 and 255."""
    source = np.random.default_rng(rng.randrange(1 << 30))
    height, width = rng.choice((1, 2, 7, 16, 33, 48)), rng.choice((2, 3, 8, 31, 64, 65))
    shape = (height, width, 3) if (rng.random() < 0.5 if colour is None else colour) else (height, width)
    kind = rng.choice(("noise", "ramp", "levels"))
    made = source.integers(0, 256, shape, np.uint8)
    if kind == "ramp":
        made = (np.indices(shape).sum(0) * 3 % 256).astype(np.uint8)
    elif kind == "levels":
        made = made // 64 * 85
    made[0, :2] = np.array([0, 255]).reshape(2, *[1] * (len(shape) - 2))
    return made


def shown(picture: np.ndarray) -> np.ndarray:
    """The one frame that a picture is, uint8 (1, H, W, 3)."""
    return np.ascontiguousarray((np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture)[None])


def storage(rng: random.Random) -> dict[str, Any]:
    """How a TIFF is stored, at random."""
    made: dict[str, Any] = {"compression": rng.choice(LOSSLESS), "order": rng.choice("<>"), "big": rng.random() < 0.3}
    place = rng.choice(("strip", "strips", "tiles"))
    made |= {"strips": {"rows": rng.randint(1, 20)}, "tiles": {"tile": (16, rng.choice((16, 32)))}}.get(place, {})
    return made | {"reverse": rng.random() < 0.2}


def stored_tiff(rng: random.Random) -> Tree:
    """A and B: a picture in a TIFF of any layout, depth, photometric interpretation and orientation."""
    picture = draw(rng)
    options = storage(rng)
    turn = rng.choice((1, 1, *TURNS))
    tags: list = [(274, 3, [turn])] if turn > 1 else []
    right, atol = picture, 0
    if picture.ndim == 3:
        options |= {"photometric": 2, "planar": rng.random() < 0.5, "predictor": _predictor(rng, options, 2)}
        if rng.random() < 0.3:
            kind = rng.choice((0, 2))
            alpha = np.full_like(picture[..., :1], 255 if kind == 2 else 9)
            picture, tags = np.dstack([picture, alpha]), [*tags, (338, 3, [kind])]
        elif rng.random() < 0.2:
            picture, options = np.dstack([255 - picture, picture[..., :1] * 0]), options | {"photometric": 5}
        if rng.random() < 0.3:
            picture = picture.astype(np.uint16) * 257
    else:
        way = rng.choice(("bits", "type", "palette"))
        options |= {"photometric": rng.choice((0, 1))}
        if way == "bits":
            bits = rng.choice((1, 2, 3, 4, 5, 6, 7, 10, 12, 14))
            full = (1 << bits) - 1
            picture = (picture.astype(int) * full // 255).astype(np.uint8 if bits <= 8 else np.uint16)
            right, atol = np.rint(picture * (255 / full)).astype(np.uint8), 1
            picture, options = full - picture if options["photometric"] == 0 else picture, options | {"bits": bits}
        elif way == "type":
            form = rng.choice(("u1", "u2", "i2", "u4", "i4", "u8", "f2", "f4", "f8"))
            offset = 0 if form in ("u1", "f2") else rng.choice((0, 1000))
            made = (255 - picture if options["photometric"] == 0 else picture).astype(form) + np.dtype(form).type(
                offset
            )
            options["predictor"] = _predictor(rng, options, 3 if form[0] == "f" else 2)
            if options["photometric"] == 0 and form[0] == "f":
                made = -picture.astype(form)
            picture, atol = made, 1
        else:
            order = np.random.default_rng(rng.randrange(1 << 30)).permutation(256)
            levels = np.argsort(order) * (257 if rng.random() < 0.7 else 1)
            picture = order[picture].astype(np.uint8)
            options["photometric"], tags = 3, [*tags, (320, 3, np.tile(levels, 3).tolist())]
    data = tiff(picture, tags=tags, **options)
    return known(shown(TURNS[turn](right)), {"a.tif": data}, atol=atol)


def _predictor(rng: random.Random, options: dict[str, Any], number: int) -> int:
    return rng.choice((1, number)) if options["compression"] in (LZW, DEFLATE) else 1


def exif(turn: int, order: str) -> bytes:
    """Exif data with an orientation."""
    return (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, turn, 0, 0)


def turned(rng: random.Random) -> Tree:
    """A: the orientation of a PNG and a JPEG."""
    picture, turn, order = draw(rng), rng.choice(tuple(TURNS)), rng.choice("<>")
    block = exif(turn, order)
    if rng.random() < 0.5:
        data = _png(picture, png(b"eXIf", block))
        return known(shown(TURNS[turn](picture)), {"a.png": data})
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    plain = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    app = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
    return known(shown(TURNS[turn](plain)), {"a.jpg": data[:2] + app + data[2:]}, atol=1)


def _png(picture: np.ndarray, *chunks: bytes) -> bytes:
    data = cv2.imencode(".png", picture if picture.ndim == 2 else picture[..., ::-1])[1].tobytes()
    return data[:33] + b"".join(chunks) + data[33:]


def palette(rng: random.Random) -> Tree:
    """B: the entries of a palette in another order, in PNG and BMP."""
    picture = draw(rng, colour=False)
    order = np.random.default_rng(rng.randrange(1 << 30)).permutation(256)
    image = PIL.Image.fromarray(order[picture].astype(np.uint8), "P")
    image.putpalette(np.repeat(np.argsort(order), 3).astype(np.uint8).tolist())
    file = io.BytesIO()
    image.save(file, form := rng.choice(("PNG", "BMP")))
    return known(shown(picture), {f"a.{form.lower()}": file.getvalue()})


def cut(rng: random.Random) -> Tree:
    """B: a lossless file without its end is an error, or lacks nothing that is shown."""
    picture = draw(rng)
    kind = rng.choice(("png", "bmp", "tif", "tif"))
    if kind == "tif":
        data = tiff(picture, photometric=2 if picture.ndim == 3 else 1, **storage(rng))
    elif kind == "png":
        data = _png(picture)
    else:
        data = cv2.imencode(".bmp", picture if picture.ndim == 2 else picture[..., ::-1])[1].tobytes()
    size = rng.choice((rng.randrange(len(data)), len(data) - rng.randint(1, min(40, len(data)))))
    return known(shown(picture), {f"a.{kind}": data[:size]}, rejected="")


def damaged_fields(rng: random.Random) -> Tree:
    """C: fields beside the pixels of PNG, JPEG and TIFF are noise."""
    picture, noise = draw(rng), rng.randbytes(rng.randint(0, 60))
    kind = rng.choice(("png", "jpg", "tif"))
    if kind == "png":
        chunk = rng.choice((b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"tIME", b"eXIf", b"zzZz", b"sPLT"))
        return known(shown(picture), {"a.png": _png(picture, png(chunk, noise))})
    if kind == "jpg":
        data = cv2.imencode(".jpg", picture)[1].tobytes()
        plain = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        head = rng.choice(
            (b"Exif\0\0", b"ICC_PROFILE\0", b"http://ns.adobe.com/xap/1.0/\0", b"JFXX\0", b"Photoshop 3.0\0")
        )
        marker = rng.choice((0xE1, 0xE2, 0xED, 0xEF, 0xFE))
        app = struct.pack(">BBH", 255, marker, len(head) + len(noise) + 2) + head + noise
        return known(shown(plain), {"a.jpg": data[:2] + app + data[2:]}, atol=1)
    tag = rng.choice((270, 271, 282, 296, 305, 306, 532, 700, 33432, 33723, 34377, 34665, 34675, 42112, 65000))
    form = rng.choice((1, 3, 4, 7))
    data = tiff(
        picture, photometric=2 if picture.ndim == 3 else 1, tags=[(tag, form, list(noise) or [0])], **storage(rng)
    )
    return known(shown(picture), {"a.tif": data})


def many_pages(rng: random.Random) -> Tree:
    """E: a TIFF of a thousand pages."""
    page = tiff(draw(rng, colour=False)[:1, :2].copy())
    entries = struct.unpack_from("<H", page, 8)[0]
    end = 10 + 12 * entries
    count = rng.choice((2, 100, 1000))
    directory = page[8:end]
    start = len(page) + len(page) % 2
    links = [start + k * (len(directory) + 4) for k in range(count - 1)] + [0]
    data = page[:end] + struct.pack("<I", links[0]) + page[end + 4 :] + b"\0" * (len(page) % 2)
    data += b"".join(directory + struct.pack("<I", link) for link in links[1:])
    return known(np.concatenate([shown(np.array([[0, 255]], np.uint8))] * count), {"a.tif": data})


def bare(rng: random.Random) -> Tree:
    """F: read without a home folder by a relative path."""
    picture = draw(rng)
    return known(shown(picture), {rng.choice(("a.png", "~.png", "-a.png")): _png(picture)}, bare=True)


def alike(rng: random.Random) -> Tree:
    """G: files whose names look alike beside the one that is read."""
    picture, other = draw(rng), draw(rng)
    stem = rng.choice(("s00", "müller", "a.b", "café 1", "Å"))
    name = unicodedata.normalize(rng.choice(("NFC", "NFD")), f"{stem}.png")
    beside = {f"{stem}.tif": tiff(other, photometric=2 if other.ndim == 3 else 1), f"{stem}.PNG": _png(other)}
    beside |= {unicodedata.normalize(form, f"{stem}.png"): _png(other) for form in ("NFC", "NFD")}
    return known(shown(picture), {**beside, name: _png(picture)}, read=[name])


def not_supported(rng: random.Random) -> Tree:
    """H: a TIFF that cannot be decoded is named, with what to do."""
    code, name = rng.choice(tuple(UNSUPPORTED.items()))
    data = tiff(draw(rng, colour=False), tags=[(259, 3, [code])], order=rng.choice("<>"))
    return known(None, {"a.tif": data}, rejected=f"compressed by {name}, which is not supported; save it again")


def any_name(rng: random.Random) -> Tree:
    """I: a picture without a suffix, or with that of another format."""
    picture = draw(rng)
    content = rng.choice((_png(picture), tiff(picture, photometric=2 if picture.ndim == 3 else 1, **storage(rng))))
    return known(shown(picture), {rng.choice(("scan", "scan.1", "a.jpg", "a.PNG", "a.b.c", "a.bmp")): content})


def mask(rng: random.Random) -> Tree:
    """J: the levels, depth, palette and file of a mask."""
    lesion = np.zeros((24, rng.choice((20, 31))), np.uint8)
    y, x = rng.randint(0, 12), rng.randint(0, 9)
    lesion[y : y + rng.randint(1, 9), x : x + rng.randint(1, 9)] = 1
    levels = rng.choice(((1,), (255,), (127, 255), (100, 200), (85, 170, 255), (1, 2, 4), (31, 32), (90,)))
    source = np.random.default_rng(rng.randrange(1 << 30))
    values = np.where(lesion, source.choice(levels, lesion.shape), 0)
    way = rng.choice(("png8", "png16", "tif", "white", "palette", "alpha", "jpeg", "colour", "transparent", "soft"))
    atol = 0
    if way in ("png8", "png16"):
        data = _png(values.astype(np.uint8 if way == "png8" else np.uint16))
    elif way == "colour":
        data = _png(np.dstack([values * 0, values, values * 0]).astype(np.uint8))
    elif way == "tif":
        data = tiff(values.astype(rng.choice(("u1", "u2", "u4", "i2", "f4", "f8"))), **storage(rng))
    elif way == "white":
        data = tiff(lesion if rng.random() < 0.5 else 1 - lesion, bits=1, photometric=0, **storage(rng))
    elif way == "palette":
        image = PIL.Image.fromarray(lesion, "P")
        image.putpalette(rng.choice(PALETTES))
        file = io.BytesIO()
        image.save(file, rng.choice(("PNG", "BMP", "TIFF")))
        data = file.getvalue()
    elif way == "transparent":
        image = PIL.Image.fromarray(lesion, "P")
        image.putpalette(rng.choice(PALETTES))
        file = io.BytesIO()
        image.save(file, "PNG", transparency=rng.choice((0, 1, b"\xff\x80", b"\x80\xff", b"\0\xff")))
        data = file.getvalue()
    elif way == "soft":
        top = rng.randint(80, 255)
        y, x = np.mgrid[:120, :100]
        distance = rng.randint(20, 30) - np.hypot(x - 50, y - 60)
        values = np.rint(top / (1 + np.exp(-distance / rng.choice((2, 3, 5))))).astype(np.uint8)
        lesion = (values >= -(-int(values.max()) // 4)).astype(np.uint8)
        data = _png(values)
    elif way == "alpha":
        full = lesion * np.uint8(255)
        data = cv2.imencode(".png", np.dstack([full * rng.randint(0, 1)] * 3 + [full]))[1].tobytes()
    else:
        big = np.kron(lesion, np.ones((8, 8), np.uint8))
        lesion, atol = big, 8 * 32
        data = cv2.imencode(".jpg", big * 255, [cv2.IMWRITE_JPEG_QUALITY, rng.choice((75, 95))])[1].tobytes()
    return known(lesion, {"mask.png": data}, mask=True, atol=atol)


PICTURES: tuple[Make, ...] = (
    *(stored_tiff, stored_tiff, stored_tiff, turned, palette, cut, cut, damaged_fields, many_pages, bare, alike),
    *(not_supported, any_name, mask, mask),
)
