"""DICOM files: grey values, spacing and errors, and no patient data in anything."""

import sys

import cv2
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from mcis.imaging import formats, phantom, scan
from mcis.imaging.dicom import compressed, elements, objects, reader
from mcis.imaging.dicom import file as dicom_file
from mcis.imaging.dicom import header as dicom_header
from mcis.imaging.modality import stated_content
from tests.fixtures.dicom_files import CANARY, dataset, items, write
from tests.lanes.fuzz.crafted_pictures import jpeg_scans
from tests.lanes.fuzz.crafted_scans import J2K, JLS, JPEG, LOSSLESS, RLE, dicom_of, element, j2k, jpeg_in_dicom, packed
from tests.lanes.fuzz.mutations import write_tree

VALUES = np.arange(200).reshape(10, 20)
RAMP = VALUES.astype(np.uint16)


def shown(path, frame=0):
    return reader.read(path, frame).image[..., 0].astype(int)


@pytest.mark.parametrize(
    "stored", ["RLE", "bigendian", "implicit", "expb", "padded", "jp2klossless", "jpeg_ls_lossless"]
)
def test_an_image_is_the_same_in_every_transfer_syntax(stored):
    plain, other = (reader.read(get_testdata_file(f"MR_small{how}.dcm")) for how in ("", f"_{stored}"))
    np.testing.assert_array_equal(plain.image, other.image)
    assert plain.spacing == other.spacing == (0.3125, 0.3125)


@pytest.mark.parametrize("stored", ["gdcm", "dcmtk", "lossy_gdcm"])
def test_colour_jpegs_are_read_as_rgb(stored):
    plain, other = (reader.read(get_testdata_file(f"SC_rgb_{how}.dcm")).image for how in ("rle", f"jpeg_{stored}"))
    assert np.abs(plain.astype(int) - other).mean() < 3


def test_no_patient_data_are_read_from_a_header(tmp_path):
    write(tmp_path / "a.dcm", RAMP)
    assert CANARY in str(dcmread(tmp_path / "a.dcm"))
    assert "CANARY" not in str(dicom_header.read_header(tmp_path / "a.dcm")).upper()


def test_a_window_is_applied_as_in_the_standard(tmp_path):
    write(tmp_path / "a.dcm", RAMP, WindowCenter="100", WindowWidth="101")
    # PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    expected = np.clip(np.rint(((VALUES - 99.5) / 100 + 0.5) * 255), 0, 255)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), expected)
    write(tmp_path / "b.dcm", RAMP, WindowCenter="100", WindowWidth="100", VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(shown(tmp_path / "b.dcm"), np.clip((VALUES - 50) * 2.55, 0, 255), atol=0.51)
    assert "file's window, 50 to 150" in reader.read(tmp_path / "b.dcm").notes[0]
    write(tmp_path / "several.dcm", RAMP, WindowCenter=["100", "5"], WindowWidth=["101", "7"])
    np.testing.assert_array_equal(shown(tmp_path / "several.dcm"), expected)


def test_values_are_rescaled_before_the_window(tmp_path):
    fields = {"RescaleSlope": "2", "RescaleIntercept": "-100"}
    write(tmp_path / "a.dcm", RAMP, WindowCenter="100.5", WindowWidth="201", **fields)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), np.clip(np.rint((VALUES * 2.0 - 100) / 200 * 255), 0, 255))
    write(tmp_path / "b.dcm", RAMP, **fields)
    np.testing.assert_array_equal(shown(tmp_path / "b.dcm"), np.rint(VALUES / 199 * 255))
    assert "own range, -100 to 298" in reader.read(tmp_path / "b.dcm").notes[0]


