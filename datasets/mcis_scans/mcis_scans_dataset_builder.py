"""The TFDS builder of `mcis_scans`: one schema, one config a source. Writes array_record; TensorFlow is not needed."""

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

from mcis.data.storage import free_memory

from . import archive, audit, duplicates, packing, splits
from .packing import Packed
from .record import Item, Job, Rejection, find_base
from .sources import SOURCES, expected


class Builder(tfds.core.ShardBasedBuilder):
    """Brain MRI and breast ultrasound scans with lesion masks, split by patient or near-duplicate cluster."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012  (TFDS's own form)
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name, description=source.title) for name, source in SOURCES.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Each source asks you to accept its terms, so you download it yourself. Put its folder or its zip, named "
        "<config>.zip, into manual_dir:\n"
        + "\n".join(f"{name}: {s.layout}\n    from {s.origin}" for name, s in SOURCES.items() if s.requires)
    )

    def __init__(self, *, file_format: str | None = None, per_class: int | None = None, **kwargs: Any):
        """As TFDS's, but array_record unless told otherwise; `per_class` is how many phantoms of each class."""
        self._options = {} if per_class is None else {"per_class": per_class}
        self._beam: tuple[Any, Any] | None = None  # runner and options, where Beam is asked for
        self._packed: pathlib.Path | None = None
        super().__init__(file_format=file_format or "array_record", **kwargs)

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
                }
            ),
            supervised_keys=None,
        )
        info.initialize_from_bucket = lambda: None  # TFDS has no figures of ours, and leaves an empty folder behind
        return info

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Any]]:
        name = self.builder_config.name
        source = SOURCES[name]
        # Inside `download_and_prepare` TFDS points data_path at a temporary folder beside the final one.
        here = pathlib.Path(self.data_path)
        here.parent.mkdir(parents=True, exist_ok=True)
        self._packed = folder = pathlib.Path(tempfile.mkdtemp(prefix=packing.PREFIX, dir=here.parent))
        if source.requires:
            with _base(name, pathlib.Path(dl_manager.manual_dir)) as base:
                count = self._pack_all(source.read(base), folder)
        else:
            count = self._pack_all(source.read(**self._options), folder)
        scans, rejections = sift(name, packing.facts(folder, count))
        members = find_members(scans, folder)
        plan = splits.assign(members, splits.read(here.parent / splits.FILE))
        report = audit.make_audit(name, members, [s.has_mask for s in scans], plan, rejections)
        (here / audit.FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        splits.write(here / splits.FILE, plan.history)
        rows: dict[str, list[packing.Placed]] = {split: [] for split in splits.SPLITS}
        for row, group, split, label in zip(scans, plan.groups, plan.splits, plan.labels, strict=True):
            rows[split].append((row, {"group": group, "source": name, "label": label}))
        return {
            split: [functools.partial(packing.examples, shard, folder) for shard in packing.shards(split, placed)]
            for split, placed in rows.items()
            if placed
        }

    def _pack_all(self, items: Iterator[Item | Job], folder: pathlib.Path) -> int:
        """Read everything; how many items there were."""
        jobs = list(items)
        if self._beam is None:
            title = f"Reading {self.builder_config.name}"
            bar = functools.partial(tfds.core.utils.tqdm, desc=title, unit=" scans", total=len(jobs), leave=False)
            packing.pack_all(jobs, folder, bar)
        else:
            from .beam import pack_all

            pack_all(jobs, folder, *self._beam)
        return len(jobs)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        if download_config is not None and (download_config.beam_runner or download_config.beam_options):
            from .beam import runner_of

            self._beam = (runner_of(download_config), download_config.beam_options)
            download_config = download_config.replace(beam_runner=self._beam[0])  # without one, TFDS leaves Beam out
        try:
            super()._download_and_prepare(dl_manager, download_config)
        finally:
            packing.close()
            if self._packed is not None:
                shutil.rmtree(self._packed)

    def _log_download_bytes(self) -> None:
        pass  # nothing is downloaded, and the folder that TFDS would name may not be where the set ends up

    _log_download_done = _log_download_bytes

    def _post_download_and_prepare_hook(self) -> None:
        # Only now is the set in its place: the history goes beside the version folder, where it survives a rebuild.
        here = pathlib.Path(self.data_path)
        splits.write(here.parent / splits.FILE, splits.read(here / splits.FILE))
        print(audit.summary(json.loads((here / audit.FILE).read_text(encoding="utf-8"))))


def sift(name: str, items: Iterable[Packed | Rejection]) -> tuple[list[Packed], list[Rejection]]:
    """Part what a source has given.

    Args:
      name: of the source.
      items: what was read.

    Returns:
      The scans, and what was rejected; a second scan of one id is.

    Raises:
      ValueError: there is no scan, or more was rejected than was read.
    """
    scans: dict[str, Packed] = {}
    rejections = []
    for item in items:
        if isinstance(item, Rejection):
            rejections.append(item)
        elif item.scan_id in scans:
            rejections.append(Rejection(item.scan_id, "a second scan of this name; give it another"))
        else:
            scans[item.scan_id] = item
    if len(rejections) > len(scans) or not scans:
        listed = "".join(f"\n    {entry.scan_id}: {entry.reason}" for entry in rejections[:20])
        raise ValueError(
            f"{name}: {len(scans)} scans could be read and {len(rejections)} files had to be rejected; this cannot be "
            f"what is expected there: {SOURCES[name].layout}{listed}"
        )
    return list(scans.values()), rejections


def find_members(scans: Sequence[Packed], folder: pathlib.Path) -> list[splits.Member]:
    """What the splits need to know of each scan; near-duplicates are sought where a patient is unknown.

    ValueError where there are more scans than can be compared with each other in memory.
    """
    clusters: Sequence[int | None] = [None] * len(scans)
    if any(row.patient is None for row in scans):
        needed, free = duplicates.bytes_needed(len(scans)), free_memory()
        if needed > free:
            raise ValueError(
                f"{len(scans):,} scans, not all of a known patient: to find near-duplicates, each is compared with "
                f"every other, which takes {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} GB are free. Name the "
                "patient of every scan if you can (`mcis build folder` reads them), or build where there is more memory"
            )
        print(f"Searching {len(scans)} scans for near-duplicates; thousands take minutes ...", flush=True)
        only_breast = all(row.organ == "breast" for row in scans)
        enough = duplicates.SAME_SWEEP if only_breast else duplicates.SAME_PICTURE
        clusters = duplicates.find_clusters(packing.Images(scans, folder), enough)
    return [
        splits.Member(row.scan_id, row.fingerprint, row.organ, row.label, row.patient, cluster)
        for row, cluster in zip(scans, clusters, strict=True)
    ]


@contextlib.contextmanager
def _base(name: str, manual_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder of source `name` in manual_dir: below it, or in a zip named after the source."""
    packed = manual_dir / f"{name}.zip"
    base = find_base(manual_dir, SOURCES[name].requires)
    with archive.opened(packed) if base is None and packed.is_file() else contextlib.nullcontext(manual_dir) as root:
        base = base or find_base(root, SOURCES[name].requires)
        if base is None:
            raise FileNotFoundError(f"{manual_dir}: the files of {name!r} are not there. {expected(name)}")
        yield base
