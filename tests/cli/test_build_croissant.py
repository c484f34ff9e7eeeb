"""`mcis build` writes Croissant metadata with the hash of every file. `make tfds` validates them with mlcroissant."""

import fnmatch
import hashlib
import json
import re

import pytest
from mcis_datasets.mcis_scans import croissant
from mcis_datasets.mcis_scans.sources import SOURCES

from mcis.cli.build import build


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return build("phantom", data_dir=tmp_path_factory.mktemp("data"), per_class=3, progress=False)


@pytest.fixture(scope="module")
def written(place):
    return json.loads((place / "croissant.json").read_text(encoding="utf-8"))


def by_type(written, kind):
    return {row["@id"]: row for row in written["distribution"] if row["@type"] == kind}


def test_every_file_is_listed_with_its_hash_and_size(place, written):
    files = by_type(written, "cr:FileObject")
    assert set(files) == {path.name for path in place.iterdir()} - {"croissant.json"}
    assert sum("array_record" in name for name in files) == 3
    for name, row in files.items():
        content = (place / name).read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest(), name
        assert row["contentSize"] == f"{len(content)} B" and row["contentUrl"] == name


def test_record_set_names_the_features_and_the_split_of_each_file(place, written):
    scans = {row["@id"]: row for row in written["recordSet"]}["scans"]
    fields = {field["name"]: field for field in scans["field"]}
    features = json.loads((place / "features.json").read_text(encoding="utf-8"))["featuresDict"]["features"]
    assert set(fields) == {*features, "split"}
    records = by_type(written, "cr:FileSet")["records"]["includes"]
    found = [path.name for path in place.iterdir() if fnmatch.fnmatch(path.name, records)]
    regex = fields["split"]["source"]["transform"]["regex"]
    assert sorted(re.fullmatch(regex, name)[1] for name in found) == ["test", "train", "validation"]


def test_head_says_what_it_is(place, written):
    assert written["conformsTo"] == "http://mlcommons.org/croissant/1.0" and written["@type"] == "sc:Dataset"
    assert written["name"] == "mcis_scans_phantom" and written["version"] == place.name
    assert written["license"] == "https://www.apache.org/licenses/LICENSE-2.0"
    assert "url" not in written and "citeAs" not in written  # nobody published phantoms


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_states_its_origin_licence_and_works(source, place):
    published = croissant.PUBLICATIONS[source]
    described = croissant.describe(source, place)
    if SOURCES[source].organ is None:
        assert published.url is None and not published.works
        return
    assert published.url in SOURCES[source].origin.replace("and https", "https")
    assert described["citeAs"].count("@") == len(published.works) and described["creator"]
    for work in published.works:
        assert f"{{{work}," in described["citeAs"]
    assert published.date is None or published.date in described["citeAs"]
    terms = {"CC BY 4.0": croissant.CC_BY, "CC BY-NC-SA 4.0": croissant.CC_BY_NC_SA}
    stated = re.findall(r"\((.*?)\)", SOURCES[source].origin)[-1]
    assert terms.get(stated, described["license"]) == described["license"]