def test_monochrome1_is_inverted(tmp_path):
    write(tmp_path / "a.dcm", RAMP)
    write(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(shown(tmp_path / "b.dcm"), 255 - shown(tmp_path / "a.dcm"))
    for kind, noted in (("MONOCHROME1", False), ("MONOCHROME2", True)):
        plain = tmp_path / ("a.dcm" if noted else "b.dcm")
        write(tmp_path / "c.dcm", RAMP, PhotometricInterpretation=kind, PresentationLUTShape="INVERSE")
        np.testing.assert_array_equal(shown(tmp_path / "c.dcm"), shown(plain))
        assert any("PresentationLUTShape INVERSE" in note for note in reader.read(tmp_path / "c.dcm").notes) == noted


def test_signed_values_and_a_voi_table_are_applied(tmp_path):
    write(tmp_path / "a.dcm", RAMP.astype(np.int16) - 100)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), np.rint(VALUES / 199 * 255))
    table = items(LUTDescriptor=[200, 0, 16])
    table[0].add_new("LUTData", "OW", np.linspace(65535, 0, 200).astype("<u2").tobytes())
    write(tmp_path / "b.dcm", RAMP, VOILUTSequence=table)
    np.testing.assert_allclose(shown(tmp_path / "b.dcm"), 255 - VALUES / 199 * 255, atol=0.51)


def test_frames_have_their_own_windows_and_share_a_spacing(tmp_path):
    frames = np.stack([RAMP, RAMP])
    groups = [items(FrameVOILUTSequence=items(WindowCenter="100", WindowWidth=w))[0] for w in ("101", "201")]
    shared = items(PixelMeasuresSequence=items(PixelSpacing=["0.5", "0.25"]))
    path = tmp_path / "a.dcm"
    fields = {"PerFrameFunctionalGroupsSequence": groups, "SharedFunctionalGroupsSequence": shared}
    write(path, frames, NumberOfFrames=2, **fields)
    assert list(formats.frames([str(path)])) == [(str(path), 0), (str(path), 1)]
    for frame, width in enumerate((101, 201)):
        expected = np.clip(np.rint(((VALUES - 99.5) / (width - 1) + 0.5) * 255), 0, 255)
        np.testing.assert_array_equal(shown(path, frame), expected)
        assert reader.read(path, frame).spacing == (0.5, 0.25)
    with pytest.raises(scan.ScanError, match="has no frame 2"):
        reader.read(path, 2)


def region(delta):
    return items(PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=delta, PhysicalDeltaY=2 * delta)


def test_an_ultrasound_has_the_spacing_of_its_region_and_a_warning_of_burnt_in_names(tmp_path):
    colour = phantom.make_phantom("breast", 1, 3, size=(90, 120)).image
    write(tmp_path / "a.dcm", colour, Modality="US", SequenceOfUltrasoundRegions=region(0.01))
    found = reader.read(tmp_path / "a.dcm")
    np.testing.assert_array_equal(found.image, colour)
    assert found.spacing == pytest.approx((0.2, 0.1))
    assert "burnt into its pixels" in found.notes[-1]
    write(tmp_path / "b.dcm", colour, Modality="US", SequenceOfUltrasoundRegions=region(0.01) + region(0.02))
    assert reader.read(tmp_path / "b.dcm").spacing is None
    write(tmp_path / "c.dcm", colour, Modality="US", BurnedInAnnotation="NO")
    assert reader.read(tmp_path / "c.dcm").notes == ()
    write(tmp_path / "d.dcm", colour, BurnedInAnnotation="YES")
    assert "burnt into its pixels" in reader.read(tmp_path / "d.dcm").notes[-1]


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([0.0], (0.4, 0.3)),
        ([0.0, 0.01], (0.2, 0.1)),
        ([float("nan"), 0.01], (0.2, 0.1)),
        ([0.01, 0.01000001], (0.2, 0.1)),
        ([-0.01, 0.01], (0.2, 0.1)),
        ([0.01, 0.0101], None),
    ],
)
def test_regions_of_an_ultrasound_without_a_scale_or_of_the_same_one_do_not_hide_its_spacing(
    deltas, expected, tmp_path
):
    regions = [one for delta in deltas for one in region(delta)]
    spectrum = items(PhysicalUnitsXDirection=4, PhysicalUnitsYDirection=7, PhysicalDeltaX=0.5, PhysicalDeltaY=3.0)
    fields = {"Modality": "US", "SequenceOfUltrasoundRegions": regions + spectrum}
    write(tmp_path / "a.dcm", RAMP, PixelSpacing=["0.4", "0.3"], **fields)
    found = reader.read(tmp_path / "a.dcm")
    assert found.spacing == (None if expected is None else pytest.approx(expected, rel=1e-5))
    write(tmp_path / "b.dcm", RAMP, **fields)
    if deltas == [0.0]:
        assert reader.read(tmp_path / "b.dcm").spacing is None
        assert any("its pixel spacing cannot be read" in note for note in reader.read(tmp_path / "b.dcm").notes)


