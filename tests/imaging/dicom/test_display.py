"""How stored values are shown: palettes, windows, padding, tables and layouts that contradict themselves."""

import numpy as np
import pytest
from pydicom.uid import ExplicitVRBigEndian

from mcis.imaging import scan
from mcis.imaging.dicom import luts, reader
from tests.fixtures.dicom_files import dataset, items, write

VALUES = np.arange(200).reshape(10, 20)
RAMP = VALUES.astype(np.uint16)
COLOURS = {"Red": np.arange(256), "Green": 255 - np.arange(256), "Blue": np.full(256, 7)}
INDEX = np.arange(80, dtype=np.uint8).reshape(8, 10)
EXPECTED = np.stack([INDEX, 255 - INDEX, np.full_like(INDEX, 7)], -1)


def shown(path, frame=0):
    return reader.read(path, frame).image[..., 0].astype(int)


def notes(path):
    return reader.read(path).notes


def palette(entries, bits, first=0, segmented=False):
    name = "Segmented{}PaletteColorLookupTableData" if segmented else "{}PaletteColorLookupTableData"
    fields = {f"{c}PaletteColorLookupTableDescriptor": [256, first, bits] for c in COLOURS}
    return fields | {name.format(colour): entries(values) for colour, values in COLOURS.items()}


@pytest.mark.parametrize(
    ("bits", "entries"),
    {
        "16 bits": (16, lambda v: (v * 257).astype("<u2").tobytes()),
        "16 bits, low byte zero": (16, lambda v: (v << 8).astype("<u2").tobytes()),
        "8 in the low byte of 16": (16, lambda v: v.astype("<u2").tobytes()),
        "8 in 16-bit words": (8, lambda v: v.astype("<u2").tobytes()),
        "8 in the high byte of 16": (8, lambda v: (v << 8).astype("<u2").tobytes()),
        "8 bits": (8, lambda v: v.astype(np.uint8).tobytes()),
        "8 bits, said to be 16": (16, lambda v: v.astype(np.uint8).tobytes()),
        "12 bits": (12, lambda v: (v << 4).astype("<u2").tobytes()),
    }.values(),
)
def test_entries_of_a_palette_are_found_in_either_byte(bits, entries, tmp_path):
    write(tmp_path / "a.dcm", INDEX, PhotometricInterpretation="PALETTE COLOR", **palette(entries, bits))
    np.testing.assert_array_equal(reader.read(tmp_path / "a.dcm").image, EXPECTED)


def test_a_palette_begins_at_its_first_value_and_is_extended(tmp_path):
    fields = palette(lambda v: v.astype(np.uint8).tobytes(), 8, first=20)
    write(tmp_path / "a.dcm", INDEX, PhotometricInterpretation="PALETTE COLOR", **fields)
    moved = np.clip(INDEX.astype(int) - 20, 0, 255)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.dcm").image[..., 0], moved)


@pytest.mark.parametrize("form", ["<u2", "u1"])
def test_segmented_palettes_are_expanded(form, tmp_path):
    size = np.dtype(form).itemsize
    scale = 257 if size == 2 else 1

    def entries(values):  # a discrete segment, a linear one, a discrete one
        part = values * scale
        codes = [0, 4, *part[:4], 1, 250, part[253], 0, 2, *part[254:]]
        return np.array(codes, form).tobytes()

    fields = palette(entries, 8 * size, segmented=True)
    write(tmp_path / "a.dcm", INDEX, PhotometricInterpretation="PALETTE COLOR", **fields)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.dcm").image, EXPECTED)


def test_an_indirect_segment_repeats_others():
    codes = np.array([0, 2, 10, 20, 1, 2, 40, 2, 2, 0, 0], "<u2").tobytes()  # both segments again, from byte 0
    table = luts._expanded(codes, 8, 16, True)
    assert table.tolist() == [10, 20, 30, 40, 10, 20, 30, 40]
    with pytest.raises(ValueError, match="another length"):
        luts._expanded(np.array([2, 9, 0, 0], "<u2").tobytes(), 8, 16, True)


