"""What is found in folders, archives and DICOMDIR files, and what is counted as passed over."""

import gzip
import io
import os
import re
import shutil
import zipfile

import cv2
import nibabel
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from mcis.imaging import archives, formats, image_files, scan, search
from mcis.imaging.nifti import header as nifti_header
from tests.fixtures.dicom_files import dataset, write

RAMP = np.arange(200).reshape(10, 20).astype(np.uint16)
OBJECTS = {
    "SR": "1.2.840.10008.5.1.4.1.1.88.11",
    "PR": "1.2.840.10008.5.1.4.1.1.11.1",
    "KO": "1.2.840.10008.5.1.4.1.1.88.59",
}


def write_object(path, modality):
    """An object without pixels."""
    found = dataset(RAMP, Modality=modality, SOPClassUID=OBJECTS[modality], PixelData=None, Rows=None, Columns=None)
    found.save_as(path, enforce_file_format=True)


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    names = ("IM0001", "1.2.840.5", "a.DCM", "b.ima", "c.MR", "d.v2", "e.img", "f.dcm.bak", "00012", "notes.txt.dcm")
    for name in names:
        write(folder / name, RAMP)
    (folder / "g.dcm.gz").write_bytes(gzip.compress((folder / "a.DCM").read_bytes()))
    (folder / "no_preamble").write_bytes((folder / "a.DCM").read_bytes()[132:])
    (folder / "h.png").write_bytes(image_files.encode_png(RAMP.astype(np.uint8)))
    return folder, sorted([*names, "g.dcm.gz", "no_preamble", "h.png"])


def test_dicom_is_found_by_content_under_any_name(study):
    folder, names = study
    for name in ("notes.txt", "table.csv", "README", ".hidden"):
        (folder / name).write_text("not a scan")
    for modality in OBJECTS:
        write_object(folder / f"{modality}.dcm", modality)
    write(folder / "seg", RAMP[None].repeat(40, 0), NumberOfFrames=40, Modality="SEG")
    shutil.copyfile(get_testdata_file("DICOMDIR"), folder / "DICOMDIR")
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    found = search.in_folder(folder)
    assert [os.path.basename(path) for path in found.files] == names
    assert found.passed == {
        **{".txt": 1, ".csv": 1, "without a suffix": 1, "DICOMDIR": 1, "zip archive": 1},
        **{f"DICOM {modality}": 1 for modality in ("SR", "PR", "KO", "SEG")},
    }
    text = search.describe(found.passed)
    assert text.startswith("Passed over 9 files that hold no scan: ")
    assert "4 DICOM objects that are no scans (KO, PR, SEG, SR)" in text and "DICOMDIR" in text and "1 .txt" in text
    assert "1 zip archive, not opened: give it on the command line" in text


def test_what_cannot_be_read_is_found_so_that_reading_it_reports_the_error(tmp_path):
    (tmp_path / "broken.dcm").write_bytes(b"junk")
    (tmp_path / "empty.png").write_bytes(b"")
    found = dataset(RAMP)
    found.save_as(tmp_path / "cut", enforce_file_format=True)
    whole = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    os.symlink("/nowhere", tmp_path / "link.png")
    names = [os.path.basename(path) for path in search.in_folder(tmp_path).files]
    assert names == ["broken.dcm", "cut", "empty.png", "link.png"]


def test_descriptions_are_sentences():
    assert search.describe({}) == ""
    assert search.describe({".txt": 1}) == "Passed over 1 file that holds no scan: 1 .txt"
    assert search.describe({"DICOM SR": 1}) == (
        "Passed over 1 file that holds no scan: 1 DICOM object that is no scan (SR)"
    )
    many = search.describe({f".{index}": 1 for index in range(20)})
    assert many.endswith("8 other kinds") and many.count(",") == 12


def test_a_dicomdir_lists_its_images_and_files_that_are_missing(tmp_path):
    source = get_testdata_file("DICOMDIR")
    listed = search.listed(source)
    assert len(listed.files) == 31 and not listed.passed and all(map(os.path.isfile, listed.files))
    shutil.copyfile(source, tmp_path / "DICOMDIR")
    (tmp_path / "77654033" / "cr1").mkdir(parents=True)
    shutil.copyfile(listed.files[0], tmp_path / "77654033" / "cr1" / "6154")  # in lower case, as discs are mounted
    moved = search.listed(tmp_path / "DICOMDIR").files
    assert len(moved) == 31 and [path for path in moved if os.path.isfile(path)] == [
        str(tmp_path / "77654033" / "cr1" / "6154")
    ]
    with pytest.raises(scan.ScanError, match="lists no files"):
        search.listed(get_testdata_file("DICOMDIR-empty.dcm"))