def test_ybr_and_palette_colours_become_rgb(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    luma = cv2.cvtColor(colour, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    write(tmp_path / "a.dcm", np.ascontiguousarray(luma), PhotometricInterpretation="YBR_FULL")
    assert np.abs(reader.read(tmp_path / "a.dcm").image.astype(int) - colour).max() <= 2
    index = np.arange(80, dtype=np.uint8).reshape(8, 10)
    ramps = {"Red": np.arange(256), "Green": 255 - np.arange(256), "Blue": np.full(256, 7)}
    palette = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ramps}
    palette |= {f"{c}PaletteColorLookupTableData": (v * 257).astype("<u2").tobytes() for c, v in ramps.items()}
    write(tmp_path / "b.dcm", index, PhotometricInterpretation="PALETTE COLOR", **palette)
    expected = np.stack([index, 255 - index, np.full_like(index, 7)], -1)
    np.testing.assert_array_equal(reader.read(tmp_path / "b.dcm").image, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PixelData": None}, "holds no image: truncated, or its pixels are elsewhere; export the images again"),
        ({"Rows": 0}, r"holds only data about the scan, no image \(MR\); export the images again"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels; at most"),
        ({"Rows": 400}, "truncated: 400 of the 16000 bytes of the frame are there; copy or export it again"),
        ({"Modality": "SEG"}, "of modality SEG: a segmentation, which outlines parts of other scans; give the scans"),
        ({"PhotometricInterpretation": "CMYK", "SamplesPerPixel": 4}, "unsupported pixels of 4 values"),
        ({"BitsAllocated": 12}, "12 bits a value"),
    ],
)
def test_an_unsupported_or_damaged_header_is_an_error(changes, message, tmp_path):
    write(tmp_path / "a.dcm", RAMP, **changes)
    with pytest.raises(scan.ScanError, match=message):
        reader.read(tmp_path / "a.dcm")


def test_a_truncated_file_is_an_error_and_a_deflated_one_is_read(tmp_path):
    write(tmp_path / "a.dcm", RAMP)
    whole = (tmp_path / "a.dcm").read_bytes()
    for end in (0, 100, 131, 200, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.dcm").write_bytes(whole[:end])
        with pytest.raises(scan.ScanError, match=r"cut\.dcm"):
            reader.read(tmp_path / "cut.dcm")
    found = dataset(RAMP)
    found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    found.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(shown(tmp_path / "deflated.dcm"), shown(tmp_path / "a.dcm"))


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_a_frame_larger_than_the_header_says_is_not_decoded(name, tmp_path):
    found = dcmread(get_testdata_file(name))
    found.Rows //= 2
    found.save_as(tmp_path / "a.dcm")
    with pytest.raises(scan.ScanError, match="but the header says"):
        reader.read(tmp_path / "a.dcm")


def test_each_frame_of_a_compressed_file_is_read(tmp_path):
    greys = [np.full((16, 16), value, np.uint8) for value in (10, 200)]
    found = dataset(np.stack(greys), NumberOfFrames=2, WindowCenter="127.5", WindowWidth="256")
    found.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found.PixelData = encapsulate([cv2.imencode(".jpg", grey)[1].tobytes() for grey in greys])
    found["PixelData"].VR = "OB"
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    for frame, value in enumerate((10, 200)):
        assert abs(shown(tmp_path / "a.dcm", frame) - value).max() <= 2
    packed = dataset(RAMP)
    packed.compress(RLELossless)
    packed.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(shown(tmp_path / "b.dcm"), np.rint(VALUES / 199 * 255))


def test_without_the_extra_an_error_says_how_to_install_it(tmp_path, monkeypatch):
    write(tmp_path / "a.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(scan.ScanError, match=r"pip install -e '\.\[dicom\]'"):
        reader.read(tmp_path / "a.dcm")
    assert reader.count_frames(tmp_path / "a.dcm") == 1


def crafted(tmp_path, tree):
    write_tree(tree, tmp_path)
    return tmp_path / "a.dcm"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            packed(J2K, j2k(64, 64, 64, 16_000)),
            "64 x 64 pixels of 16000 x 8 bits, but the header says 64 x 64 pixels of 1 x 8",
        ),
        (packed(J2K, j2k(64, 64, 64), samples=3), "of 1 x 8 bits, but the header says 64 x 64 pixels of 3 x 8"),
        (jpeg_in_dicom("cmyk.jpg", JPEG, samples=3), "of 4 x 8 bits, but the header says"),
        (packed(J2K, j2k(8192, 8192, 8192, 3), 8192, 8192, samples=3), "decoding a frame needs 768 MiB"),
        (packed(J2K, b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64)), "a frame without a size"),
        (packed(J2K, bytes(64)), "a frame without a size"),
        (packed(JPEG, jpeg_scans(2000, 2000, 9999)["a.jpg"], 2000, 2000), "4000000 pixels in 10000 progressive scans"),
    ],
    ids=[
        "GDCM aborts",
        "GDCM aborts: fewer samples",
        "GDCM aborts: four samples",
        "large",
        "boxes without end",
        "no codestream",
        "scans",
    ],
)
def test_a_codestream_that_would_abort_the_process_or_exhaust_it_is_not_decoded(tree, message, tmp_path):
    with pytest.raises(scan.ScanError, match=message):
        reader.read(crafted(tmp_path, tree))


