"""The TFDS builder of `mcis_scans`: one schema, one config for each source. It needs no TensorFlow."""

import contextlib
import functools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcis.data.dataset import FOLLOWS
from mcis.data.storage import free_memory
from mcis.imaging import image_files
from mcis.paths import allow_unnamed_owners

from . import archive, audit, croissant, duplicates, left_out, other_sources, splits, staging
from .record import Item, Job, Rejection, Remark, find_base
from .remarks import MASK_RULE
from .sources import SOURCES, expected
from .staging import Staged

allow_unnamed_owners()


class Builder(tfds.core.ShardBasedBuilder):
    """Brain MRI and breast ultrasound scans with lesion masks, split by patient or cluster of near-duplicates.

    With `_split_generators` and `_generate_examples`, TFDS would keep a split in memory to sort it, and use TensorFlow
    beyond one gigabyte. `_shard_iterators_per_split`, which TFDS documents for this base class, needs neither.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {  # noqa: RUF012  (TFDS's own form)
        "1.1.0": "The feature `attributes`. Scans, groups, splits and fingerprints are those of 1.0.0.",
        "1.0.0": "First version.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name, description=source.title) for name, source in SOURCES.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Each source has terms that you must accept, so you download it yourself. Put its folder or its zip, named "
        "<config>.zip, into manual_dir:\n"
        + "\n".join(f"{name}: {s.layout}\n    from {s.origin}" for name, s in SOURCES.items() if s.requires)
    )

    def __init__(
        self,
        *,
        file_format: str | None = None,
        per_class: int | None = None,
        others: pathlib.Path | None = None,
        **kwargs: Any,
    ):
        """As TFDS's, with array_record as the default format.

        `per_class` is the number of phantoms of each class. `others` is the folder of the prepared sources among which
        near-duplicates are searched; by default that of this one.
        """
        self._options = {} if per_class is None else {"per_class": per_class}
        self._beam: tuple[Any, Any] | None = None  # runner and options, where Beam is chosen
        self._staging: pathlib.Path | None = None
        super().__init__(file_format=file_format or "array_record", **kwargs)
        self._others = others or pathlib.Path(self._data_dir_root)

    def _info(self) -> tfds.core.DatasetInfo:
        info = self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8, encoding_format="png"),
                    "mask": tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png"),
                    "has_mask": tfds.features.Scalar(np.bool_),
                    "organ": tfds.features.Text(),
                    "label": tfds.features.Scalar(np.int32),
                    "group": tfds.features.Text(),
                    "source": tfds.features.Text(),
                    "scan_id": tfds.features.Text(),
                    "fingerprint": tfds.features.Text(),
                    "attributes": tfds.features.Text(),
                }
            ),
            supervised_keys=None,
        )
        info.initialize_from_bucket = lambda: None  # TFDS hosts no statistics of this set, and leaves an empty folder
        return info

    def download_and_prepare(self, *, download_config: Any = None, **kwargs: Any) -> None:
        """As TFDS's. Then `splits.json` is kept next to the version folder, and the audit is printed.

        `croissant.json` is written last, as it has the hashes of all other files.
        """
        if download_config is not None and (download_config.beam_runner or download_config.beam_options):
            from .beam import runner_of

            self._beam = (runner_of(download_config), download_config.beam_options)
            download_config = download_config.replace(beam_runner=self._beam[0])  # TFDS needs it to use Beam
        try:
            super().download_and_prepare(download_config=download_config, **kwargs)
        finally:
            staging.close()
            folder, self._staging = self._staging, None
            if folder is not None:
                shutil.rmtree(folder)
        if folder is not None:
            here = pathlib.Path(self.data_path)
            splits.write(here.parent / splits.FILE, splits.read(here / splits.FILE))
            croissant.write(self.builder_config.name, here)
            print(audit.summary(json.loads((here / audit.FILE).read_text(encoding="utf-8"))))

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Any]]:
        name = self.builder_config.name
        source = SOURCES[name]
        here = pathlib.Path(self.data_path)  # a temporary folder next to the final one
        here.parent.mkdir(parents=True, exist_ok=True)
        self._staging = folder = pathlib.Path(tempfile.mkdtemp(prefix=staging.PREFIX, dir=here.parent))
        if source.requires:
            with _base(name, pathlib.Path(dl_manager.manual_dir)) as base:
                count = self._stage(source.read(base), folder)
        else:
            count = self._stage(source.read(**self._options), folder)
        scans, rejections, remarks = sift(name, staging.read_all(folder, count))
        members = find_members(scans, folder)
        history = splits.read(here.parent / splits.FILE)
        matches, compared = find_cross_source_duplicates(name, scans, folder, self._others)
        decision = other_sources.decide(members, matches, history, name)
        rejections += decision.left_out.values()
        kept = [i for i in range(len(scans)) if i not in decision.left_out]
        scans, members = [scans[i] for i in kept], [members[i] for i in kept]
        matches = [matches[i] for i in kept]
        plan = _plan(name, scans, members, history, decision)
        remarks += audit.compare(members, [row.outline for row in scans]) if name == "folder" else []
        report = audit.make_audit(name, members, [s.has_mask for s in scans], plan, rejections, remarks)
        report["other_sources"] = audit.cross_source_report(members, plan, matches, decision.follows, compared)
        report["attributes"] = audit.count_attributes([row.attributes for row in scans])
        (here / audit.FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        splits.write(here / splits.FILE, plan.history)
        rows: dict[str, list[staging.Placed]] = {split: [] for split in splits.SPLITS}
        for row, group, split, label in zip(scans, plan.groups, plan.splits, plan.labels, strict=True):
            leader = decision.follows.get(group)
            stored = group if leader is None else f"{FOLLOWS}{leader.group}"
            rows[split].append((row, {"group": stored, "source": name, "label": label}))
        return {
            split: [functools.partial(staging.examples, shard, folder) for shard in staging.shards(split, placed)]
            for split, placed in rows.items()
            if placed
        }

    def _stage(self, items: Iterator[Item | Job], folder: pathlib.Path) -> int:
        """Read everything into the staging folder; the number of items."""
        jobs = list(items)
        if self._beam is None:
            title = f"Reading {self.builder_config.name}"
            bar = functools.partial(tfds.core.utils.tqdm, desc=title, unit=" scans", total=len(jobs), leave=False)
            staging.stage_all(jobs, folder, bar)
        else:
            from .beam import stage_all

            stage_all(jobs, folder, *self._beam)
        return len(jobs)

    def _log_download_bytes(self) -> None:
        pass  # nothing is downloaded, and `mcis build` moves the set to another folder than TFDS would print

    _log_download_done = _log_download_bytes


def sift(name: str, items: Iterable[Staged | Rejection | Remark]) -> tuple[list[Staged], list[Rejection], list[Remark]]:
    """The scans, the rejections and the remarks of a source. A second scan with the same id is rejected.

    Raises:
      ValueError: there is no scan, or more was rejected than was read.
    """
    scans: dict[str, Staged] = {}
    rejections, remarks = [], []
    for item in items:
        if isinstance(item, Remark):
            remarks.append(item)
        elif isinstance(item, Rejection):
            rejections.append(item)
        elif item.scan_id in left_out.LEFT_OUT.get(name, {}):
            rejections.append(Rejection(item.scan_id, f"left out: {left_out.LEFT_OUT[name][item.scan_id]}"))
        elif item.scan_id in scans:
            rejections.append(Rejection(item.scan_id, "a second scan of this name; give it another"))
        else:
            scans[item.scan_id] = item
            remarks += (Remark(item.scan_id, kind) for kind in item.remarks)
            remarks += (Remark(f"{item.scan_id}: {note}", MASK_RULE) for note in item.mask_notes)
    if len(rejections) > len(scans) or not scans:
        listed = "".join(f"\n    {entry.scan_id}: {entry.reason}" for entry in rejections[:20])
        raise ValueError(
            f"{name}: scans read: {len(scans)}, files rejected: {len(rejections)}. "
            f"Expected: {SOURCES[name].layout}{listed}"
        )
    return list(scans.values()), rejections, remarks


def _plan(
    name: str,
    scans: Sequence[Staged],
    members: Sequence[splits.Member],
    history: splits.History,
    decision: other_sources.Decision,
) -> splits.Plan:
    """Groups and splits: those of other sources that groups follow, or those that one's own table asks for."""
    if name == "folder":
        wanted = splits.asked(members, [row.split for row in scans])
        return splits.assign(members, history, wanted, "the column split")
    return splits.assign(members, history, {group: leader.split for group, leader in decision.follows.items()})


