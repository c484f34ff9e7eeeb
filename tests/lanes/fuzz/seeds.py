"""Valid inputs, from which the mutators make bad ones: phantoms and test files of pydicom; always the same bytes."""

import functools
import gzip
import io
import json
import pathlib
import tempfile
import zipfile

import cv2
import nibabel
import numpy as np
import PIL.Image
import pydicom.data
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, RLELossless

from mcis.imaging import phantom
from tests.fixtures.dicom_files import dataset, items
from tests.lanes.fuzz.mutations import Tree

DUMMY = pathlib.Path(__file__).parents[3] / "datasets" / "mcis_scans" / "dummy_data"

KEPT = pathlib.Path(__file__).parents[3] / "fuzz" / ".weights"


@functools.cache
def picture() -> np.ndarray:
    """A small scan: uint8 (72, 96, 3)."""
    return phantom.make_phantom("breast", 1, 3, size=(72, 96)).image


@functools.cache
def pictures() -> list[Tree]:
    colour = picture()
    grey = colour[..., 0]
    deep = grey.astype(np.uint16) * 257
    alpha = np.dstack([colour, np.full_like(grey, 200)])
    made: dict[str, bytes] = {}
    for name, array in {"grey": grey, "colour": colour, "deep": deep, "alpha": alpha}.items():
        made[f"{name}.png"] = _cv(".png", array)
        made[f"{name}.tif"] = _cv(".tif", array)
    made["deep_colour.png"] = _cv(".png", np.dstack([deep] * 3))
    made["float.tif"] = _cv(".tiff", grey.astype(np.float32) / 255)
    made["double.tif"] = _cv(".tiff", np.dstack([grey] * 3).astype(np.float64))
    made |= {"grey.bmp": _cv(".bmp", grey), "colour.bmp": _cv(".bmp", colour), "colour.jpg": _cv(".jpg", colour)}
    made["progressive.jpeg"] = _cv(".jpg", colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 4])
    image = PIL.Image.fromarray(grey)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        made[f"{compression}.tif"] = _pil(image.convert("RGB"), "TIFF", compression=compression)
    made["group4.tif"] = _pil(image.convert("1"), "TIFF", compression="group4")
    made["palette.tif"] = _pil(image.convert("P"), "TIFF")
    pages = [image, image.convert("RGB"), image.resize((20, 30))]
    made["pages.tif"] = _pil(image, "TIFF", save_all=True, append_images=pages)
    made["big.tif"] = _pil(image, "TIFF", save_all=True, append_images=pages, big_tiff=True)
    made["palette.png"], made["bit.png"] = _pil(image.convert("P"), "PNG"), _pil(image.convert("1"), "PNG")
    made["cmyk.jpg"] = _pil(image.convert("CMYK"), "JPEG")
    made["exif.jpg"] = _pil(image, "JPEG", exif=_exif())
    made["palette.bmp"] = _pil(image.convert("P"), "BMP")
    return [{name: content} for name, content in made.items()]


def _cv(suffix: str, array: np.ndarray, options: tuple[int, ...] | list[int] = ()) -> bytes:
    return cv2.imencode(suffix, array, list(options))[1].tobytes()