@pytest.mark.parametrize(
    "change", [{"RedPaletteColorLookupTableData": None}, {"BluePaletteColorLookupTableDescriptor": [9]}]
)
def test_a_damaged_palette_is_shown_in_grey_with_a_note(change, tmp_path):
    fields = palette(lambda v: v.astype(np.uint8).tobytes(), 8) | change
    write(tmp_path / "a.dcm", INDEX, PhotometricInterpretation="PALETTE COLOR", **fields)
    assert "its palette is missing or cannot be read: indices shown in grey" in notes(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("fields", "lowest"),
    [
        ({"PixelPaddingValue": 5000}, 0),
        ({"PixelPaddingValue": 5000, "PixelPaddingRangeLimit": 4000}, 0),
        ({"PixelPaddingValue": 5000, "PhotometricInterpretation": "MONOCHROME1"}, 0),
        ({"PixelPaddingValue": 0}, 1),
    ],
)
def test_padding_takes_no_part_in_the_range_and_is_black(fields, lowest, tmp_path):
    pixels = RAMP.copy()
    pixels[:2] = 4000 if "PixelPaddingRangeLimit" in fields else fields["PixelPaddingValue"]
    write(tmp_path / "a.dcm", pixels, **fields)
    inside = pixels[2:].astype(float)
    expected = np.rint((inside - inside.min()) / (inside.max() - inside.min()) * 255)
    found = shown(tmp_path / "a.dcm")
    assert (found[:2] == 0).all() and "padding shown black" in notes(tmp_path / "a.dcm")
    inverted = fields.get("PhotometricInterpretation") == "MONOCHROME1"
    np.testing.assert_array_equal(found[2:], 255 - expected if inverted else expected)


def test_negative_padding_is_found_whether_it_is_stated_signed_or_not(tmp_path):
    pixels = RAMP.astype(np.int16)
    pixels[0] = -2000
    for name, value, kind in (("a", -2000, "SS"), ("b", 63536, "US")):
        found = dataset(pixels)
        found.add_new(0x00280120, kind, value)
        found.save_as(tmp_path / name, enforce_file_format=True)
        assert (shown(tmp_path / name)[0] == 0).all() and shown(tmp_path / name)[1, 0] == 0
        assert "own range, 20 to 199" in " ".join(notes(tmp_path / name))
    write(tmp_path / "c", np.full((9, 9), 7, np.uint16), PixelPaddingValue=7)
    assert (shown(tmp_path / "c") == 0).all()


IMPOSSIBLE = "its padding value cannot occur in its pixels, and is left out"


@pytest.mark.parametrize(
    ("kind", "bits", "value", "meant"),
    [
        ("u2", 12, ("SS", -2000), None),
        ("u2", 12, ("US", 63536), None),
        ("u2", 12, ("US", 4095), 4095),
        ("u2", 16, ("SS", -2000), 63536),
        ("u1", 8, ("US", 65535), None),
        ("i2", 12, ("SS", -2000), -2000),
        ("i2", 12, ("US", 63536), -2000),
        ("i2", 12, ("US", 2096), -2000),  # -2000 of 12 bits
        ("i2", 12, ("US", 5000), None),
        ("i1", 8, ("US", 200), -56),
    ],
)
def test_padding_is_a_value_that_the_bits_stored_can_have(kind, bits, value, meant, tmp_path):
    pixels = VALUES.astype(kind)
    if kind == "i1":
        pixels = (VALUES % 100).astype(kind)
    if meant is not None:
        pixels[0, 0] = meant
    found = dataset(pixels, BitsStored=bits, HighBit=bits - 1)
    found.add_new(0x00280120, *value)
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    lowest, highest = (pixels.ravel()[1:].min(), pixels.max()) if meant is not None and meant < 0 else (0, None)
    expected = notes(tmp_path / "a.dcm")
    assert ("padding shown black" in expected) == (meant is not None) and (IMPOSSIBLE in expected) == (meant is None)
    if highest is not None:
        assert f"grey values by the frame's own range, {lowest} to {highest}" in expected


@pytest.mark.parametrize("limit", [-1, 0])
def test_a_range_of_padding_values_that_cannot_occur_takes_no_pixels(limit, tmp_path):
    found = dataset(RAMP, BitsStored=12, HighBit=11)
    found.add_new(0x00280120, "SS", -2000)
    found.add_new(0x00280121, "SS", limit)
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), np.rint(VALUES / 199 * 255))
    assert IMPOSSIBLE in notes(tmp_path / "a.dcm")


def test_a_limit_of_padding_values_that_cannot_occur_is_left_out(tmp_path):
    write(tmp_path / "a.dcm", RAMP, BitsStored=12, HighBit=11, PixelPaddingValue=3, PixelPaddingRangeLimit=65535)
    found = shown(tmp_path / "a.dcm")
    assert found[0, 3] == 0 and found[0, 4] == round(4 / 199 * 255)
    assert "the limit of its padding values cannot occur in its pixels, and is left out" in notes(tmp_path / "a.dcm")