def find_members(scans: Sequence[Staged], folder: pathlib.Path) -> list[splits.Member]:
    """What the splits need to know of each scan. Near-duplicates are searched where a patient is unknown.

    Raises:
      ValueError: there are more scans than can be compared in memory.
    """
    clusters: Sequence[int | None] = [None] * len(scans)
    if any(row.patient is None for row in scans):
        needed, free = duplicates.bytes_needed(len(scans)), free_memory()
        if needed > free:
            raise ValueError(
                f"{len(scans):,} scans, not all of a known patient: the search for near-duplicates compares all pairs "
                f"and takes {needed / 1e9:.0f} GB of memory; {free / 1e9:.0f} GB are free. Name the patient of every "
                "scan if you can (`mcis build folder` reads them), or use a machine with more memory"
            )
        print(f"Searching {len(scans)} scans for near-duplicates; thousands take minutes ...", flush=True)
        only_breast = all(row.organ == "breast" for row in scans)
        correlation = duplicates.SAME_SWEEP if only_breast else duplicates.SAME_IMAGE
        images = (image_files.decode(staging.images_of(row, folder)[0]).image for row in scans)
        clusters = duplicates.find_clusters(images, correlation)
    return [
        splits.Member(row.scan_id, row.fingerprint, row.organ, row.label, row.patient, cluster, row.series)
        for row, cluster in zip(scans, clusters, strict=True)
    ]


def find_cross_source_duplicates(
    name: str, scans: Sequence[Staged], folder: pathlib.Path, data_dir: pathlib.Path
) -> tuple[list[tuple[other_sources.Match, ...]], dict[str, int]]:
    """The scans of other published sources that show the same images, and how many of each source were compared."""
    organ = SOURCES[name].organ
    if organ is None:
        return [()] * len(scans), {}
    others = [other for other, row in SOURCES.items() if row.organ == organ and other != name]
    correlation = duplicates.SAME_SWEEP if organ == "breast" else duplicates.SAME_IMAGE
    images = [staging.images_of(row, folder)[0] for row in scans]
    return other_sources.find(images, organ, others, data_dir, correlation)


@contextlib.contextmanager
def _base(name: str, manual_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder of source `name`: in manual_dir, else in the zip <name>.zip there, unpacked for the while."""
    requires, zipped = SOURCES[name].requires, manual_dir / f"{name}.zip"
    if (base := find_base(manual_dir, requires)) is not None:
        yield base
        return
    with archive.opened(zipped) if zipped.is_file() else contextlib.nullcontext(manual_dir) as root:
        base = find_base(root, requires)
        if base is None:
            raise FileNotFoundError(f"{manual_dir}: the files of {name!r} are not there. {expected(name, root)}")
        yield base
