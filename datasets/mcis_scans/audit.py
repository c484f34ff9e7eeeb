"""What a build prints and stores about itself: counts, groups, contradictions, rejections, proof of disjoint splits."""

import collections
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from mcis.organs import ORGANS, UNKNOWN

from .record import Rejection
from .splits import SHARES, SPLITS, Member, Plan, class_name

FILE = "audit.json"
_SHOWN = 10


def make_audit(
    source: str, members: Sequence[Member], has_mask: Sequence[bool], plan: Plan, rejections: Sequence[Rejection]
) -> dict[str, Any]:
    """All there is to say about a build, as JSON.

    Raises:
      AssertionError: a group, patient, picture or counting cluster lies in two splits (a bug: nothing is written).
    """
    counts: dict[str, collections.Counter[str]] = {split: collections.Counter() for split in SPLITS}
    for member, label, split in zip(members, plan.labels, plan.splits, strict=True):
        counts[split][class_name(member.organ, label)] += 1
    names = [name for organ in ORGANS for name in organ.classes] + ["unknown"]
    present = [name for name in names if any(counts[split][name] for split in SPLITS)]
    masked = collections.Counter(split for known, split in zip(has_mask, plan.splits, strict=True) if known)
    sizes = collections.Counter(plan.groups)
    split_of = dict(zip(plan.groups, plan.splits, strict=True))
    shares = {split: plan.splits.count(split) / len(members) for split in SPLITS}
    return {
        "source": source,
        "scans": len(members),
        "counts": {split: {name: counts[split][name] for name in present} for split in SPLITS},
        "with_mask": {split: masked[split] for split in SPLITS},
        "shares": {split: round(shares[split], 4) for split in SPLITS},
        "deviation": {split: round(shares[split] - SHARES[split], 4) for split in SPLITS},
        "groups": {
            "all": len(sizes),
            **{split: list(split_of.values()).count(split) for split in SPLITS},
            "by_patient": len({g for g, m in zip(plan.groups, members, strict=True) if m.patient is not None}),
            "of_several_scans": sum(size > 1 for size in sizes.values()),
            "scans_in_these": sum(size for size in sizes.values() if size > 1),
        },
        "unknown_labels": plan.labels.count(UNKNOWN),
        "contradictions": list(plan.contradictions),
        "moved": list(plan.history.moved),
        "moved_now": len(plan.moved),
        "rejections": [{"scan": r.scan_id, "reason": r.reason} for r in rejections],
        "proof": prove(members, plan),
    }


def prove(members: Sequence[Member], plan: Plan) -> dict[str, dict[str, int]]:
    """Count groups, patients, pictures (by pixels) and clusters, and how many of each lie in two splits: none.

    Clusters of known patients alone do not bind (see `splits.assign`) and are left out.

    Raises:
      AssertionError: one does.
    """
    binding = {m.cluster for m in members if m.patient is None and m.cluster is not None}
    keys: Mapping[str, Sequence[Hashable]] = {
        "groups": plan.groups,
        "patients": [m.patient for m in members],
        "pictures": [m.fingerprint for m in members],
        "clusters": [m.cluster if m.cluster in binding else None for m in members],
    }
    proof: dict[str, dict[str, int]] = {}
    for name, values in keys.items():
        splits: dict[Hashable, set[str]] = collections.defaultdict(set)
        for value, split in zip(values, plan.splits, strict=True):
            if value is not None:
                splits[value].add(split)
        torn = sorted(str(value) for value, found in splits.items() if len(found) > 1)
        if torn:
            raise AssertionError(f"{name} in more than one split: {', '.join(torn[:_SHOWN])}; this is a bug")
        proof[name] = {"checked": len(splits), "in_two_splits": len(torn)}
    return proof


def summary(audit: dict[str, Any]) -> str:
    """The audit as text for a terminal."""
    classes = list(audit["counts"][SPLITS[0]])
    rows = [["", *classes, "scans", "groups", "with mask", "share", "aim"]]
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
        f"likeness); {groups['of_several_scans']} of several scans, with {groups['scans_in_these']} scans"
    )
    lines.append(
        "  no straddling: of "
        + ", ".join(f"{found['checked']} {name}" for name, found in audit["proof"].items())
        + " none lies in two splits"
    )
    empty = [split for split in SPLITS if not sum(audit["counts"][split].values())]
    if empty:
        lines.append(f"  WARNING: no scan in {', '.join(empty)}; too few groups for three splits")
    lines += _listed(
        "near-duplicates with contradicting labels (train only, label unknown)",
        [f"{', '.join(entry['labels'])}: {', '.join(entry['scans'])}" for entry in audit["contradictions"]],
    )
    moved = [f"{m['group']} from {' and '.join(m['from'])} to {m['to']}: {m['why']}" for m in audit["moved"]]
    lines += _listed(f"groups that left their split, {audit['moved_now']} of them in this build", moved)
    lines += _listed("rejected", [f"{entry['scan']}: {entry['reason']}" for entry in audit["rejections"]])
    return "\n".join(lines)


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    rest = [f"    ... and {len(entries) - _SHOWN} more in {FILE}"] if len(entries) > _SHOWN else []
    return [f"  {title}: {len(entries)}", *(f"    {entry}" for entry in entries[:_SHOWN]), *rest]