@pytest.mark.parametrize(("prefix", "kind"), [("Float", "f4"), ("DoubleFloat", "f8")])
def test_padding_of_floating_point_pixels_is_read(prefix, kind, tmp_path):
    size = 8 * np.dtype(kind).itemsize
    pixels = VALUES.astype(kind) / 10
    pixels[0, :2] = np.array(-1e30, kind), np.array(-2e30, kind)
    fields = {f"{prefix}PixelPaddingValue": float(pixels[0, 0]), f"{prefix}PixelData": pixels.tobytes()}
    unused = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    ranged = fields | {f"{prefix}PixelPaddingRangeLimit": float(pixels[0, 1])}
    dataset(RAMP, BitsAllocated=size, **unused, **ranged).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert {"padding shown black", "grey values by the frame's own range, 0.2 to 19.9"} <= set(
        notes(tmp_path / "a.dcm")
    )
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm").ravel()[2:], np.rint((VALUES.ravel()[2:] - 2) / 197 * 255))
    dataset(RAMP, BitsAllocated=size, **unused, **fields).save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert (shown(tmp_path / "b.dcm").ravel()[[0, 1, 2]] == (0, 0, 255)).all()  # -2e30 is no padding there


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"WindowCenter": ["0", "100"], "WindowWidth": ["0", "101"]}, (49.5, 149.5)),
        ({"WindowCenter": "100", "WindowWidth": ""}, None),
        ({"WindowCenter": "", "WindowWidth": "100"}, None),
        ({"WindowCenter": "100", "WindowWidth": "0.5"}, None),
        ({"WindowCenter": "100", "WindowWidth": "0.5", "VOILUTFunction": "LINEAR_EXACT"}, (99.75, 100.25)),
        ({"WindowCenter": "100", "WindowWidth": "1"}, (99.5, 99.5)),
        ({}, None),
    ],
)
def test_the_first_valid_window_is_used(window, expected, tmp_path):
    write(tmp_path / "a.dcm", RAMP, **window)
    low, high = expected or (0, 199)
    found = shown(tmp_path / "a.dcm")
    np.testing.assert_allclose(found, np.clip((VALUES - low) / max(high - low, 1e-9), 0, 1) * 255, atol=0.6)
    if window and expected is None:
        assert "its window has no valid width, and is left out" in notes(tmp_path / "a.dcm")


def test_a_sigmoid_is_applied_as_in_the_standard(tmp_path):
    write(tmp_path / "a.dcm", RAMP, WindowCenter="100", WindowWidth="80", VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(shown(tmp_path / "a.dcm"), 255 / (1 + np.exp(-4 * (VALUES - 100) / 80)), atol=0.51)


def test_a_slope_of_zero_is_said_and_an_empty_one_is_one(tmp_path):
    write(tmp_path / "a.dcm", RAMP, RescaleSlope="0")
    assert np.ptp(shown(tmp_path / "a.dcm")) == 0
    assert "RescaleSlope is 0: all pixels have one value" in notes(tmp_path / "a.dcm")
    write(tmp_path / "b.dcm", RAMP, RescaleSlope="", RescaleIntercept="")
    np.testing.assert_array_equal(shown(tmp_path / "b.dcm"), np.rint(VALUES / 199 * 255))


@pytest.mark.parametrize(("bits", "scale"), [(16, 257), (16, 1), (8, 1)])
def test_a_table_of_8_bits_in_words_is_not_black(bits, scale, tmp_path):
    table = items(LUTDescriptor=[256, 0, bits])
    table[0].add_new("LUTData", "OW", (np.arange(256) * scale).astype("<u2").tobytes())
    write(tmp_path / "a.dcm", RAMP, VOILUTSequence=table)
    np.testing.assert_allclose(shown(tmp_path / "a.dcm"), VALUES, atol=0.51)


def test_floating_point_pixels_are_read_and_invalid_ones_black(tmp_path):
    found = dataset(RAMP, PixelData=None, BitsAllocated=32, BitsStored=None, HighBit=None, PixelRepresentation=None)
    pixels = VALUES.astype(np.float32) / 1000
    pixels[0, :3] = np.nan, np.inf, -np.inf
    found.FloatPixelData = pixels.tobytes()
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = np.rint((VALUES - 3) / 196 * 255)
    expected[0, :3] = 0
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), expected)
    assert "NaN and infinite values shown black" in notes(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"PhotometricInterpretation": None}, "missing"),
        ({"PhotometricInterpretation": ""}, "missing"),
        ({"PhotometricInterpretation": "GREY"}, "unknown"),
        ({"PhotometricInterpretation": "RGB"}, "RGB, with 1 values"),
        ({"PhotometricInterpretation": "monochrome2 "}, None),
        ({"PhotometricInterpretation": "MONOCHROME 2"}, None),
        ({"SamplesPerPixel": None}, None),
        ({"BitsStored": None, "HighBit": None}, None),
        ({"BitsStored": 20}, "BitsStored contradicts"),
        ({"HighBit": 3}, None),
        ({"PixelRepresentation": None}, None),
        ({"BitsStored": 12, "HighBit": 15}, None),
    ],
)
def test_a_layout_that_is_incomplete_or_contradicts_itself_is_made_good(changes, note, tmp_path):
    write(tmp_path / "a.dcm", RAMP, **changes)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), np.rint(VALUES / 199 * 255))
    assert note is None or any(note in one for one in notes(tmp_path / "a.dcm"))