def test_gdcm_decodes_only_what_no_other_decoder_can(tmp_path):
    plugins = {name: compressed.decoder_for("a.dcm", UID(name.decode())) for name in (JPEG, J2K, JLS, LOSSLESS, RLE)}
    assert plugins == {JPEG: "pillow", J2K: "pillow", JLS: "pyjpegls", LOSSLESS: "", RLE: "pydicom"}


def test_a_frame_of_too_many_bytes_is_rejected_before_it_is_read(tmp_path):
    path = crafted(tmp_path, {"a.dcm": dicom_of(8192, 8192, samples=3, bits=32)})
    with pytest.raises(scan.ScanError, match="768 MiB of pixels per frame; at most 256 are read"):
        reader.read(path)


def test_a_limited_number_of_bytes_is_read_from_a_header(tmp_path, monkeypatch):
    monkeypatch.setattr(elements, "MAX_PICKED", 1 << 16)
    monkeypatch.setattr(elements, "MAX_ELEMENTS", 4000)
    for name, private in (("a", True), ("b", False)):  # an element that is not in TAGS is skipped
        tag = (0x11, 0x1001) if private else (0x28, 0x1201)
        data = dicom_of(8, 8, more=element(tag, b"OW", bytes(1 << 17)), pixels=bytes(64))
        (tmp_path / name).write_bytes(data)
    assert reader.read(tmp_path / "a").image.shape == (8, 8, 3)
    with pytest.raises(scan.ScanError, match="b: the header is larger than the limit"):
        reader.read(tmp_path / "b")
    (tmp_path / "c").write_bytes(bytes(128) + b"DICM" + bytes(1 << 15))  # four thousand empty elements
    with pytest.raises(scan.ScanError, match="more than 4000 elements"):
        reader.read(tmp_path / "c")


