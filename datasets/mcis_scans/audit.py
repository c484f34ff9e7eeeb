"""The audit of a build, printed and stored: counts, groups, contradictions, rejections, and the check of the splits."""

import collections
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from mcis.organs import ORGANS, UNKNOWN, organ_named

from .other_sources import Match
from .record import Rejection, Remark
from .remarks import REMARKS, SAME_MASK, SAME_PICTURE, SEVERAL_PATIENTS
from .splits import SHARES, SPLITS, TEST, TRAIN, VALIDATION, Member, Plan, binding_series, class_name

FILE = "audit.json"
_SHOWN = 10
_TOGETHER = 4
"""Names of scans shown together on a line."""


def make_audit(
    source: str,
    members: Sequence[Member],
    has_mask: Sequence[bool],
    plan: Plan,
    rejections: Sequence[Rejection],
    remarks: Sequence[Remark] = (),
) -> dict[str, Any]:
    """The audit as JSON values. AssertionError as `check_splits`."""
    names = [class_name(member.organ, label) for member, label in zip(members, plan.labels, strict=True)]
    counts = collections.Counter(zip(plan.splits, names, strict=True))
    present = [name for organ in ORGANS for name in organ.classes if name in names]
    present += ["unknown"] if "unknown" in names else []
    masked = collections.Counter(split for known, split in zip(has_mask, plan.splits, strict=True) if known)
    sizes = collections.Counter(plan.groups)
    several = [size for size in sizes.values() if size > 1]
    groups = collections.Counter(dict(zip(plan.groups, plan.splits, strict=True)).values())
    shares = {split: plan.splits.count(split) / len(members) for split in SPLITS}
    return {
        "source": source,
        "scans": len(members),
        "counts": {split: {name: counts[split, name] for name in present} for split in SPLITS},
        "with_mask": {split: masked[split] for split in SPLITS},
        "shares": {split: round(shares[split], 4) for split in SPLITS},
        "deviation": {split: round(shares[split] - SHARES[split], 4) for split in SPLITS},
        "groups": {
            "all": len(sizes),
            **{split: groups[split] for split in SPLITS},
            "by_patient": len({g for g, m in zip(plan.groups, members, strict=True) if m.patient is not None}),
            "of_several_scans": len(several),
            "scans_in_these": sum(several),
        },
        "unknown_labels": plan.labels.count(UNKNOWN),
        "contradictions": list(plan.contradictions),
        "moved": list(plan.history.moved),
        "moved_now": len(plan.moved),
        "rejections": [{"scan": r.scan_id, "reason": r.reason} for r in rejections],
        "warnings": _counted(remarks),
        "proof": check_splits(members, plan),
    }


def _counted(remarks: Sequence[Remark]) -> list[dict[str, Any]]:
    """Remarks by kind, in the order of REMARKS."""
    found: dict[str, list[str]] = {kind: [] for kind in REMARKS}
    for remark in remarks:
        found[remark.kind].append(remark.scan_id)
    return [
        {"kind": kind, "what": REMARKS[kind], "count": len(names), "scans": names}
        for kind, names in found.items()
        if names
    ]


