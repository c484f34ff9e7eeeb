"""Shortcuts (`mcis shortcuts`): how well a task's labels can be predicted from image metadata alone.

Public data sets combine images of many origins, so that the size, border or grey levels of a file may correlate with
its class. A network that has learned such a shortcut does well on every split and fails in another hospital. Here
gradient-boosted trees that see only such metadata learn from the training split. They are scored next to chance and, if
one is given, a network on the same scans: only the network's lead over them cannot come from the metadata.

Metadata are taken from the scan as it is stored, and as a network is given it, cropped and letterboxed: the pipeline
removes whatever only the former shows. Each source is also scored by trees that learned from the other sources. With
--split=left_out the training and validation scans are scored in cross-validation, next to fold runs.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from mcis.data import dataset, storage
from mcis.evaluation.metrics import intervals
from mcis.imaging.letterbox import content_box, letterbox
from mcis.inference.rows import Rows, scan_facts
from mcis.ops.metrics import class_scores, label_scores
from mcis.organs import UNKNOWN
from mcis.tasks.config import Task

RIM = 0.02
"""Width of the outermost rim, as a share of the scan's shorter side; at least one pixel."""
BLACK = 8
"""Grey level in [0, 255] below which a pixel is black: compression leaves few exact zeros."""
BINS = 16
LEARNER = {"max_iter": 100, "max_leaf_nodes": 15, "min_samples_leaf": 10, "l2_regularization": 1.0}
"""Settings of the gradient-boosted trees; fixed, not tuned on the scans that are scored."""
METRICS = ("accuracy", "balanced_accuracy", "auc")


def size(image: np.ndarray) -> np.ndarray:
    """Height, width in pixels and width / height of uint8 (H, W, 3): float (3,)."""
    height, width = image.shape[:2]
    return np.array([height, width, width / height])


def border(image: np.ndarray) -> np.ndarray:
    """Border features of uint8 (H, W, 3): float (7,).

    Mean, standard deviation and share of black of the outermost rim's grey levels; and how much the content crop
    removes at the left, top, right and bottom, as shares of the width or height.
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
    """Shares of the grey levels in BINS bins, and mean saturation in [0, 1], of uint8 (H, W, 3): float (BINS + 1,)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    counts = np.bincount(np.asarray(grey, np.uint8).ravel() // (256 // BINS), minlength=BINS)
    return np.append(counts / grey.size, cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1].mean() / 255.0)


FAMILIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"size": size, "border": border, "histogram": histogram}
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "stored": lambda image: image,
    "given": lambda image: letterbox(image)[0],
}
FRAME = "frame"
"""Name of all families together in the audit."""
LEADS = {f"{view} {FRAME}": f"network less {view} {FRAME}" for view in VIEWS}
"""All metadata of a view -> the name in the audit of the network's lead over them."""


@dataclasses.dataclass(frozen=True)
class ImageMetadata:
    """The metadata of N scans of known class.

    Attributes:
      rows: facts about the scans; `label` is the task's target, at least 0.
      features: view and family, as in "stored size", -> float (N, F).
    """

    rows: Rows
    features: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> "ImageMetadata":
        """Some of the scans: an int index or a bool mask."""
        return ImageMetadata(self.rows.take(index), {name: value[index] for name, value in self.features.items()})


def features_of(image: np.ndarray) -> dict[str, np.ndarray]:
    """View and family -> float (F,) of uint8 (H, W, 3), all families together included."""
    found: dict[str, np.ndarray] = {}
    for view, change in VIEWS.items():
        changed = change(image)
        parts = {family: describe(changed) for family, describe in FAMILIES.items()}
        found |= {f"{view} {family}": part for family, part in parts.items()}
        found[f"{view} {FRAME}"] = np.concatenate(list(parts.values()))
    return found


