"""`mcis shortcuts --task=classify_brain`: how much of a task's labels can be read off the frame alone.

Public sets were put together from pictures of many origins, so that size, border or grey of a file may tell its class,
and a network that has learned that is right on every split and wrong in a hospital. Models that see nothing but the
frame learn from the training split and are scored beside chance and, if asked, a network on the same scans: only what
the network is better by cannot come from the frame. The frame is looked at as the scan is stored and as a network is
given it, cropped and letterboxed: what only the first tells, the pipeline takes away. And each source is scored by what
the others teach: a shortcut that holds at home alone fails there. With --split=left_out the training and validation
scans are scored in folds, beside an evaluation of fold runs. No JAX is used.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from mcis.data import dataset, storage
from mcis.evaluation.metrics import rows_from_json
from mcis.imaging.letterbox import content_box, letterbox
from mcis.ops.metrics import accuracy, auc, balanced_accuracy, bootstrap_interval
from mcis.organs import UNKNOWN
from mcis.tasks.config import Task

RIM = 0.02
"""Width of the outermost rim, as a share of the scan's shorter side; at least one pixel."""
BLACK = 8
"""Grey in [0, 255] below which a pixel is black: compression leaves no true zeros."""
BINS = 16
LEARNER = {"max_iter": 100, "max_leaf_nodes": 15, "min_samples_leaf": 10, "l2_regularization": 1.0}
"""Strengths of the gradient-boosted trees, set once for all: they are not tuned on what they are scored on."""
METRICS = ("accuracy", "balanced_accuracy", "auc")


def size(image: np.ndarray) -> np.ndarray:
    """Height, width in pixels and width / height of uint8 (H, W, 3): float (3,)."""
    height, width = image.shape[:2]
    return np.array([height, width, width / height])


def border(image: np.ndarray) -> np.ndarray:
    """The frame's edge, of uint8 (H, W, 3): float (7,).

    Mean, deviation and share of black of the outermost rim's grey; and how much the content crop takes away at the
    left, top, right and bottom, as shares of the width or height.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    wide = max(1, round(RIM * min(height, width)))
    outside = np.ones(grey.shape, bool)
    outside[wide : height - wide, wide : width - wide] = False
    rim = grey[outside]
    x, y, w, h = content_box(image)
    removed = [x / width, y / height, 1 - (x + w) / width, 1 - (y + h) / height]
    return np.array([rim.mean(), rim.std(), (rim < BLACK).mean(), *removed])


def histogram(image: np.ndarray) -> np.ndarray:
    """Shares of the grey values in BINS bins, and mean saturation in [0, 1], of uint8 (H, W, 3): float (BINS + 1,)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    counts = np.bincount(grey.ravel() // (256 // BINS), minlength=BINS)
    return np.append(counts / grey.size, cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1].mean() / 255.0)


def given(image: np.ndarray) -> np.ndarray:
    """The scan on the canvas, as networks take it before they resize and standardise it."""
    return letterbox(image)[0]


FAMILIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"size": size, "border": border, "histogram": histogram}
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"stored": lambda image: image, "given": given}
FRAME = "frame"
"""What all families together are called."""
BETTER = {f"{view} {FRAME}": f"network less {view} {FRAME}" for view in VIEWS}
"""What a network is better by than all that the frame shows."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """The frames of N scans of known class.

    seen: view and family, as in "stored size", -> float (N, F); label int (N,), the task's target, at least 0; source,
    group ("<source>/<patient>"), scan_id str (N,).
    """

    seen: dict[str, np.ndarray]
    label: np.ndarray
    source: np.ndarray
    group: np.ndarray
    scan_id: np.ndarray

    def take(self, rows: np.ndarray) -> "Frames":
        """The scans of the given rows, a bool mask (N,)."""
        seen = {name: value[rows] for name, value in self.seen.items()}
        return Frames(seen, *(getattr(self, field.name)[rows] for field in dataclasses.fields(self)[1:]))


def look(image: np.ndarray) -> dict[str, np.ndarray]:
    """What the frame shows of uint8 (H, W, 3): view and family -> float (F,), all families together included."""
    seen: dict[str, np.ndarray] = {}
    for view, change in VIEWS.items():
        changed = change(image)
        parts = {family: describe(changed) for family, describe in FAMILIES.items()}
        seen |= {f"{view} {family}": part for family, part in parts.items()}
        seen[f"{view} {FRAME}"] = np.concatenate(list(parts.values()))
    return seen


def frames_of(task: Task, records: Sequence[dict[str, Any]]) -> Frames:
    """The frames of those records of `data.records` that have a target for the task; ValueError where none has."""
    labels = [task.label_of(dataset.text(record["organ"]), int(record["label"])) for record in records]
    known = [(record, label) for record, label in zip(records, labels, strict=True) if label != UNKNOWN]
    if not known:
        raise ValueError(f"of {len(records)} scans none has a class of {task.name} ({', '.join(task.classes)})")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        looks = list(pool.map(lambda pair: look(storage.decode(pair[0])[0]), known))
    source = [dataset.text(record["source"]) for record, _ in known]
    return Frames(
        {name: np.stack([one[name] for one in looks]) for name in looks[0]},
        np.array([label for _, label in known]),
        np.array(source),
        np.array([f"{name}/{dataset.text(record['group'])}" for name, (record, _) in zip(source, known, strict=True)]),
        np.array([dataset.text(record["scan_id"]) for record, _ in known]),
    )


def learn(x: np.ndarray, label: np.ndarray, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Gradient-boosted trees, classes weighted evenly, from float (N, F) and int (N,).

    Returns a function of float (M, F) -> probabilities (M, classes), 0 for a class that was not there to learn. Where
    all rows of `x`, or all labels, are the same there is nothing to learn: the answer is the classes' shares, chance.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    if (x == x[:1]).all() or (label == label[0]).all():
        return lambda other: np.tile(np.bincount(label, minlength=classes) / len(label), (len(other), 1))
    model = HistGradientBoostingClassifier(**LEARNER, class_weight="balanced", early_stopping=False, random_state=0)
    model.fit(x, label)

    def answer(other: np.ndarray) -> np.ndarray:
        probs = np.zeros((len(other), classes))
        probs[:, model.classes_] = model.predict_proba(other)
        return probs

    return answer


def answers(train: Frames, scored: Frames, classes: int) -> dict[str, np.ndarray]:
    """What chance, which sees nothing, and each part of the frame say: name -> probabilities (N, classes)."""
    blind = learn(np.zeros((len(train.label), 1)), train.label, classes)
    said = {"chance": blind(np.zeros((len(scored.label), 1)))}
    return said | {name: learn(x, train.label, classes)(scored.seen[name]) for name, x in train.seen.items()}


def worth(probs: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """METRICS of float (N, K) for int (N,); auc, the mean over the classes that occur, only where several do."""
    predicted, present = probs.argmax(1), np.unique(label)
    found = {"accuracy": accuracy(predicted, label), "balanced_accuracy": balanced_accuracy(predicted, label)}
    areas = [auc(probs[:, c], label == c) for c in present] if len(present) > 1 else []
    return found | ({"auc": float(np.mean(areas))} if areas else {})


def scored_part(said: dict[str, np.ndarray], scored: Frames, draws: int) -> dict[str, Any]:
    """What each of `said` is worth, and a network more than the frame, on the same bootstrap draws: JSON values."""

    def score(index: np.ndarray, _: np.ndarray) -> dict[str, float]:
        each = {name: worth(probs[index], scored.label[index]) for name, probs in said.items()}
        if "network" in each:
            network = each["network"]
            for frame, more in BETTER.items():
                each[more] = {metric: value - each[frame][metric] for metric, value in network.items()}
        return {f"{name}|{metric}": value for name, found in each.items() for metric, value in found.items()}

    ends = bootstrap_interval(score, scored.group, draws)
    metrics: dict[str, dict[str, Any]] = {}
    for key, value in score(np.arange(len(scored.label)), scored.group).items():
        name, metric = key.split("|")
        low, high = (end if math.isfinite(end) else None for end in ends.get(key, (math.nan, math.nan)))
        metrics.setdefault(name, {})[metric] = {"value": value, "low": low, "high": high}
    return {"scans": len(scored.label), "groups": len(np.unique(scored.group)), "metrics": metrics}


def folded_answers(scans: Frames, fold: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """`answers` for every scan by what the other folds teach; fold int (N,).

    What sees nothing says the same of all folds: shares that differ from fold to fold would rank scans by their fold.
    """
    blind = learn(np.zeros((len(fold), 1)), scans.label, classes)(np.zeros((len(fold), 1)))
    found: dict[str, np.ndarray] = {}
    for mine in (fold == f for f in np.unique(fold)):
        for name, probs in answers(scans.take(~mine), scans.take(mine), classes).items():
            found.setdefault(name, np.zeros((len(fold), classes)))[mine] = probs
    seeing = {name for name, x in scans.seen.items() if not (x == x[:1]).all()}
    return {name: probs if name in seeing else blind for name, probs in found.items()}


def audit(
    task: Task,
    train: Frames,
    scored: Frames,
    network: np.ndarray | None,
    draws: int = 1000,
    said: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """The whole audit as JSON values.

    Args:
      task: whose classes the labels are.
      train: frames to learn from.
      scored: frames of other groups to score on.
      network: float (N, K), a network's probabilities for `scored`, if there is one.
      draws: of the bootstrap.
      said: what the frame says of `scored`, as `answers`, where not all of `train` is to teach it.

    Returns:
      classes; sources: name -> `scored_part`, of each source and of "all" if there are several; left_out: the same of
      each source by what the others teach, with the classes that were scored; notes: what could not be scored, and why.

    Raises:
      ValueError: the training scans are all of one class.
    """
    if len(np.unique(train.label)) < 2:
        raise ValueError(f"the training scans are all {task.classes[train.label[0]]}: two classes are needed to learn")
    said = answers(train, scored, len(task.classes)) if said is None else said
    said = said | ({} if network is None else {"network": network})
    names = np.unique(scored.source).tolist()
    chosen = {name: scored.source == name for name in names}
    if len(names) > 1:
        chosen["all"] = np.ones(len(scored.label), bool)
    parts = {
        name: scored_part({who: probs[rows] for who, probs in said.items()}, scored.take(rows), draws)
        for name, rows in chosen.items()
    }
    left_out, notes = {}, []
    for name in names:
        others = train.take(train.source != name)
        rows = (scored.source == name) & np.isin(scored.label, others.label)
        missing = sorted(set(scored.label[scored.source == name].tolist()) - set(others.label.tolist()))
        if len(np.unique(scored.label[rows])) < 2:  # these are classes of the others as well
            notes.append(f"{name} cannot be left out: it and the other sources need two classes in common")
            continue
        if missing:
            classes = ", ".join(task.classes[label] for label in missing)
            notes.append(f"{name} left out is scored without {classes}: no other source has such scans")
        target = scored.take(rows)
        part = scored_part(answers(others, target, len(task.classes)), target, draws)
        part["classes"] = [task.classes[label] for label in np.unique(target.label)]
        left_out[name] = part | {"trained_on": np.unique(others.source).tolist()}
    return {"classes": list(task.classes), "sources": parts, "left_out": left_out, "notes": notes}


def network_answers(report: dict[str, Any], task: Task, split: str, scored: Frames) -> np.ndarray:
    """A network's probabilities (N, K) for `scored`, from the report of its evaluation.

    Raises:
      ValueError: it is of another task or split, has no probabilities, or lacks scans or calls one otherwise.
    """
    for what, asked in (("task", task.name), ("split", split)):
        if report.get(what) != asked:
            raise ValueError(f"--against is of {what} {report.get(what)}, not {asked}: name an evaluation of {asked}")
    learned = max((use["train"]["scored"] for use in report.get("audit", {}).get("networks", {}).values()), default=0)
    if learned:
        raise ValueError(f"--against is of a network that was trained on {learned} of the scans it was scored on")
    rows = rows_from_json(report["rows"])
    if "probs" not in rows:
        raise ValueError("--against has no probabilities of classes: its network has no label head; name another one")
    place = {pair: i for i, pair in enumerate(zip(rows["source"].tolist(), rows["scan_id"].tolist(), strict=True))}
    pairs = list(zip(scored.source.tolist(), scored.scan_id.tolist(), strict=True))
    lost = [pair for pair in pairs if pair not in place]
    if lost:
        raise ValueError(
            f"--against lacks {len(lost)} of the {len(pairs)} scans ({'/'.join(lost[0])}, ...): "
            "evaluate the network on the same sources"
        )
    index = np.array([place[pair] for pair in pairs])
    if (rows["label"][index] != scored.label).any():
        raise ValueError("--against has other labels for the same scans: score both on the same prepared data")
    return rows["probs"][index]


def answered(report: dict[str, Any], scans: Frames) -> np.ndarray:
    """Which scans an evaluation has rows of, bool (N,)."""
    rows = rows_from_json(report["rows"])
    there = set(zip(rows["source"].tolist(), rows["scan_id"].tolist(), strict=True))
    pairs = zip(scans.source.tolist(), scans.scan_id.tolist(), strict=True)
    return np.array([pair in there for pair in pairs], bool)