def test_values_in_the_upper_bits_are_moved_and_unused_bits_ignored(tmp_path):
    write(tmp_path / "upper.dcm", RAMP << 4, BitsStored=12, HighBit=15, WindowCenter="100", WindowWidth="201")
    write(tmp_path / "unused.dcm", RAMP | 0xF000, BitsStored=12, HighBit=11, WindowCenter="100", WindowWidth="201")
    write(tmp_path / "plain.dcm", RAMP, BitsStored=12, HighBit=11, WindowCenter="100", WindowWidth="201")
    for name in ("upper", "unused"):
        np.testing.assert_array_equal(shown(tmp_path / f"{name}.dcm"), shown(tmp_path / "plain.dcm"))
    signed = (RAMP.astype(np.int16) - 100) & 0x0FFF  # without the sign in the upper bits
    write(tmp_path / "signed.dcm", signed.astype(np.int16), BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(shown(tmp_path / "signed.dcm"), np.rint(VALUES / 199 * 255))


COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_colours_are_read_in_every_order(tmp_path):
    write(tmp_path / "a.dcm", COLOUR)
    planes = np.ascontiguousarray(np.moveaxis(COLOUR, -1, 0))
    write(tmp_path / "b.dcm", COLOUR, PlanarConfiguration=1, PixelData=planes.tobytes())
    write(tmp_path / "c.dcm", COLOUR, PlanarConfiguration=None)
    write(tmp_path / "d.dcm", COLOUR, PhotometricInterpretation=None)
    big = dataset(COLOUR)
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    big["PixelData"].VR = "OW"
    big.PixelData = np.frombuffer(COLOUR.tobytes(), "<u2").byteswap().tobytes()
    big.save_as(tmp_path / "e.dcm", implicit_vr=False, little_endian=False, enforce_file_format=True)
    for name in "abcde":
        np.testing.assert_array_equal(reader.read(tmp_path / f"{name}.dcm").image, COLOUR, err_msg=name)


def ybr(rgb, partial):
    weights = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    full = rgb @ weights.T
    scale, offset = (np.array([219, 224, 224]) / 255, [16, 128, 128]) if partial else (1, [0, 128, 128])
    return np.rint(full * scale + offset).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "subsampled"),
    [("YBR_FULL", False), *((kind, how) for kind in ("YBR_FULL_422", "YBR_PARTIAL_422") for how in (True, False))],
)
def test_ybr_pixels_become_rgb_subsampled_or_not(kind, subsampled, tmp_path):
    pairs = np.repeat(COLOUR[:, ::2], 2, axis=1)  # equal colours in pairs lose nothing
    values = ybr(pairs, kind.startswith("YBR_PARTIAL"))
    if subsampled:
        first, second = values[:, ::2].reshape(-1, 3), values[:, 1::2].reshape(-1, 3)
        data = np.stack([first[:, 0], second[:, 0], first[:, 1], first[:, 2]], -1).tobytes()
    else:
        data = values.tobytes()
    write(tmp_path / "a.dcm", pairs, PhotometricInterpretation=kind, PixelData=data)
    assert np.abs(reader.read(tmp_path / "a.dcm").image.astype(int) - pairs).max() <= 3


