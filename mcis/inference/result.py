"""A scan's result: its finding in plain values and words, and its mask, from a prediction of the networks."""

import base64
import dataclasses
import html
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import mcis
from mcis.imaging.formats import LoadedScan
from mcis.imaging.geometry import SliceGeometry
from mcis.imaging.image_files import encode_png
from mcis.imaging.letterbox import unletterbox
from mcis.imaging.modality import contradiction, sentence
from mcis.imaging.overlay import overlay
from mcis.inference.plausibility import Rejection, thumbnail_reason
from mcis.inference.rows import UNSUPPORTED_INDEX
from mcis.ops.metrics import MASK_THRESHOLD
from mcis.organs import ORGANS, UNKNOWN, UNSUPPORTED, Organ
from mcis.report.finding import Finding, measured, with_outer


@dataclasses.dataclass(frozen=True)
class Result:
    """A scan and its finding.

    Attributes:
      finding: a line of findings.jsonl, without the path of a mask.
      image: the scan, uint8 RGB (H, W, 3); None where it could not be read.
      mask: its lesions, uint8 {0,1} (H, W); None where it was not segmented.
      outer: what is within the outer outline, likewise, which contains the mask; None also for weights that were not
        calibrated for it.
    """

    finding: Finding
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    outer: np.ndarray | None = None

    def overlay(self) -> np.ndarray:
        """The scan with its lesions outlined, uint8 (H, W, 3). ValueError where the scan could not be read."""
        if self.image is None:
            raise ValueError(f"{self.finding.scan}: {self.finding.error}")
        return self.image if self.mask is None else overlay(self.image, self.mask, self.outer)

    def _repr_html_(self) -> str:
        """The outlined scan next to its finding, for notebooks."""
        left = "style='text-align:left'"
        rows = "".join(
            f"<tr><th {left}>{name}</th><td {left}>{html.escape(_text(value))}</td></tr>"
            for name, value in vars(self.finding).items()
            if value is not None
        )
        image = ""
        if self.image is not None:
            data = base64.b64encode(encode_png(self.overlay())).decode()
            image = f"<img style='max-width:320px;max-height:320px' alt='scan' src='data:image/png;base64,{data}'>"
        sides = f"<div style='display:flex;gap:1em;align-items:start'>{image}<table>{rows}</table></div>"
        return f"{sides}<p><small>{html.escape(mcis.NOTICE)}</small></p>"


def result_of(loaded: LoadedScan, row: Mapping[str, np.ndarray], rejection: Rejection | None = None) -> Result:
    """A scan's finding, and its mask on the scan's own grid.

    Args:
      loaded: the scan.
      row: the fields of a Prediction for this scan.
      rejection: why a plausibility rule rejected the scan; None where none did.
    """
    routed = not math.isnan(float(row["organ_prob"]))
    place = loaded.slice_geometry or SliceGeometry()
    notes = list(loaded.notes)
    found: dict[str, Any] = {
        "organ_prob": float(row["organ_prob"]) if routed else None,
        "spacing_mm": None if loaded.spacing is None else list(loaded.spacing),
        "series": place.series,
        "position_mm": place.position,
        "slice_normal": None if place.normal is None else list(place.normal),
    }
    index, label = int(row["organ"]), int(row["label"])
    if rejection is None and loaded.geometry is not None and (small := thumbnail_reason(loaded.geometry)):
        notes.append(small)
    if index == UNSUPPORTED_INDEX:
        rejection = rejection or Rejection(_router_reason(row))
        found |= {"organ": UNSUPPORTED, "reason": rejection.reason, "header": rejection.header, "notes": notes or None}
        return Result(Finding(loaded.path, loaded.frame, **found), loaded.image)
    organ = ORGANS[index]
    found["organ"] = organ.name
    if not math.isnan(certain := float(row["certain"])):
        found["organ_certain"] = bool(row["organ_prob"] >= certain)
        if not found["organ_certain"]:
            ours, wanted = _apart("{:.{}f} %", 100 * float(row["organ_prob"]), 100 * certain, 0)
            notes.append(
                f"organ uncertain: similar to {organ.scan} ({ours}; certain from {wanted}). Check that it is one"
            )
    if (header := contradiction(loaded.stated, organ.name)) is not None:
        notes.append(f"{sentence(header)}, which contradicts {organ.scan}, the organ that was asked for")
    if label != UNKNOWN:
        probs = dict(zip(organ.classes, map(float, row["label_probs"]), strict=False))
        found |= {"label": organ.classes[label], "label_probs": probs}
        possible = [name for name, there in zip(organ.classes, row["label_set"], strict=False) if there]
        found["label_set"] = possible or None
        if (likeliest := max(probs, key=lambda name: probs[name])) != organ.classes[label]:
            notes.append(_decided_note(organ, probs, organ.classes[label], likeliest))
    if not math.isnan(confidence := float(row["confidence"])):
        found |= {"confidence": confidence, "review": None if row["review"] == UNKNOWN else bool(row["review"])}
    mask = outer = None
    if row["segmented"] and loaded.geometry is not None:
        probability = unletterbox(row["mask"][..., 0], loaded.geometry)
        mask = (probability > MASK_THRESHOLD).astype(np.uint8)
        if not math.isnan(threshold := float(row["outer"])):
            outer = (probability > threshold).astype(np.uint8)
        if label != UNKNOWN and organ.is_lesion(label) and not mask.any():
            notes.append(f"predicted {organ.classes[label]}, but the mask is empty")
    finding = Finding(loaded.path, loaded.frame, **found, notes=notes or None)
    finding = finding if mask is None else measured(finding, mask)
    finding = finding if outer is None else with_outer(finding, outer)
    return Result(finding, loaded.image, mask, outer)


def _decided_note(organ: Organ, probs: Mapping[str, float], label: str, likeliest: str) -> str:
    """That a label is not the most probable class, because a lesion of any class is, or by the operating point."""
    lesion, free = (
        sum(p for name, p in probs.items() if (name in organ.lesions) == wanted) for wanted in (True, False)
    )
    if label in organ.lesions and likeliest not in organ.lesions and lesion > free:
        any_lesion, none = _apart("{:.{}f} %", 100 * lesion, 100 * free, 0)
        most = f"{likeliest} is the most probable class ({none})"
        return f"{label}: {most}, but a lesion of any class is more probable ({any_lesion})"
    ours, most = _apart("{:.{}f} %", 100 * probs[label], 100 * probs[likeliest], 0)
    return f"{label} ({ours}) by the operating point of this run, although {likeliest} is more probable ({most})"


def _router_reason(row: Mapping[str, np.ndarray]) -> str:
    """Why the router did not accept a scan, by the fields of a Prediction."""
    if (times := float(row["novelty"])) > 1:
        kinds = f"neither {' nor '.join(organ.scan for organ in ORGANS)}"
        distance = _apart("{:.{}f}", times, 1.0, 2)[0]
        return f"looks like {kinds} (unlike all scans that mcis was trained on: {distance} times the limit)"
    organ = ORGANS[int(row["choice"])]
    prob, needed = _apart("{:.{}f} %", 100 * float(row["organ_prob"]), 100 * float(row["needed"]), 0)
    return (
        f"organ uncertain: most similar to {organ.scan} ({prob}, {needed} is needed). If it is one, use "
        f"--organ={organ.name}"
    )


def _apart(form: str, value: float, limit: float, digits: int) -> tuple[str, str]:
    """Two numbers as text, with as many digits as tell them apart."""
    texts = ((form.format(value, count), form.format(limit, count)) for count in range(digits, 12))
    return next((both for both in texts if both[0] != both[1]), (str(value), str(limit)))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)
