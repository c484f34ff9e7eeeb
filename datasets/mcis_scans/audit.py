"""The audit of a build, printed and stored: counts, groups, contradictions, rejections, and the check of the splits."""

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
        "proof": check_splits(members, plan),
    }


def check_splits(members: Sequence[Member], plan: Plan) -> dict[str, dict[str, int]]:
    """Number of groups, patients, pictures (by pixels) and clusters, and of those in two splits, which is 0.

    Clusters of known patients alone are left out: they need not be in one split (`splits.assign`).

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
    empty = [split for split in SPLITS if not sum(audit["counts"][split].values())]
    if empty:
        lines.append(f"  WARNING: no scan in {', '.join(empty)}; too few groups for three splits")
    lines += _listed(
        "near-duplicates with contradicting labels (train only, label unknown)",
        [f"{', '.join(entry['labels'])}: {', '.join(entry['scans'])}" for entry in audit["contradictions"]],
    )
    moved = [f"{m['group']} from {' and '.join(m['from'])} to {m['to']}: {m['why']}" for m in audit["moved"]]
    lines += _listed(f"groups that changed their split, {audit['moved_now']} of them in this build", moved)
    lines += _listed("rejected", [f"{entry['scan']}: {entry['reason']}" for entry in audit["rejections"]])
    return "\n".join(lines)


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    rest = [f"    ... and {len(entries) - _SHOWN} more in {FILE}"] if len(entries) > _SHOWN else []
    return [f"  {title}: {len(entries)}", *(f"    {entry}" for entry in entries[:_SHOWN]), *rest]
