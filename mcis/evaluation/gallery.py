"""Which scans of an evaluation are worth a look, what to say of each, and its picture with both outlines. No JAX.

Choosing needs the rows of results alone (`scores.Rows`); what was chosen is read and drawn afterwards.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from mcis.ops.metrics import dice
from mcis.organs import ORGAN_NAMES, ORGANS, UNSUPPORTED

Rows = Mapping[str, np.ndarray]

SHOWN = 8
"""Scans of each kind."""
SIDE = 320
"""Longest side of a picture, pixels."""
TRUE, SAID = (40, 220, 255), (255, 150, 0)
"""Colours of the true outline and of the predicted one, RGB; told apart by every kind of eye."""

WORST = "Lesion scans of lowest Dice"
MIDDLE = "Lesion scans around the median Dice"
FALSE = "Masks on scans without a lesion, largest first"
WRONG = "Wrong classes, most confident first"
USUAL = "Scans around the median probability of the true class"


EXPLAINED = (WRONG, USUAL)
"""Titles below which it is shown where the classifier looked."""


def choose(rows: Rows, kind: str) -> dict[str, list[int]]:
    """Title -> rows to show, at most SHOWN, in order; a title without such rows is left out.

    Args:
      rows: the results.
      kind: the task that they are of; "cascade" for all together.
    """
    found: dict[str, list[int]] = {}
    if kind == "cascade" or kind.startswith("segment_"):
        found |= _masks(rows)
    if kind == "cascade":
        if "label_probs" in rows:  # a class was said of what came to its organ's classifier only
            known = (rows["organ"] == rows["said_organ"]) & (rows["label"] >= 0) & (rows["said_label"] >= 0)
            found |= {
                title: index for title, index in _labels(rows, rows["label_probs"], known).items() if title == WRONG
            }
    elif "probs" in rows:
        found |= _labels(rows, rows["probs"], rows["label"] >= 0)
    return {title: index for title, index in found.items() if index}


def _masks(rows: Rows) -> dict[str, list[int]]:
    overlap = dice(rows["both"], rows["predicted"], rows["true"])
    lesion = np.flatnonzero(rows["has_mask"] & (rows["true"] > 0))
    # of equally bad ones, the largest lesion first
    ranked = lesion[np.lexsort((-(rows["true"] / rows["pixels"])[lesion], overlap[lesion]))].tolist()
    worst = _one_a_group(ranked, rows)[:SHOWN]
    empty = np.flatnonzero(rows["has_mask"] & (rows["true"] == 0) & (rows["predicted"] > 0))
    covered = (rows["predicted"] / rows["pixels"])[empty]
    return {
        WORST: worst,
        MIDDLE: _middle(ranked, worst, rows),
        FALSE: _one_a_group(empty[np.argsort(-covered)].tolist(), rows)[:SHOWN],
    }


def _labels(rows: Rows, probs: np.ndarray, known: np.ndarray) -> dict[str, list[int]]:
    index = np.flatnonzero(known)
    said, truth = probs[index].argmax(1), rows["label"][index]
    wrong = index[said != truth]
    wrong = _one_a_group(wrong[np.argsort(-probs[wrong].max(1), kind="stable")].tolist(), rows)[:SHOWN]
    ranked = index[np.argsort(probs[index, truth], kind="stable")].tolist()
    return {WRONG: wrong, USUAL: _middle(ranked, wrong, rows)}


def _one_a_group(ranked: Sequence[int], rows: Rows) -> list[int]:
    """The first of each group, in order: near-duplicates would show one mistake many times."""
    first: dict[str, int] = {}
    for at in ranked:
        first.setdefault(str(rows["group"][at]), at)
    return list(first.values())


def _middle(ranked: Sequence[int], shown: Sequence[int], rows: Rows) -> list[int]:
    """The SHOWN entries nearest to the middle of an order, one a group, in that order, without those shown already."""
    rank = {at: place for place, at in enumerate(ranked)}
    near = sorted(ranked, key=lambda at: abs(rank[at] - (len(ranked) - 1) / 2))
    chosen = _one_a_group([at for at in near if at not in shown], rows)[:SHOWN]
    return sorted(chosen, key=rank.__getitem__)


def caption(rows: Rows, at: int, kind: str, classes: Sequence[str]) -> list[tuple[str, str]]:
    """What to say of one row, as names and values.

    Args:
      rows: the results.
      at: which one.
      kind: the task that they are of; "cascade" for all together.
      classes: of the task's label head.
    """
    row = {name: column[at] for name, column in rows.items()}
    said = [("scan", str(row["scan_id"])), ("source", str(row["source"])), ("group", str(row["group"]))]
    label = int(row["label"])
    if kind == "cascade":
        organ = ORGANS[row["organ"]] if row["organ"] < len(ORGANS) else None
        said.append(("is", UNSUPPORTED if organ is None else f"{organ.name}, {_name(organ.classes, label)}"))
        said.append(("said", _cascade(row)))
    else:
        said.append(("is", _name(classes, label)))
        if "probs" in row:
            refused = " (refused)" if row.get("refused", False) else ""
            said.append(("said", f"{_name(classes, int(row['probs'].argmax()))} {row['probs'].max():.2f}{refused}"))
            if label >= 0 and label != row["probs"].argmax():
                said.append(("truth's probability", f"{row['probs'][label]:.2f}"))
    if ("true" in row) and row["has_mask"]:
        said.append(("Dice", f"{dice(row['both'], row['predicted'], row['true']):.2f}"))
        said.append(
            (
                "lesion",
                f"{row['true'] / row['pixels']:.1%} of the scan, outlined {row['predicted'] / row['pixels']:.1%}",
            )
        )
    return said


def _cascade(row: Mapping[str, np.ndarray]) -> str:
    """What the cascade said of a scan, in words."""
    organ, label = int(row["said_organ"]), int(row["said_label"])
    name = UNSUPPORTED if organ == len(ORGANS) else ORGAN_NAMES[organ]
    if row.get("thumbnail", False):
        return f"{name} (a thumbnail)"
    if "organ_prob" in row and (organ == len(ORGANS) or organ != row["organ"]):
        name += f" (surest organ {row['organ_prob']:.2f}, novelty {row['novelty']:.2f})"
    if label < 0:
        return name
    prob = f" {row['label_probs'][label]:.2f}" if "label_probs" in row else ""
    return f"{name}, {ORGANS[organ].classes[label]}{prob}"


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if label >= 0 else "unknown"


def said_label(rows: Rows, at: int) -> int:
    """The class that was said of a row; -1 for none."""
    if "said_label" in rows:
        return int(rows["said_label"][at])
    return int(rows["probs"][at].argmax()) if "probs" in rows else -1


def heat_picture(image: np.ndarray, heat: np.ndarray) -> bytes:
    """A scan under a map of what speaks for a class, the more the more opaque, as JPEG like `picture`'s.

    Args:
      image: uint8 RGB (H, W, 3).
      heat: float (H, W); what is not above 0 is left clear.
    """
    strength = np.clip(heat / max(float(heat.max()), 1e-6), 0.0, 1.0)[..., None] * 0.75
    red = np.array([255.0, 40.0, 30.0])
    return picture(np.rint(image * (1 - strength) + red * strength).astype(np.uint8), None, None)


def picture(image: np.ndarray, true: np.ndarray | None, said: np.ndarray | None) -> bytes:
    """A scan with its outlines as JPEG, SIDE pixels along its longer side.

    Args:
      image: uint8 RGB (H, W, 3).
      true: uint8 {0,1} (H, W), outlined broadly below the other; None where it is not known.
      said: the same, outlined finely.
    """
    scale = SIDE / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for mask, colour, width in ((true, TRUE, 4), (said, SAID, 2)):
        if mask is not None and mask.any():
            lines, _ = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            # in sixteenths of a pixel, so that a coarse scan's outline is no coarser than it is
            points = [np.rint(((line + 0.5) * scale - 0.5) * 16).astype(np.int32) for line in lines]
            cv2.polylines(small, points, True, colour, width, cv2.LINE_AA, shift=4)
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # else thin colours smear
    done, coded = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82, *sampling])
    if not done:
        raise ValueError(f"cannot write an array of shape {small.shape} and type {small.dtype} as JPEG")
    return coded.tobytes()
