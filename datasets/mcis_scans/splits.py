"""Which scans form a group, and which split each group goes to. An assigned split is kept by later builds.

A group is a patient, or a cluster of near-duplicates where no patient is known; it lies in one split. The split of a
new group is computed from a hash: of the patient's name, so that a copy of the scans in another size or format gets the
same split; else of the pixels. `splits.json` keeps the assigned splits.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from mcis.files import read_json
from mcis.organs import UNKNOWN, organ_named

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
SHARES = {TRAIN: 0.70, VALIDATION: 0.15, TEST: 0.15}
FILE = "splits.json"
MAX_BYTES = 1 << 30
"""Largest size of that file: some ten million scans."""


@dataclasses.dataclass(frozen=True)
class Member:
    """What the splits need to know of a scan; see Record. `cluster` is None where near-duplicates were not searched.

    `series` is what the scan's file belongs to, None where the file does not say.
    """

    scan_id: str
    fingerprint: str
    organ: str
    label: int
    patient: str | None
    cluster: int | None = None
    series: str | None = None


@dataclasses.dataclass(frozen=True)
class History:
    """The splits assigned so far, also of scans that are not there at present.

    Attributes:
      fingerprints: fingerprint -> split.
      groups: name of a group or patient -> split.
      moved: the groups that moved to train, oldest first.
    """

    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    moved: tuple[Mapping[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """The result of `assign`.

    Attributes:
      groups: name of each member's group.
      splits: split of each member.
      labels: label of each member; UNKNOWN where near-duplicates have contradicting labels.
      contradictions: an entry for each set of near-duplicates with more than one label.
      moved: the groups that moved to train in this build.
      history: the history for the next build.
    """

    groups: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[int, ...]
    contradictions: tuple[dict[str, Any], ...]
    moved: tuple[dict[str, Any], ...]
    history: History


def groups_of(members: Sequence[Member]) -> list[str]:
    """The name of each scan's group, as `assign` has it."""
    return _groups(members, _images(members), binding_series(members))


def assign(
    members: Sequence[Member],
    history: History,
    followed: Mapping[str, str] | None = None,
    why_followed: str = "near-duplicates in another source",
) -> Plan:
    """Group scans and assign each group its split.

    Scans of the same patient or with the same pixels form a group, and so does a cluster of near-duplicates in which a
    patient is unknown, and scans of one series in which a patient is unknown. (A cluster or series of known patients
    alone joins nothing.) A group keeps the split that its scans or
    patients had. It goes to train, and is listed, where they had several, or where near-duplicates in it have
    contradicting labels; these labels become UNKNOWN.

    Args:
      members: the scans.
      history: the splits so far.
      followed: group -> split that it gets in any case, as it follows a group of another source (`other_sources.py`),
        or as the user's table asks (`asked`).
      why_followed: the reason, for the list of groups that changed their split.
    """
    followed = followed or {}
    images, binding = _images(members), binding_series(members)
    groups = _groups(members, images, binding)
    contradictions = _contradictions(members, images, groups)
    unlabelled = {scan_id for entry in contradictions for scan_id in entry["scans"]}
    contradicted = {entry["group"] for entry in contradictions}

    members_of: dict[str, list[Member]] = collections.defaultdict(list)
    for member, group in zip(members, groups, strict=True):
        members_of[group].append(member)
    split_of, moved = {}, []
    for group, own in sorted(members_of.items()):
        before = splits_before(own, history, binding)
        split = TRAIN if group in contradicted or len(before) > 1 else next(iter(before), _split_of_new(own))
        split = followed.get(group, split)
        if before - {split}:
            why = "contradicting labels" if group in contradicted else "its scans joined groups of several splits"
            why = why_followed if group in followed else why
            scans = sorted(member.scan_id for member in own)
            moved.append({"group": group, "from": sorted(before), "to": split, "why": why, "scans": scans})
        split_of[group] = split

    fingerprints, names = dict(history.fingerprints), {**history.groups, **split_of}
    for member, group in zip(members, groups, strict=True):
        fingerprints[member.fingerprint] = split_of[group]
        if member.patient is not None:
            names[member.patient] = split_of[group]
        if member.series in binding:
            names[member.series] = split_of[group]
    return Plan(
        groups=tuple(groups),
        splits=tuple(split_of[group] for group in groups),
        labels=tuple(UNKNOWN if member.scan_id in unlabelled else member.label for member in members),
        contradictions=tuple(contradictions),
        moved=tuple(moved),
        history=History(fingerprints, names, (*history.moved, *moved)),
    )


def asked(members: Sequence[Member], wanted: Sequence[str | None]) -> dict[str, str]:
    """Group -> the split that a table asks for; {} where it asks for none.

    Args:
      members: the scans.
      wanted: split of each, or None.

    Raises:
      ValueError: scans of one group have several splits. The message names the groups and the scans.
    """
    found: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    for member, group, split in zip(members, groups_of(members), wanted, strict=True):
        if split is not None:
            found[group].setdefault(split, []).append(member.scan_id)
    divided = {group: own for group, own in sorted(found.items()) if len(own) > 1}
    if divided:
        raise ValueError(
            f"the column split divides {len(divided)} patients or groups of near-duplicates, whose scans must all be "
            f"in one split: {'; '.join(_divided(group, own) for group, own in list(divided.items())[:_SHOWN])}"
            f"{' ...' if len(divided) > _SHOWN else ''}. Give each one split, or remove the column"
        )
    return {group: next(iter(own)) for group, own in found.items()}


