"""Attributes and the column split of prepared data, and data of a version without them."""

import json
import pathlib

import mcis_datasets.mcis_scans
import pytest
import tensorflow_datasets as tfds
from mcis_datasets.mcis_scans import staging
from mcis_datasets.mcis_scans.mcis_scans_dataset_builder import Builder

from mcis.cli.build import build
from mcis.data import attributes, dataset
from mcis.inference.rows import scan_facts
from tests.fixtures.own_folders import picture

pytest_plugins = ["tests.fixtures.own_folders"]
DUMMY = pathlib.Path(mcis_datasets.mcis_scans.__file__).parent / "dummy_data"


def test_the_column_split_is_obeyed_and_kept(own, tmp_path, capsys):
    cells = ("Train,A", "val,B", "TEST,A", "test,B")
    patients = ("P1", "P2", "P3", "")
    images, header = {f"{k}.png": picture(k) for k in range(4)}, "scan,label,patient,split,site"

    def rows(cells):
        return [f"{k},normal,{patients[k]},{line}" for k, line in enumerate(cells)]

    root = own(images, rows(cells), header=header)
    place = build("folder", from_=root, data_dir=tmp_path / "data", progress=False)
    assert "attributes, with the scans that have them: site 4" in capsys.readouterr().out
    stored = {
        record["scan_id"].decode(): (split, attributes.from_record(record))
        for split in dataset.SPLITS
        for record in dataset.records("folder", split, tmp_path / "data")
    }
    assert stored == {
        "0": ("train", {"site": "A"}),
        "1": ("validation", {"site": "B"}),
        "2": ("test", {"site": "A"}),
        "3": ("test", {"site": "B"}),
    }
    assert json.loads((place / "audit.json").read_text())["attributes"] == {"site": {"A": 2, "B": 2}}
    own({}, rows(("validation,A", *cells[1:])), header=header)
    place = build("folder", from_=root, data_dir=tmp_path / "data", progress=False, overwrite=True)
    (moved,) = json.loads((place / "audit.json").read_text())["moved"]
    assert (moved["group"], moved["from"], moved["to"], moved["why"]) == (
        "P1",
        ["train"],
        "validation",
        "the column split",
    )


def test_near_duplicates_in_several_splits_are_an_error(own, tmp_path):
    root = own({"a.png": picture(1), "b.png": picture(1), "c.png": picture(2)}, [], header="x")
    (root / "labels.csv").write_text(
        "scan,label,patient,split\na,normal,P1,train\nb,normal,P2,test\nc,normal,P3,test\n"
    )
    with pytest.raises(ValueError, match=r"divides 1 patients or groups .*: P1 \+ P2 in train \(a\) and test \(b\)"):
        build("folder", from_=root, data_dir=tmp_path / "data", progress=False)
    assert not dataset.versions_of("folder", tmp_path / "data")


def test_data_of_a_version_without_attributes_are_read_and_built_again_beside_it_with_the_same_splits(
    tmp_path, monkeypatch
):
    def prepare():
        return build("healthy", from_=DUMMY / "healthy", data_dir=tmp_path, progress=False).name

    def stored():
        records = [(split, row) for split in dataset.SPLITS for row in dataset.records("healthy", split, tmp_path)]
        return {row["scan_id"]: (split, scan_facts(row)) for split, row in records}, [row for _, row in records]

    info, examples = Builder._info, staging.examples
    with monkeypatch.context() as patch:
        patch.setattr(Builder, "VERSION", tfds.core.Version("1.0.0"))
        patch.setattr(Builder, "_info", lambda self: without_attributes(info(self)))
        patch.setattr(staging, "examples", lambda *shard: ((key, drop(row)) for key, row in examples(*shard)))
        assert prepare() == "1.0.0"
    before, rows = stored()
    assert len(before) == 3 and not any("attributes" in row for row in rows)
    assert all(facts["attributes"] == {} for _, facts in before.values())
    loaded = [dataset.load(("healthy",), split, tmp_path) for split in {split for split, _ in before.values()}]
    assert sum(map(len, loaded)) == 3
    assert prepare() == str(Builder.VERSION) != "1.0.0"
    after, _ = stored()
    assert after[b"h00_fl_axi0"][1]["attributes"] == {"plane": "axial", "sequence": "FLAIR"}
    for name, (split, facts) in before.items():
        assert after[name] == (split, facts | {"attributes": after[name][1]["attributes"]})


def without_attributes(info):
    features = tfds.features.FeaturesDict({name: one for name, one in info.features.items() if name != "attributes"})
    made = tfds.core.DatasetInfo(builder=info._builder, features=features)
    made.initialize_from_bucket = lambda: None
    return made


def drop(row):
    return {name: value for name, value in row.items() if name != "attributes"}
