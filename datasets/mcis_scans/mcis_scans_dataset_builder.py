"""The TFDS builder of `mcis_scans`: one schema, one config a source. Writes array_record; TensorFlow is not needed."""

import collections
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcis import scan

from . import archive, audit, duplicates, splits
from .record import Item, Rejection, find_base
from .sources import SOURCES, expected


class Builder(tfds.core.GeneratorBasedBuilder):
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
        super().__init__(file_format=file_format or "array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
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

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        name = self.builder_config.name
        source = SOURCES[name]
        if source.requires:
            with _base(name, pathlib.Path(dl_manager.manual_dir)) as base:
                scans, rejections = collect(name, source.read(base))
        else:
            scans, rejections = collect(name, source.read(**self._options))
        members = find_members(scans)
        # Inside `download_and_prepare` TFDS points data_path at a temporary folder beside the final one.
        here = pathlib.Path(self.data_path)
        plan = splits.assign(members, splits.read(here.parent / splits.FILE))
        report = audit.make_audit(name, members, [s.has_mask for s in scans], plan, rejections)
        (here / audit.FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        splits.write(here / splits.FILE, plan.history)
        examples: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        for row, group, split, label in zip(scans, plan.groups, plan.splits, plan.labels, strict=True):
            features = {key: value for key, value in vars(row).items() if key != "patient"}
            examples[split].append(features | {"group": group, "source": name, "label": label})
        # TFDS cannot write a split without examples.
        return {split: self._generate_examples(examples[split]) for split in splits.SPLITS if examples[split]}

    def _generate_examples(self, examples: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for example in examples:
            yield example["scan_id"], example

    def _log_download_bytes(self) -> None:
        pass  # nothing is downloaded, and the folder that TFDS would name may not be where the set ends up

    _log_download_done = _log_download_bytes

    def _post_download_and_prepare_hook(self) -> None:
        # Only now is the set in its place: the history goes beside the version folder, where it survives a rebuild.
        here = pathlib.Path(self.data_path)
        splits.write(here.parent / splits.FILE, splits.read(here / splits.FILE))
        print(audit.summary(json.loads((here / audit.FILE).read_text(encoding="utf-8"))))


@dataclasses.dataclass(frozen=True)
class Packed:
    """A Record as it is stored: image and mask as PNG bytes, so that a whole source fits in memory."""

    scan_id: str
    image: bytes
    mask: bytes
    has_mask: bool
    organ: str
    label: int
    patient: str | None
    fingerprint: str


def collect(name: str, items: Iterable[Item]) -> tuple[list[Packed], list[Rejection]]:
    """Read all that a source gives.

    Args:
      name: of the source.
      items: what its function yields.

    Returns:
      The scans, and what was rejected; a second scan of one id is.

    Raises:
      ValueError: there is no scan, or more was rejected than was read.
    """
    scans: dict[str, Packed] = {}
    rejections = []
    for item in tfds.core.utils.tqdm(items, desc=f"Reading {name}", unit=" scans", leave=False):
        if isinstance(item, Rejection):
            rejections.append(item)
        elif item.scan_id in scans:
            rejections.append(Rejection(item.scan_id, "a second scan of this name; give it another"))
        else:
            scans[item.scan_id] = Packed(
                image=scan.encode_png(item.image),
                mask=scan.encode_png(item.mask),
                fingerprint=scan.fingerprint(item.image),
                **{key: getattr(item, key) for key in ("scan_id", "has_mask", "organ", "label", "patient")},
            )
    if len(rejections) > len(scans) or not scans:
        listed = "".join(f"\n    {entry.scan_id}: {entry.reason}" for entry in rejections[:20])
        raise ValueError(
            f"{name}: {len(scans)} scans could be read and {len(rejections)} files had to be rejected; this cannot be "
            f"what is expected there: {SOURCES[name].layout}{listed}"
        )
    return list(scans.values()), rejections


def find_members(scans: Sequence[Packed]) -> list[splits.Member]:
    """What the splits need to know of each scan; near-duplicates are sought where a patient is unknown."""
    clusters: Sequence[int | None] = [None] * len(scans)
    if any(row.patient is None for row in scans):
        print(f"Searching {len(scans)} scans for near-duplicates; thousands take minutes ...", flush=True)
        only_breast = all(row.organ == "breast" for row in scans)
        enough = duplicates.SAME_SWEEP if only_breast else duplicates.SAME_PICTURE
        clusters = duplicates.find_clusters(_Images(scans), enough)
    return [
        splits.Member(row.scan_id, row.fingerprint, row.organ, row.label, row.patient, cluster)
        for row, cluster in zip(scans, clusters, strict=True)
    ]


class _Images(Sequence[np.ndarray]):
    """The scans' images, each decoded when it is asked for: uint8 (H, W, 3)."""

    def __init__(self, scans: Sequence[Packed]):
        self._scans = scans

    def __len__(self) -> int:
        return len(self._scans)

    def __getitem__(self, index: Any) -> Any:  # single ones only; find_clusters asks for no slices
        return scan.decode(self._scans[index].image).image


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