_SHOWN = 10


def _divided(group: str, own: Mapping[str, Sequence[str]]) -> str:
    splits = (f"{split} ({', '.join(scans[:3])}{' ...' if len(scans) > 3 else ''})" for split, scans in own.items())
    return f"{group} in {' and '.join(splits)}"


def class_name(organ: str, label: int) -> str:
    """Name of a label; "unknown" for UNKNOWN."""
    return "unknown" if label == UNKNOWN else organ_named(organ).classes[label]


def position(classes: Sequence[str], content: str) -> float:
    """The position of a new group in [0, 1): a hash of its class names and its content (patients or pixels)."""
    digest = hashlib.sha256(f"{','.join(sorted(set(classes)))}\n{content}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _split_of_new(own: Sequence[Member]) -> str:
    patients = sorted({m.patient for m in own if m.patient is not None})
    content = " + ".join(patients) or min(m.fingerprint for m in own)
    u = position([class_name(m.organ, m.label) for m in own], content)
    return TRAIN if u < SHARES[TRAIN] else VALIDATION if u < SHARES[TRAIN] + SHARES[VALIDATION] else TEST


def binding_series(members: Sequence[Member]) -> frozenset[str]:
    """The series of which all scans belong together, as the patient of one of them is unknown."""
    return frozenset(m.series for m in members if m.patient is None and m.series is not None)


def splits_before(own: Sequence[Member], history: History, binding: frozenset[str]) -> set[str]:
    """The splits that a group's scans, patients and series had."""
    found = {history.fingerprints.get(member.fingerprint) for member in own}
    found |= {history.groups.get(member.patient) for member in own if member.patient is not None}
    found |= {history.groups.get(member.series) for member in own if member.series in binding}
    return {split for split in found if split is not None}


def _images(members: Sequence[Member]) -> list[Hashable]:
    """A key of the image that each scan shows: its cluster where that counts (see `assign`), else its fingerprint."""
    counting = {member.cluster for member in members if member.patient is None and member.cluster is not None}
    return [member.cluster if member.cluster in counting else member.fingerprint for member in members]


def _groups(members: Sequence[Member], images: Sequence[Hashable], binding: frozenset[str]) -> list[str]:
    """Each scan's group, joined by image, patient and series; named by its patients, else its smallest fingerprint."""
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for member, image in zip(members, images, strict=True):
        if member.patient is not None:
            parent[root(("patient", member.patient))] = root(("image", image))
        if member.series in binding:
            parent[root(("series", member.series))] = root(("image", image))
    patients: dict[Hashable, set[str]] = collections.defaultdict(set)
    smallest: dict[Hashable, str] = {}
    roots = [root(("image", image)) for image in images]
    for member, top in zip(members, roots, strict=True):
        smallest[top] = min(smallest.get(top, member.fingerprint), member.fingerprint)
        if member.patient is not None:
            patients[top].add(member.patient)
    return [" + ".join(sorted(patients[top])) or f"cluster-{smallest[top]}" for top in roots]


def _contradictions(
    members: Sequence[Member], images: Sequence[Hashable], groups: Sequence[str]
) -> list[dict[str, Any]]:
    same: dict[Hashable, list[int]] = collections.defaultdict(list)
    for index, (image, member) in enumerate(zip(images, members, strict=True)):
        # neighbouring slices of a volume are alike, and one may have a lesion where the next has none
        same[image if member.series is None else member.fingerprint].append(index)
    found = []
    for indices in same.values():
        own = [members[i] for i in indices]
        labels = {class_name(m.organ, m.label) for m in own if m.label != UNKNOWN}
        if len(labels) > 1 or len({m.organ for m in own}) > 1:
            scans = sorted(m.scan_id for m in own)
            found.append({"group": groups[indices[0]], "labels": sorted(labels), "scans": scans})
    return sorted(found, key=lambda entry: (entry["group"], entry["scans"]))


def read(path: pathlib.Path) -> History:
    """The history in a `splits.json`; an empty one where there is no such file. ValueError where it is damaged."""
    if not path.exists():
        return History()
    try:
        content = read_json(path, MAX_BYTES)
        history = History(content["fingerprints"], content["groups"], tuple(content["moved"]))
        strange = {*history.fingerprints.values(), *history.groups.values()} - set(SPLITS)
        if strange:
            raise ValueError(f"there are no splits {', '.join(sorted(strange))}; the splits are {', '.join(SPLITS)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}). It keeps which scans may be trained on: restore a "
            "copy; or delete it, and discard all earlier test results"
        ) from error
    return history


def write(path: pathlib.Path, history: History) -> None:
    """Write a history. The file is replaced at once, never half written."""
    content = {
        "about": "Which split each scan and group was given. Rebuilding obeys this file; keep it.",
        "fingerprints": dict(sorted(history.fingerprints.items())),
        "groups": dict(sorted(history.groups.items())),
        "moved": list(history.moved),
    }
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