OTHER = {
    **{
        "a.mha": b"ObjectType = Image\nNDims = 3\n",
        "b.MHD": b"",
        "c.nrrd": b"NRRD0004\n",
        "d.mgz": gzip.compress(b"x"),
    },
    **{"e.mnc": b"CDF\1", "f.jp2": b"\0\0\0\x0cjP  \r\n", "g.gif": b"GIF89a", "h.webp": b"RIFF\0\0\0\0WEBP"},
    **{"i.pgm": b"P5", "j.mp4": b"\0\0\0\x18ftypmp42", "k.heic": b"\0\0\0\x18ftypheic"},
    **{"no suffix": b"NRRD0005\n", "wrong.dat": b"GIF87a", "l.hdr": b"ENVI\nsamples = 9\n", "m.hdr": b"#?RADIANCE\n"},
}
"""Files in formats that are not read."""


def test_scans_in_formats_that_are_not_read_are_named_with_what_to_do(tmp_path):
    for name, content in OTHER.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("x")
    found = search.in_folder(tmp_path)
    assert found.files == []
    one = (".mha", ".mhd", ".mgz", ".mnc", ".jp2", ".webp", ".pgm", ".mp4", ".heic", ".hdr (ENVI)", ".hdr (Radiance)")
    assert found.passed == {".nrrd": 2, ".gif": 2, ".txt": 1, **dict.fromkeys(one, 1)}
    text = search.describe(found.passed)
    assert text.startswith(
        "Passed over 1 file that holds no scan: 1 .txt; and 15 files in formats that are not read: 2"
    )
    for words in ("1 .mha (MetaImage)", "2 .nrrd (NRRD)", "1 .hdr (ENVI)", "1 .mgz (FreeSurfer)", "1 .mp4 (video)"):
        assert words in text
    assert text.endswith("; convert to NIfTI, DICOM or PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in OTHER.items():
            archive.writestr(name, content)
    (tmp_path / "out").mkdir()
    unpacked = archives.unpack(str(tmp_path / "a.zip"), str(tmp_path / "out"))
    assert unpacked == {"entries": [], "passed": {kind: n for kind, n in found.passed.items() if kind != ".txt"}}


def zipped(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "x" * 600)
    return stream.getvalue()


WORD = zipped("[Content_Types].xml", "_rels/.rels", "word/document.xml", "word/media/image1.png")
PNG = image_files.encode_png(RAMP.astype(np.uint8))


def test_pictures_without_a_usual_suffix_are_found_by_content(tmp_path):
    jpeg = cv2.imencode(".jpg", RAMP.astype(np.uint8))[1].tobytes()
    bmp = cv2.imencode(".bmp", RAMP.astype(np.uint8))[1].tobytes()
    pictures = {**{f"a.{end}": jpeg for end in ("jfif", "jpe", "JIF")}, "b": PNG, "c": jpeg, "d.0001": PNG, "e": bmp}
    others = {"BMI": b"BMI of the patient", "f.txt": b"x", "report.docx": WORD, "g.xlsx": WORD, "h.zip": zipped("x")}
    (tmp_path / "in").mkdir()
    for name, content in {**pictures, **others}.items():
        (tmp_path / "in" / name).write_bytes(content)
    os.symlink("/nowhere", tmp_path / "in" / "link")
    found = search.in_folder(tmp_path / "in")
    names = sorted([*pictures, "link"])
    assert [os.path.basename(path) for path in found.files] == names
    kinds = {"without a suffix": 1, ".txt": 1, ".docx": 1, ".xlsx": 1}
    assert found.passed == kinds | {"zip archive": 1}
    for path in found.files:
        if path.endswith("link"):
            with pytest.raises(scan.ScanError, match="link: a link to a file that is not there"):
                formats.read(path)
        else:
            assert formats.read(path).image.shape == (*RAMP.shape, 3)
    assert search.is_archive(tmp_path / "in" / "h.zip") and not search.is_archive(tmp_path / "in" / "report.docx")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in {**pictures, **others}.items():
            if name != "h.zip":
                archive.writestr(name, content)
    (tmp_path / "out").mkdir()
    unpacked = archives.unpack(str(tmp_path / "a.zip"), str(tmp_path / "out"))
    assert sorted(name for name, _, _ in unpacked["entries"]) == sorted(pictures) and unpacked["passed"] == kinds
    assert all(formats.read(path).image.shape == (*RAMP.shape, 3) for _, path, _ in unpacked["entries"])


def test_a_file_that_may_not_be_read_is_an_error_in_words(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(PNG)
    write(tmp_path / "b.dcm", RAMP)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for any user but root
    for name in ("a.png", "b.dcm"):
        with pytest.raises(scan.ScanError, match=f"{name}: cannot be read: permission denied"):
            formats.read(tmp_path / name)


def test_a_header_is_that_of_a_pair_by_its_content(tmp_path):
    volume = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4))
    for kind, name in ((nibabel.Nifti1Pair, "one"), (nibabel.Nifti2Pair, "two"), (nibabel.AnalyzeImage, "analyze")):
        kind(volume.get_fdata().astype(np.int16), np.eye(4)).to_filename(tmp_path / f"{name}.img")
    big = (tmp_path / "one.hdr").read_bytes()
    (tmp_path / "damaged.hdr").write_bytes(big[:70] + b"\x63\0" + big[72:300])
    (tmp_path / "empty.hdr").write_bytes(b"")
    (tmp_path / "envi.hdr").write_bytes(b"ENVI\nsamples = 4\nlines = 5\n")
    (tmp_path / "envi.img").write_bytes(bytes(20))
    (tmp_path / "other.hdr").write_bytes(b"some other header\n")
    found = search.in_folder(tmp_path)
    names = [os.path.basename(path) for path in found.files]
    assert names == ["analyze.hdr", "damaged.hdr", "empty.hdr", "one.hdr", "two.hdr"]
    assert found.passed == {".hdr (ENVI)": 1, ".img": 1, ".hdr": 1}
    for name in ("one", "two", "analyze"):
        assert formats.read(tmp_path / f"{name}.hdr").image.shape[2] == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.hdr", b"ENVI\nsamples = 4\n", "an ENVI file, which is not read; convert it to NIfTI, DICOM or PNG"),
        ("a.png", b"GIF89a", "a GIF file with the suffix .png, which is not read; save it as PNG"),
        ("a.nrrd", b"NRRD0004\n", "a NRRD file, which is not read; convert it to NIfTI, DICOM or PNG"),
        ("a.mgz", gzip.compress(b"x", mtime=0), "a FreeSurfer file, which is not read; convert it"),
        ("a.mp4", b"\0\0\0\x18ftypmp42", "a video, which is not read; save single frames as PNG"),
        ("a.heic", b"\0\0\0\x18ftypheic", "a HEIF file, which is not read; save it as PNG"),
        ("a.pdf", b"%PDF-1.7", "a PDF: export the scans from it"),
        ("a.png", b"%PDF-1.7", "a PDF with the suffix .png: export the scans from it"),
        ("a.rar", b"Rar!\x1a\x07\0", "a RAR archive: unpack it and give the folder"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it and give the folder"),
        ("a.png", WORD, "a Word document with the suffix .png; export the picture from it"),
        ("a.docx", WORD, "a Word document; export the picture from it"),
        ("a.dcm", WORD, "called .dcm, but holds no DICOM; an office document; export the picture from it"),
        ("a.dcm", b"<html>", "called .dcm, but holds no DICOM; perhaps a failed download: copy or export it again"),
        ("a", b"", "empty file (0 bytes): copy it again"),
    ],
)
def test_a_file_in_such_a_format_that_is_named_is_an_error_that_says_what_to_do(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(scan.ScanError, match=re.escape(f"{tmp_path / name}: {words}")):
        formats.read(tmp_path / name)


@pytest.mark.parametrize("part", ["..", "a/../../etc", ".", ""])
def test_a_dicomdir_cannot_name_files_outside_its_folder(part, tmp_path):
    with pytest.raises(scan.ScanError, match="lists a file outside"):
        search._beside(tmp_path, [part, "passwd"])


def test_scans_of_an_archive_are_found_by_content(study, tmp_path):
    folder, names = study
    write_object(folder / "SR.dcm", "SR")
    (folder / "notes.txt").write_text("x")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"study/{path.name}")
    (tmp_path / "out").mkdir()
    found = archives.unpack(str(tmp_path / "a.zip"), str(tmp_path / "out"))
    assert sorted(name.removeprefix("study/") for name, _, _ in found["entries"]) == names
    assert all(error is None and os.path.isfile(path) for _, path, error in found["entries"])
    assert found["passed"] == {"DICOM SR": 1, ".txt": 1}