def _pil(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _exif() -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    return exif


OF_PYDICOM = (
    *("MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless", "MR_small_expb"),
    *("MR_small_jpeg_ls_lossless", "MR_truncated", "JPEG2000", "JPEG-lossy", "JPGExtended", "693_J2KI", "badVR"),
    *("JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_dcmtk", "SC_rgb_gdcm_KY"),
    *("SC_rgb_jls_lossy_line", "SC_rgb_jls_lossy_sample", "SC_rgb_rle", "SC_rgb_rle_16bit_2frame", "SC_rgb_small_odd"),
    *("SC_rgb_rle_32bit_2frame", "SC_rgb_dcmtk_+eb+cy+s2", "SC_jpeg_no_color_transform", "rtdose", "rtdose_rle"),
    *("SC_ybr_full_422_uncompressed", "GDCMJ2K_TextGBR", "liver_1frame", "UN_sequence", "image_dfl", "no_meta"),
    *("SC_rgb_small_odd_jpeg", "nested_priv_SQ", "reportsi"),
)


@functools.cache
def dicom() -> list[Tree]:
    folder = pathlib.Path(pydicom.data.__file__).parent / "test_files"
    found: list[Tree] = [{f"{name}.dcm": (folder / f"{name}.dcm").read_bytes()} for name in OF_PYDICOM]
    grey = picture()[..., 0]
    frames = np.stack([grey, 255 - grey]).astype(np.uint16) * 16
    window = items(WindowCenter="1000", WindowWidth="2000")
    groups = {
        "PerFrameFunctionalGroupsSequence": items(FrameVOILUTSequence=window) * 2,
        "SharedFunctionalGroupsSequence": items(PixelMeasuresSequence=items(PixelSpacing=["0.5", "0.25"])),
    }
    region = items(PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=0.01, PhysicalDeltaY=0.01)
    palette = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    palette |= {f"{c}PaletteColorLookupTableData": bytes(range(256)) * 2 for c in ("Red", "Green", "Blue")}
    table = items(LUTDescriptor=[256, 0, 16])
    table[0].add_new("LUTData", "OW", bytes(range(256)) * 2)
    found += [
        {"frames.dcm": _dicom(dataset(frames, NumberOfFrames=2, **groups))},
        {"us.dcm": _dicom(dataset(picture(), Modality="US", SequenceOfUltrasoundRegions=region))},
        {"palette.dcm": _dicom(dataset(grey, PhotometricInterpretation="PALETTE COLOR", **palette))},
        {"table.dcm": _dicom(dataset(grey, VOILUTSequence=table, PhotometricInterpretation="MONOCHROME1"))},
        {"IM0001": _dicom(dataset(frames[0], RescaleSlope="2", RescaleIntercept="-100", WindowCenter=["9", "10"]))},
    ]
    packed = dataset(frames[0])
    packed.compress(RLELossless)
    jpegs = dataset(np.stack([grey, grey]), NumberOfFrames=2)
    jpegs.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    jpegs.PixelData = encapsulate([_cv(".jpg", grey), _cv(".jpg", grey)])
    jpegs["PixelData"].VR = "OB"
    return [*found, {"packed.dcm": _dicom(packed)}, {"jpegs.dcm": _dicom(jpegs)}]


def _dicom(found: pydicom.Dataset) -> bytes:
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(found, name, "1.2.3.4")
    found.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    file = io.BytesIO()
    found.save_as(file, enforce_file_format=True)
    return file.getvalue()


@functools.cache
def nifti() -> list[Tree]:
    rng = np.random.default_rng(0)
    volumes = [rng.integers(0, 999, (9, 12, 5)).astype(kind) for kind in (np.int16, np.uint8, np.float32, np.float64)]
    affine = np.diag([-0.9, 0.9, 3.0, 1.0])
    found: list[Tree] = []
    for number, volume in enumerate(volumes):
        one = nibabel.Nifti1Image(volume, affine)
        if number == 0:
            one.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"an extension"))
            one.header.set_slope_inter(-2.0, 5.0)
        found += [{f"{number}.nii": one.to_bytes()}, {f"{number}.nii.gz": gzip.compress(one.to_bytes(), mtime=0)}]
    found.append({"two.nii": nibabel.Nifti2Image(volumes[0], affine).to_bytes()})
    return found


@functools.cache
def prepared() -> list[Tree]:
    """The folder of each source, as `mcis build` reads it."""
    found = []
    for source in sorted(path for path in DUMMY.iterdir() if path.is_dir()):
        files = sorted(path for path in source.rglob("*") if path.is_file())
        found.append({path.relative_to(DUMMY).as_posix(): path.read_bytes() for path in files})
    return found


