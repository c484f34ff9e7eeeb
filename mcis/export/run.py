"""Run an exported model without mcis: `python run.py scan.png ... --masks DIR` prints one line of JSON per scan.

`mcis export` copies this file, as run.py, into every export. It needs numpy and opencv-python-headless, and jax and
flatbuffers for model.stablehlo or onnxruntime for model.onnx. Images are prepared, and masks brought to the scan's
grid, exactly as in mcis (tests compare the two); everything else about the model is in metadata.json.
"""

import argparse
import hashlib
import json
import os
import pathlib
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 26))  # OpenCV reads it when it is imported

import cv2
import numpy as np

MAX_BYTES = 1 << 28
INPUT_SIZE = 256
MIN_CONTENT = 80

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


def load_model(folder: pathlib.Path, metadata: dict[str, Any]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The model as a function from uint8 (B, 256, 256, 3), RGB, to its outputs by name.

    Raises:
      ValueError: the file is damaged, or was exported by a JAX version that the installed one no longer reads.
    """
    path = folder / metadata["model"]["file"]
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != metadata["model"]["sha256"]:
        raise ValueError(f"{path} is damaged: its sha256 differs from the one in metadata.json")
    if metadata["format"] == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(data, providers=onnxruntime.get_available_providers())
        names = [output.name for output in session.get_outputs()]
        return lambda image: dict(zip(names, session.run(names, {"image": image}), strict=True))
    import jax
    import jax.export

    try:
        call = jax.jit(jax.export.deserialize(bytearray(data)).call)
    except ValueError as error:  # JAX reads files for at least six months
        raise ValueError(
            f"{path} was exported by an older JAX ({metadata['versions']['jax']}), and JAX {jax.__version__} no longer "
            f"reads such files ({error}). Export the weights again with `mcis export`, or install the older JAX"
        ) from None
    return lambda image: {name: np.asarray(value) for name, value in call(image).items()}


def read(path: str | os.PathLike) -> np.ndarray:
    """An image as uint8 RGB (H, W, 3): 8 or 16 bits or float; grey, RGB, RGBA or palette; the first page of several.

    More than 8 bits are scaled from the image's minimum and maximum, pixels that are NaN or infinite are black, alpha
    is blended onto black, and the image is turned upright as its EXIF orientation says.
    """
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
    content = pathlib.Path(path).read_bytes()
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        check_tiff(content)
    data = np.frombuffer(content, np.uint8)
    array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if array is not None and array.dtype == np.uint8 and not (array.ndim == 3 and array.shape[2] in (2, 4)):
        array = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)  # UNCHANGED ignores the orientation
    elif content.startswith(b"\x89PNG") and b"eXIf" in content:
        raise ValueError("a PNG of this kind with Exif data; save it as 8 bits without alpha")
    if array is None:
        raise ValueError("not a readable image; supported are PNG, JPEG, TIFF and BMP")
    if array.dtype != np.uint8:
        values = array.astype(np.float32)
        seen = np.isfinite(values) if values.ndim == 2 else np.isfinite(values).all(2)
        if not seen.any():
            raise ValueError("every pixel is NaN or infinite")
        colours = values[seen][..., :3] if values.ndim == 3 else values[seen]
        low, high = float(colours.min()), float(colours.max())
        values[~seen] = low  # black
        scaled = np.clip(np.rint((values - low) * (255.0 / max(high - low, 1e-12))), 0, 255).astype(np.uint8)
        if array.ndim == 3 and array.shape[2] == 4:  # alpha has its own scale
            full = float(np.iinfo(array.dtype).max) if array.dtype.kind in "ui" else 1.0  # type: ignore[type-var]
            alpha = np.where(seen, values[..., 3], 0)
            scaled[..., 3] = np.clip(np.rint(alpha * (255.0 / full)), 0, 255).astype(np.uint8)
        array = scaled
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] in (2, 4):
        array = np.rint(array[..., :-1] * (array[..., -1:].astype(np.float32) / 255.0)).astype(np.uint8)
    image = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., ::-1]
    return np.ascontiguousarray(image)


def check_tiff(content: bytes) -> None:
    """Raise ValueError for a TIFF that OpenCV may decode wrongly without an error. `mcis predict` reads more kinds."""
    try:
        order = {b"II": "<", b"MM": ">"}[content[:2]]
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        tags = {}
        for at in range(start + 2, start + 2 + 12 * min(count, 1000), 12):
            tag, form, number = struct.unpack_from(f"{order}HHI", content, at)
            size = number * {3: 2, 4: 4}.get(form, 0)
            place = at + 8 if size <= 4 else struct.unpack_from(f"{order}I", content, at + 8)[0]
            if form in (3, 4) and size <= len(content):
                tags[tag] = struct.unpack_from(f"{order}{number}{'HI'[form - 3]}", content, place)
    except (KeyError, struct.error):
        raise ValueError("not a readable image; this script reads no damaged and no very large TIFF") from None
    compression, photometric = (tags.get(tag, (1,))[0] for tag in (259, 262))
    whole = (
        b"+" not in content[2:4]
        and compression in (1, 5, 7, 8, 32946, 32773)
        and 338 not in tags
        and tags.get(284, (1,)) == (1,)
    )
    if not (whole and photometric in (1, 2) and set(tags.get(258, (1,))) <= {8, 16, 32} and {273, 279} <= set(tags)):
        raise ValueError("a TIFF of a kind that this script does not read; save it again as PNG")
    if any(place + size > len(content) for place, size in zip(tags[273], tags[279], strict=False)):
        raise ValueError("not a readable image: the TIFF file is truncated")


def content_box(image: np.ndarray) -> Box:
    """The box of a scan, uint8 (H, W, 3), that differs from its background, the median of its outermost pixels.

    It contains all contours of at least 1 % of the image, and at least half the image along either axis.
    """
    height, width = image.shape[:2]
    if min(height, width) < 16:
        return 0, 0, width, height
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    mask = cv2.threshold(cv2.absdiff(grey, np.full_like(grey, int(np.median(border)))), 20, 255, cv2.THRESH_BINARY)[1]
    square = np.ones((3, 3), np.uint8)
    mask = cv2.dilate(cv2.erode(mask, square, iterations=2), square, iterations=2)
    contours = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    boxes = [box for box in map(cv2.boundingRect, contours) if box[2] * box[3] >= 0.01 * height * width]
    if not boxes:
        return 0, 0, width, height
    left, right = _at_least_half(min(b[0] for b in boxes), max(b[0] + b[2] for b in boxes), width)
    top, bottom = _at_least_half(min(b[1] for b in boxes), max(b[1] + b[3] for b in boxes), height)
    return left, top, right - left, bottom - top


def _at_least_half(low: int, high: int, length: int) -> tuple[int, int]:
    half = (length + 1) // 2
    short = half - (high - low)
    if short <= 0:
        return low, high
    low = min(max(0, low - short // 2), length - half)
    return low, low + half


def letterbox(image: np.ndarray) -> tuple[np.ndarray, Box, Box]:
    """Crop a scan to its content and letterbox it: uint8 (H, W, 3) -> uint8 (INPUT_SIZE, INPUT_SIZE, 3).

    Also returns the box of the content, in pixels of the scan, and its box in the square.
    """
    x, y, w, h = box = content_box(image)
    scale = INPUT_SIZE / max(w, h)
    iw, ih = max(1, round(w * scale)), max(1, round(h * scale))
    ix, iy, *_ = inner = (INPUT_SIZE - iw) // 2, (INPUT_SIZE - ih) // 2, iw, ih
    content = image[y : y + h, x : x + w]
    if (w, h) != (iw, ih):
        content = cv2.resize(content, (iw, ih), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    square = np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    square[iy : iy + ih, ix : ix + iw] = content
    return square, box, inner


def unletterbox(square: np.ndarray, shape: tuple[int, int], box: Box, inner: Box) -> np.ndarray:
    """Bring a map, float (INPUT_SIZE, INPUT_SIZE), to the scan's own grid: float32 `shape`, 0 outside the box."""
    (x, y, w, h), (ix, iy, iw, ih) = box, inner
    content: np.ndarray = square[iy : iy + ih, ix : ix + iw].astype(np.float32)
    if (w, h) != (iw, ih):
        content = cv2.resize(content, (w, h), interpolation=cv2.INTER_AREA if w < iw else cv2.INTER_LINEAR)
    full = np.zeros(shape, np.float32)
    full[y : y + h, x : x + w] = content
    return full


def without_content(square: np.ndarray, inner: Box) -> str | None:
    """Why a picture, the content of a square at `inner`, holds nothing to look at; None where it does."""
    x, y, width, height = inner
    if min(width, height) < 16:
        return "a strip"
    grey = (square[y : y + height, x : x + width].sum(-1, dtype=np.uint16) // 3).astype(np.uint8)
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    low, high = np.searchsorted(np.cumsum(share), (0.005, 0.995))
    if high - low < 8:
        return "blank" if low == high else "nearly constant"
    if share[6:250].sum() < 0.2 and share[250:].sum() >= 0.005:
        return "saturated"
    centred = grey - grey.mean(dtype=np.float32)
    pairs = (centred[:, 1:] * centred[:, :-1]).mean() + (centred[1:] * centred[:-1]).mean()
    return "noise" if pairs / 2 < 0.3 * np.square(centred).mean() else None


def finding_of(
    row: dict[str, np.ndarray], thumbnail: bool, metadata: dict[str, Any], empty: str | None = None
) -> dict[str, Any]:
    """A model's outputs for one scan with the keys of mcis's findings, without the mask; `empty`: `without_content`."""
    organs = metadata["organs"]
    if empty is not None:
        return {"organ": "unsupported", "reason": empty}
    if metadata["what"] != "cascade":  # the network of one task
        key = "organ" if "organ_probs" in row else "label"
        finding = {} if key == "organ" else {"organ": metadata["organ"]}
        if f"{key}_probs" in row:
            probs = _by_name(metadata["classes"], row[f"{key}_probs"])
            finding |= {key: max(probs, key=lambda name: probs[name]), f"{key}_probs": probs}
        return finding
    finding = {"organ": "unsupported", "organ_prob": _number(row["organ_prob"])}
    if thumbnail and metadata["refuses_thumbnails"]:
        return finding | {"reason": "a thumbnail"}
    if row["organ"] >= len(organs):
        reason = "unlike the router's training scans" if row["novelty"] > 1 else "the router is uncertain"
        return finding | {"reason": f"{reason}; most like {organs[int(row['choice'])]['name']}"}
    organ = organs[int(row["organ"])]
    finding |= {"organ": organ["name"], "confidence": _number(row["confidence"])}
    finding["review"] = None if row["review"] < 0 else bool(row["review"])
    if np.isfinite(certain := row.get("certain", np.nan)):
        finding["organ_certain"] = bool(row["organ_prob"] >= certain)
    if row["label"] >= 0:
        finding["label"] = organ["classes"][int(row["label"])]
        finding["label_probs"] = _by_name(organ["classes"], row["label_probs"])
        if row["label_set"].any():
            finding["label_set"] = [
                name for name, there in zip(organ["classes"], row["label_set"], strict=False) if there
            ]
    return finding


def _number(value: Any) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(names, values, strict=False)}


def main(argv: Sequence[str] | None = None, folder: pathlib.Path = pathlib.Path(__file__).parent) -> int:
    """The command. Exit status 1 if a scan could not be read, 2 if the model cannot be run."""
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=f"Findings of {metadata['what']}. {metadata['notice']}")
    parser.add_argument("scans", nargs="+", help="images: PNG, JPEG, TIFF, BMP")
    parser.add_argument("--masks", type=pathlib.Path, help="folder for lesion masks, PNG, 0 and 255")
    options = parser.parse_args(argv)
    if options.masks:
        options.masks = options.masks.expanduser()
        options.masks.mkdir(parents=True, exist_ok=True)
    print(metadata["notice"], file=sys.stderr)
    if metadata.get("operating_point"):  # fixed at export
        print(f"labels are decided at the operating point {metadata['operating_point']}", file=sys.stderr)
    try:
        model, status = load_model(folder, metadata), 0
    except (ImportError, OSError, ValueError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    for number, path in enumerate(map(os.path.expanduser, options.scans)):
        try:
            image = read(path)
        except (OSError, ValueError, cv2.error) as error:
            print(json.dumps({"scan": path, "error": str(error)}), flush=True)
            status = 1
            continue
        square, box, inner = letterbox(image)
        row = {name: value[0] for name, value in model(square[None]).items()}
        finding = {"scan": path} | finding_of(row, max(box[2:]) < MIN_CONTENT, metadata, without_content(square, inner))
        if "mask" in row and finding["organ"] != "unsupported" and row.get("segmented", True):
            probability = unletterbox(row["mask"][..., 0], image.shape[:2], box, inner)
            mask = (probability > metadata["thresholds"]["mask"]).astype(np.uint8)
            finding["lesion_area_px"] = int(mask.sum())
            if np.isfinite(threshold := row.get("outer", np.nan)):
                outer = (probability > threshold).astype(np.uint8)
                area = int(outer.sum())
                finding |= {"outer_area_px": area, "outer_area_share": round(area / outer.size, 6)}
                finding["outer_box"] = list(cv2.boundingRect(outer)) if area else None
            if options.masks:
                file = options.masks / f"{number:06d}_{pathlib.Path(path).stem}.png"
                file.write_bytes(cv2.imencode(".png", mask * 255)[1].tobytes())
                finding["mask"] = str(file)
        print(json.dumps(finding), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