def count_attributes(attributes: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """Attribute -> value -> number of scans, both sorted."""
    counts = collections.Counter((name, value) for own in attributes for name, value in own.items())
    found: dict[str, dict[str, int]] = {}
    for (name, value), count in sorted(counts.items()):
        found.setdefault(name, {})[value] = count
    return found


def compare(members: Sequence[Member], outlines: Sequence[str]) -> list[Remark]:
    """Remarks on scans that have something in common.

    Args:
      members: the scans.
      outlines: fingerprint of each mask; "" where it is empty.
    """
    pictures, masks, owners = (collections.defaultdict[str, list[Member]](list) for _ in range(3))
    for member, outline in zip(members, outlines, strict=True):
        pictures[member.fingerprint].append(member)
        owners[member.fingerprint].append(member)
        if member.series is not None:
            owners[member.series].append(member)
        if outline:
            masks[outline].append(member)
    found = [Remark(_names(same), SAME_PICTURE) for same in pictures.values() if len(same) > 1]
    for same in owners.values():
        if len({member.patient for member in same} - {None}) > 1:
            found.append(Remark(_names(same), SEVERAL_PATIENTS))
    for same in masks.values():
        one_volume = len({member.series for member in same}) == 1 and same[0].series is not None
        if len({member.fingerprint for member in same}) > 1 and not one_volume:
            found.append(Remark(_names(same), SAME_MASK))
    return found


def _names(members: Sequence[Member]) -> str:
    """Names of scans; of many, the first."""
    names = [member.scan_id for member in members]
    return " = ".join(names[:_TOGETHER]) + (f" = {len(names) - _TOGETHER} more" if len(names) > _TOGETHER else "")


def cross_source_report(
    members: Sequence[Member],
    plan: Plan,
    matches: Sequence[Sequence[Match]],
    follows: Mapping[str, Match],
    compared: Mapping[str, int],
) -> dict[str, Any]:
    """Near-duplicates in other sources as JSON values.

    Raises:
      AssertionError: a scan is in another split than one that shows the same image, because of a bug.
    """
    listed, counts = [], collections.Counter[str]()
    for member, group, split, own in zip(members, plan.groups, plan.splits, matches, strict=True):
        for one in own:
            if one.split != split:
                raise AssertionError(f"{member.scan_id} is in {split}, {one.scan} in {one.split}; this is a bug")
            listed.append({"scan": member.scan_id, "near": one.scan, "group": group, "split": split})
        counts.update({one.scan.split("/", 1)[0] for one in own})
    return {
        "compared_with": dict(compared),
        "scans_near": {source: counts[source] for source in compared},
        "groups_that_follow": {group: leader.group for group, leader in sorted(follows.items())},
        "near_duplicates": listed,
        "in_two_splits": 0,
    }


def check_splits(members: Sequence[Member], plan: Plan) -> dict[str, dict[str, int]]:
    """Number of groups, patients, pictures (by pixels), clusters and series, and of those in two splits, which is 0.

    Clusters and series of known patients alone are left out: they need not be in one split (`splits.assign`).

    Raises:
      AssertionError: one of them is in two splits, because of a bug.
    """
    binding = {m.cluster for m in members if m.patient is None and m.cluster is not None}
    keys: Mapping[str, Sequence[Hashable]] = {
        "groups": plan.groups,
        "patients": [m.patient for m in members],
        "pictures": [m.fingerprint for m in members],
        "clusters": [m.cluster if m.cluster in binding else None for m in members],
    }
    if series := binding_series(members):
        keys = {**keys, "series": [m.series if m.series in series else None for m in members]}
    checked: dict[str, dict[str, int]] = {}
    for name, values in keys.items():
        splits: dict[Hashable, set[str]] = collections.defaultdict(set)
        for value, split in zip(values, plan.splits, strict=True):
            if value is not None:
                splits[value].add(split)
        divided = sorted(str(value) for value, found in splits.items() if len(found) > 1)
        if divided:
            raise AssertionError(f"{name} in more than one split: {', '.join(divided[:_SHOWN])}; this is a bug")
        checked[name] = {"checked": len(splits), "in_two_splits": 0}
    return checked


def summary(audit: dict[str, Any]) -> str:
    """The audit as text for a terminal."""
    classes = list(audit["counts"][SPLITS[0]])
    rows = [["", *classes, "scans", "groups", "with mask", "share", "target"]]
    for split in SPLITS:
        counts = list(audit["counts"][split].values())
        share = [f"{audit['shares'][split]:.1%}", f"{SHARES[split]:.0%}"]
        rows.append([split, *counts, sum(counts), audit["groups"][split], audit["with_mask"][split], *share])
    widths = [max(len(str(row[k])) for row in rows) for k in range(len(rows[0]))]
    lines = [f"{audit['source']}: {audit['scans']} scans"]
    lines += ["  " + "  ".join(f"{cell!s:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    groups = audit["groups"]
    lines.append(
        f"  groups: {groups['all']} ({groups['by_patient']} by patient, {groups['all'] - groups['by_patient']} by "
        f"image); {groups['of_several_scans']} have several scans, {groups['scans_in_these']} together"
    )
    checked = ", ".join(f"{counts['checked']} {name}" for name, counts in audit["proof"].items())
    lines.append(f"  checked: of {checked}, none is in two splits")
    other = audit.get("other_sources", {})
    if other.get("compared_with"):
        named = ", ".join(f"{name} {other['scans_near'][name]}" for name in other["compared_with"])
        follow = len(other["groups_that_follow"])
        lines.append(
            f"  near-duplicates in other sources: {named}; {follow} groups follow theirs, none is in two splits"
        )
    if audit.get("attributes"):
        stated = (f"{name} {sum(values.values())}" for name, values in audit["attributes"].items())
        lines.append(f"  attributes, with the scans that have them: {', '.join(stated)}")
    empty = [split for split in SPLITS if not sum(audit["counts"][split].values())]
    if empty:
        lines.append(f"  WARNING: {_empty(audit['source'], empty, groups['all'], audit['counts'])}")
    lines += _listed(
        "near-duplicates with contradicting labels (train only, label unknown)",
        [f"{', '.join(entry['labels'])}: {', '.join(entry['scans'])}" for entry in audit["contradictions"]],
    )
    pairs = [f"{entry['scan']} = {entry['near']} ({entry['split']})" for entry in other.get("near_duplicates", ())]
    lines += _listed("near-duplicates in other sources", pairs)
    moved = [f"{m['group']} from {' and '.join(m['from'])} to {m['to']}: {m['why']}" for m in audit["moved"]]
    lines += _listed(f"groups that changed their split, {audit['moved_now']} of them in this build", moved)
    for entry in audit["warnings"]:
        lines += _listed(f"WARNING: {entry['what']}", entry["scans"])
    lines += _listed("rejected", [f"{entry['scan']}: {entry['reason']}" for entry in audit["rejections"]])
    return "\n".join(lines)


def _empty(source: str, empty: Sequence[str], groups: int, counts: Mapping[str, Mapping[str, int]]) -> str:
    """What empty splits mean, and what to do."""
    fails = ["training"] if {TRAIN, VALIDATION} & set(empty) else []
    fails += ["evaluation"] if TEST in empty else []
    present = {name for split in counts.values() for name, count in split.items() if count}
    other = "lgg" if present & set(organ_named("brain").classes) else "busi"
    verb = "is" if len(empty) == 1 else "are"
    return (
        f"{' and '.join(empty)} {verb} empty, so {' and '.join(fails)} will fail: every patient or group ({groups} "
        f"here) goes to one split by chance. Add patients ({enough(empty)} more make this unlikely), or train with "
        f"another data set too (--sources={source},{other})"
    )


def enough(empty: Sequence[str]) -> int:
    """The number of new groups that leave one of these splits empty in less than one case of a hundred."""
    return next(n for n in itertools.count(1) if sum((1 - SHARES[split]) ** n for split in empty) < 0.01)


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    rest = [f"    ... and {len(entries) - _SHOWN} more in {FILE}"] if len(entries) > _SHOWN else []
    return [f"  {title}: {len(entries)}", *(f"    {entry}" for entry in entries[:_SHOWN]), *rest]
