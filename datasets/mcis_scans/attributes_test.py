"""Attributes that the files of published sources state, and the tables of their names."""

import shutil

import pytest
from mcis_datasets.mcis_scans import attributes, record, remarks, staging
from mcis_datasets.mcis_scans.brain_sources_test import DUMMY
from mcis_datasets.mcis_scans.record import Record, Remark
from mcis_datasets.mcis_scans.sources import SOURCES

from mcis.data.attributes import VOCABULARY, to_text

STATED = {
    "busi": {},
    "busbra": {
        "bus_0001-l": {"birads": "4", "histology": "invasive ductal carcinoma", "scanner": "GE Logiq 7"},
        "bus_0001-r": {"birads": "4", "histology": "invasive ductal carcinoma", "scanner": "GE Logiq 7"},
        "bus_0002-l": {"birads": "2"},
    },
    "lgg": {
        f"{place}/{place}_{number}": facts | {"sequence": "composite"}
        for number in (1, 2)
        for place, facts in (
            (
                "TCGA_CS_0001_19990101",
                {"age": "60-69", "grade": "3", "histology": "astrocytoma", "site": "Thomas Jefferson University"},
            ),
            (
                "TCGA_DU_0002_19990202",
                {"grade": "2", "histology": "oligodendroglioma", "site": "Henry Ford Hospital"},
            ),
        )
    },
    "br35h": {},
    "cheng": {
        "1": {"histology": "meningioma", "sequence": "T1c"},
        "2": {"histology": "meningioma", "sequence": "T1c"},
        "7": {"histology": "glioma", "sequence": "T1c"},
    },
    "healthy": {
        "h00_t1_sag0": {"plane": "sagittal", "sequence": "T1"},
        "h00_fl_axi0": {"plane": "axial", "sequence": "FLAIR"},
        "h01_t1_cor0": {"plane": "coronal", "sequence": "T1"},
    },
    "notumor": {},
    "uclm": {
        name: {"combined": "no", "doppler": "no", "marks": "no"}
        for name in ("ALWI_000", "ALWI_001", "CHVI_000", "CHCO_003")
    },
    "brest": {},
    "foreign": {},
    "folder": {},
}
"""Source -> scan -> attributes of the dummy data; {} where no scan has any."""


def items_of(name, root=None):
    base = record.find_base(root or DUMMY / name, SOURCES[name].requires)
    return [record.done(job) for job in SOURCES[name].read(base)]


@pytest.mark.parametrize("name", [name for name in SOURCES if SOURCES[name].requires])
def test_attributes_of_every_source_are_valid_and_of_the_vocabulary(name):
    for item in items_of(name):
        if isinstance(item, Record):
            assert to_text(item.attributes)
            assert set(item.attributes) <= set(VOCABULARY)


@pytest.mark.parametrize("name", STATED)
def test_attributes_are_those_that_the_files_state(name):
    found = {item.scan_id: dict(item.attributes) for item in items_of(name) if isinstance(item, Record)}
    assert {scan_id: own for scan_id, own in found.items() if own} == STATED[name]


def test_what_no_table_has_is_left_out_and_remarked_and_the_scan_stays():
    noted = [(item.scan_id, item.kind) for item in items_of("busbra") if isinstance(item, Remark)]
    assert noted == [("bus_0002-l: scanner 'device'", remarks.NO_ATTRIBUTE)]


@pytest.mark.parametrize(
    ("table", "words", "age"),
    [
        (None, None, None),
        ("Patient;histological_type\nTCGA_CS_0001;7\n", "TCGA_CS_0001: histology 'number 7'", None),
        ("PK\x03\x04", "data.csv: a workbook, not a CSV file", None),
        ("Patient,age_at_initial_pathologic\nTCGA_CS_0001,91\n", None, "90+"),
    ],
)
def test_lgg_needs_no_table_of_patients(tmp_path, table, words, age):
    root = shutil.copytree(DUMMY / "lgg", tmp_path / "lgg")
    (root / "kaggle_3m" / "data.csv").unlink()
    if table is not None:
        (root / "kaggle_3m" / "data.csv").write_text(table)
    items = items_of("lgg", root)
    scans = {item.scan_id: item for item in items if isinstance(item, Record)}
    assert len(scans) == 4
    first = scans["TCGA_CS_0001_19990101/TCGA_CS_0001_19990101_1"].attributes
    expected = {"sequence": "composite", "site": "Thomas Jefferson University"}
    assert first == (expected if age is None else expected | {"age": age})
    noted = [item.scan_id for item in items if isinstance(item, Remark)]
    assert len(noted) == (words is not None) and all(words in one for one in noted)


def test_brest_states_what_the_publishers_sheet_has(tmp_path):
    root = shutil.copytree(DUMMY / "brest", tmp_path / "brest")
    rows = (
        "CaseID,Image_filename,Age,BIRADS,Diagnosis,Classification",
        "1,case001.png,57,4a,Fibroadenoma,benign",
        "2,case002.png,not available,5,Invasive carcinoma of no special type (NST),malignant",
        "3,case003.png,,1,not applicable,normal",
    )
    (root / "BrEaST" / "image_labels.csv").write_text("\n".join(rows))
    items = items_of("brest", root)
    assert {item.scan_id: dict(item.attributes) for item in items if isinstance(item, Record)} == {
        "case001": {"age": "50-59", "birads": "4a", "histology": "fibroadenoma"},
        "case002": {"birads": "5", "histology": "invasive ductal carcinoma"},
        "case003": {"birads": "1"},
    }
    assert not [item for item in items if isinstance(item, Remark)]


def test_every_value_of_the_tables_is_valid_and_stays_what_it_is():
    assert set(attributes.TABLES) | {"age"} == set(VOCABULARY)
    for name, table in attributes.TABLES.items():
        assert to_text(dict.fromkeys((name,), next(iter(table.values()))))
        for written, value in table.items():
            assert written == written.lower() and to_text({name: value})
            assert name == "site" or attributes.value_of(name, value) == value


@pytest.mark.parametrize("written", ["50-58", "59-50", "5-9", "1234", "-3", "fifty", "50-59-60"])
def test_what_is_no_age_has_no_decade(written):
    assert attributes.decade_of(written) is None


def test_attributes_are_staged_and_stored_as_text(tmp_path):
    (item,) = [item for item in items_of("healthy") if item.scan_id == "h00_t1_sag0"]
    staging.stage_all([item], tmp_path)
    (staged,) = staging.read_all(tmp_path, 1)
    ((_, features),) = staging.examples([(staged, {})], tmp_path)
    staging.close()
    assert features["attributes"] == '{"plane": "sagittal", "sequence": "T1"}'
