"""NIfTI and DICOM files whose right value is known; see `known`."""

import gzip
import io
import random
from typing import Any

import nibabel
import numpy as np
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from tests.fixtures.dicom_files import dataset
from tests.lanes.fuzz.known import Make, known
from tests.lanes.fuzz.known_pictures import draw, shown
from tests.lanes.fuzz.mutations import Tree

SPACING = 0.5, 0.75, 4.0
AXES = "qform_code", "sform_code"


def levels(rng: random.Random) -> np.ndarray:
    """A volume (X, Y, Z) whose grey levels are its values: 2 % of 0 and of 255 at least."""
    source = np.random.default_rng(rng.randrange(1 << 30))
    made = source.integers(0, 256, (rng.randint(4, 12), rng.randint(4, 12), rng.randint(2, 4)), np.uint8)
    flat = made.reshape(-1)
    flat[: len(flat) // 40 + 2], flat[-(len(flat) // 40) - 2 :] = 0, 255
    return made


def frames(volume: np.ndarray) -> np.ndarray:
    """Its slices as radiologists view them, of axes to the right, front and head: uint8 (Z, Y, X, 3)."""
    displayed = volume[::-1, ::-1].transpose(2, 1, 0)
    return np.repeat(displayed[..., None], 3, 3)


def nifti(
    volume: np.ndarray, pair: bool = False, order: str = "<", spacing: Any = SPACING, **fields: Any
) -> tuple[bytes, bytes]:
    """Header and voxels of a NIfTI, as a file of one piece or a pair."""
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_shape(volume.shape)
    header.set_data_dtype(volume.dtype)
    header.set_xyzt_units("mm")
    affine = np.diag([*spacing, 1.0])
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header["magic"], header["vox_offset"] = (b"ni1", 0) if pair else (b"n+1", 352)
    for name, value in fields.items():
        header[name] = value
    voxels = volume.astype(volume.dtype.newbyteorder(order)).tobytes(order="F")
    return header.binaryblock + (b"" if pair else b"\0" * 4), voxels


def units(rng: random.Random) -> Tree:
    """A: spacing in another unit."""
    code, factor = rng.choice(((0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)))
    volume = levels(rng)
    data = b"".join(nifti(volume, order=rng.choice("<>"), spacing=np.divide(SPACING, factor), xyzt_units=code))
    return known(frames(volume), {"a.nii": data}, spacing=(0.75, 0.5))


def types(rng: random.Random) -> Tree:
    """B: another type, byte order, scale; a negative slope inverts."""
    volume = levels(rng)
    form = rng.choice(("u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"))
    slope = rng.choice((1.0, 0.0, np.nan, 2.5, -1.0))
    data = b"".join(
        nifti(volume.astype(form), order=rng.choice("<>"), scl_slope=slope, scl_inter=rng.choice((0.0, 7.0)))
    )
    return known(frames(255 - volume if slope < 0 else volume), {"a.nii": data}, atol=1)


def without_position(rng: random.Random) -> Tree:
    """C: no field gives the position: slices as stored, no millimetres."""
    volume = levels(rng)
    bad = rng.choice((np.nan, np.inf, 0.0))
    fields: dict[str, Any] = {
        "srow_x": [bad] * 4,
        "srow_y": [bad] * 4,
        "quatern_b": 9.0,
        "pixdim": [1, bad, bad, bad, 0, 0, 0, 0],
    }
    fields |= {"qform_code": rng.choice((0, 1)), "sform_code": rng.choice((0, 2))}
    displayed = volume[:, ::-1].transpose(2, 1, 0)
    right = np.repeat(displayed[..., None], 3, 3)
    return known(right, {"a.nii": b"".join(nifti(volume, **fields))}, spacing=None)


def odd_header(rng: random.Random) -> Tree:
    """D: a header that other programs read; NaN outside the head."""
    volume = levels(rng)
    x, y, z = volume.shape
    fields = rng.choice(
        (
            {"dim": [0, x, y, z, 1, 1, 1, 1]},
            {"dim": [99, x, y, z, 1, 1, 1, 1]},
            {"dim": [3, x, y, z, 0, 0, 0, 0]},
            {"dim": [6, x, y, z, 1, 1, 1, 1]},
            {"vox_offset": rng.choice((0.0, -1.0, np.nan, 100.0))},
            {"intent_code": -7, "slice_code": 99, "cal_max": np.nan, "toffset": np.inf},
            {"pixdim": [0, 0.5, 0.75, 4, np.nan, 0, 0, 0], "sform_code": 0},
        )
    )
    if rng.random() < 0.3:
        floats = volume.astype(np.float32)
        outside = volume == 0
        outside[0, 0, 0] = False
        low, high = np.percentile(volume[~outside], (0.5, 99.5))
        right = np.clip(np.rint((volume - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
        floats[outside] = rng.choice((np.nan, np.inf, -np.inf))
        return known(frames(right), {"a.nii": b"".join(nifti(floats))}, atol=1)
    return known(frames(volume), {"a.nii": b"".join(nifti(volume, order=rng.choice("<>"), **fields))})


def many_slices(rng: random.Random) -> Tree:
    """E: a thousand slices of a packed volume."""
    volume = np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 17, rng.choice((2, 100, 1000)), 2)
    data = gzip.compress(b"".join(nifti(volume)), 1, mtime=0)
    return known(frames(volume), {"a.nii.gz": data})


def any_name(rng: random.Random) -> Tree:
    """I: any name, packed or not, pairs, time points."""
    volume = levels(rng)
    right = frames(volume)
    if rng.random() < 0.3:
        head, voxels = nifti(volume, pair=True)
        upper, packed = rng.random() < 0.5, rng.random() < 0.3
        names = ["A.HDR", "A.IMG"] if upper else ["a.hdr", "a.img"]
        if packed:
            voxels, names[1] = gzip.compress(voxels, mtime=0), names[1] + (".GZ" if upper else ".gz")
        return known(right, {names[0]: head, names[1]: voxels}, spacing=(0.75, 0.5))
    if rng.random() < 0.3:
        volume = np.stack([volume, volume[::-1].copy()], 3)
        right = np.concatenate([right, frames(volume[..., 1])])
    data = b"".join(nifti(volume))
    packed = gzip.compress(data, mtime=0) if rng.random() < 0.5 else data
    return known(right, {rng.choice(("volume", "a.nii", "a.nii.gz", "A.NII", "brain.1", "a.b.gz")): packed})


def cut(rng: random.Random) -> Tree:
    """B: a volume without its end is an error."""
    data = b"".join(nifti(levels(rng)))
    data = gzip.compress(data, mtime=0) if rng.random() < 0.5 else data
    return known(None, {"a.nii": data[: rng.randrange(1, len(data) - 9)]}, rejected="")


def several_values(rng: random.Random) -> Tree:
    """H: volumes of colours and vectors are named."""
    volume = levels(rng)
    if rng.random() < 0.5:
        return known(None, {"a.nii": b"".join(nifti(volume, datatype=128, bitpix=24))}, rejected="voxels of type RGB")
    dim = [5, *volume.shape, 1, 3, 1, 1]
    return known(None, {"a.nii": b"".join(nifti(np.repeat(volume, 3, 2), dim=dim))}, rejected="one value per voxel")


def dicom(rng: random.Random) -> Tree:
    """A and B: photometric interpretation, window, depth, transfer syntax, planes of DICOM."""
    picture = draw(rng)
    syntax = rng.choice((ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless))
    fields: dict[str, Any] = {}
    stored = picture
    if picture.ndim == 3:
        if syntax != RLELossless and rng.random() < 0.5:
            fields["PlanarConfiguration"] = 1
    else:
        if rng.random() < 0.5:
            stored, fields["PhotometricInterpretation"] = 255 - stored, "MONOCHROME1"
        if rng.random() < 0.5:
            stored = stored.astype(np.uint16) * 16
            fields |= {"BitsStored": 12, "HighBit": 11}
        if rng.random() < 0.5:
            scale = 16 if stored.dtype == np.uint16 else 1
            fields |= {"RescaleSlope": "0.5", "RescaleIntercept": "-3", "VOILUTFunction": "LINEAR_EXACT"}
            fields |= {"WindowCenter": str(127.5 * scale * 0.5 - 3), "WindowWidth": str(255 * scale * 0.5)}
    made = dataset(stored, **fields)
    if fields.get("PlanarConfiguration"):
        content = np.ascontiguousarray(stored.transpose(2, 0, 1)).tobytes()
        made.PixelData = content + b"\0" * (len(content) % 2)
    if syntax == RLELossless:
        made.compress(RLELossless, encoding_plugin="pydicom")  # GDCM aborts on some sizes
    elif syntax == ExplicitVRBigEndian and stored.dtype == np.uint16:
        made.PixelData = stored.astype(">u2").tobytes()
    made.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return known(shown(picture), {rng.choice(("a.dcm", "IM0001", "a")): file.getvalue()}, atol=1)


VOLUMES: tuple[Make, ...] = (
    *(units, types, without_position, odd_header, odd_header, many_slices, any_name, any_name, cut, several_values),
    *(dicom, dicom),
)
