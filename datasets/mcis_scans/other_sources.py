"""Near-duplicates in other sources: a group that shows the same image as a group of another source follows it.

Sources are built one after the other. A build compares its scans with those of the published sources of the same organ
that are prepared in the same folder. A group of near-duplicates of another source's group becomes part of that group:
it gets its split, and its name, by which folds keep both together. A scan that cannot follow is left out: no image is
in two groups.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mcis.data import dataset
from mcis.data.storage import free_memory
from mcis.imaging import image_files
from mcis.organs import UNKNOWN

from . import duplicates
from .record import Rejection
from .splits import SPLITS, TRAIN, History, Member, binding_series, class_name, groups_of, splits_before


@dataclasses.dataclass(frozen=True)
class Match:
    """A scan of another source that shows the same image.

    Attributes:
      scan: "<source>/<scan_id>".
      group: "<source>/<group>"; where that group follows a third source's, that one's.
      split: its split.
      label: name of its class; "unknown" without one.
    """

    scan: str
    group: str
    split: str
    label: str


def find(
    images: Sequence[Any], organ: str, sources: Iterable[str], data_dir: pathlib.Path, correlation: float
) -> tuple[list[tuple[Match, ...]], dict[str, int]]:
    """The matches of each image in other sources, of which those that are not prepared are skipped.

    Args:
      images: encoded pictures.
      organ: their organ.
      sources: names of other sources.
      data_dir: folder of prepared data.
      correlation: as for `duplicates.find_links`.

    Returns:
      (matches of each image, number of scans of each source that was compared).

    Raises:
      ValueError: there are more scans than can be compared in memory.
    """
    found: list[tuple[Match, ...]] = [()] * len(images)
    compared: dict[str, int] = {}
    for source in sources:
        if not dataset.versions_of(source, data_dir):
            continue
        stored = list(_stored(source, organ, data_dir))
        compared[source] = len(stored)
        needed, free = duplicates.bytes_needed(len(images) + len(stored)), free_memory()
        if needed > free:
            raise ValueError(
                f"{len(images):,} scans and {len(stored):,} of {source}: the search for near-duplicates takes "
                f"{needed / 1e9:.0f} GB of memory; {free / 1e9:.0f} GB are free. Use a machine with more memory"
            )
        print(f"Searching {len(images)} scans for near-duplicates among {len(stored)} of {source} ...", flush=True)
        links = duplicates.find_links(
            (image_files.decode(png).image for png in images),
            (image_files.decode(png).image for png, _ in stored),
            [match.group for _, match in stored],
            correlation,
        )
        found = [(*before, *(stored[j][1] for j in new)) for before, new in zip(found, links, strict=True)]
    return found, compared


def _stored(source: str, organ: str, data_dir: pathlib.Path) -> Iterator[tuple[bytes, Match]]:
    """Image and facts of each prepared scan of a source and organ."""
    for split in SPLITS:
        for row in dataset.records(source, split, data_dir):
            if dataset.text(row["organ"]) == organ:
                scan_id, label = dataset.text(row["scan_id"]), int(row["label"])
                group = dataset.group_name(source, dataset.text(row["group"]))
                yield row["image"], Match(f"{source}/{scan_id}", group, split, class_name(organ, label))


@dataclasses.dataclass(frozen=True)
class Decision:
    """The result of `decide`.

    Attributes:
      left_out: rejection of each scan that cannot follow its matches, by its index.
      follows: group of this source -> the Match whose group and split it gets.
    """

    left_out: Mapping[int, Rejection]
    follows: Mapping[str, Match]


def decide(members: Sequence[Member], matches: Sequence[Sequence[Match]], history: History, source: str) -> Decision:
    """Which groups follow which, and which scans are left out.

    A group follows the other group with which it shares most images. Left out are scans that show an image of yet
    another group, or one that is labelled otherwise; and, where the group has had another split than the one that it
    would get, all scans with matches, unless it would get "train".
    """
    left_out = {i: reason for i, own in enumerate(matches) if (reason := _contradiction(members[i], own))}
    while True:
        kept = [i for i in range(len(members)) if i not in left_out]
        some = [members[i] for i in kept]
        groups = groups_of(some)
        binding = binding_series(some)
        inside: dict[str, list[int]] = collections.defaultdict(list)
        for i, group in zip(kept, groups, strict=True):
            inside[group].append(i)
        follows, more = {}, {}
        for group, indices in inside.items():
            # A match with the group itself, through another source that follows it, is ignored.
            linked = {i: [one for one in matches[i] if one.group != f"{source}/{group}"] for i in indices}
            leader = _leader([one for own in linked.values() for one in own])
            if leader is None:
                continue
            # Without the scans that join two groups, the others may be groups of their own.
            both = [i for i, own in linked.items() if len({one.group for one in own}) > 1]
            before = splits_before([members[i] for i in indices], history, binding) - {leader.split}
            follows[group] = leader
            for i in both or indices:
                own = linked[i]
                if other := next((one for one in own if one.group != leader.group), None):
                    more[i] = f"a near-duplicate of {other.scan}; its own group follows that of {leader.scan}"
                elif own and before and leader.split != TRAIN:
                    more[i] = f"a near-duplicate of {own[0].scan}, which is in {own[0].split}; its own group is not"
        if not more:
            return Decision({i: left_out[i] for i in sorted(left_out)}, follows)
        left_out |= {i: Rejection(members[i].scan_id, reason) for i, reason in more.items()}


def _contradiction(member: Member, own: Sequence[Match]) -> Rejection | None:
    name = class_name(member.organ, member.label)
    for one in own:
        if member.label != UNKNOWN and one.label not in ("unknown", name):
            reason = f"labelled {name}, yet a near-duplicate of {one.scan}, which is labelled {one.label}"
            return Rejection(member.scan_id, reason)
    return None


def _leader(own: Sequence[Match]) -> Match | None:
    """A Match of the group with the most images among these; of several, the one whose name comes first."""
    counts = collections.Counter(one.group for one in own)
    return min(own, key=lambda one: (-counts[one.group], one.group, one.scan), default=None)