@functools.cache
def zips() -> list[Tree]:
    """The same folders as zip archives: stored, deflated, bzip2 and LZMA."""
    found: list[Tree] = []
    for number, tree in enumerate(prepared()):
        file = io.BytesIO()
        with zipfile.ZipFile(
            file, "w", (0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)[number % 4]
        ) as made:
            for name, content in tree.items():
                made.writestr(zipfile.ZipInfo(name.split("/", 1)[1]), content)
        found.append({f"{next(iter(tree)).split('/')[0]}.zip": file.getvalue()})
    return found


@functools.cache
def reports() -> list[Tree]:
    """A report of three scans, and two shards to merge."""
    from mcis.report.finding import Finding
    from mcis.report.writer import ReportWriter

    rows = [
        Finding("a.png", organ="brain", organ_prob=0.9, label="tumor", label_probs={"tumor": 0.9, "no_tumor": 0.1}),
        Finding("b/c.png", error="b/c.png: empty file"),
        Finding(
            "d.dcm", organ="breast", boxes=[[1, 2, 3, 4]], lesion_area_px=9, diameter_px=4.0, notes=["a"], review=True
        ),
    ]
    mask = (picture()[..., 0] > 100).astype(np.uint8)
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        for place in ("", "shard_0_of_2", "shard_1_of_2"):
            options = {"paths": ["a"]} | ({"shard": f"{place[6]}/2"} if place else {})
            with ReportWriter(folder / (place or "one"), options, weights={"folder": "w"}) as report:
                report.add(rows[0], picture(), mask)
                for row in rows[1:]:
                    report.add(row)
        one = _tree(folder / "one", "findings.jsonl", "run.json", "overlays/*", "masks/*")
        return [one, _tree(folder, "shard_*/findings.jsonl", "shard_*/run.json", "shard_*/overlays/*")]


@functools.cache
def weights() -> list[Tree]:
    """Weights folders with random arrays: a calibrated segmenter, an ensemble, a router with OOD statistics.

    Orbax uses random file names, so the folders are made once and kept in ./fuzz.
    """
    import jax

    from mcis.checkpoints import checkpoint
    from mcis.checkpoints.bundle import Weights, ensemble
    from mcis.tasks.table import task_to_json
    from tests.fixtures.tasks import small_task

    if not KEPT.is_dir():
        KEPT.parent.mkdir(exist_ok=True)
        folder = pathlib.Path(tempfile.mkdtemp(dir=KEPT.parent))
        for name in ("segment_breast", "route"):
            task = small_task(name, model="light")
            empty = np.zeros((1, 32, 32, 3), np.float32)
            outputs, arrays = task.make_model().init_with_output(jax.random.key(0), empty)
            manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": task.epochs}
            manifest |= {"validation": {"dice": 0.5}, "fingerprints": {"train": ["a"], "validation": ["b"]}}
            one = Weights(task, jax.tree.map(np.asarray, arrays), manifest)
            if name == "route":
                width = outputs.features.shape[1]
                mean, whiten = np.zeros((2, width), np.float32), np.eye(width, dtype=np.float32)
                fitted = {"novelty": {"mean": mean, "whiten": whiten, "limit": np.float32(1)}}
            else:
                fitted = {"calibration": {"slope": np.float32(1), "review": np.float32(0.5)}}
                both = ensemble([one, one])
                checkpoint.save(folder / "ensemble" / name, both.variables, both.manifest)
            checkpoint.save(folder / name / name, one.variables | fitted, manifest)
        folder.rename(KEPT)
    return [_tree(place, "**/*") for place in sorted(KEPT.iterdir())]


def _tree(folder: pathlib.Path, *patterns: str) -> Tree:
    """Files of a folder; those of one pattern are ordered by size, because some have random names."""
    found: Tree = {}
    for pattern in patterns:
        files = [path for path in folder.glob(pattern) if path.is_file()]
        for path in sorted(files, key=lambda path: (len(path.parts), path.stat().st_size, path)):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def jsons(value: object) -> bytes:
    """A JSON file."""
    return json.dumps(value).encode()
