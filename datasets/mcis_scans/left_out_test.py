"""Scans that are left out by name."""

import pathlib
import shutil

import tensorflow_datasets as tfds
from mcis_datasets.mcis_scans import left_out
from mcis_datasets.mcis_scans.mcis_scans_dataset_builder import Builder
from mcis_datasets.mcis_scans.sources import SOURCES

DUMMY = pathlib.Path(__file__).parent / "dummy_data"


def test_scans_of_the_axilla_are_listed_and_not_stored(tmp_path, capsys):
    root = shutil.copytree(DUMMY / "busi", tmp_path / "busi")
    base = root / "Dataset_BUSI_with_GT" / "malignant"
    for end in ("", "_mask"):
        shutil.copy(base / f"malignant (1){end}.png", base / f"malignant (12){end}.png")
    tfds.disable_progress_bar()
    builder = Builder(config="busi", data_dir=tmp_path / "data")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=root))
    stored = {row["scan_id"].decode() for split in builder.info.splits for row in builder.as_data_source(split)}
    assert "malignant/malignant (1)" in stored and len(stored) == 4
    assert "malignant/malignant (12): left out: the letters on it say axilla" in capsys.readouterr().out


def test_the_table_names_sources_and_reasons():
    assert set(left_out.LEFT_OUT) <= set(SOURCES)
    reasons = [reason for scans in left_out.LEFT_OUT.values() for reason in scans.values()]
    assert all(reasons) and not any(reason.endswith(".") for reason in reasons)
    busi = left_out.LEFT_OUT["busi"]
    assert len(busi) == 29 and list(busi.values()).count(left_out.AXILLA) == 20
    assert list(left_out.LEFT_OUT["notumor"].values()).count(left_out.CT) == 3