def test_pixel_data_a_few_bytes_too_short_or_too_long_are_read(tmp_path):
    data = RAMP.astype("<u2").tobytes()
    expected = np.rint(VALUES / 199 * 255)
    window = {"WindowCenter": "100", "WindowWidth": "200", "VOILUTFunction": "LINEAR_EXACT"}
    for name, stored in (("long", data + bytes(30)), ("short", data[:-6])):
        write(tmp_path / f"{name}.dcm", RAMP, PixelData=stored, **window)
    expected = np.rint(np.clip(VALUES / 200, 0, 1) * 255)
    np.testing.assert_array_equal(shown(tmp_path / "long.dcm"), expected)
    np.testing.assert_array_equal(shown(tmp_path / "short.dcm").ravel()[:-3], expected.ravel()[:-3])
    assert "the last 6 bytes of its pixels are missing, and shown as 0" in notes(tmp_path / "short.dcm")
    write(tmp_path / "cut.dcm", RAMP, PixelData=data[:-100])
    with pytest.raises(scan.ScanError, match="truncated: 300 of the 400 bytes"):
        reader.read(tmp_path / "cut.dcm")


def test_frames_of_single_bits_are_unpacked(tmp_path):
    bits = np.random.default_rng(1).integers(0, 2, (3, 5, 7), dtype=np.uint8)  # frames begin within a byte
    found = dataset(bits, NumberOfFrames=3, BitsAllocated=1, BitsStored=1, HighBit=0)
    found.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes() + b"\0" * (-(-bits.size // 8) % 2)
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    for frame in range(3):
        np.testing.assert_array_equal(shown(tmp_path / "a.dcm", frame), bits[frame] * 255)


@pytest.mark.parametrize("name", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_damaged_table_is_left_out_with_a_note(name, tmp_path):
    write(tmp_path / "a.dcm", RAMP, **{name: items(LUTDescriptor=[256, 0, 8])})
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), np.rint(VALUES / 199 * 255))
    assert f"{name} cannot be read, and is left out" in notes(tmp_path / "a.dcm")


def table(first, count, kind):
    """A sequence with a table of 8 bits, 0, 1, 2 and so on, whose descriptor has a value representation."""
    made = items()[0]
    made.add_new("LUTDescriptor", kind, [count, first, 8])
    made.add_new("LUTData", "OW", (np.arange(count) % 256).astype("<u2").tobytes())
    return [made]


@pytest.mark.parametrize("kind", ["US", "SS"])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_the_first_value_of_a_table_is_signed_as_the_pixels_are(sequence, kind, tmp_path):
    pixels = (VALUES - 100).astype(np.int16)
    fields = {sequence: table(-100 if kind == "SS" else 65436, 256, kind)}
    write(tmp_path / "a.dcm", pixels, WindowCenter="128", WindowWidth="256", VOILUTFunction="LINEAR_EXACT", **fields)
    if sequence == "VOILUTSequence":
        write(tmp_path / "a.dcm", pixels, **fields)
    np.testing.assert_allclose(shown(tmp_path / "a.dcm"), VALUES, atol=1)


@pytest.mark.parametrize("kind", ["US", "SS"])
def test_a_voi_table_may_begin_below_zero_for_unsigned_pixels_that_are_rescaled(kind, tmp_path):
    fields = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
    fields["VOILUTSequence"] = table(-1024 if kind == "SS" else 64512, 256, kind)
    write(tmp_path / "a.dcm", RAMP, BitsStored=12, HighBit=11, **fields)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), VALUES)


@pytest.mark.parametrize("kind", ["US", "SS"])
def test_a_table_for_large_unsigned_pixels_begins_where_it_says(kind, tmp_path):
    pixels = (VALUES + 40000).astype(np.uint16)
    fields = {"VOILUTSequence": table(40000 - 65536 * (kind == "SS"), 256, kind)}
    write(tmp_path / "a.dcm", pixels, **fields)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), VALUES)


def test_a_palette_for_signed_indices_begins_below_zero(tmp_path):
    signed = (INDEX.astype(int) - 40).astype(np.int8)
    fields = palette(lambda v: v.astype(np.uint8).tobytes(), 8)
    found = dataset(signed, PhotometricInterpretation="PALETTE COLOR", **fields)
    for name in COLOURS:
        found[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        found[f"{name}PaletteColorLookupTableDescriptor"].value = [256, 65536 - 40, 8]
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.dcm").image, EXPECTED)