def test_a_jpeg_ls_frame_without_end_marker_is_rejected_before_charls_spins(tmp_path):
    whole = dcmread(get_testdata_file("JPEGLSNearLossless_16.dcm"))
    frame = next(generate_frames(whole.PixelData, number_of_frames=1)).rstrip(b"\0")
    for name, data in (("whole", frame), ("cut", frame[:-20]), ("padded", frame + b"\0\0")):
        whole.PixelData = encapsulate([data])
        whole.save_as(tmp_path / f"{name}.dcm")
    np.testing.assert_array_equal(shown(tmp_path / "padded.dcm"), shown(tmp_path / "whole.dcm"))
    with pytest.raises(scan.ScanError, match="truncated frame"):
        reader.read(tmp_path / "cut.dcm")


@pytest.mark.parametrize("spacing", [["500", "500"], ["0.00005", "0.00005"]])
def test_a_spacing_that_no_scan_has_costs_the_millimetres_only(spacing, tmp_path):
    write(tmp_path / "a.dcm", np.arange(600, dtype=np.uint16).reshape(20, 30), PixelSpacing=spacing)
    found = reader.read(tmp_path / "a.dcm")
    assert found.spacing is None and any("implausible" in note for note in found.notes)


@pytest.mark.parametrize(("spacing", "believed"), [("11", False), ("99", False), ("9.9", True)])
def test_a_spacing_of_a_field_of_view_that_no_scan_has_costs_the_millimetres_only(spacing, believed, tmp_path):
    values = np.arange(5000, dtype=np.uint16).reshape(50, 100)
    write(tmp_path / "a.dcm", values, PixelSpacing=[spacing, spacing])
    write(tmp_path / "b.dcm", values, Modality="US", SequenceOfUltrasoundRegions=region(float(spacing) / 10))
    found = [reader.read(tmp_path / f"{name}.dcm") for name in "ab"]
    expected = ((9.9, 9.9), pytest.approx((19.8, 9.9))) if believed else (None, None)
    assert tuple(one.spacing for one in found) == expected
    assert believed or any("field of view of 550 x 1100 mm" in note or spacing == "99" for note in found[0].notes)
    noted = [any("implausible: no measurements in mm" in note for note in one.notes) for one in found]
    assert noted == [not believed] * 2


class Asked(dict):
    """An empty data set that remembers the names it is asked for."""

    def __init__(self, **values):
        super().__init__(values)
        self.names = set()

    def get(self, name, default=None):
        self.names.add(name)
        return super().get(name, default)


def test_every_element_that_is_asked_for_is_read_from_files():
    """One that is missing in TAGS, or in MACROS for functional groups, would be None for every file."""
    group = Asked()
    groups = {"PerFrameFunctionalGroupsSequence": [group], "SharedFunctionalGroupsSequence": [group]}
    for header in (Asked(**groups), Asked(**groups, SeriesInstanceUID="1.2", Modality="US", NumberOfFrames=2)):
        stated_content(header, 0)
        objects.kind_of(header)
        dicom_header.spacing_of(header, 0)
        dicom_header.geometry_of(header, 0)
        dicom_header.position_notes(header, 0)
        dicom_header.aspect_of(header)
        reader._burnt_in(header)
        assert {"Modality", "BodyPartExamined", "AnatomicRegionSequence", "ConversionType"} < header.names
        assert header.names <= set(dicom_header.TAGS)
    assert {"FrameAnatomySequence", "PixelMeasuresSequence"} < group.names <= {"", *dicom_file.MACROS}