def metadata_of(task: Task, records: Sequence[dict[str, Any]]) -> ImageMetadata:
    """The metadata of those records of `dataset.records` that have a target for the task; ValueError if none has."""
    labels = [task.label_of(dataset.text(record["organ"]), int(record["label"])) for record in records]
    known = [(record, label) for record, label in zip(records, labels, strict=True) if label != UNKNOWN]
    if not known:
        raise ValueError(f"none of {len(records)} scans has a class of {task.name} ({', '.join(task.classes)})")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        every = list(pool.map(lambda pair: features_of(storage.decode(pair[0])[0]), known))
    rows = Rows.of_scans([scan_facts(record) | {"label": label} for record, label in known])
    return ImageMetadata(rows, {name: np.stack([one[name] for one in every]) for name in every[0]})


def learn(x: np.ndarray, label: np.ndarray, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Gradient-boosted trees with balanced class weights, from float (N, F) and int (N,).

    Returns:
      function of float (M, F) -> probabilities (M, classes), 0 for a class without training scans. Where all rows of
      `x` or all labels are the same it gives the classes' shares, which is chance.
    """
    if (x == x[:1]).all() or (label == label[0]).all():
        return lambda other: np.tile(np.bincount(label, minlength=classes) / len(label), (len(other), 1))
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(**LEARNER, class_weight="balanced", early_stopping=False, random_state=0)
    model.fit(x, label)

    def predict(other: np.ndarray) -> np.ndarray:
        probs = np.zeros((len(other), classes))
        probs[:, model.classes_] = model.predict_proba(other)
        return probs

    return predict


def predictions(train: ImageMetadata, scored: ImageMetadata, classes: int) -> dict[str, np.ndarray]:
    """Name -> probabilities (N, classes) from chance, and from each view and family."""
    chance = learn(np.zeros((len(train), 1)), train.rows.label, classes)(np.zeros((len(scored), 1)))
    trees = {name: learn(x, train.rows.label, classes) for name, x in train.features.items()}
    return {"chance": chance} | {name: predict(scored.features[name]) for name, predict in trees.items()}


def cross_predictions(scans: ImageMetadata, fold: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """`predictions` for every scan from trees that learned from the other folds; fold int (N,).

    Chance, and features that are constant, predict the same in all folds: class shares that differ from fold to fold
    would rank the scans by fold.
    """
    chance = learn(np.zeros((len(fold), 1)), scans.rows.label, classes)(np.zeros((len(fold), 1)))
    found: dict[str, np.ndarray] = {}
    for here in (fold == f for f in np.unique(fold)):
        for name, probs in predictions(scans.take(~here), scans.take(here), classes).items():
            found.setdefault(name, np.zeros((len(fold), classes)))[here] = probs
    varying = {name for name, x in scans.features.items() if not (x == x[:1]).all()}
    return {name: probs if name in varying else chance for name, probs in found.items()}


def metrics_of(probs: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """METRICS of float (N, K) for int (N,); without auc where all labels are the same."""
    found = label_scores(probs, label) | class_scores(probs, label, [str(k) for k in range(probs.shape[1])])
    return {metric: found[metric] for metric in METRICS if metric in found}


def score_part(predicted: dict[str, np.ndarray], rows: Rows, draws: int) -> dict[str, Any]:
    """Metrics of each of `predicted`, and a network's lead, on the same bootstrap draws: JSON values."""

    def score(index: np.ndarray, _: np.ndarray) -> dict[str, float]:
        each = {name: metrics_of(probs[index], rows.label[index]) for name, probs in predicted.items()}
        if "network" in each:
            for metadata, lead in LEADS.items():
                each[lead] = {metric: value - each[metadata][metric] for metric, value in each["network"].items()}
        return {f"{name}|{metric}": value for name, found in each.items() for metric, value in found.items()}

    metrics: dict[str, dict[str, Any]] = {}
    for key, found in intervals(score, rows.group, draws).items():
        name, metric = key.split("|")
        metrics.setdefault(name, {})[metric] = found
    return {"scans": len(rows), "groups": len(np.unique(rows.group)), "metrics": metrics}


def audit(
    task: Task,
    train: ImageMetadata,
    scored: ImageMetadata,
    network: np.ndarray | None,
    draws: int = 1000,
    predicted: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """The whole audit as JSON values.

    Args:
      task: of the labels.
      train: scans to learn from.
      scored: scans of other groups to score.
      network: a network's probabilities for `scored`, float (N, K), if there is one.
      draws: of the bootstrap.
      predicted: `predictions` for `scored`, if they are not to be learned from all of `train`.

    Returns:
      classes; sources: name -> `score_part` of each source, and of "all" if there are several; left_out: the same of
      each source, learned from the others, with the classes that were scored; notes: what could not be scored, and why.

    Raises:
      ValueError: the training scans are all of one class.
    """
    label, source = scored.rows.label, scored.rows.source
    if len(np.unique(train.rows.label)) < 2:
        only = task.classes[train.rows.label[0]]
        raise ValueError(f"the training scans are all {only}: two classes are needed to learn")
    predicted = predictions(train, scored, len(task.classes)) if predicted is None else dict(predicted)
    if network is not None:
        predicted["network"] = network
    names = np.unique(source).tolist()
    chosen = {name: source == name for name in names}
    if len(names) > 1:
        chosen["all"] = np.ones(len(scored), bool)
    parts = {
        name: score_part({by: probs[rows] for by, probs in predicted.items()}, scored.rows.take(rows), draws)
        for name, rows in chosen.items()
    }
    left_out, notes = {}, []
    for name in names:
        others = train.take(train.rows.source != name)
        rows = (source == name) & np.isin(label, others.rows.label)
        missing = np.setdiff1d(label[source == name], others.rows.label)
        if len(np.unique(label[rows])) < 2:
            notes.append(f"{name} is not scored by the other sources: they share fewer than two classes with it")
            continue
        if len(missing):
            classes = ", ".join(task.classes[k] for k in missing)
            notes.append(f"{name} is scored by the other sources without {classes}: they have no such scans")
        target = scored.take(rows)
        left_out[name] = score_part(predictions(others, target, len(task.classes)), target.rows, draws) | {
            "classes": [task.classes[k] for k in np.unique(target.rows.label)],
            "trained_on": np.unique(others.rows.source).tolist(),
        }
    return {"classes": list(task.classes), "sources": parts, "left_out": left_out, "notes": notes}


def _keys(rows: Rows) -> list[tuple[str, str]]:
    return list(zip(rows.source.tolist(), rows.scan_id.tolist(), strict=True))


def network_predictions(report: dict[str, Any], task: Task, split: str, scored: ImageMetadata) -> np.ndarray:
    """A network's probabilities (N, K) for `scored`, from the report of its evaluation.

    Raises:
      ValueError: the report is of another task or split or of training scans, has no probabilities, lacks scans, or has
        other labels.
    """
    for what, wanted in (("task", task.name), ("split", split)):
        if report.get(what) != wanted:
            raise ValueError(f"--against is of {what} {report.get(what)}, not {wanted}: name an evaluation of {wanted}")
    used = max((use["train"]["scored"] for use in report.get("audit", {}).get("networks", {}).values()), default=0)
    if used:
        raise ValueError(f"--against is of a network that was trained on {used} of the scans it was scored on")
    rows = Rows.from_json(report["rows"])
    if rows.probs is None:
        raise ValueError("--against has no class probabilities: its network has no label head; name another evaluation")
    place = {key: i for i, key in enumerate(_keys(rows))}
    keys = _keys(scored.rows)
    missing = [key for key in keys if key not in place]
    if missing:
        raise ValueError(
            f"--against lacks {len(missing)} of the {len(keys)} scans ({'/'.join(missing[0])}, ...): "
            "evaluate the network on the same sources"
        )
    index = np.array([place[key] for key in keys])
    if (rows.label[index] != scored.rows.label).any():
        raise ValueError("--against has other labels for the same scans: score both on the same prepared data")
    return rows.probs[index]


def in_report(report: dict[str, Any], scans: ImageMetadata) -> np.ndarray:
    """Which scans an evaluation has rows of, bool (N,)."""
    there = set(_keys(Rows.from_json(report["rows"])))
    return np.array([key in there for key in _keys(scans.rows)], bool)