@pytest.mark.parametrize("order", [("v.hdr", "v.img"), ("v.img", "v.hdr")])
def test_an_archive_keeps_the_two_files_of_a_nifti_pair_together(order, tmp_path):
    volume = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
    nibabel.save(nibabel.Nifti1Pair(volume, np.diag([1, 1, 4, 1])), tmp_path / "v.img")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in order:
            archive.write(tmp_path / name, f"study/{name}")
        archive.write(tmp_path / "v.img", "other/v.img")
        archive.writestr("study/w.hdr", b"#?RADIANCE")
        archive.writestr("study/w.img", b"no voxels")
    (tmp_path / "out").mkdir()
    found = archives.unpack(str(tmp_path / "a.zip"), str(tmp_path / "out"))
    ((name, path, error),) = found["entries"]
    assert (name, error, found["passed"]) == ("study/v.hdr", None, {".img": 2, ".hdr (Radiance)": 1})
    assert formats.format_of(path).count(path) == 3
    np.testing.assert_array_equal(formats.read(path, 1).image, formats.read(tmp_path / "v.hdr", 1).image)
    (tmp_path / "v.img").write_bytes(b"")
    with pytest.raises(scan.ScanError, match=r"v\.hdr: its \.img file: empty file"):
        nifti_header.open_volume(tmp_path / "v.hdr")
